"""Training and ranking pairs of user and item: metrics against brute force, cuts, early stops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookback.checkpoints.store import Checkpoint, find_checkpoint
from lookback.core.errors import UserError
from lookback.core.options import from_values
from lookback.training.output.logging import RunLogger
from lookback.training.run import command_line
from tests.training.test_trainer import state

pytestmark = pytest.mark.usefixtures("eagerly")


@pytest.fixture(scope="module")
def dataset(make_histories, write_dataset, tmp_path_factory) -> Path:
    lengths = [20, 7, 3, 3, 12, 15, 30, 9, 4, 6]
    histories = make_histories(lengths=lengths, items=80, repeats=False)
    return write_dataset(histories, tmp_path_factory.mktemp("data") / "dataset")


GIVEN = {"global_batch_size": 100, "seed": 3, "epochs": 2, "lr": 0.01, "test_negatives": 20}


def trainer(dataset: Path, checkpoint: Path | None = None, **more: Any) -> Any:
    import tensorflow as tf

    from lookback.models import MODELS
    from lookback.training.data import model_identity, open_source, run_identity
    from lookback.training.trainer import Trainer

    run, data, options = from_values(
        command_line(),
        model_type="neumf",
        dataset_dir=dataset,
        **{**GIVEN, **more},
        **{"factors": 4, "layers": (8, 6), "dropout": 0.5},
    )
    tf.keras.utils.set_random_seed(run.seed)
    source = open_source(run, data, options)
    model = MODELS["neumf"](source.schema, options)
    made = Trainer(
        model,
        source,
        run,
        model_identity=model_identity(run, {}, source),
        run_identity=run_identity(run, data, options),
        goals=data.goals,
        checkpoint=None if checkpoint is None else Checkpoint(find_checkpoint(checkpoint)),
    )
    made.model, made.source = model, source
    return made


def log(directory: Path) -> RunLogger:
    directory.mkdir(exist_ok=True)
    return RunLogger(
        directory, tensorboard=False, terminal=(directory / "out.txt").open("a"), append=True
    )


def assert_same(one: Any, other: Any, tolerance: float) -> None:
    expected = state(other)
    for name, value in state(one).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=tolerance, err_msg=name)


def test_figures_are_those_of_scores_sorted_one_by_one(dataset, tmp_path):
    made = trainer(dataset, full_catalogue=True, topk=5)
    made.train(log(tmp_path / "run"))
    outcome = made.evaluation.run(log(tmp_path / "run"))
    found, popular = outcome.summary, made.source.item_counts()
    for name in ("test", "test_catalogue"):
        hits, gains, popular_hits = [], [], []
        for feed in made.source.eval_feeds(name):
            features, labels, *weights = made.source.eval_batch(name, feed)
            logits = made.model(features).numpy()
            counts = weights[0].numpy() if weights else np.ones_like(logits)
            for row, label, weight in zip(logits, labels.numpy(), counts, strict=False):
                place = int(label.argmax())
                rank = sum(
                    row[i] >= row[place] for i in range(len(row)) if i != place and weight[i]
                )
                hits.append(rank < 5)
                gains.append(1 / math.log2(rank + 2) if rank < 5 else 0)
            items = np.broadcast_to(features["item_id"], logits.shape)
            for ids, label, weight in zip(items, labels.numpy(), counts, strict=True):
                place = int(label.argmax())
                others = [i for i in range(len(ids)) if i != place and weight[i]]
                beats = sum(popular[ids[i]] >= popular[ids[place]] for i in others)
                popular_hits.append(beats < 5)
        assert len(hits) == found[f"{name}_rankings"] == 10
        assert found[f"{name}_hr@5"] == pytest.approx(np.mean(hits))
        assert outcome.baselines[f"{name}_hr@5"] == pytest.approx(np.mean(popular_hits))
        assert found[f"{name}_ndcg@5"] == pytest.approx(np.mean(gains))


def test_figures_do_not_depend_on_the_batch_of_the_evaluation(dataset, tmp_path):
    small = trainer(dataset, valid_batch_size=21, full_catalogue=True)
    large = trainer(dataset, valid_batch_size=10_000, full_catalogue=True)
    found = [made.evaluation.run(log(tmp_path / "run")).summary for made in (small, large)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_figures_are_those_that_were_asked_for(dataset, tmp_path):
    asked = trainer(dataset, metrics=("auc", "hr@1", "ndcg@7", "gauc"))
    found = asked.evaluation.run(log(tmp_path / "run")).summary
    assert set(found) == {
        *("test_auc", "test_rows", "test_gauc", "test_gauc_groups", "test_gauc_skipped"),
        *("test_hr@1", "test_ndcg@7", "test_rankings"),
    }
    # Of one positive among negatives, a user's AUC is the share of negatives below it.
    areas = []
    for feed in asked.source.eval_feeds("test"):
        logits = asked.model(asked.source.eval_batch("test", feed)[0]).numpy()
        below = (logits[:, 1:] < logits[:, :1]) + 0.5 * (logits[:, 1:] == logits[:, :1])
        areas.extend(below.mean(1))
    assert found["test_gauc"] == pytest.approx(np.mean(areas))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["full_adam", "adam"])
def test_accumulated_gradients_are_those_of_the_large_batch(dataset, tmp_path, optimizer):
    """Dropout included: a sample loses the same units in whatever batch it is.

    The first moments of one update are the gradients; SGD takes them as they are.
    """
    made = {}
    for name, more in {
        "whole": {"global_batch_size": 120},
        "accumulated": {"global_batch_size": 30, "grads_accumulated": 4},
        "cut": {"global_batch_size": 120, "micro_batches": 3},
    }.items():
        made[name] = trainer(dataset, optimizer=optimizer, epochs=1, max_steps=2, **more)
        made[name].train(log(tmp_path / name))
        assert made[name].position.total_steps == 2
    # Adam divides by the gradient's size, which magnifies what sums in another order round away.
    for name in ("accumulated", "cut"):
        assert_same(made[name], made["whole"], 2e-5)


@pytest.mark.slow
def test_a_continued_run_ends_with_the_same_weights(dataset, tmp_path):
    more = {"exact_negatives": True, "save_checkpoint_path": tmp_path / "kept"}
    whole = trainer(dataset, **{**more, "save_checkpoint_path": None})
    whole.train(log(tmp_path / "whole"))
    trainer(dataset, epochs=1, **more).train(log(tmp_path / "parts"))
    rest = trainer(dataset, tmp_path / "kept", **more)
    rest.train(log(tmp_path / "parts"))
    assert_same(rest, whole, 0.0)


@pytest.mark.slow
def test_training_stops_at_the_threshold(dataset, tmp_path):
    made = trainer(dataset, epochs=20, threshold=0.05, eval_split="test")
    outcome = made.train(log(tmp_path / "run"))
    assert outcome.summary["test_hr@10"] >= 0.05
    assert made.position.epoch < 20
    stubborn = trainer(dataset, epochs=2, threshold=1.0, eval_split="test")
    stubborn.train(log(tmp_path / "other"))
    assert stubborn.position.epoch == 2


def test_scores_can_be_written(dataset, tmp_path):
    made = trainer(dataset, mode="inference", random_weights=True)
    outcome, scores = made.inference.score(log(tmp_path / "run"))
    columns = scores.columns()
    assert list(columns) == ["label", "logit", "user_id", "item_id"]
    assert len(columns["item_id"]) == 10 * 21
    assert columns["label"].sum() == 10
    np.testing.assert_array_equal(columns["user_id"][::21], columns["user_id"][20::21])
    assert outcome.summary["throughput"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"eval_train": True}, "Leave --eval_train out"),
        ({"test_negatives": 200}, "test_negatives: expected at most .* received 200"),
        (
            {"metrics": ("mrr",), "threshold": 0.5, "eval_split": "test"},
            "training is to stop at hr@10 0.5, expected",
        ),
    ],
)
def test_options_that_do_not_go_with_rankings(dataset, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        trainer(dataset, **more).evaluation.run(log(tmp_path / "run"))


def test_materialised_samples_are_refused(dataset, tmp_path):
    (tmp_path / "metadata.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"neumf reads histories, and .* holds materialised samples"
    ):
        trainer(tmp_path)
