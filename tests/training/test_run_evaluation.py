"""Which splits a run evaluates, what it refuses beforehand, and what it logs once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lookback.core.errors import UserError
from lookback.dataloading.evaluations import EvaluationPass, LeftOut
from lookback.training.config import RunConfig
from lookback.training.evaluation.run_evaluation import RunEvaluation
from lookback.training.outcome import Outcome

EVALUATES = {"mode": "evaluate", "eval_split": "validation", "load_checkpoint_path": Path("saved")}


class Source:
    """Its test split is evaluated twice; it has a label of one class."""

    held_out = ("validation", "test")
    grouped = True

    def evaluations(self, split: str) -> list[EvaluationPass]:
        names = ["test", "test_late"] if split == "test" else [split]
        return [EvaluationPass(name) for name in names]

    def eval_steps(self, name: str) -> int:
        if name == "test_late":
            raise UserError("test_late: it has no rows.")
        return 1

    def both_classes(self, split: str) -> bool:
        return False

    def left_out(self, name: str) -> LeftOut:
        return LeftOut(unknown_targets=2 if name == "validation" else 0)


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def made(goals: dict[str, float] | None = None, **more: Any) -> RunEvaluation:
    config = RunConfig(model_type="m", dataset_dir="d", **more)
    return RunEvaluation(None, Source(), config, goals or {})  # type: ignore[arg-type]


@pytest.fixture
def passes(monkeypatch) -> list[str]:
    """The names of passes that were gone over."""
    gone: list[str] = []

    def run(_: Any, passes: Any, *others: Any) -> Outcome:
        gone.extend(found.name for found in passes)
        figures = {f"{found.name}_gauc": None for found in passes}
        baselines = {"validation_hr@10": 0.25, "validation_gauc": 0.5}
        return Outcome(figures, {}, baselines)

    monkeypatch.setattr("lookback.training.evaluation.passes.Evaluations.run", run)
    return gone


def test_a_pass_that_cannot_be_made_is_refused_before_training_but_not_before_a_benchmark():
    with pytest.raises(UserError, match="it has no rows"):
        made()
    made(benchmark=True)
    assert made(**EVALUATES).splits.all == ("validation",)


def test_a_goal_that_cannot_come_is_refused(monkeypatch):
    monkeypatch.setattr(Source, "eval_steps", lambda self, name: 1)
    with pytest.raises(UserError, match="auc_threshold: expected rows of both labels"):
        made({"auc": 0.7})
    assert made().best.figure == "validation_log_loss"  # one class has no AUC


def test_passes_of_splits_and_of_training_where_the_run_asks_for_it(passes):
    evaluation = made(**EVALUATES, eval_train=True)
    evaluation.run(Log())
    assert passes == ["validation", "train"]
    evaluation.run(Log(), None, ("test",), and_train=False)
    assert passes[2:] == ["test", "test_late"]


def test_what_figures_need_to_be_understood_is_logged_once(passes):
    evaluation, log = made(**EVALUATES), Log()
    for _ in range(2):
        evaluation.run(log)
    assert log.lines == [
        f"left out of validation: {LeftOut(unknown_targets=2)}",
        "validation_gauc is absent: no user has rows of both classes",
        "ranking by the items' popularity in training gives  validation_gauc 0.5000",
    ]
