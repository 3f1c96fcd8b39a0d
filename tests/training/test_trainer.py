"""The training loop on tiny data: it learns, evaluates exactly, and continues bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from lookback.checkpoints.store import Checkpoint, find_checkpoint
from lookback.core.errors import UserError
from lookback.core.options import from_values
from lookback.training.output.logging import RunLogger, read_log
from lookback.training.run import command_line

# What a run in graphs does is tested with real processes: test_train.py, tests/distributed.
pytestmark = pytest.mark.usefixtures("eagerly")

SMALL = {
    "embedding_dim": 4,
    "max_seq_length": 9,
    "long_seq_length": 5,
    "stage_two_mlp_dims": (8,),
}


@pytest.fixture(scope="module")
def dataset(make_histories, write_dataset, tmp_path_factory) -> Path:
    histories = make_histories(lengths=[20, 7, 3, 3, 12, 15, 30], items=40)
    return write_dataset(histories, tmp_path_factory.mktemp("data") / "dataset", row_group_users=2)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    import tensorflow as tf

    yield
    tf.keras.mixed_precision.set_global_policy("float32")


def trainer(dataset: Path, checkpoint: Path | None = None, **more: Any) -> Any:
    """A trainer as train.py makes it; `model` are options of the model.

    It also gets its `model` and `source` as attributes.
    """
    import tensorflow as tf

    from lookback.models import MODELS
    from lookback.training.data import model_identity, open_source, run_identity
    from lookback.training.trainer import Trainer

    defaults = {"model_type": "din", "global_batch_size": 32, "seed": 3, "epochs": 2}
    given = {**SMALL, **more.pop("model", {})}
    run, data, model_options = from_values(
        command_line(), dataset_dir=dataset, **{**defaults, **more}, **given
    )
    tf.keras.utils.set_random_seed(run.seed)
    source = open_source(run, data, model_options)
    model = MODELS[run.model_type](source.schema, model_options)
    made = Trainer(
        model,
        source,
        run,
        model_identity=model_identity(run, {}, source),
        run_identity=run_identity(run, data, model_options),
        goals=data.goals,
        checkpoint=None if checkpoint is None else Checkpoint(find_checkpoint(checkpoint)),
    )
    made.model, made.source = model, source
    return made


def quiet(directory: Path, **more: Any) -> RunLogger:
    return RunLogger(
        directory, tensorboard=False, terminal=(directory / "out.txt").open("a"), **more
    )


def state(trained: Any) -> dict[str, np.ndarray]:
    """Every tensor of a run in one process: all of its parts are whole."""
    tensors = {}
    for name, (piece,) in trained.contents.pieces.items():
        blocks = [np.atleast_1d(block) for block in piece.blocks()]
        tensors[name] = np.concatenate(blocks).reshape(piece.shape)
    return tensors


def poison_gradients(model: Any, steps: int = 1) -> None:
    """Makes the gradients of the next training steps NaN; their losses are what they were."""
    import tensorflow as tf

    body, original, left = model.body, model.body.call, [steps]

    @tf.custom_gradient
    def poisoned(outputs: tf.Tensor) -> Any:
        return outputs, lambda upstream: upstream * np.nan

    def call(inputs: Any, training: bool = False) -> Any:
        outputs = original(inputs, training=training)
        if not training or not left[0]:
            return outputs
        left[0] -= 1
        return poisoned(outputs)

    body.call = call


def interrupt_after(trained: Any, steps: int, number: signal.Signals) -> None:
    """Sends a signal to this process when the source hands out a certain feed."""
    original: Callable[..., Iterator[Any]] = trained.source.train_feeds

    def feeds(epoch: int, first_step: int) -> Iterator[Any]:
        for feed in original(epoch, first_step):
            if trained.position.total_steps + 1 == steps:
                os.kill(os.getpid(), number)
            yield feed

    trained.source.train_feeds = feeds


DIEN = {"dropout_rate": 0.3, "time_features": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "more"),
    [
        (1, {"optimizer": "adam", "weight_decay": 0.1}),
        (4, {"optimizer": "adagrad", "model": {"dropout_rate": 0.5}}),
        (5, {"optimizer": "sgd", "repeat_count": 2, "epochs": 1}),
        (4, {"model_type": "dien", "model": DIEN}),
        (4, {"history_memory": 2700}),  # two of four blocks at a time
        (4, {"model_type": "sim", "model": {**DIEN, "embedding_dim": 16}}),  # by one operation
    ],
)
def test_a_terminated_run_continues_bit_for_bit(dataset, tmp_path, stop, more):
    whole = trainer(dataset, **more)
    with quiet(tmp_path) as log:
        expected = whole.train(log).summary["test_auc"]

    first = trainer(dataset, save_checkpoint_path=tmp_path / "saved", **more)
    number = signal.SIGINT if stop == 1 else signal.SIGTERM
    interrupt_after(first, stop, number)
    with quiet(tmp_path) as log, pytest.raises(SystemExit) as exit_info:
        first.train(log)
    assert exit_info.value.code == 128 + number
    second = trainer(dataset, checkpoint=tmp_path / "saved", **more)
    assert second.position.total_steps == stop
    with quiet(tmp_path) as log:
        result = second.train(log).summary["test_auc"]
    assert result == expected
    after = state(second)
    for name, value in state(whole).items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(dataset, tmp_path):
    runs = []
    for seed in (3, 3, 4):
        trained = trainer(dataset, seed=seed, epochs=1)
        with quiet(tmp_path) as log:
            trained.train(log)
        runs.append(state(trained))
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(np.array_equal(runs[0][name], runs[2][name]) for name in runs[0])


def scores_of(trained: Any, log: RunLogger) -> Any:
    found, _ = trained.evaluation.evaluator.evaluated(trained.source.evaluations("test")[0], log)
    return found.scores


def test_evaluation_equals_scikit_learn_on_the_models_own_scores(dataset, tmp_path):
    trained = trainer(dataset, test_negatives=5)
    with quiet(tmp_path) as log:
        figures = trained.train(log).summary
        scores = scores_of(trained, log)
    labels, logits = scores.labels(), scores.logits()
    assert len(labels) == 7 * 6
    assert figures["test_auc"] == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert figures["test_log_loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    groups = scores.groups()
    by_user = [roc_auc_score(labels[groups == g], logits[groups == g]) for g in np.unique(groups)]
    assert figures["test_gauc"] == pytest.approx(np.mean(by_user), abs=1e-12)


def test_scores_do_not_depend_on_the_batch_size(dataset, tmp_path):
    small, large = trainer(dataset, global_batch_size=4), trainer(dataset, global_batch_size=1000)
    with quiet(tmp_path) as log:
        np.testing.assert_allclose(
            scores_of(small, log).logits(), scores_of(large, log).logits(), atol=1e-6
        )


def test_a_gradient_that_is_not_finite_stops_the_run_before_anything_is_saved(dataset, tmp_path):
    trained = trainer(dataset, results_dir=tmp_path, save_checkpoint_path=tmp_path / "saved")
    poison_gradients(trained.model)
    with quiet(tmp_path) as log, pytest.raises(UserError, match="gradient is not finite"):
        trained.train(log)
    assert not list((tmp_path / "saved").glob("step-*"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(dataset, tmp_path):
    trained = trainer(
        dataset, results_dir=tmp_path, save_checkpoint_path=tmp_path / "saved", checkpoint_every=1
    )
    poison_loss(trained, after=2)
    with (
        quiet(tmp_path) as log,
        pytest.raises(UserError, match=r"loss is nan.*epoch 1, step 3.*user_id=.*Lower --lr"),
    ):
        trained.train(log)
    samples = json.loads((tmp_path / "bad_batch.json").read_text())
    feed = list(trained.source.train_feeds(0, 0))[2]
    features, _ = trained.source.train_batch(feed)
    assert samples["user_id"] == features["user_id"].numpy().tolist()
    assert len(samples["sample"]) == len(samples["position"]) == len(samples["user_id"])
    last = Checkpoint(find_checkpoint(tmp_path / "saved"))
    assert last.step == 2
    assert all(np.isfinite(last[name]).all() for name in last)


def poison_loss(trained: Any, after: int) -> None:
    """Makes a weight NaN when the source hands out the feed that follows so many steps."""
    original = trained.source.train_feeds

    def feeds(epoch: int, first_step: int) -> Iterator[Any]:
        weight = trained.model.trainable_variables[-1]
        for feed in original(epoch, first_step):
            if trained.position.total_steps == after:
                weight.assign(weight * np.nan)
            yield feed

    trained.source.train_feeds = feeds


@pytest.fixture()
def _as_on_a_gpu(monkeypatch) -> None:
    """Steps are not waited for one by one, as on a GPU, whose steps run behind their calls."""
    monkeypatch.setattr("lookback.training.step_monitor.has_gpu", lambda: True)


@pytest.mark.usefixtures("_as_on_a_gpu")
def test_a_loss_that_nobody_waited_for_stops_the_run_before_anything_is_saved(dataset, tmp_path):
    where = {"results_dir": tmp_path, "save_checkpoint_path": tmp_path / "saved"}
    trained = trainer(dataset, log_every=100, checkpoint_every=2, **where)
    poison_loss(trained, after=2)
    with quiet(tmp_path) as log, pytest.raises(UserError, match=r"loss is nan.*epoch 1, step 3"):
        trained.train(log)
    assert trained.position.total_steps == 4  # where it had to be known
    samples = json.loads((tmp_path / "bad_batch.json").read_text())
    features, _ = trained.source.train_batch(list(trained.source.train_feeds(0, 0))[2])
    assert samples["user_id"] == features["user_id"].numpy().tolist()
    last = Checkpoint(find_checkpoint(tmp_path / "saved"))
    assert last.step == 2
    assert all(np.isfinite(last[name]).all() for name in last)


def test_a_batch_that_takes_much_memory_is_said_to_come_in_parts(dataset):
    """Vectors of 4 numbers are not for our operations, so the layers compute the steps."""
    told = {
        rows: [line for line in trainer(dataset, **more).notes if "--micro_batches N" in line]
        for rows, more in (
            (1 << 16, {"global_batch_size": 1 << 16}),
            (1 << 15, {"global_batch_size": 1 << 15}),
            (0, {"global_batch_size": 1 << 16, "micro_batches": 4}),
        )
    }
    assert [len(lines) for lines in told.values()] == [1, 0, 0]
    assert "65,536 rows" in told[1 << 16][0]


def test_a_run_whose_steps_are_waited_for_together_is_the_same_run(dataset, tmp_path, request):
    found = []
    for ahead in (False, True):
        if ahead:
            request.getfixturevalue("_as_on_a_gpu")
        directory = tmp_path / str(ahead)
        directory.mkdir()
        trained = trainer(dataset, log_every=3, test_freq=4, eval_split="test")
        with quiet(directory) as log:
            trained.train(log)
        logged = {
            record.step: record.data["total_loss"]
            for record in read_log(directory / "log.json")
            if "total_loss" in record.data
        }
        found.append((logged, state(trained), trained.position))
    assert len(found[0][0]) > 2
    assert found[0][0] == found[1][0]
    assert found[0][2] == found[1][2]
    for name, value in found[0][1].items():
        np.testing.assert_array_equal(found[1][1][name], value, err_msg=name)


def test_weights_that_appear_only_in_training_are_refused_not_left_untrained(dataset, tmp_path):
    import tensorflow as tf

    trained = trainer(dataset, epochs=1)
    late = tf.keras.layers.Dense(1)
    body, original = trained.model.body, trained.model.body.call
    body.late = late

    def call(inputs: Any, training: bool = False) -> Any:
        outputs = original(inputs, training=training)
        return outputs + 0 * late(outputs) if training else outputs

    body.call = call
    with quiet(tmp_path) as log, pytest.raises(ValueError, match=r"misses \['.*kernel:0'"):
        trained.train(log)


def test_a_checkpoint_of_another_model_or_run_is_refused_by_name(dataset, tmp_path):
    trained = trainer(dataset, save_checkpoint_path=tmp_path / "saved", epochs=1)
    with quiet(tmp_path) as log:
        trained.train(log)
    saved = tmp_path / "saved"
    with pytest.raises(UserError, match="model_type"):
        trainer(dataset, checkpoint=saved, model_type="dien")
    with pytest.raises(UserError, match="global_batch_size"):
        trainer(dataset, checkpoint=saved, global_batch_size=8)
    with pytest.raises(UserError, match="optimizer"):
        trainer(dataset, checkpoint=saved, optimizer="sgd")
    # To evaluate, only the model has to agree.
    other = {"mode": "evaluate", "load_checkpoint_path": saved, "optimizer": "sgd"}
    evaluated = trainer(dataset, checkpoint=saved, global_batch_size=8, **other)
    with quiet(tmp_path) as log:
        assert evaluated.evaluation.run(log).summary["test_auc"] == pytest.approx(
            trained.evaluation.run(log).summary["test_auc"]
        )


def test_finished_run_resumed_only_evaluates(dataset, tmp_path):
    trained = trainer(dataset, save_checkpoint_path=tmp_path / "saved", epochs=1)
    with quiet(tmp_path) as log:
        expected = trained.train(log).summary["test_auc"]
    again = trainer(dataset, checkpoint=tmp_path / "saved", epochs=1)
    with quiet(tmp_path) as log:
        assert again.train(log).summary["test_auc"] == expected
    assert again.position.total_steps == trained.position.total_steps


def test_log_holds_steps_epochs_and_every_loss(dataset, tmp_path):
    trained = trainer(dataset, model_type="sim", eval_train=True, epochs=1, eval_every=None)
    with quiet(tmp_path) as log:
        trained.train(log)
    records = read_log(tmp_path / "log.json")
    steps = [record for record in records if len(record.step) == 2]
    assert [record.step for record in steps] == [
        (0, i) for i in range(trained.source.train_steps())
    ]
    first = steps[0].data
    parts = first["head_loss"] + first["gsu_loss"] + first["aux_loss"]
    assert first["total_loss"] == pytest.approx(parts, rel=1e-6)
    (epoch,) = [record for record in records if len(record.step) == 1]
    assert {"test_auc", "test_gauc", "test_log_loss", "train_auc", "throughput"} <= set(epoch.data)


def test_inference_scores_every_row_once_or_for_the_steps_asked(dataset, tmp_path):
    common = {"mode": "inference", "random_weights": True, "global_batch_size": 4}
    with quiet(tmp_path) as log:
        outcome, scores = trainer(dataset, **common).inference.score(log)
        columns = scores.columns()
        assert list(columns) == ["label", "logit", "user_id", "item_id"]
        np.testing.assert_array_equal(columns["user_id"], np.repeat(range(1, 8), 2))
        np.testing.assert_array_equal(columns["label"], [1, 0] * 7)
        assert {"throughput", "latency_mean", "latency_p90", "latency_p95", "latency_p99"} <= set(
            outcome.summary
        )
        measured = trainer(
            dataset, benchmark=True, benchmark_warmup_steps=2, benchmark_steps=9, **common
        )
        assert measured.inference.score(log)[0].summary["throughput"] > 0


@pytest.mark.slow
def test_amp_trains_to_nearly_the_same_auc(dataset, tmp_path):
    import tensorflow as tf

    results = []
    for policy in ("float32", "mixed_bfloat16", "mixed_float16"):
        tf.keras.mixed_precision.set_global_policy(policy)
        scaled = {"amp": True, "loss_scale": 8.0} if policy == "mixed_bfloat16" else {}
        trained = trainer(dataset, epochs=1, **scaled)
        with quiet(tmp_path) as log:
            results.append(trained.train(log).summary["test_log_loss"])
        warned = (
            "loss_scale 8 has no effect: --amp is bfloat16" in (tmp_path / "out.txt").read_text()
        )
        assert warned == (policy != "float32")  # from the second run on
    np.testing.assert_allclose(results[1:], results[0], rtol=0.02)
