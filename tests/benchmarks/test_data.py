"""Generated histories, and their materialised form against prefixes taken in plain Python."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from lookback.benchmarks import data
from lookback.benchmarks.data import cached, generate_histories, materialise, zipf
from lookback.core.arrow_files import read_parquet
from lookback.dataloading.histories.materialised import MaterialisedDataset
from lookback.dataloading.histories.resident import Histories

T = 12


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "histories"
    generate_histories(
        directory, users=30, items=500, categories=7, min_length=3, mean_length=9, seed=4
    )
    return Histories.load(directory)


@pytest.fixture(scope="module")
def materialised(histories, tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "materialised"
    return materialise(histories, directory, max_seq_length=T, seed=5)


def user_events(histories, user):
    events = slice(histories.offsets[user], histories.offsets[user + 1])
    return {name: values[events].tolist() for name, values in histories.item_features.items()}


def pad(values):
    newest = values[-T:]
    return [0] * (T - len(newest)) + newest


def test_generated_histories_are_sorted_and_consistent(histories):
    lengths = np.diff(histories.offsets)
    assert histories.num_users == 30
    assert lengths.min() >= 3
    assert 6 < lengths.mean() < 12
    category_of = {}
    for item, category in zip(
        histories.item_features["item_id"], histories.item_features["category_id"], strict=True
    ):
        assert category_of.setdefault(item, category) == category
    assert sorted(category_of) == histories.catalogue["item_id"].tolist()
    for user in range(30):
        times = histories.timestamps[histories.offsets[user] : histories.offsets[user + 1]]
        assert (np.diff(times) >= 0).all()


def test_many_histories_are_written_part_by_part(tmp_path, monkeypatch):
    """Loading compares counts, catalogue and lists."""
    monkeypatch.setattr(data, "USERS_PER_PART", 8)
    options = {"users": 30, "items": 50, "categories": 7, "min_length": 3, "mean_length": 9}
    directory = data.generate_many_histories(tmp_path / "many", **options)
    assert len(list((directory / "histories").iterdir())) == 4
    found = Histories.load(directory)
    assert found.user_features["user_id"].tolist() == list(range(3, 33))
    test_generated_histories_are_sorted_and_consistent(found)
    np.testing.assert_array_equal(
        found.item_counts().all, read_parquet(directory / "items.parquet")["count"].to_numpy()
    )


def test_generating_again_gives_the_same_bytes_and_keeps_what_is_there(tmp_path):
    options = {"users": 5, "items": 50, "categories": 3}
    first = generate_histories(tmp_path / "a", **options)
    second = generate_histories(tmp_path / "b", **options)
    for file in first.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (second / file.relative_to(first)).read_bytes()
    (first / "marker").touch()
    assert generate_histories(first, **options) == first
    assert (first / "marker").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_materialised_rows_are_the_prefixes(histories, materialised, split):
    rows = pq.read_table(materialised / split).to_pylist()
    expected = []
    for user in range(histories.num_users):
        events = user_events(histories, user)
        length = len(events["item_id"])
        for position in range(1, length - 1) if split == "train" else [length - 1]:
            expected.append((user, position, events))
    assert len(rows) == 2 * len(expected)
    events_known = set(
        zip(*(values.tolist() for values in histories.item_features.values()), strict=True)
    )
    for (user, position, events), positive, negative in zip(
        expected, rows[::2], rows[1::2], strict=True
    ):
        assert (positive["label"], negative["label"]) == (1, 0)
        for row in (positive, negative):
            assert row["user_id"] == histories.user_features["user_id"][user]
            assert row["item_id_sequence"] == pad(events["item_id"][:position])
            assert row["category_id_sequence"] == pad(events["category_id"][:position])
            drawn = list(
                zip(row["neg_item_id_sequence"], row["neg_category_id_sequence"], strict=True)
            )
            padding = max(T - position, 0)
            assert drawn[:padding] == [(0, 0)] * padding
            # An item and its category are drawn together.
            assert set(drawn[padding:]) <= events_known
        assert positive["item_id"] == events["item_id"][position]
        assert positive["category_id"] == events["category_id"][position]
        assert (negative["item_id"], negative["category_id"]) in events_known


def test_materialised_form_is_what_the_reader_reads(histories, materialised):
    dataset = MaterialisedDataset(materialised, max_seq_length=T, long_seq_length=T - 3)
    targets = int((np.diff(histories.offsets) - 2).sum())
    assert dataset.num_rows("train") == 2 * targets
    assert dataset.num_rows("test") == 2 * histories.num_users
    assert sum(len(labels) for _, labels in dataset.batches("train", 64)) == 2 * targets
    for name in dataset.schema.column_names:
        assert dataset.schema[name].int_domain.max == histories.schema[name].int_domain.max


def test_max_rows_stops_after_a_user(histories, tmp_path):
    part = materialise(histories, tmp_path / "part", max_seq_length=T, max_rows=40)
    rows = pq.read_table(part / "train").num_rows
    lengths = np.diff(histories.offsets) - 2
    expected = 2 * lengths[: int(np.searchsorted(np.cumsum(2 * lengths), 40)) + 1].sum()
    assert rows == expected >= 40


def test_zipf_follows_its_weights():
    counts = np.bincount(zipf(np.random.default_rng(0), 4, 100_000), minlength=4)
    expected = np.array([1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_allclose(
        np.sort(counts)[::-1] / 100_000, expected / expected.sum(), atol=0.01
    )


def test_cached_paths_depend_on_the_options(tmp_path):
    one = cached("kind", {"a": 1}, tmp_path)
    assert one == cached("kind", {"a": 1}, tmp_path)
    assert one != cached("kind", {"a": 2}, tmp_path)
    assert one.parent == tmp_path and not one.exists()
