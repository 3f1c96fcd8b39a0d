"""Steps are read when they must be, in order, and the first loss that is not finite ends a run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.training.milestones import Position
from lookback.training.output.logging import RunLogger, read_log
from lookback.training.output.performance import PerformanceMeter
from lookback.training.step_monitor import StepMonitor


class Source:
    """Its batches are their own numbers."""

    def train_feeds(self, epoch: int, first_step: int) -> Any:
        return iter(range(10 * epoch + first_step, 10 * epoch + 10))

    def describe(self, feed: int) -> dict[str, list[int]]:
        return {"user_id": [feed]}


def step(loss: float = 1.0, **facts: Any) -> dict[str, tf.Tensor]:
    given = {"total_loss": loss, "rows": 2, "finite": True, "adapts": False, "stop": 0, **facts}
    return {name: tf.constant(value) for name, value in given.items()}


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def ahead(request, monkeypatch) -> bool:
    monkeypatch.setattr("lookback.training.step_monitor.has_gpu", lambda: request.param)
    return request.param


@pytest.fixture
def made(ahead, tmp_path) -> Any:
    meter = PerformanceMeter()
    with RunLogger(tmp_path, tensorboard=False) as log:
        monitor = StepMonitor(Source(), log, meter, log_every=4, learning_rate=lambda: 0.25)  # type: ignore[arg-type]
        yield monitor, meter


def at(total: int) -> Position:
    return Position(epoch=total // 10, step=total % 10, total_steps=total)


def test_who_is_asked_to_stop_is_known_after_the_next_step_that_is_read(made, ahead):
    """Of several processes: all know it after the same step, whenever each has computed it."""
    monitor, meter = made
    stops = [monitor.add(at(n), step(stop=stop)) for n, stop in enumerate((0, 0, 1, 0, 0, 0))]
    assert stops == [n == (4 if ahead else 2) for n in range(6)]
    assert meter.measured_steps == (5 if ahead else 6)
    assert not monitor.read()
    assert meter.measured_steps == 6


def test_steps_are_read_on_demand(made):
    monitor, meter = made
    monitor.add(at(1), step())
    assert monitor.add(at(2), step(stop=1), wait=True)
    assert meter.measured_steps == 2


def test_every_fourth_step_is_logged(made, tmp_path):
    monitor, _ = made
    for number in range(1, 12):
        monitor.add(at(number), step(loss=number))
    monitor.read()
    logged = {record.step: record.data for record in read_log(tmp_path / "log.json")}
    assert list(logged) == [(0, 4), (0, 8)]
    assert logged[0, 8]["total_loss"] == 8
    assert logged[0, 8]["lr"] == 0.25
    assert logged[0, 8]["rows"] == 2
    assert monitor.losses.ends() == (3, 9)  # means of 1..5 and 7..11


@pytest.mark.parametrize("fault", [{"loss": float("nan")}, {"finite": False}])
def test_the_first_step_that_is_not_finite_is_named(made, tmp_path, fault):
    monitor, _ = made
    with pytest.raises(UserError, match=r"in epoch 2, step 4\..*user_id=\[13\]"):
        for number, faults in ((12, {}), (13, fault), (14, {}), (15, fault), (16, {})):
            monitor.add(at(number), step(**faults))
    assert json.loads((tmp_path / "bad_batch.json").read_text()) == {"user_id": [13]}


def test_an_overflow_that_the_loss_scale_adapts_to_is_no_fault(made):
    monitor, _ = made
    assert not monitor.add(at(4), step(finite=False, adapts=True))
