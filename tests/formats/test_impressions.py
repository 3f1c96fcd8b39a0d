"""`formats.impressions`: what is on disk is read, and names that are taken are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.core.errors import UserError
from lookback.formats.history_columns import category, number, typed_columns
from lookback.formats.impressions import (
    ImpressionRows,
    impression_columns,
    impression_files,
    read_impressions,
)

COLUMNS = typed_columns(
    [
        *(category("country", "user"), number("price", "item")),
        *(number("hour", "context"), category("rating", "event")),
    ]
)
SHOWN = {
    "user": np.array([0, 4, 4], np.int64),
    "position": np.array([0, 7, 8], np.int32),
    "item_id": np.array([3, 8, 9], np.int32),
    "price": np.array([0.5, -1, 2], np.float32),
    "hour": np.array([1, 2, 3], np.float32),
    "timestamp": np.array([5, 6, 7], np.int64),
    "label": np.array([1, 0, 0], np.int8),
}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two parts, of one impression and of two."""
    directory = tmp_path / "impressions" / "train"
    directory.mkdir(parents=True)
    for number_of, rows in enumerate([(0, 1), (1, 2)]):
        table = pa.table(SHOWN).slice(*rows)
        pq.write_table(table, directory / f"part-0000{number_of}.parquet")
    return tmp_path


def test_an_impression_has_what_is_known_when_it_is_shown() -> None:
    assert impression_columns(COLUMNS) == list(SHOWN)
    with pytest.raises(ValueError, match="columns of its own named label, user"):
        impression_columns(typed_columns([number("user", "item"), category("label", "context")]))
    assert impression_columns(typed_columns([category("label", "event")]))


def test_impressions_are_read_in_the_order_of_their_parts(dataset: Path) -> None:
    found = read_impressions(dataset, "train", ["item_id", "price", "hour"])
    assert list(found) == list(SHOWN)
    for name, values in SHOWN.items():
        np.testing.assert_array_equal(found[name], values)
    assert len(impression_files(dataset, "train")) == 2
    assert read_impressions(dataset, "test", ["item_id"]) == {}


def test_a_missing_column_is_refused(dataset: Path) -> None:
    with pytest.raises(UserError, match="train cannot be read"):
        read_impressions(dataset, "train", ["item_id", "brand"])


def test_rows_are_read_with_those_of_their_users(tmp_path):
    """Any run of rows, across row groups and files; and where each user's begin."""
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, 30, 70))
    columns = {
        "user": users,
        "position": rng.integers(0, 9, 70).astype(np.int32),
        "item_id": rng.integers(2, 50, 70).astype(np.int32),
        "timestamp": rng.integers(0, 99, 70),
        "label": rng.integers(0, 2, 70).astype(np.int8),
    }
    table = pa.table(columns)
    (tmp_path / "impressions/train").mkdir(parents=True)
    for part, (begin, end) in enumerate([(0, 40), (40, 40), (40, 70)]):
        file = tmp_path / f"impressions/train/part-0000{part}.parquet"
        pq.write_table(table.slice(begin, end - begin), file, row_group_size=9)
    rows = ImpressionRows(tmp_path, "train", ["item_id"])
    assert rows.count == 70
    bounds = np.array([0, 7, 8, 21, 30])
    assert rows.begins(bounds).tolist() == [int((users < bound).sum()) for bound in bounds]
    for begin, end in [(0, 70), (0, 0), (3, 4), (8, 10), (39, 41), (35, 70), (69, 70), (70, 70)]:
        found = rows.read(begin, end)
        assert list(found) == ["user", "position", "item_id", "timestamp", "label"]
        for name, values in found.items():
            np.testing.assert_array_equal(values, columns[name][begin:end], err_msg=name)
    nobody = ImpressionRows(tmp_path, "test", ["item_id"])
    assert (nobody.count, nobody.begins(bounds).tolist()) == (0, [0] * 5)
    assert all(len(values) == 0 for values in nobody.read(0, 0).values())
