"""`formats.histories`: what is written is read, and the digests are those of the plain values."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.core.errors import UserError
from lookback.formats import histories
from lookback.formats.history_columns import category, history_columns, number, typed_columns

COLUMNS = history_columns((), ("brand",))
SIZES = {"user_id": 7, "item_id": 9, "brand": 5}
OFFSETS = np.array([0, 3, 4, 6])
USERS = {"user_id": np.array([3, 4, 6], np.int32)}
EVENTS = {
    "item_id": np.array([3, 8, 3, 2, 8, 5], np.int32),
    "brand": np.array([4, 3, 4, 3, 3, 4], np.int32),  # of item 2, out of the vocabulary, any
    "timestamp": np.array([1, 5, 9, 2, 3, 3], np.int64),
}


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("users", "events", "expected"),
    [(9, 6, [2, 1, 1, 1]), (1, 6, [1] * 5), (9, 100, [5]), (2, 100, [2, 2, 1]), (9, 19, [4, 1])],
)
def test_row_groups_have_few_users_and_few_events(
    tmp_path: Path, users: int, events: int, expected: list[int]
) -> None:
    lists = [[1] * length for length in (3, 3, 3, 10, 1)]  # of 3, 6, 9, 19, 20 events together
    table = pa.table({"user_id": np.arange(5), "item_id": lists})
    histories.write_users(table, tmp_path / "a.parquet", users, events)
    written = pq.ParquetFile(tmp_path / "a.parquet")
    groups = [written.metadata.row_group(n).num_rows for n in range(written.num_row_groups)]
    assert groups == expected
    assert written.read().equals(table)


@pytest.mark.parametrize("files", [1, 2, 3])
def test_totals_are_those_of_the_values(tmp_path: Path, files: int) -> None:
    histories.write_histories(tmp_path, USERS, OFFSETS, EVENTS, files)
    found = histories.history_files(tmp_path)
    assert [file.name for file in found] == [f"part-0000{n}.parquet" for n in range(files)]
    totals = histories.read_totals(found, COLUMNS, SIZES)
    assert (totals.users, totals.events, totals.lengths.tolist()) == (3, 6, [3, 1, 2])
    assert totals.item_counts.tolist() == [0, 0, 1, 2, 0, 1, 0, 0, 2]
    assert totals.unknown == {"user_id": 0, "item_id": 1, "brand": 0}
    arrays = {"lengths": np.array([3, 1, 2], "<i8"), **USERS, **EVENTS}
    assert totals.digests == {name: sha256(values) for name, values in arrays.items()}
    assert {name: values.tolist() for name, values in totals.catalogue.items()} == {
        "item_id": [2, 3, 5, 8],
        "brand": [2, 4, 4, 3],
        "count": [1, 2, 1, 2],
    }
    content = {
        "columns": [
            ["user_id", "int32", ["categorical", "id", "user"], False],
            ["item_id", "int32", ["categorical", "id", "item", "list", "sequence"], True],
            ["brand", "int32", ["categorical", "item", "list", "sequence"], True],
            ["timestamp", "int64", ["list", "sequence", "time"], True],
        ],
        "cardinalities": SIZES,
        "histories": totals.digests,
        "items": "abc",
    }
    text = json.dumps(content, sort_keys=True).encode()
    expected = f"sha256:{hashlib.sha256(text).hexdigest()}"
    assert histories.content_hash(COLUMNS, SIZES, totals, "abc") == expected


def test_the_catalogue_is_read_as_it_was_written(tmp_path: Path) -> None:
    columns = {"item_id": np.array([3, 8], np.int32), "count": np.array([2, 4])}
    digest = histories.write_catalogue(tmp_path, columns)
    plain = b"item_id" + np.array([3, 8], "<i4").tobytes()
    plain += b"count" + np.array([2, 4], "<i8").tobytes()
    assert digest == hashlib.sha256(plain).hexdigest()
    read = histories.read_catalogue(tmp_path, ["item_id"])
    assert list(read) == ["item_id"] and read["item_id"].tolist() == [3, 8]


def test_nulls_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"histories holds no parquet file.*workflows run"):
        histories.history_files(tmp_path)
    pq.write_table(
        pa.table({"item_id": pa.array([3, None], pa.int32())}), tmp_path / "items.parquet"
    )
    with pytest.raises(UserError, match="holds nulls"):
        histories.read_catalogue(tmp_path, ["item_id"])


def test_a_slice_has_its_own_lengths_and_values() -> None:
    column = pa.chunked_array([pa.array([[1], [2, 3], [], [4]]).slice(1)])
    assert histories.lengths_of(column).tolist() == [2, 0, 1]
    assert histories.values_of(column).tolist() == [2, 3, 4]


def test_totals_and_hash_of_typed_columns(tmp_path: Path) -> None:
    """Numbers and bags of items are in the catalogue; what is of events is not."""
    columns = typed_columns(
        [
            *(category("genres", "item", 2), number("price", "item")),
            *(category("device", "context"), number("dwell", "event")),
        ]
    )
    sizes = {"user_id": 7, "item_id": 9, "genres": 5, "device": 4}
    events = {
        "item_id": EVENTS["item_id"],
        "genres": np.array([4, 3, 4, 5, 3, 2], np.int32),
        "price": np.array([0.5, -1, 0.5, 7, -1, 2], np.float32),
        "device": np.array([3, 3, 2, 1, 3, 3], np.int32),
        "dwell": np.array([1, 2, 3, 4, 5, 6], np.float32),
        "timestamp": EVENTS["timestamp"],
    }
    histories.write_histories(tmp_path, USERS, OFFSETS, events)
    totals = histories.read_totals(histories.history_files(tmp_path), columns, sizes)
    assert totals.digests["price"] == sha256(events["price"])
    assert totals.unknown == {"user_id": 0, "item_id": 1, "genres": 1, "device": 1}
    catalogue = totals.catalogue
    assert {name: values.tolist() for name, values in catalogue.items()} == {
        "item_id": [2, 3, 5, 8],
        "genres": [2, 4, 2, 3],  # of item 2, out of the vocabulary, any
        "price": [0, 0.5, 2, -1],
        "count": [1, 2, 1, 2],
    }
    histories.write_catalogue(tmp_path, catalogue)
    read = histories.read_catalogue(tmp_path, ["genres", "price"])
    assert [values.dtype for values in read.values()] == [np.int32, np.float32]
    np.testing.assert_array_equal(read["price"], catalogue["price"])

    def hashed(columns, **others):
        return histories.content_hash(columns, sizes, totals, "abc", others)

    smaller = [dataclasses.replace(c, bag=c.bag and 1) for c in columns]
    found = {hashed(columns), hashed(smaller), hashed(columns, bags="1"), hashed(columns, bags="2")}
    assert len(found) == 4
    assert hashed(columns) == histories.content_hash(columns, sizes, totals, "abc")
