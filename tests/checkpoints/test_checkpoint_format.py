"""What ranks wrote in their layout, others read in theirs. The oracle is NumPy's indexing."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import textwrap
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from lookback.checkpoints.data_file import RowBlocks, data_file, write_pieces
from lookback.checkpoints.format import Checkpoint
from lookback.checkpoints.manifest import (
    MANIFEST,
    Region,
    TensorSpec,
    check_cover,
    merge_entries,
    read_manifest,
    write_manifest,
)
from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.embeddings.sharding.base import split_evenly

ROOT = Path(__file__).parents[2]


def pieces(array: np.ndarray, regions: list[tuple[range, range | None]]) -> list[RowBlocks]:
    """Parts of an array as a rank holds them, in blocks of three rows."""

    def piece(rows: range, columns: range | None) -> RowBlocks:
        mine = array[rows.start : rows.stop : rows.step]
        if columns is not None:
            mine = mine[:, columns.start : columns.stop]
        blocks = [mine[start : start + 3] for start in range(0, len(mine), 3)]
        return RowBlocks(array.shape, array.dtype, lambda: blocks, rows, columns)

    return [piece(rows, columns) for rows, columns in regions]


def write(path: Path, ranks: list[dict[str, list[RowBlocks]]]) -> Path:
    """A checkpoint with a file for each rank."""
    path.mkdir(parents=True)
    files, entries = {}, []
    for rank, tensors in enumerate(ranks):
        written, size = write_pieces(path / data_file(rank), tensors)
        files[data_file(rank)] = size
        entries.append(written)
    write_manifest(path, step=7, meta={}, files=files, entries=merge_entries(entries))
    return path


def random_rows(rng: random.Random, total: int) -> list[range]:
    """Ranges that hold each row once: blocks, or each block's rows dealt out."""
    cuts = sorted(rng.randrange(total + 1) for _ in range(rng.randrange(3)))
    parts = []
    for start, stop in itertools.pairwise([0, *cuts, total]):
        step = rng.randrange(1, 5)
        parts += [range(start + turn, max(start + turn, stop), step) for turn in range(step)]
    rng.shuffle(parts)
    return [rows for rows in parts if rows or rng.random() < 0.5]


def random_regions(rng: random.Random, rows: int, columns: int) -> list[tuple[range, range | None]]:
    """Rows of columns, then columns of rows, or whole rows."""
    if rng.random() < 0.3:
        return [(part, None) for part in random_rows(rng, rows)]
    cuts = split_evenly(columns, rng.randrange(1, columns + 1))
    if rng.random() < 0.5:
        return [(part, cut) for cut in cuts for part in random_rows(rng, rows)]
    return [(part, cut) for part in random_rows(rng, rows) for cut in cuts]


def test_any_layout_is_read_in_any_other(tmp_path):
    rng = random.Random(0)
    for trial in range(60):
        rows, columns = rng.randrange(1, 40), rng.randrange(1, 9)
        array = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
        parts = pieces(array, random_regions(rng, rows, columns))
        size = rng.randrange(1, 5)
        ranks = [{"t": parts[rank::size]} for rank in range(size)]
        checkpoint = Checkpoint(write(tmp_path / f"{trial}", ranks))
        np.testing.assert_array_equal(checkpoint["t"], array)
        for _ in range(30):
            wanted = range(rng.randrange(rows), rng.randrange(rows + 1), rng.randrange(1, 6))
            wanted = wanted[::-1] if rng.random() < 0.3 else wanted
            first = rng.randrange(columns)
            across = range(first, rng.randrange(first, columns + 1))
            expected = array[np.array(wanted, int)][:, np.array(across, int)]
            found = checkpoint.rows("t", wanted, across)
            np.testing.assert_array_equal(found, expected)
            assert (found.dtype, found.shape) == (array.dtype, expected.shape)
            assert not found.flags.writeable
            blocks = list(checkpoint.blocks("t", wanted, across, rows_a_block=4))
            assert [len(block) for block in blocks[:-1]] == [4] * (len(blocks) - 1)
            np.testing.assert_array_equal(np.concatenate([expected[:0], *blocks]), expected)


@pytest.mark.parametrize("shape", [(13,), (13, 2, 3), (13, 0), (0, 4), (0,)])
def test_tensors_that_are_no_matrix_are_cut_by_rows_alone(tmp_path, shape):
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    rows = [range(rank, max(rank, shape[0]), 3) for rank in range(3)]
    ranks = [{"t": pieces(array, [(part, None)])} for part in rows]
    checkpoint = Checkpoint(write(tmp_path / "c", ranks))
    np.testing.assert_array_equal(checkpoint["t"], array)
    np.testing.assert_array_equal(checkpoint.rows("t", range(shape[0])[1::2]), array[1::2])
    if len(shape) != 2:
        with pytest.raises(ValueError, match=r"contiguous columns of \[0, 1\)"):
            checkpoint.rows("t", columns=range(2))


def test_questions_about_names_read_nothing(tmp_path, monkeypatch):
    array = np.zeros((6, 4), np.float32)
    regions = [(range(rank, 6, 3), None) for rank in range(3)]
    checkpoint = Checkpoint(write(tmp_path / "c", [{"t": pieces(array, [r])} for r in regions]))
    monkeypatch.setattr(Checkpoint, "rows", None)
    assert "t" in checkpoint and "other" not in checkpoint and list(checkpoint) == ["t"]
    checkpoint.require_tensors({"t": array})
    with pytest.raises(KeyError):
        checkpoint["other"]


def test_what_one_piece_holds_is_not_copied(tmp_path):
    array = np.arange(60, dtype=np.float32).reshape(12, 5)
    regions = [(range(rank, 12, 3), None) for rank in range(3)]
    checkpoint = Checkpoint(write(tmp_path / "c", [{"t": pieces(array, [r])} for r in regions]))
    for wanted, across in [(range(1, 12, 3), None), (range(4, 11, 6), range(1, 3))]:
        found = checkpoint.rows("t", wanted, across)
        assert not found.flags.owndata and not found.flags.writeable
    assert checkpoint.rows("t", range(3)).flags.owndata


def test_rows_and_columns_that_are_not_there_are_refused(tmp_path):
    array = np.zeros((6, 4), np.float32)
    checkpoint = Checkpoint(write(tmp_path / "c", [{"t": pieces(array, [(range(6), None)])}]))
    for rows, columns, text in [
        (range(7), None, r"t: expected rows of \[0, 6\)"),
        (range(5, -2, -1), None, r"t: expected rows of \[0, 6\)"),
        (None, range(3, 5), r"t: expected contiguous columns of \[0, 4\)"),
        (None, range(0, 4, 2), r"contiguous columns of \[0, 4\)"),
    ]:
        with pytest.raises(ValueError, match=text):
            checkpoint.rows("t", rows, columns)
        with pytest.raises(ValueError, match=text):
            list(checkpoint.blocks("t", rows, columns))


MATRIX = TensorSpec((10, 4), np.dtype(np.float32))


@pytest.mark.parametrize(
    ("regions", "text"),
    [
        ([], "table: row 0 is in 0 pieces, expected 1 .of 10 rows, 10 are missing"),
        ([(range(0, 10, 2), range(4))], "row 1 is in 0 pieces.*5 are missing and 0 are"),
        (
            [(range(10), range(4)), (range(7, 9), range(4))],
            "row 7 is in 2 pieces.*2 are in",
        ),
        ([(range(10), range(3))], r"row 0, columns \[3, 4\), is in 0 pieces.*10 are missing"),
        (
            [(range(10), range(2)), (range(10), range(1, 4))],
            r"row 0, columns \[1, 2\), is in 2 pieces",
        ),
        (
            [(range(10), range(2)), (range(5), range(2, 4)), (range(4, 10), range(2, 4))],
            r"row 4, columns \[2, 4\), is in 2 pieces, expected 1 .of 10 rows, 0 are missing and 1",
        ),
        ([(range(11), range(4))], r"expected rows of \[0, 10\), received range\(0, 11\)"),
        ([(range(9, -1, -1), range(4))], r"expected rows of \[0, 10\)"),
        ([(range(10), range(5))], r"expected contiguous columns of \[0, 4\)"),
        ([(range(10), range(0, 4, 2))], r"expected contiguous columns of \[0, 4\)"),
    ],
)
def test_missing_and_repeated_rows_are_named_and_counted(regions, text):
    with pytest.raises(ValueError, match=text):
        check_cover("table", MATRIX, [Region(*region) for region in regions])


def test_an_overlap_of_different_cuts_is_found():
    """Rows first in one corner, columns first in the other."""
    whole = [(range(5), range(4)), (range(5, 10), range(2)), (range(5, 10), range(2, 4))]
    check_cover("table", MATRIX, [Region(*region) for region in whole])
    overlapping = [*whole[:2], (range(4, 10), range(2, 4))]
    with pytest.raises(ValueError, match=r"row 4, columns \[2, 4\), is in 2 pieces"):
        check_cover("table", MATRIX, [Region(*region) for region in overlapping])


def test_cover_of_a_huge_table_needs_no_memory():
    spec = TensorSpec((300_000_000, 128), np.dtype(np.float32))
    cuts = [*split_evenly(128, 8)]
    rows = [range(rank, spec.row_count, 128) for rank in range(128)]
    tracemalloc.start()
    check_cover("table", spec, [Region(part, range(128)) for part in rows])
    check_cover("table", spec, [Region(range(spec.row_count), cut) for cut in cuts])
    with pytest.raises(ValueError, match=r"row 5 is in 0 pieces.*2343750 are missing"):
        check_cover("table", spec, [Region(part, range(128)) for part in rows if part.start != 5])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def rewrite(path: Path, change) -> None:
    """Changes a manifest's content, and its checksum along with it."""
    content = read_manifest(path)[0]["content"]
    change(content)
    entries = content.pop("tensors")
    write_manifest(path, **content, entries=entries)


def test_a_manifest_that_leaves_rows_out_is_refused_on_opening(tmp_path):
    array = np.zeros((9, 2), np.float32)
    regions = [(range(rank, 9, 3), None) for rank in range(3)]
    path = write(tmp_path / "step-00000007", [{"table/item": pieces(array, [r])} for r in regions])
    original = (path / MANIFEST).read_bytes()

    def refused(text, change):
        rewrite(path, change)
        with pytest.raises(UserError, match=text):
            Checkpoint(path, verify=False)
        (path / MANIFEST).write_bytes(original)

    refused(
        "step-00000007 is corrupt: table/item: row 1 is in 0 pieces, .* 3 are missing",
        lambda content: content["tensors"][0]["pieces"].pop(1),
    )
    refused(
        "table/item: row 2 is in 2 pieces",
        lambda content: content["tensors"][0]["pieces"].append(content["tensors"][0]["pieces"][2]),
    )
    refused(
        r"a piece of table/item of 24 bytes, expected 24, ends at byte 88 of data-00000.bin",
        lambda content: content["tensors"][0]["pieces"][0].update(offset=64),
    )
    refused(
        "a piece of table/item of 23 bytes, expected 24",
        lambda content: content["tensors"][0]["pieces"][0].update(bytes=23),
    )
    refused("which has 0", lambda content: content["tensors"][0]["pieces"][0].update(file="other"))
    Checkpoint(path)


def test_version_1_is_still_read(tmp_path):
    """As it was written before there were columns: one file, pieces with rows only."""
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    path = write(
        tmp_path / "c", [{"t": pieces(array, [(range(0, 6, 2), None), (range(1, 6, 2), None)])}]
    )

    def as_it_was(content):
        for first, piece in enumerate(content["tensors"][0]["pieces"]):
            del piece["columns"], piece["sha256"]
            piece["crc32"] = zlib.crc32(array[first::2].tobytes())

    rewrite(path, as_it_was)
    manifest = json.loads((path / MANIFEST).read_text())
    assert "columns" not in json.dumps(manifest)
    (path / MANIFEST).write_text(json.dumps({**manifest, "format_version": 1}))
    checkpoint = Checkpoint(path)
    assert checkpoint.format_version == 1
    with pytest.raises(UserError, match=r"version 1, expected 3 with trusted_digest: .*CRC-32"):
        Checkpoint(path, trusted_digest=digest_of(path / MANIFEST))
    np.testing.assert_array_equal(checkpoint["t"], array)
    np.testing.assert_array_equal(checkpoint.rows("t", range(3), range(1, 2)), array[:3, 1:])


def test_a_file_of_an_earlier_release_opens():
    """Bytes of a checkpoint that the code of format version 1 wrote."""
    checkpoint = Checkpoint(Path(__file__).parent / "data" / "step-00000004")
    assert (checkpoint.format_version, checkpoint.step) == (1, 4)
    assert checkpoint.meta == {"model": {"k": 50}}
    expected = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.testing.assert_array_equal(checkpoint["table/item_id"], expected)
    assert checkpoint["optimizer/step"] == 4


def test_verification_is_shared_in_equal_bytes(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {f"t{n}": rng.normal(size=(40 + 7 * n, 4)) for n in range(12)}
    path = write(tmp_path / "c", [tensors])
    checkpoint = Checkpoint(path, verify=False)
    for ranks in (1, 2, 5, 20):
        shares = checkpoint.shares(ranks, checkpoint)
        dealt = sorted(name for share in shares for name, _ in share)
        assert dealt == sorted(tensors)
        loads = [sum(piece.size for _, piece in share) for share in shares]
        assert max(loads) - min(loads) <= max(array.nbytes for array in tensors.values())
    place = checkpoint.pieces["t3"][0].offset
    data = bytearray((path / data_file(0)).read_bytes())
    data[place] ^= 1
    (path / data_file(0)).write_bytes(data)
    found = []
    for rank in range(3):
        try:
            Checkpoint(path, verify=False).verify(part=(rank, 3))
        except UserError as error:
            assert "tensor 't3' has changed" in str(error)
            found.append(rank)
    assert len(found) == 1
    checkpoint.verify(names=[name for name in tensors if name != "t3"])
    with pytest.raises(UserError, match="'t3' has changed"):
        checkpoint.verify(names=["t3"])


def test_differing_ranks_are_refused():
    entry = {"name": "t", "shape": [4, 2], "dtype": "<f4", "pieces": []}
    other = {**entry, "shape": [5, 2]}
    with pytest.raises(ValueError, match=r"t: .* float32 \[4, 2\] and float32 \[5, 2\]"):
        merge_entries([[entry], [other]])
    with pytest.raises(ValueError, match="t: its pieces differ"):
        merge_entries([[entry], [{**entry, "dtype": "<f8"}]])
    nothing = {"name": "t", "shape": None, "dtype": None, "pieces": []}
    with pytest.raises(ValueError, match="t: no process holds a piece"):
        merge_entries([[nothing], [nothing]])


def test_streaming_needs_the_memory_of_a_block(tmp_path):
    """192 MiB in three pieces: read whole, verified, and strided, with 40 MiB at most."""
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import numpy as np
        from lookback.checkpoints.data_file import RowBlocks, data_file, write_pieces
        from lookback.checkpoints.format import Checkpoint
        from lookback.checkpoints.manifest import merge_entries, write_manifest

        def peak():
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) >> 10

        path, rows, step = Path(sys.argv[1]), 3 << 20, 1 << 15
        block = np.ones((step, 16), np.float32)
        files, entries = {}, []
        for rank in range(3):
            held = range(rank, rows, 3)
            blocks = lambda: (block for _ in range(32))
            piece = RowBlocks((rows, 16), block.dtype, blocks, held)
            written, size = write_pieces(path / data_file(rank), {"t": piece})
            files[data_file(rank)] = size
            entries.append(written)
        write_manifest(path, step=0, meta={}, files=files, entries=merge_entries(entries))
        before = peak()
        checkpoint = Checkpoint(path)
        total = 0
        for wanted in (range(rows), range(rows - 1, -1, -2), range(1, rows, 2), range(5, rows, 96)):
            total += sum(len(part) for part in checkpoint.blocks("t", wanted))
        total += sum(len(part) for part in checkpoint.blocks("t", columns=range(3, 9)))
        print(total, peak() - before)
        """
    )
    (tmp_path / "c").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    total, extra = map(int, done.stdout.split())
    assert total == 3 * (3 << 20) + (1 << 15)
    assert extra < 40
