"""Which metrics an evaluation computes, of those that `--metrics` names or the data is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lookback.core.errors import UserError
from lookback.dataloading.evaluations import EvaluationKind, EvaluationPass
from lookback.training.evaluation.names import BINARY, RANKING, all_of, cutoff, family

_FAMILIES: dict[EvaluationKind, tuple[str, ...]] = {"binary": BINARY, "ranking": RANKING}

MetricChoice = dict[EvaluationPass, dict[EvaluationKind, tuple[str, ...]]]
"""The names of the metrics of each pass, by the kind that computes them."""


def choose(
    passes: Sequence[EvaluationPass], metrics: Sequence[str] | None, *, grouped: bool
) -> MetricChoice:
    """Gives each metric to every pass that has it.

    Args:
      passes: of the evaluation.
      metrics: names; None: those that each pass is for.
      grouped: whether rows belong to users, so that there is a GAUC.

    Raises:
      UserError: if the data does not allow a metric, or nothing is left of a pass.
    """
    allowed = [name for found in passes for name in _allowed(found, grouped)]
    for name in metrics or ():
        if family(name) not in allowed:
            raise UserError(
                f"metrics: expected of {all_of(allowed)}, which is what this data allows, "
                f"received {name!r}."
            )
    choice: MetricChoice = {}
    for found in passes:
        wanted = _defaults(found, grouped) if metrics is None else metrics
        choice[found] = {kind: names for kind in found.kinds if (names := _of(kind, found, wanted))}
        if not choice[found]:
            raise UserError(
                f"metrics: expected one or more of {all_of(_allowed(found, grouped))} for the "
                f"evaluation {found.name!r}, received {','.join(metrics or ())}. Name one of them, "
                "too, or leave out the option that asks for this evaluation."
            )
    return choice


def check_cutoffs(choice: MetricChoice) -> None:
    """Refuses K that cut nothing off: with as many candidates or fewer, every model has HR@K 1.

    Args:
      choice: what is evaluated.

    Raises:
      UserError: naming the metric, and how many candidates there are.
    """
    for found, kinds in choice.items():
        for name in kinds.get("ranking", ()):
            k, most = cutoff(name), found.candidates
            if k is not None and most is not None and k >= most:
                raise UserError(
                    f"metrics: expected K below {most}, which are the candidates of the evaluation "
                    f"{found.name!r} with the positive, received {name}: no model can miss "
                    "it. Choose a smaller K (--metrics, --topk), or more candidates "
                    "(--test_negatives)."
                )


def check_goals(
    goals: Mapping[str, float], choice: MetricChoice, split: str, *, both_classes: bool = True
) -> None:
    """Refuses to wait for figures that will not come.

    Args:
      goals: by name, at which training is to stop.
      choice: what is evaluated.
      split: whose figures are waited for.
      both_classes: whether the split has rows of both labels.

    Raises:
      UserError: naming the goal.
    """
    of_split = [kinds for found, kinds in choice.items() if found.name == split]
    names = [name for kinds in of_split for of_kind in kinds.values() for name in of_kind]
    for name, goal in goals.items():
        if name not in names:
            raise UserError(
                f"metrics: training is to stop at {name} {goal:g}, expected among the metrics, "
                f"received {','.join(names)}. Add {name}, or leave the threshold out."
            )
        if name == "auc" and not both_classes:
            raise UserError(
                f"auc_threshold: expected rows of both labels in the {split} split, which all have "
                f"one: there will be no AUC to reach {goal:g}. Leave --auc_threshold out."
            )


def _allowed(found: EvaluationPass, grouped: bool) -> list[str]:
    names = [name for kind in found.kinds for name in _FAMILIES[kind]]
    return [name for name in names if grouped or name != "gauc"]


def _defaults(found: EvaluationPass, grouped: bool) -> tuple[str, ...]:
    if found.kinds[0] == "ranking":
        return (f"hr@{found.topk}", f"ndcg@{found.topk}", "mrr", "log_loss")
    return ("auc", "gauc", "log_loss") if grouped else ("auc", "log_loss")


def _of(kind: EvaluationKind, found: EvaluationPass, metrics: Sequence[str]) -> tuple[str, ...]:
    """Metrics that are this kind's: the first kind of a pass that has a metric computes it."""
    before = found.kinds[: found.kinds.index(kind)]
    taken = [name for other in before for name in _FAMILIES[other]]
    return tuple(
        name
        for name in dict.fromkeys(metrics)
        if family(name) in _FAMILIES[kind] and family(name) not in taken
    )
