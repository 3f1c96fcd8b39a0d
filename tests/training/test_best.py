"""The best checkpoint, and an end where nothing better comes: against the figures in the log."""

from __future__ import annotations

import numpy as np
import pytest

from lookback.checkpoints.manifest import checkpoints_in, step_of
from lookback.checkpoints.store import BEST, CheckpointStore
from lookback.core.errors import UserError
from lookback.training.best import BestEvaluation
from lookback.training.output.logging import read_log
from tests.training.test_trainer import dataset as dataset
from tests.training.test_trainer import interrupt_after, quiet, state, trainer

pytestmark = pytest.mark.usefixtures("eagerly")


def found(values, figure="validation_auc", patience=None):
    best = BestEvaluation(figure, patience)
    better = [best.add(step, {figure: value}) for step, value in enumerate(values)]
    return best, better


@pytest.mark.parametrize(
    ("figure", "values", "better", "step"),
    [
        ("validation_auc", [0.5, 0.7, 0.6, 0.7], [True, True, False, False], 1),
        ("validation_log_loss", [0.5, 0.7, 0.4], [True, False, True], 2),
        ("validation_auc", [None, 0.2, None], [False, True, False], 1),
        ("validation_auc", [None], [False], None),
    ],
)
def test_the_first_of_the_best_counts(figure, values, better, step):
    best, said = found(values, figure)
    assert said == better
    assert best.step == step
    assert best.value == (None if step is None else values[step])
    again = BestEvaluation(figure)
    again.restore(best.meta)
    assert (again.step, again.value) == (best.step, best.value)
    other = BestEvaluation("validation_mrr")
    other.restore(best.meta)
    assert other.step is None


def test_patience_counts_evaluations_that_are_no_better():
    assert not found([0.5, 0.4], patience=2)[0].exhausted
    assert found([0.5, 0.4, 0.5], patience=2)[0].exhausted
    assert not found([0.5, 0.4, 0.6], patience=2)[0].exhausted
    assert found([None, None], patience=2)[0].exhausted
    assert not found([0.5] * 9)[0].exhausted


def test_what_came_after_a_step_is_forgotten_when_it_is_done_again():
    best, _ = found([0.5, 0.7, 0.8])
    assert not best.add(1, {best.figure: 0.4})
    assert best.step == 0


MORE = {
    "eval_split": "test",
    "early_stopping": "log_loss",
    "patience": 2,
    "epochs": 9,
    "lr": 0.05,
    "keep_checkpoints": 1,
}


def losses(directory, an_epoch):
    """The watched figure after each epoch, by steps."""
    lines = [r for r in read_log(directory / "log.json") if "test_log_loss" in r.data]
    epochs = [r for r in lines if len(r.step) == 1]
    return {an_epoch * (r.step[0] + 1): r.data["test_log_loss"] for r in epochs}


@pytest.fixture(scope="module")
def stopped(dataset, tmp_path_factory):
    """A run that stops early: directory, trainer, outcome."""
    import tensorflow as tf

    directory = tmp_path_factory.mktemp("stopped")
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    made = trainer(dataset, save_checkpoint_path=directory / "saved", **MORE)
    with quiet(directory) as log:
        outcome = made.train(log)
    tf.config.run_functions_eagerly(before)
    return directory, made, outcome


def test_training_ends_after_patience_and_keeps_the_best_checkpoint(stopped):
    directory, made, outcome = stopped
    an_epoch = made.source.train_steps()
    after = losses(directory, an_epoch)
    best = min(after, key=after.get)
    assert outcome.summary["best_step"] == best
    assert made.position.total_steps == best + MORE["patience"] * an_epoch < 9 * an_epoch
    (kept,) = checkpoints_in(directory / "saved" / BEST)
    (last,) = checkpoints_in(directory / "saved")
    assert (step_of(kept)[0], step_of(last)[0]) == (best, made.position.total_steps)
    said = (directory / "out.txt").read_text()
    assert f"early stopping: the best test_log_loss: {after[best]:.4f} after step {best}" in said


@pytest.mark.slow
def test_a_run_that_was_interrupted_stops_where_it_would_have(stopped, dataset, tmp_path):
    _, whole, outcome = stopped
    saved = tmp_path / "saved"
    first = trainer(dataset, save_checkpoint_path=saved, **MORE)
    interrupt_after(first, whole.source.train_steps() * 2 + 1, 15)
    with quiet(tmp_path) as log, pytest.raises(SystemExit):
        first.train(log)
    second = trainer(dataset, checkpoint=saved, save_checkpoint_path=saved, **MORE)
    with quiet(tmp_path) as log:
        again = second.train(log)
    assert again.summary["best_step"] == outcome.summary["best_step"]
    after = state(second)
    for name, value in state(whole).items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


@pytest.mark.slow
def test_an_evaluation_that_was_killed_is_made_again(stopped, dataset, tmp_path, monkeypatch):
    _, whole, outcome = stopped
    saved = tmp_path / "saved"
    first = trainer(dataset, save_checkpoint_path=saved, **MORE)

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(first.evaluation, "run", killed)
    with quiet(tmp_path) as log, pytest.raises(KeyboardInterrupt):
        first.train(log)
    assert not (saved / BEST).exists()
    second = trainer(dataset, checkpoint=saved, save_checkpoint_path=saved, **MORE)
    with quiet(tmp_path) as log:
        again = second.train(log)
    assert again.summary["best_step"] == outcome.summary["best_step"]
    assert second.position == whole.position


@pytest.mark.slow
def test_export_best_ends_with_the_best_model(stopped, dataset, tmp_path):
    directory, _, outcome = stopped
    more = {**MORE, "export_best": True, "export_dir": tmp_path / "bundle"}
    best = trainer(dataset, save_checkpoint_path=tmp_path / "saved", **more)
    with quiet(tmp_path) as log:
        figures = best.train(log).summary
    saved = directory / "saved" / BEST
    evaluated = trainer(dataset, saved, mode="evaluate", load_checkpoint_path=saved)
    with quiet(tmp_path) as log:
        expected = evaluated.evaluation.run(log).summary
    assert {name: figures[name] for name in expected} == expected
    assert figures["test_log_loss"] < outcome.summary["test_log_loss"]
    kept = state(evaluated)
    assert all(np.array_equal(state(best)[name], value) for name, value in kept.items())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"eval_split": "test", "early_stopping": "hr@10"}, "received 'hr@10'"),
        ({"eval_split": "test", "early_stopping": "calibration"}, "auc, gauc, log_loss"),
        ({"early_stopping": "auc"}, "early_stopping would look at the test split"),
    ],
)
def test_what_cannot_be_the_best_is_refused(dataset, more, message):
    with pytest.raises(UserError, match=message):
        trainer(dataset, **more)


def test_the_best_checkpoint_outlives_the_others_and_takes_no_room(tmp_path):
    store = CheckpointStore(tmp_path / "saved", keep=1, best=True)
    store.begin(None)
    for step in (1, 2, 3):
        store.save(step, {"x": np.full(4, step)}, {})
        if step < 3:
            kept = store.keep_best(step)
    assert [path.name for path in store.checkpoints()] == ["step-00000003"]
    assert store.best == kept
    assert store.best_step == 2
    assert store.load(kept)["x"].tolist() == [2] * 4
    store.keep_best(3)
    first, second = (next(iter(p.glob("*.bin"))) for p in (store.best, store.checkpoints()[0]))
    assert first.stat().st_ino == second.stat().st_ino
    for path in store.checkpoints():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    with pytest.raises(UserError, match="already holds the checkpoints"):
        CheckpointStore(tmp_path / "saved").begin(None)


@pytest.mark.slow
def test_a_run_that_goes_on_elsewhere_keeps_what_is_best_there(dataset, tmp_path):
    more = {**MORE, "epochs": 2, "patience": 9}
    first = trainer(dataset, save_checkpoint_path=tmp_path / "first", **{**more, "epochs": 1})
    with quiet(tmp_path) as log:
        first.train(log)
    second = trainer(
        dataset, checkpoint=tmp_path / "first", save_checkpoint_path=tmp_path / "second", **more
    )
    with quiet(tmp_path) as log:
        best = second.train(log).summary["best_step"]
    kept = checkpoints_in(tmp_path / "second" / BEST)
    assert [step_of(path)[0] for path in kept] == [best]
