"""What a run saves, when, and which of its checkpoints it goes back to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lookback.checkpoints.manifest import checkpoints_in
from lookback.checkpoints.store import BEST, Checkpoint, find_checkpoint
from lookback.training.best import BestEvaluation
from lookback.training.checkpointing import RunCheckpoints
from lookback.training.config import RunConfig
from lookback.training.milestones import Position


class Contents:
    """One number, saved as a tensor."""

    def __init__(self) -> None:
        self.value, self.meta = 0.0, {"model": {}}

    @property
    def pieces(self) -> dict[str, np.ndarray]:
        return {"x": np.array([self.value])}

    def restore(self, checkpoint: Checkpoint) -> None:
        self.take_model(checkpoint)

    def take_model(self, checkpoint: Checkpoint) -> None:
        self.value = float(checkpoint["x"][0])


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def run_of(path: Any, best: BestEvaluation | None = None) -> tuple[RunCheckpoints, Contents, Any]:
    config = RunConfig(model_type="m", dataset_dir="d", save_checkpoint_path=path)
    contents = Contents()
    return RunCheckpoints(config, contents, best), contents, Log()  # type: ignore[arg-type]


def test_a_run_goes_on_at_its_position_and_knows_its_evaluations(tmp_path):
    best = BestEvaluation("validation_auc")
    checkpoints, contents, log = run_of(tmp_path / "saved", best)
    checkpoints.begin(log)
    contents.value = 3.0
    best.add(7, {"validation_auc": 0.6})
    position = Position(epoch=1, step=2, total_steps=7, updates_before=5)
    checkpoints.save(position)

    known = BestEvaluation("validation_auc")
    again, restored, _ = run_of(tmp_path / "saved", known)
    assert again.restore(Checkpoint(find_checkpoint(tmp_path / "saved"))) == position
    assert restored.value == 3.0
    assert (known.step, known.value) == (7, 0.6)
    again.begin(log)  # the same run: not refused


def test_who_is_told_to_end_saves_what_is_not_saved_yet(tmp_path):
    checkpoints, contents, log = run_of(tmp_path / "saved")
    checkpoints.begin(log)
    position = Position(step=1, total_steps=1)
    for value in (1.0, 2.0):  # the second time it is there already
        contents.value = value
        checkpoints.save_and_leave(position, log)
    assert Checkpoint(find_checkpoint(tmp_path / "saved"))["x"].tolist() == [1.0]
    assert len(log.lines) == 2
    assert "told to end after 1 steps of epoch 1" in log.lines[0]


def test_a_run_without_a_directory_saves_nothing_and_says_so(tmp_path):
    checkpoints, _, log = run_of(None, BestEvaluation("validation_auc"))
    position = Position(step=1, total_steps=1)
    checkpoints.begin(log)
    checkpoints.save(position)
    checkpoints.keep_as_best(position)
    assert not checkpoints.saves
    assert not checkpoints.take_best(position, log)
    checkpoints.save_and_leave(position, log)
    assert "nothing is saved without --save_checkpoint_path" in log.lines[0]


def test_the_best_model_comes_back(tmp_path):
    best = BestEvaluation("validation_auc")
    checkpoints, contents, log = run_of(tmp_path / "saved", best)
    checkpoints.begin(log)
    for step, auc in ((1, 0.7), (2, 0.6)):
        position = Position(step=step, total_steps=step)
        contents.value = float(step)
        if best.add(step, {"validation_auc": auc}):
            checkpoints.keep_as_best(position)  # saves, as this step was not yet
            assert not checkpoints.take_best(position, log)  # the model is that one
    assert [p.name for p in checkpoints_in(tmp_path / "saved" / BEST)] == ["step-00000001"]
    assert checkpoints.take_best(position, log)
    assert contents.value == 1.0
    assert not log.lines


@pytest.mark.parametrize(
    ("figures", "reason"),
    [({1: None}, "no evaluation had the figure"), ({1: 0.7}, "a run was saved elsewhere")],
)
def test_the_last_model_counts_where_the_best_is_not_there(tmp_path, figures, reason):
    best = BestEvaluation("validation_auc")
    checkpoints, contents, log = run_of(tmp_path / "saved", best)
    checkpoints.begin(log)
    for step, auc in figures.items():
        best.add(step, {"validation_auc": auc})
    contents.value = 2.0
    assert not checkpoints.take_best(Position(total_steps=2), log)
    assert contents.value == 2.0
    assert reason in log.lines[0]
