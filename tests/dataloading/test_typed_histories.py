"""Reading datasets with typed columns, splits by rule and impressions, whole and damaged."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.core.errors import UserError
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.splits import ByTime, ByUsers
from tests.typed_data import typed_histories

LENGTHS = (9, 4, 2, 6, 3)
USERS = ByUsers(np.array([0, 1, 2, 0, 0], np.int8))


def assert_same(found, expected):
    """Histories, impressions and splits, field by field."""
    for field in dataclasses.fields(expected):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if dataclasses.is_dataclass(other):
            assert type(one) is type(other)
            assert_same(one, other)
        elif isinstance(other, dict):
            assert set(one) == set(other), field.name
            for name, values in other.items():
                if dataclasses.is_dataclass(values):
                    assert_same(one[name], values)
                else:
                    np.testing.assert_array_equal(one[name], values, err_msg=name)
                    assert one[name].dtype == values.dtype, name
        elif isinstance(other, np.ndarray):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype, field.name
        elif field.name != "schema":
            assert one == other, field.name


@pytest.mark.parametrize("split", [None, ByTime(300, 700), ByTime(None, 700), USERS], ids=str)
@pytest.mark.parametrize("shown", [None, (20, 5, 5)])
def test_load_gives_what_was_written(write_dataset, tmp_path, split, shown):
    written = typed_histories(LENGTHS, split=split, impressions=shown)
    read = Histories.load(write_dataset(written, tmp_path / "data"))
    assert_same(read, written)
    assert read.features == written.features


@pytest.fixture
def dataset(write_dataset, without_digests, tmp_path):
    written = typed_histories(LENGTHS, split=ByTime(300, 700), impressions=(20, 5, 5))
    return without_digests(write_dataset(written, tmp_path / "data", files=1))


def rewrite(path, column, change):
    """Changes the values of a column of a parquet file."""
    table = pq.read_table(path)
    values = pa.array(change(table[column].to_pylist()), table[column].type)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), path)


def first_is(value):
    return lambda rows: [[value, *rows[0][1:]], *rows[1:]]


@pytest.mark.parametrize(
    ("column", "change", "text"),
    [
        ("genres", first_is(9), r"bags of 'genres' must lie in \[1, 8\].* 9\]"),
        ("sensors", first_is(0), r"bags of 'sensors' .*found \[0, "),
        ("rating", first_is(8), r"ids of 'rating' must lie in \[1, 7\]"),
        ("price", first_is(float("nan")), "numbers of 'price' must be finite"),
        ("dwell", first_is(float("inf")), "numbers of 'dwell' must be finite"),
        ("hour", first_is(None), "holds nulls"),
        ("age", lambda rows: [float("nan"), *rows[1:]], "numbers of 'age' must be finite"),
        ("interests", lambda rows: [99, *rows[1:]], "bags of 'interests'"),
        ("device", lambda rows: [rows[0][1:], *rows[1:]], "'device' and 'item_id' differ in len"),
    ],
)
def test_values_that_cannot_be_are_refused(dataset, column, change, text):
    rewrite(dataset / "histories/part-00000.parquet", column, change)
    with pytest.raises(UserError, match=text):
        Histories.load(dataset)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("user", 5, "'user' of the impressions of 'train' must be numbers of rows"),
        ("user", -1, "'user' of the impressions"),
        ("label", 2, "'label' .* must be 0 or 1"),
        ("position", 20, "'position' .* strictly before"),
        ("position", -1, "'position' .* strictly before"),
        ("item_id", 40, r"ids of 'item_id' must lie in \[1, 39\]"),
        ("hour", float("nan"), "numbers of 'hour' must be finite"),
        ("genres", 9, "bags of 'genres'"),
        ("device", None, "holds nulls"),
    ],
)
def test_impressions_that_cannot_be_are_refused(dataset, column, value, text):
    path = dataset / "impressions/train/part-00000.parquet"
    rewrite(path, column, lambda rows: [value, *rows[1:]])
    with pytest.raises(UserError, match=text):
        Histories.load(dataset)


@pytest.mark.parametrize("off", [-1, 1])
def test_positions_that_take_in_too_much_or_too_little_are_refused(dataset, off):
    path = dataset / "impressions/test/part-00000.parquet"
    rewrite(path, "position", lambda rows: [max(0, row + off) for row in rows])
    with pytest.raises(UserError, match="'position' of the impressions of 'test' must be how many"):
        Histories.load(dataset)


def test_missing_impressions_are_missed_by_their_number(dataset):
    info = json.loads((dataset / "dataset.json").read_text())
    info["counts"] = {"train_impressions": 20, "validation_impressions": 6}
    (dataset / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"holds 5 validation_impressions, dataset\.json says 6"):
        Histories.load(dataset)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"rule": "time", "validation_from": 9, "test_from": 3}, "'validation_from' .* before"),
        ({"rule": "time", "validation_from": None}, "'test_from', seconds"),
        ({"rule": "time", "validation_from": 3.5, "test_from": 9}, "seconds"),
        ({"rule": "users", "column": "split"}, r"cannot be read|'split'"),
        ({"rule": "leave_last_out"}, "'test' 1 and 'validation' 0 or 1"),
        ({"rule": "at random"}, "'rule' must be one of .*found 'at random'"),
    ],
)
def test_splits_that_do_not_say_are_refused(dataset, said, text):
    info = json.loads((dataset / "dataset.json").read_text())
    info["split"] = {"validation": 5, "test": 5, **said}
    (dataset / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=text):
        Histories.load(dataset)


def test_labels_of_an_unknown_kind_are_refused(dataset):
    info = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps(info | {"labels": "implicit"}))
    with pytest.raises(UserError, match=r"'labels' must be one of .*found 'implicit'"):
        Histories.load(dataset)


def test_digests_cover_bags_and_impressions(write_dataset, tmp_path):
    written = typed_histories(LENGTHS, split=ByTime(300, 700), impressions=(20, 5, 5))
    directory = write_dataset(written, tmp_path / "data")
    for name in ("bags/genres.parquet", "impressions/test/part-00000.parquet"):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{name}"):
            Histories.load(directory)
        (directory / name).write_bytes(content)
    assert Histories.load(directory).impressions is not None
