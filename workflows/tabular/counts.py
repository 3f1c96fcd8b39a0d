"""How often each categorical value occurs: counted by block, added up by day, then ranked.

Counts lie on disk as *runs*: keys in ascending order with their counts. A merge reads the same
range of keys of all its runs at a time, so its memory does not grow with the data; only the
values that are frequent enough to be known must fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lookback.formats.vocabulary import read_keys, write_keys
from lookback.workflows.tabular import kernels

Array = np.ndarray[Any, Any]

MERGED_AT_ONCE = 4 << 20
"""Entries of the runs that a merge holds at a time; it takes some 50 bytes for each."""

SAMPLES_A_PIECE = 64
NARROW, WIDE = "<u4", "<i8"
ENDINGS = (".keys", ".counts")


@dataclass(frozen=True)
class Run:
    """Where a run lies: two files with arrays of `length` elements.

    Attributes:
      stem: path of the files without their endings ``.keys`` and ``.counts``.
      length: number of keys.
      key_type: NumPy dtype of the keys.
      count_type: NumPy dtype of the counts.
      keys_at: bytes before the keys in their file.
      counts_at: bytes before the counts in theirs.
    """

    stem: str
    length: int
    key_type: str
    count_type: str
    keys_at: int = 0
    counts_at: int = 0

    @property
    def keys(self) -> Array:
        """The keys, mapped."""
        return self._map(".keys", self.key_type, self.keys_at)

    @property
    def counts(self) -> Array:
        """The counts, mapped."""
        return self._map(".counts", self.count_type, self.counts_at)

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    def _map(self, ending: str, kind: str, offset: int) -> Array:
        if not self.length:
            return np.zeros(0, kind)
        return np.memmap(self.stem + ending, kind, "r", offset=offset, shape=(self.length,))


def count_keys(keys: Array) -> tuple[Array, Array]:
    """Distinct keys of a column in ascending order, and their counts; `MISSING` is left out.

    Args:
      keys: int64 [n].

    Returns:
      keys as uint32 if all fit, else int64; counts as uint32.
    """
    present = keys[keys >= 0]
    highest = int(present.max()) if len(present) else 0
    if highest < 1 << 32:
        values = present.astype(np.uint32)
        values = kernels.sort_by_bits(values, np.empty_like(values), 0, highest.bit_length())
    else:
        values = np.sort(present)
    found = np.empty_like(values)
    counts = np.empty(len(values), np.uint32)
    length = kernels.run_lengths(values, found, counts)
    return found[:length], counts[:length]


def write_runs(columns: Sequence[Array], stem: Path) -> list[Run]:
    """Counts each of a block's columns of keys, int64 [n]; all runs share two files."""
    runs = []
    with _files(stem) as (keys_file, counts_file):
        for column in columns:
            keys, counts = count_keys(column)
            runs.append(_append(str(stem), keys, counts, keys_file, counts_file))
    return runs


def merge_runs(runs: Sequence[Run], stem: Path) -> Run:
    """Adds up runs into one."""
    wide = any(run.key_type == WIDE for run in runs)
    key_type = WIDE if wide else NARROW
    total = 0
    with _files(stem) as (keys_file, counts_file):
        for keys, counts in merged(runs):
            keys_file.write(keys.astype(key_type).data)
            counts_file.write(counts.astype(WIDE).data)
            total += len(keys)
    return Run(str(stem), total, key_type, WIDE)


def merged(runs: Sequence[Run], at_once: int = MERGED_AT_ONCE) -> Iterator[tuple[Array, Array]]:
    """Yields ascending pieces of the sum of some runs: distinct keys, and int64 counts."""
    runs = [run for run in runs if run.length]
    total = sum(run.length for run in runs)
    if not total:
        return
    keys, counts = [run.keys for run in runs], [run.counts for run in runs]
    cuts = _cuts(keys, -(-total // at_once), total)
    edges = [[0, *np.searchsorted(array, cuts).tolist(), len(array)] for array in keys]
    for piece in range(len(cuts) + 1):
        parts = [slice(edge[piece], edge[piece + 1]) for edge in edges]
        yield _add_up(
            [array[part] for array, part in zip(keys, parts, strict=True)],
            [array[part] for array, part in zip(counts, parts, strict=True)],
        )


def write_vocabulary(runs: Sequence[Run], threshold: int, path: Path) -> int:
    """Ranks the values of a column that occur `threshold` times or more; gives their number.

    They go to a file of `formats.vocabulary`, which `CountedVocabulary` maps.
    """
    keys: list[Array] = [np.zeros(0, np.uint32)]
    counts: list[Array] = [np.zeros(0, np.int64)]
    for found, number in merged(runs):
        keep = number >= threshold
        keys.append(found[keep])
        counts.append(number[keep])
    known = np.concatenate(keys)
    write_keys(path, known, np.concatenate(counts))
    return len(known)


class CountedVocabulary:
    """The known values of a column, mapped from the file of `write_vocabulary`.

    Args:
      path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.keys, self.ids, self.counts = read_keys(path)
        size = len(self.keys)
        # About one bucket a key: evenly spread keys, as hashes or small numbers are, are then
        # found at once, and others by bisection.
        span = int(self.keys[-1]) - int(self.keys[0]) if size else 0
        self._shift = max(0, span.bit_length() - size.bit_length())
        firsts = np.arange((span >> self._shift) + 2, dtype=np.int64) << self._shift
        lowest = int(self.keys[0]) if size else 0
        self._starts = np.searchsorted(self.keys, _like(self.keys, firsts, lowest)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    def look_up(self, keys: Array, out: Array) -> int:
        """Writes the ids of `keys` (int64 [n]) to `out` (int32 [n]); gives how many are unknown."""
        return int(kernels.look_up(keys, self.keys, self.ids, self._starts, self._shift, out))


def _like(keys: Array, firsts: Array, lowest: int) -> Array:
    """First keys of buckets in the type of the keys, so that no search converts all keys."""
    return np.minimum(firsts + lowest, np.iinfo(keys.dtype).max).astype(keys.dtype)


def _cuts(keys: Sequence[Array], pieces: int, total: int) -> Array:
    """Keys that cut runs into pieces of about the same number of entries."""
    stride = max(1, total // (pieces * SAMPLES_A_PIECE))
    sample = np.sort(np.concatenate([array[::stride] for array in keys]))
    places = np.arange(1, pieces) * len(sample) // pieces
    return np.unique(sample[places])


def _add_up(keys: list[Array], counts: list[Array]) -> tuple[Array, Array]:
    if len(keys) == 1:
        return np.asarray(keys[0]), counts[0].astype(np.int64)
    all_keys, all_counts = np.concatenate(keys), np.concatenate(counts)
    if not len(all_keys):
        return all_keys, all_counts.astype(np.int64)
    found: Array
    sums: Array
    if all_keys.dtype == np.uint32 and int(all_counts.max()) < 1 << 32:
        packed = all_keys.astype(np.uint64) << np.uint64(32) | all_counts.astype(np.uint64)
        bits = 32 + int(all_keys.max()).bit_length()
        packed = kernels.sort_by_bits(packed, np.empty_like(packed), 32, bits)
        found, sums = np.empty_like(all_keys), np.empty(len(all_keys), np.int64)
        length = kernels.sum_packed(packed, found, sums)
        return found[:length], sums[:length]
    order = np.argsort(all_keys, kind="stable")
    ordered = all_keys[order].astype(np.int64)
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[first], np.add.reduceat(all_counts[order].astype(np.int64), first)


@contextlib.contextmanager
def _files(stem: Path) -> Iterator[list[BinaryIO]]:
    """The two files of a stem, open to write."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Path(f"{stem}{ending}").open("wb")) for ending in ENDINGS]


def _append(
    stem: str, keys: Array, counts: Array, keys_file: BinaryIO, counts_file: BinaryIO
) -> Run:
    key_type = NARROW if keys.dtype == np.uint32 else WIDE
    run = Run(stem, len(keys), key_type, NARROW, keys_file.tell(), counts_file.tell())
    # Not `tofile`: its error for a full disk does not say so.
    keys_file.write(keys.astype(key_type, copy=False).data)
    counts_file.write(counts.data)
    return run
