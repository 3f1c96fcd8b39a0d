"""The best evaluation of a run so far, by one figure, and how many came after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lookback.core.errors import UserError
from lookback.training.evaluation.choice import MetricChoice
from lookback.training.evaluation.names import family

_FALLS = ("log_loss",)
_NO_ORDER = ("calibration",)
"""Best at 1, from either side: no measure of which of two models is better."""


class BestEvaluation:
    """Compares evaluations by one figure; equal is not better.

    Attributes:
      figure: its name in a summary, such as ``validation_auc``.
    """

    def __init__(self, figure: str, patience: int | None = None) -> None:
        """Begins without an evaluation.

        Args:
          figure: to compare.
          patience: after how many evaluations in a row that are no better training ends; None:
            never.
        """
        self.figure = figure
        self._patience = patience
        self._found: dict[int, float | None] = {}

    def add(self, step: int, figures: Mapping[str, Any]) -> bool:
        """Takes an evaluation; whether it is the best so far.

        Args:
          step: steps that were done; what was found after later ones is forgotten.
          figures: what was found, by name. A figure that is None (as one class has no AUC) is not
            better than any.
        """
        self._found = {s: v for s, v in self._found.items() if s < step}
        self._found[step] = figures[self.figure]
        return self.step == step

    @property
    def step(self) -> int | None:
        """After how many steps the best was found; None: none was."""
        known = {step: value for step, value in self._found.items() if value is not None}
        if not known:
            return None
        sign = -1 if self.falls else 1
        return max(known, key=lambda step: (sign * known[step], -step))

    @property
    def value(self) -> float | None:
        """The best figure; None: there is none."""
        return None if self.step is None else self._found[self.step]

    @property
    def falls(self) -> bool:
        """Whether less is better."""
        return self.figure.endswith(_FALLS)

    @property
    def exhausted(self) -> bool:
        """Whether as many evaluations in a row were no better as end training."""
        best = self.step
        later = [step for step in self._found if best is None or step > best]
        return self._patience is not None and len(later) >= self._patience

    def knows(self, step: int) -> bool:
        """Whether an evaluation after so many steps was taken."""
        return step in self._found

    def __str__(self) -> str:
        """For people."""
        found = "none yet" if self.value is None else f"{self.value:.4f} after step {self.step:,}"
        return f"{self.figure}: {found}"

    @property
    def meta(self) -> dict[str, Any]:
        """All that was found, for JSON."""
        return {"figure": self.figure, "found": [list(pair) for pair in self._found.items()]}

    def restore(self, meta: Mapping[str, Any]) -> None:
        """Takes over what a checkpoint says was found, if it is of the same figure."""
        if meta.get("figure") == self.figure:
            self._found = {int(step): value for step, value in meta["found"]}


def best_by(
    metric: str | None, patience: int, choice: MetricChoice, split: str, *, both_classes: bool
) -> BestEvaluation | None:
    """How the best evaluation of a run is found.

    Args:
      metric: at which training is to stop: its name, with the evaluation's in front where that is
        not the split's only one (``catalogue_hr@10``); None: the first that has an order, and
        training does not stop by it.
      patience: see `BestEvaluation`.
      choice: what is evaluated.
      split: that is evaluated on the way.
      both_classes: whether it has rows of both labels.

    Returns:
      None if no metric was named, and none has an order.

    Raises:
      UserError: if the metric is not evaluated, or has no order.
    """
    names = _names(choice, split)
    ordered = [name for name in names if not name.endswith(_NO_ORDER)]
    if not both_classes:
        ordered = [name for name in ordered if not name.endswith("auc")]
    if metric is None:
        return BestEvaluation(f"{split}_{ordered[0]}") if ordered else None
    if metric not in ordered:
        expected = f"expected of {', '.join(ordered) or 'none'}, which the {split} split has"
        fix = "Add it to --metrics" if family(metric) != metric else "Choose one of them"
        raise UserError(f"early_stopping: {expected}, received {metric!r:.60}. {fix}.")
    return BestEvaluation(f"{split}_{metric}", patience)


def _names(choice: MetricChoice, split: str) -> Sequence[str]:
    """Names of a split's figures, without the split's."""
    return [
        f"{found.name}_{name}".removeprefix(f"{split}_")
        for found, kinds in choice.items()
        if found.name == split or found.name.startswith(f"{split}_")
        for names in kinds.values()
        for name in names
    ]
