"""Reading datasets of histories, whole and damaged."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lookback.dataloading.histories.resident
from lookback.core.errors import UserError
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.splits import LeaveLastOut
from lookback.dataloading.parts import WHOLE, Part


@pytest.fixture
def dataset(make_histories, write_dataset, without_digests, tmp_path):
    return without_digests(write_dataset(make_histories(), tmp_path / "data"))


def rewrite(directory, change, part="part-00000"):
    path = directory / "histories" / f"{part}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def replace(name, values):
    def change(table):
        column = table[name].combine_chunks()
        array = pa.array(values(column.to_pylist()), column.type)
        return table.set_column(table.column_names.index(name), name, array)

    return change


@pytest.mark.parametrize("validation", [0, 1])
@pytest.mark.parametrize("files", [1, 2, 5])
@pytest.mark.parametrize("times", [True, False])
def test_load_gives_what_was_written(
    make_histories, write_dataset, tmp_path, validation, files, times
):
    written = make_histories(validation=validation, times=times)
    read = Histories.load(write_dataset(written, tmp_path / "data", files=files))
    assert read.num_users == 5
    assert read.num_events == 45
    assert read.split == LeaveLastOut(test=1, validation=validation)
    assert read.split.held_out == 1 + validation
    assert read.features == written.features
    for field in ("user_features", "item_features", "catalogue"):
        expected, found = getattr(written, field), getattr(read, field)
        assert list(found) == list(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
            assert found[name].dtype == np.int32
    np.testing.assert_array_equal(read.offsets, written.offsets)
    assert read.offsets.dtype == np.int64
    if times:
        np.testing.assert_array_equal(read.timestamps, written.timestamps)
        assert read.timestamps.dtype == np.int64
    else:
        assert read.timestamps is None


def test_load_accepts_a_string(dataset):
    assert Histories.load(str(dataset)).num_users == 5


# --- parts ---

LENGTHS = (20, 7, 3, 3, 12, 5, 9, 4, 3, 30, 6)


@pytest.mark.parametrize("ranks", [1, 3, 20])
@pytest.mark.parametrize("files", [1, 3, 11])
@pytest.mark.parametrize("at_a_time", [1, 5, 1 << 14])
def test_a_part_has_every_rth_user_whatever_the_files(
    make_histories, write_dataset, without_digests, tmp_path, monkeypatch, ranks, files, at_a_time
):
    """Reading stops within row groups and starts anew with each file; the count of users must not.

    The last ranks of 20 have none of the 11 users.
    """
    monkeypatch.setattr(lookback.dataloading.histories.resident, "USERS_AT_A_TIME", at_a_time)
    whole = make_histories(lengths=LENGTHS, validation=1)
    directory = without_digests(write_dataset(whole, tmp_path / "data", files=files))
    for file in (directory / "histories").iterdir():
        pq.write_table(pq.read_table(file), file, row_group_size=3)
    for rank in range(ranks):
        part = Histories.load(directory, Part(rank, ranks))
        users = np.arange(len(LENGTHS))[rank::ranks]
        assert part.part == (WHOLE if ranks == 1 else Part(rank, ranks))
        assert part.num_users == len(users)
        for name, values in whole.user_features.items():
            np.testing.assert_array_equal(part.user_features[name], values[users])
            assert part.user_features[name].dtype == np.int32
        lengths = np.array(LENGTHS)[users]
        np.testing.assert_array_equal(np.diff(part.offsets), lengths)
        events = [e for u in users for e in range(whole.offsets[u], whole.offsets[u + 1])]
        events = np.array(events, np.int64)
        for name, values in whole.item_features.items():
            np.testing.assert_array_equal(part.item_features[name], values[events])
            assert part.item_features[name].dtype == np.int32
        np.testing.assert_array_equal(part.timestamps, whole.timestamps[events])
        # What describes the whole dataset is whole on every rank.
        for name, values in whole.catalogue.items():
            np.testing.assert_array_equal(part.catalogue[name], values)
        assert part.split == whole.split
        assert part.features == whole.features


@pytest.mark.parametrize("validation", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2, 4, 20])
def test_item_counts_of_the_parts_add_up(
    make_histories, write_dataset, tmp_path, validation, ranks
):
    histories = make_histories(lengths=LENGTHS, items=12, validation=validation)
    directory = write_dataset(histories, tmp_path / "data")
    counts = [Histories.load(directory, Part(r, ranks)).item_counts() for r in range(ranks)]
    training, every = (sum(getattr(c, name) for c in counts) for name in ("training", "all"))
    items = histories.item_features["item_id"]
    held_out = np.zeros(len(items), bool)
    for end in histories.offsets[1:]:
        held_out[end - 1 - validation : end] = True
    for place, item in enumerate(histories.catalogue["item_id"]):
        assert every[place] == (items == item).sum()
        assert training[place] == ((items == item) & ~held_out).sum()
    assert every.dtype == training.dtype == np.int64
    assert every.sum() == len(items)


def test_item_counts_follow_the_catalogues_order(make_histories):
    histories = make_histories(items=12)
    order = np.random.default_rng(0).permutation(len(histories.catalogue["item_id"]))
    shuffled = {name: values[order] for name, values in histories.catalogue.items()}
    shuffled_counts = dataclasses.replace(histories, catalogue=shuffled).item_counts()
    counts = histories.item_counts()
    np.testing.assert_array_equal(shuffled_counts.all, counts.all[order])
    np.testing.assert_array_equal(shuffled_counts.training, counts.training[order])


# --- damage ---


def test_a_directory_without_dataset_json_is_no_dataset(dataset):
    (dataset / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"is not a dataset: there is no dataset\.json") as error:
        Histories.load(dataset)
    assert str(dataset) in str(error.value)
    assert "python -m workflows run" in str(error.value)


def test_a_missing_directory_is_no_dataset(tmp_path):
    with pytest.raises(UserError, match="is not a dataset"):
        Histories.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format_version": 2}, "expected format 'lookback-histories' version 1, found .* 2"),
        ({"format": "other"}, "found 'other' version 1"),
    ],
)
def test_another_format_or_version_is_refused(dataset, change, text):
    info = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(info | change))
    with pytest.raises(UserError, match=text):
        Histories.load(dataset)


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", "null"])
def test_a_damaged_dataset_json_is_refused(dataset, text):
    (dataset / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json"):
        Histories.load(dataset)


@pytest.mark.parametrize("name", ["histories/part-00001.parquet", "items.parquet"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing column"])
def test_a_corrupt_parquet_file_is_refused(dataset, name, damage):
    path = dataset / name
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "garbage":
        path.write_bytes(b"no parquet")
    else:
        pq.write_table(pq.read_table(path).drop(["category_id"]), path)
    with pytest.raises(UserError, match="damaged or incomplete: run the workflow again") as error:
        Histories.load(dataset)
    assert str(dataset) in str(error.value)


@pytest.mark.parametrize("name", ["items.parquet", "schema.pbtxt"])
def test_a_missing_file_is_refused(dataset, name):
    (dataset / name).unlink()
    with pytest.raises(UserError, match=rf"{name}.*([Ww]rite the dataset|run the workflow) again"):
        Histories.load(dataset)


def test_a_damaged_schema_is_refused(dataset):
    (dataset / "schema.pbtxt").write_text("feature {")
    with pytest.raises(UserError, match=r"schema\.pbtxt cannot be read"):
        Histories.load(dataset)


def test_a_schema_without_domains_is_refused(dataset):
    path = dataset / "schema.pbtxt"
    path.write_text(path.read_text().replace("int_domain", "float_domain"))
    with pytest.raises(UserError, match="has no int domain"):
        Histories.load(dataset)


def test_no_split_rule_is_refused(dataset):
    info = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(info | {"split": {"test": 1}}))
    with pytest.raises(UserError, match="has no split rule"):
        Histories.load(dataset)


def test_no_histories_is_refused(dataset):
    for path in (dataset / "histories").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no parquet file"):
        Histories.load(dataset)


@pytest.mark.parametrize(
    ("column", "values", "text"),
    [
        ("item_id", lambda rows: [[40, *rows[0][1:]], *rows[1:]], r"'item_id' .* \[1, 39\].* 40\]"),
        ("item_id", lambda rows: [[0, *rows[0][1:]], *rows[1:]], r"found \[0, "),
        ("category_id", lambda rows: [[-3, *rows[0][1:]], *rows[1:]], r"'category_id'.*\[-3, "),
        ("user_id", lambda rows: [99, *rows[1:]], r"'user_id' must lie in \[1, 5\].* 99\]"),
    ],
)
def test_ids_outside_of_their_domain_are_refused(dataset, column, values, text):
    rewrite(dataset, replace(column, values))
    with pytest.raises(UserError, match=text):
        Histories.load(dataset)


def test_catalogue_ids_outside_of_their_domain_are_refused(dataset):
    path = dataset / "items.parquet"
    pq.write_table(replace("item_id", lambda rows: [400, *rows[1:]])(pq.read_table(path)), path)
    with pytest.raises(UserError, match="400"):
        Histories.load(dataset)


@pytest.mark.parametrize("column", ["category_id", "timestamp"])
def test_lists_of_unequal_length_are_refused(dataset, column):
    rewrite(dataset, replace(column, lambda rows: [rows[0][1:], *rows[1:]]))
    with pytest.raises(UserError, match=f"'{column}' and 'item_id' differ in length"):
        Histories.load(dataset)


@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_nulls_are_refused(dataset, column):
    def put_null(rows):
        first = [None, *rows[0][1:]] if isinstance(rows[0], list) else None
        return [first, *rows[1:]]

    rewrite(dataset, replace(column, put_null))
    with pytest.raises(UserError, match="holds nulls"):
        Histories.load(dataset)


def test_a_list_that_is_null_is_refused(dataset):
    rewrite(dataset, replace("item_id", lambda rows: [None, *rows[1:]]))
    with pytest.raises(UserError, match=r"differ in length|nulls"):
        Histories.load(dataset)


def test_histories_are_frozen(make_histories):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_histories().split = LeaveLastOut(validation=1)
