"""Training on impressions: nothing is drawn for them, and nothing is ranked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import log_loss, roc_auc_score

from lookback.core.errors import UserError
from lookback.core.world import SOLO
from lookback.dataloading import LAYOUTS
from lookback.dataloading.evaluations import EvaluationPass
from lookback.dataloading.histories.impressions import Impressions
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.splits import ByTime
from lookback.training.data import open_source
from tests.training.test_data import configs, open_with
from tests.training.test_trainer import quiet, trainer

pytestmark = pytest.mark.usefixtures("eagerly")

SIZES = {"train": 45, "validation": 17, "test": 23}
YEAR = 10**9


@pytest.fixture(scope="module")
def shown(make_histories) -> Histories:
    """Of plain columns, which every model reads."""
    histories = make_histories(lengths=(20, 7, 3, 12, 9), items=30)
    rng = np.random.default_rng(5)
    found = {}
    for split, size in SIZES.items():
        user, time = rng.integers(0, 5, size).astype(np.int32), rng.integers(0, YEAR, size)
        begin, end = histories.offsets[user], histories.offsets[user + 1]
        before = [
            int((histories.timestamps[b:e] < t).sum())
            for b, e, t in zip(begin, end, time, strict=True)
        ]
        place = rng.integers(0, len(histories.catalogue["item_id"]), size)
        found[split] = Impressions(
            users=user,
            positions=np.array(before, np.int32),
            features={name: values[place] for name, values in histories.catalogue.items()},
            timestamps=time,
            labels=(rng.random(size) < 0.3).astype(np.int8),
        )
    return dataclasses.replace(histories, split=ByTime(YEAR // 2, YEAR), impressions=found)


@pytest.fixture(scope="module")
def directory(shown, write_dataset, tmp_path_factory) -> Path:
    return write_dataset(shown, tmp_path_factory.mktemp("shown") / "data")


def batches_of(source, split=None) -> list[tuple[Any, np.ndarray]]:
    if split is None:
        return [source.train_batch(feed) for feed in source.train_feeds(0, 0)]
    return [source.eval_batch(split, feed) for feed in source.eval_feeds(split)]


def rows_of(batches) -> list[tuple[Any, ...]]:
    """What tells impressions apart, in the order of the batches."""
    rows: list[tuple[Any, ...]] = []
    for features, labels in batches:
        columns = (features["user_id"], features["item_id"][:, 0], labels[:, 0])
        rows += zip(*(column.numpy().tolist() for column in columns), strict=True)
    return rows


def expected_rows(histories: Histories, split: str) -> list[tuple[Any, ...]]:
    impressions = histories.impressions[split]
    user = histories.user_features["user_id"][impressions.users]
    columns = (user, impressions.features["item_id"], impressions.labels.astype(float))
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("own_users", [False, True])
def test_every_impression_is_trained_on_and_evaluated_once(
    shown, directory, in_ranks, ranks, own_users
):
    """A row each, an odd number of rows too."""
    options = {"shard_histories": own_users, "global_batch_size": 13, "valid_batch_size": 9}
    options |= {"model_type": "sim"}

    def work(world):
        source = open_with(directory, world, **options)
        found = {"train": batches_of(source)}
        for split in source.held_out:
            found[split] = batches_of(source, split)
        return {split: (len(b), rows_of(b)) for split, b in found.items()}, source.held_out

    answers = in_ranks(ranks, work)
    assert {held_out for _, held_out in answers} == {("validation", "test")}
    for split in SIZES:
        steps = {found[split][0] for found, _ in answers}
        assert len(steps) == 1, "all ranks have as many steps"
        together = [row for found, _ in answers for row in found[split][1]]
        assert sorted(together) == sorted(expected_rows(shown, split))
    if ranks == 1:
        assert answers[0][0]["test"][1] == expected_rows(shown, "test")
        assert answers[0][0]["train"][0] == -(-SIZES["train"] // 13)


def test_parts_of_a_batch_are_the_batch_and_feeds_go_on_in_the_middle(directory):
    whole = open_with(directory, SOLO)
    cut = open_with(directory, SOLO, micro_batches=3)
    for feed in whole.train_feeds(1, 0):
        parts = [cut.train_batch(part) for part in cut.parts_of(feed)]
        assert rows_of(parts) == rows_of([whole.train_batch(feed)])
    every, rest = (list(whole.train_feeds(1, first)) for first in (0, 2))
    assert [feed.numpy().tolist() for feed in rest] == [f.numpy().tolist() for f in every[2:]]
    orders = [rows_of(whole.train_batch(f) for f in whole.train_feeds(e, 0)) for e in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_evaluations_are_of_labels_alone(directory):
    source = open_with(directory, SOLO)
    assert list(source.evaluations("test")) == [EvaluationPass("test")]
    assert all(len(batch) == 2 for batch in batches_of(source, "test")), "no weights of a ranking"
    assert source.both_classes("test") and source.both_classes("train")
    (described, *_) = (source.describe(feed) for feed in source.train_feeds(0, 0))
    assert len(described["position"]) == 16


def test_labels_of_one_class_are_said(shown, write_dataset, tmp_path, in_ranks):
    """Whichever process has them."""
    impressions = shown.impressions["test"]
    alike = dataclasses.replace(impressions, labels=np.zeros_like(impressions.labels))
    apart = dataclasses.replace(
        impressions, labels=(impressions.users % 2 == 0).astype(impressions.labels.dtype)
    )
    for changed, both in ((alike, False), (apart, True)):
        data = dataclasses.replace(shown, impressions={**shown.impressions, "test": changed})
        directory = write_dataset(data, tmp_path / str(both))
        found = in_ranks(
            2,
            lambda world, directory=directory: open_with(
                directory, world, shard_histories=True
            ).both_classes("test"),
        )
        assert found == [both, both]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("sim", {"test_negatives": 5}),
        ("sim", {"full_catalogue": True}),
        ("din", {"negatives": "uniform"}),
        ("din", {"repeatable": True}),
    ],
)
def test_options_that_would_do_nothing_are_refused(directory, model, options):
    with pytest.raises(UserError, match=rf"{next(iter(options))}: impressions.*Leave --"):
        open_with(directory, SOLO, model_type=model, **options)


def test_negatives_of_the_auxiliary_loss_follow_their_options(directory):
    """Uniform, an item of the catalogue; else an event of training."""
    source = open_with(directory, SOLO, negatives="uniform", repeatable=True)
    epochs = [
        np.concatenate(
            [source.train_batch(f)[0]["item_id_negatives"] for f in source.train_feeds(epoch, 0)]
        )
        for epoch in (0, 1)
    ]
    assert epochs[0].any() and epochs[0].shape == (SIZES["train"], 2)


def test_rankings_are_refused_by_name(directory, tmp_path):
    with pytest.raises(UserError, match="hr@10"):
        trainer(directory, metrics=("hr@10",))


def test_models_of_pairs_refuse_impressions_but_take_events_by_time(
    directory, shown, write_dataset, tmp_path
):
    with pytest.raises(UserError, match="this dataset has explicit labels"):
        open_source(*configs(directory, model_type="neumf"))
    sampled = dataclasses.replace(shown, impressions=None)
    other = write_dataset(sampled, tmp_path / "data")
    assert open_source(*configs(other, model_type="neumf")).held_out == ("validation", "test")


def test_rows_are_counted_before_data_is_opened(directory, shown, write_dataset, tmp_path):
    data = write_dataset(shown, tmp_path / "data")
    info = json.loads((data / "dataset.json").read_text())
    said = {**info, "counts": {"train_impressions": 45}}
    said = {key: value for key, value in said.items() if key not in ("files", "sha256")}
    (data / "dataset.json").write_text(json.dumps(said))
    _, options, model = configs(data)
    assert LAYOUTS["histories"].training_rows(data, options, model) == 45
    assert len(batches_of(open_with(data, SOLO))) == 3


@pytest.mark.parametrize("model", ["din", "sim"])
def test_a_run_learns_from_impressions_and_is_evaluated_on_them(directory, shown, tmp_path, model):
    made = trainer(directory, model_type=model, epochs=1)
    log = quiet(tmp_path)
    made.train(log)
    figures = dict(made.evaluation.run(log).summary)
    log.close()
    assert not [name for name in figures if "hr@" in name or "ndcg" in name or "mrr" in name]
    labels, logits = [], []
    for features, label in batches_of(made.source, "test"):
        labels.append(label.numpy().ravel())
        logits.append(made.model(features, training=False).numpy().ravel())
    label, logit = np.concatenate(labels), np.concatenate(logits).astype(np.float64)
    assert figures["test_auc"] == pytest.approx(roc_auc_score(label, logit), abs=1e-9)
    expected = log_loss(label, 1 / (1 + np.exp(-logit)))
    assert figures["test_log_loss"] == pytest.approx(expected, rel=1e-5)
    users, areas, rows = shown.impressions["test"].users, [], []
    for user in np.unique(users):
        own = users == user
        if len(np.unique(label[own])) == 2:
            areas.append(roc_auc_score(label[own], logit[own]))
            rows.append(own.sum())
    gauc = np.average(areas, weights=rows)
    assert figures["test_gauc"] == pytest.approx(gauc, abs=1e-9) != figures["test_auc"]
    assert tf.math.is_finite(logit).numpy().all()
