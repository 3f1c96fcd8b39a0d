"""Evaluations within an epoch, early ends, the scheduled learning rate: through the trainer."""

from __future__ import annotations

import math
import signal

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.training.config import RunConfig
from lookback.training.milestones import Milestones, Position
from lookback.training.output.logging import read_log
from tests.training.test_trainer import dataset as dataset
from tests.training.test_trainer import interrupt_after, poison_gradients, quiet, state, trainer

pytestmark = pytest.mark.usefixtures("eagerly")

ONCE = {"eval_every": None}


def steps_with_auc(directory) -> list[tuple[int, ...]]:
    return [tuple(r.step) for r in read_log(directory / "log.json") if "test_auc" in r.data]


def test_it_evaluates_every_n_steps_after_some_epochs(dataset, tmp_path):
    trained = trainer(dataset, test_freq=2, test_after=0.5, eval_split="test", **ONCE)
    with quiet(tmp_path) as log:
        trained.train(log)
    total = trained.position.total_steps
    an_epoch = total // 2
    wanted = [t for t in range(2, total + 1, 2) if t >= 0.5 * an_epoch]
    found = [step for step in steps_with_auc(tmp_path) if len(step) == 2]
    assert found == [divmod(t - 1, an_epoch) for t in wanted]


def test_it_ends_after_max_steps_and_evaluates_there(dataset, tmp_path):
    trained = trainer(dataset, max_steps=3, save_checkpoint_path=tmp_path / "saved")
    with quiet(tmp_path) as log:
        outcome = trained.train(log)
    assert trained.position.total_steps == 3
    assert 0 <= outcome.summary["test_auc"] <= 1
    again = trainer(dataset, checkpoint=tmp_path / "saved", max_steps=3)
    with quiet(tmp_path) as log:
        assert again.train(log).summary["test_auc"] == outcome.summary["test_auc"]
    assert again.position.total_steps == 3


@pytest.mark.slow
def test_the_run_goes_on_where_max_steps_ended_it(dataset, tmp_path):
    whole = trainer(dataset)
    with quiet(tmp_path) as log:
        whole.train(log)
    first = trainer(dataset, max_steps=5, save_checkpoint_path=tmp_path / "saved")
    with quiet(tmp_path) as log:
        first.train(log)
    second = trainer(dataset, checkpoint=tmp_path / "saved")
    with quiet(tmp_path) as log:
        second.train(log)
    for name, value in state(whole).items():
        np.testing.assert_array_equal(state(second)[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"test_freq": 2}])
def test_it_ends_once_the_auc_is_reached(dataset, tmp_path, more):
    trained = trainer(dataset, epochs=4, auc_threshold=0.01, eval_split="test", **more)
    with quiet(tmp_path) as log:
        trained.train(log)
    wanted = more.get("test_freq", trained.source.train_steps())
    assert trained.position.total_steps == wanted


@pytest.mark.slow
def test_the_scheduled_rate_is_logged_and_continues(dataset, tmp_path):
    more = {
        "optimizer": "sgd",
        "lr": 0.5,
        "warmup_steps": 3,
        "decay_start_step": 4,
        "decay_steps": 6,
    }
    whole = trainer(dataset, **more)
    with quiet(tmp_path) as log:
        whole.train(log)
    rates = [r.data["lr"] for r in read_log(tmp_path / "log.json") if "lr" in r.data]
    expected = [0.5 * t / 3 for t in (1, 2, 3)] + [0.5]
    expected += [0.5 * ((10 - t) / 6) ** 2 for t in range(5, 11)]
    expected += [0.0] * (len(rates) - len(expected))
    np.testing.assert_allclose(rates, expected[: len(rates)], rtol=1e-5, atol=1e-7)
    first = trainer(dataset, save_checkpoint_path=tmp_path / "saved", **more)
    interrupt_after(first, 5, signal.SIGTERM)
    with quiet(tmp_path) as log, pytest.raises(SystemExit):
        first.train(log)
    second = trainer(dataset, checkpoint=tmp_path / "saved", **more)
    with quiet(tmp_path) as log:
        second.train(log)
    for name, value in state(whole).items():
        np.testing.assert_array_equal(state(second)[name], value, err_msg=name)


def test_the_first_rate_moves_the_weights_as_sgd_does(dataset, tmp_path):
    """One step of SGD at the warm-up's first rate moves by W times less than at the base rate."""
    moved = []
    for more in ({}, {"warmup_steps": 4}):
        trained = trainer(dataset, optimizer="sgd", lr=0.4, max_steps=1, **more)
        before = state(trained)
        with quiet(tmp_path) as log:
            trained.train(log)
        after = state(trained)
        names = [n for n in before if before[n].dtype == np.float32 and "step" not in n]
        moved.append(np.concatenate([(after[n] - before[n]).ravel() for n in names]))
    assert np.abs(moved[0]).max() > 0
    np.testing.assert_allclose(moved[1], moved[0] / 4, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("scale", [None, 8.0])
def test_an_overflow_skips_a_step_while_the_scale_can_fall(dataset, tmp_path, scale):
    fp16 = {"gradient_wire_dtype": "float16", "loss_scale": scale}
    trained = trainer(dataset, max_steps=3, results_dir=tmp_path, **fp16)
    poison_gradients(trained.model)
    with quiet(tmp_path) as log:
        if scale is None:
            trained.train(log)
            assert trained.position.total_steps == 3
            return
        with pytest.raises(UserError, match="not finite"):
            trained.train(log)


def test_when_to_evaluate_follows_from_the_position() -> None:
    run = RunConfig(model_type="m", dataset_dir="d", epochs=3, test_freq=4, test_after=1.25)
    milestones = Milestones(run, steps_an_epoch=8, goals={"auc": 0.7, "hr@5": 0.5}, watched="test")
    due = [
        total
        for total in range(1, 25)
        if milestones.test_is_due(Position(total // 8, total % 8, total))
    ]
    assert due == [total for total in range(1, 25) if total % 4 == 0 and total / 8 >= 1.25]
    assert not milestones.evaluation_is_due(Position(1, 0, 8))
    assert milestones.evaluation_is_due(Position(2, 0, 16))
    assert not milestones.reached({"test_auc": 0.69, "test_hr@5": 0.49})
    assert milestones.reached({"test_auc": 0.69, "test_hr@5": 0.5})
    assert not Milestones(run, steps_an_epoch=8).reached({"test_auc": math.inf})
