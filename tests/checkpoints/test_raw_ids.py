"""What rows stand for in a checkpoint, and rows taken from it in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookback.checkpoints.raw_ids import raw_id_tensors, raw_ids_in
from lookback.checkpoints.reshard import reshard, row_wise_plan
from lookback.checkpoints.store import CheckpointStore, RowBlocks
from lookback.formats.raw_ids import OF_HISTORIES, OF_ROWS, RawIds, keys_of, raw_ids_of
from lookback.formats.vocabulary import key_of, write_keys

IDS = {
    "item": RawIds(OF_HISTORIES, pa.array([7, -3, 1 << 40])),
    "user": RawIds(OF_HISTORIES, pa.array(["zoë", "", "a" * 300, "北京"])),
    "part": RawIds(OF_HISTORIES, pa.array(["_", "left", "out", "_"]).slice(1, 2)),
    "C1": RawIds(OF_ROWS, pa.array([5, key_of("no digits")])),
    "nobody": RawIds(OF_HISTORIES, pa.array([], pa.string())),
}


@pytest.mark.parametrize("resharded", [False, True])
def test_raw_ids_come_back_from_a_checkpoint(tmp_path: Path, resharded: bool) -> None:
    tensors = {
        n: v for feature, ids in IDS.items() for n, v in raw_id_tensors(feature, ids).items()
    }
    CheckpointStore(tmp_path).save(1, {"model/w": np.ones(3), **tensors}, {})
    checkpoint = CheckpointStore(tmp_path).load()
    if resharded:
        table = CheckpointStore(tmp_path / "more")
        table.save(1, {"table/t": np.ones((5, 2), np.float32), **tensors}, {})
        checkpoint = table.load()
        path = reshard(checkpoint, row_wise_plan(checkpoint, 2), tmp_path / "new")
        checkpoint = CheckpointStore(path.parent).load()
    for feature, ids in IDS.items():
        found = raw_ids_in(checkpoint, feature)
        assert found is not None and found.special == ids.special
        assert found.known.to_pylist() == ids.known.to_pylist(), feature
    assert raw_ids_in(checkpoint, "another") is None


def test_keys_tell_apart_what_only_a_hash_is_known_of(tmp_path: Path) -> None:
    keys = np.array(sorted([3, key_of("x"), key_of("y")]), np.int64)
    directory = tmp_path / "workflow" / "vocabulary"
    directory.mkdir(parents=True)
    write_keys(directory / "C1.arrow", keys, np.array([1, 9, 5]))
    found, shown = keys_of(tmp_path, "C1"), raw_ids_of(tmp_path, "C1")
    assert found is not None and shown is not None
    assert found.known.to_pylist() == [int(keys[n]) for n in (1, 2, 0)]  # by falling count
    assert shown.known.to_pylist() == [None, None, "00000003"]
    assert found.special == shown.special


def test_rows_are_taken_in_any_order_wherever_they_lie(tmp_path: Path) -> None:
    whole = np.arange(11 * 6, dtype=np.float32).reshape(11, 6)

    def piece(rows: range, columns: range) -> RowBlocks:
        part = whole[rows.start : rows.stop : rows.step, columns.start : columns.stop]
        return RowBlocks(whole.shape, whole.dtype, lambda: [part], rows, columns)

    cut = [(range(n, 11, 3), range(0, 4)) for n in range(3)] + [(range(11), range(4, 6))]
    bias = np.arange(5.0)
    tensors = {"table/t": [piece(*region) for region in cut], "model/b": bias}
    CheckpointStore(tmp_path).save(1, tensors, {})
    checkpoint = CheckpointStore(tmp_path).load()
    rows = np.array([10, 0, 3, 3, 7])
    np.testing.assert_array_equal(checkpoint.take("table/t", rows), whole[rows])
    found = checkpoint.take("table/t", rows, range(3, 5))
    np.testing.assert_array_equal(found, whole[rows, 3:5])
    np.testing.assert_array_equal(checkpoint.take("model/b", rows[1:4]), bias[rows[1:4]])
    assert checkpoint.take("table/t", rows[:0], range(2)).shape == (0, 2)
    for wrong in (-1, 11):
        with pytest.raises(ValueError, match=r"expected rows of \[0, 11\)"):
            checkpoint.take("table/t", np.array([0, wrong]))
