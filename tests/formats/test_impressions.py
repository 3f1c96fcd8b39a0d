"""`formats.impressions`: what is written is read, and names that are taken."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.formats.history_columns import category, number, typed_columns
from lookback.formats.impressions import impression_columns, read_impressions, write_impressions

COLUMNS = typed_columns(
    [
        *(category("country", "user"), number("price", "item")),
        *(number("hour", "context"), category("rating", "event")),
    ]
)
SHOWN = {
    "user": np.array([0, 4], np.int64),
    "position": np.array([0, 7], np.int32),
    "item_id": np.array([3, 8], np.int32),
    "price": np.array([0.5, -1], np.float32),
    "hour": np.array([1, 2], np.float32),
    "timestamp": np.array([5, 6], np.int64),
    "label": np.array([1, 0], np.int8),
}


def test_an_impression_has_what_is_known_when_it_is_shown() -> None:
    assert impression_columns(COLUMNS) == list(SHOWN)
    with pytest.raises(ValueError, match="columns of its own named label, user"):
        impression_columns(typed_columns([number("user", "item"), category("label", "context")]))
    assert impression_columns(typed_columns([category("label", "event")]))


def test_impressions_are_read_as_they_were_written(tmp_path: Path) -> None:
    digest = write_impressions(tmp_path, "train", SHOWN)
    plain = b"".join(name.encode() + values.tobytes() for name, values in SHOWN.items())
    assert digest == hashlib.sha256(plain).hexdigest()
    found = read_impressions(tmp_path, "train", ["item_id", "price", "hour"])
    assert list(found) == list(SHOWN)
    for name, values in SHOWN.items():
        np.testing.assert_array_equal(found[name], values)
    assert read_impressions(tmp_path, "test", ["item_id"]) == {}


def test_a_missing_column_is_refused(tmp_path: Path) -> None:
    write_impressions(tmp_path, "test", SHOWN)
    with pytest.raises(UserError, match="test cannot be read"):
        read_impressions(tmp_path, "test", ["item_id", "brand"])
