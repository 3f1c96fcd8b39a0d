"""`formats.impressions`: what is on disk is read, and names that are taken are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.core.errors import UserError
from lookback.formats.history_columns import category, number, typed_columns
from lookback.formats.impressions import impression_columns, impression_files, read_impressions

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
