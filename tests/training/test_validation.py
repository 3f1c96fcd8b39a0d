"""What evaluations on the way of training keep, and when they end it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lookback.training.best import BestEvaluation
from lookback.training.config import RunConfig
from lookback.training.evaluation.splits import Splits
from lookback.training.milestones import Milestones, Position
from lookback.training.outcome import Outcome
from lookback.training.signals import TerminationRequest
from lookback.training.validation import Validation

NOBODY = TerminationRequest()


class Parts:
    """Stands for the evaluation, the checkpoints and the log of a run, and notes what they do.

    Attributes:
      aucs: that the model has, one an evaluation of what is watched.
      better: whether the best checkpoint is of another model than the present one.
    """

    def __init__(self, aucs: Sequence[float], watched: str | None, better: bool) -> None:
        self.splits = Splits(watched, ("test",))
        self.best = None if watched is None else BestEvaluation("validation_auc", patience=2)
        self.aucs, self.better, self.done = list(aucs), better, list[Any]()

    def run(
        self,
        log: Any,
        termination: Any,
        splits: Sequence[str] | None = None,
        and_train: bool = True,
    ) -> Outcome:
        splits = self.splits.all if splits is None else splits
        self.done.append(tuple(splits))
        return Outcome({f"{s}_auc": self.aucs.pop(0) for s in splits}, {s: s for s in splits})  # type: ignore[misc]

    def keep_as_best(self, position: Position) -> None:
        self.done.append(f"keep {position.total_steps}")

    def take_best(self, position: Position, log: Any) -> bool:
        self.done.append("take")
        return self.better

    def message(self, text: str) -> None:
        self.done.append(text)

    def step(self, *values: Any) -> None:
        self.done.append(values)


def made(
    aucs: Sequence[float], *, watched: str | None = "validation", better: bool = False, **more: Any
) -> tuple[Validation, Parts]:
    config = RunConfig(model_type="m", dataset_dir="d", epochs=3, **more)
    parts = Parts(aucs, watched, better)
    milestones = Milestones(config, 10, {"auc": 0.9}, watched)
    return Validation(config, parts, parts, milestones, parts), parts  # type: ignore[arg-type]


def test_the_best_so_far_is_kept_and_patience_or_a_goal_ends_training():
    validation, parts = made([0.6, 0.7, 0.65, 0.7])
    ends = [
        validation.ends(validation.run(Position(epoch=n, total_steps=10 * n), NOBODY))
        for n in (1, 2, 3, 4)
    ]
    assert ends == [False, False, False, True]
    assert validation.exhausted
    assert [done for done in parts.done if isinstance(done, str)] == ["keep 10", "keep 20"]
    validation, _ = made([0.95])
    assert validation.ends(validation.run(Position(epoch=1, total_steps=10), NOBODY))
    assert not validation.ends(None)


def test_within_an_epoch_its_figures_are_logged_at_the_last_step():
    validation, parts = made([0.6])
    validation.run_within_epoch(Position(epoch=1, step=4, total_steps=14), NOBODY)
    assert parts.done[-1] == (1, 3, {"validation_auc": 0.6})
    validation, parts = made([], watched=None)
    assert validation.run_within_epoch(Position(step=4, total_steps=4), NOBODY) is None
    assert not parts.done


@pytest.mark.parametrize(
    ("position", "known", "runs"),
    [
        (Position(), (), False),  # a run that begins
        (Position(epoch=1, total_steps=10), (), True),
        (Position(epoch=1, total_steps=10), (10,), False),
        (Position(epoch=1, step=4, total_steps=14), (10,), True),  # --test_freq 7
        (Position(epoch=1, step=5, total_steps=15), (10,), False),
    ],
)
def test_a_run_that_goes_on_evaluates_what_was_killed_before_its_evaluation(position, known, runs):
    validation, parts = made([0.6], test_freq=7)
    for step in known:
        parts.best.add(step, {"validation_auc": 0.5})
    assert (validation.run_if_missed(position, NOBODY) is not None) == runs
    assert parts.done == ([("validation",), f"keep {position.total_steps}"] if runs else [])


def test_the_end_evaluates_only_what_was_not_yet():
    validation, parts = made([0.6, 0.8])
    position = Position(epoch=3, total_steps=30)
    found = validation.finish(validation.run(position, NOBODY), position, NOBODY)
    assert parts.done == [("validation",), "keep 30", ("test",)]
    assert found.summary == {"validation_auc": 0.6, "test_auc": 0.8}
    assert set(found.curves) == {"validation", "test"}


def test_the_best_model_is_evaluated_anew_where_it_is_another(tmp_path):
    position = Position(epoch=3, total_steps=30)
    more = {"export_best": True, "export_dir": tmp_path / "bundle"}
    more["save_checkpoint_path"] = tmp_path / "saved"
    validation, parts = made([0.6, 0.7, 0.8], better=True, **more)
    found = validation.finish(validation.run(position, NOBODY), position, NOBODY)
    message = "the best validation_auc: 0.6000 after step 30"
    assert parts.done[2:] == [message, "take", ("validation", "test")]
    assert found.summary == {"validation_auc": 0.7, "test_auc": 0.8}


def test_nothing_is_watched_before_the_end_without_a_split_for_it():
    validation, parts = made([0.8], watched=None)
    assert validation.run(Position(epoch=1, total_steps=10), NOBODY) is None
    validation.finish(None, Position(epoch=3, total_steps=30), NOBODY)
    assert parts.done == [("test",)]
