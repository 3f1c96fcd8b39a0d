"""Reading datasets of histories, whole and damaged."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataloading.histories import Histories, Split
from errors import UserError


@pytest.fixture
def dataset(make_histories, write_dataset, tmp_path):
    return write_dataset(make_histories(), tmp_path / "data")


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
    assert read.split == Split(test=1, validation=validation)
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
    with pytest.raises(UserError, match="run the workflow again"):
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
        make_histories().split = Split(validation=1)
