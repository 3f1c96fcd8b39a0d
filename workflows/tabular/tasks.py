"""What is done with a block, in this process or a worker of Dask."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.errors import UserError
from lookback.core.manifests import Files, entries_of
from lookback.formats.part_files import part_name
from lookback.formats.tabular_files import LABEL, column_names, write_part
from lookback.workflows.tabular.counts import Run, merge_runs, write_runs
from lookback.workflows.tabular.text import parse_rows
from lookback.workflows.text import Block, Parsed

_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_PIECE = 1 << 30


@dataclass(frozen=True)
class Shape:
    """N and M: integers and categorical values of a line."""

    numerical: int
    categorical: int


@dataclass(frozen=True)
class CountTask:
    """A block to count.

    Attributes:
      block: the lines.
      stem: of the files of counts to write; None to count rows only.
      rows: how many rows to count, from the first; None for all.
    """

    block: Block
    stem: Path | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Counted:
    """Rows of a block, its bad lines, and for each column where its counts are."""

    rows: int
    parsed: Parsed
    runs: list[Run]


@dataclass(frozen=True)
class WriteTask:
    """A block to transform and write.

    Attributes:
      block: the lines.
      number: of the parts to write.
      seed: of the shuffle of training rows.
      splits: name, first row and row after the last of each split that has rows of this block.
    """

    block: Block
    number: int
    seed: tuple[int, ...]
    splits: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Written:
    """Rows written of each split, how often each column has id 0, and the parts' digests."""

    rows: dict[str, int]
    unknown: list[int]
    files: Files


def count_block(task: CountTask, shape: Shape) -> Counted:
    """Task: parses a block and counts its categorical values."""
    _keep_freed_memory()
    rows = parse_rows(task.block.read(), shape.numerical, shape.categorical)
    runs = []
    if task.stem is not None:
        runs = write_runs([column[: task.rows] for column in rows.keys], task.stem)
    return Counted(len(rows.label), rows.parsed, runs)


def merge_column(task: tuple[Sequence[Run], Path]) -> Run:
    """Task: adds up a column's counts."""
    return merge_runs(*task)


def write_block(task: WriteTask, shape: Shape, workflow: Path, data: Path) -> Written:
    """Task: transforms a block with a saved workflow, and writes a part of each of its splits.

    Rows of the training split are shuffled within the block.
    """
    _keep_freed_memory()
    rows = parse_rows(task.block.read(), shape.numerical, shape.categorical)
    expected = max((stop for _, _, stop in task.splits), default=0)
    if len(rows.label) != expected:
        raise UserError(
            f"{task.block.path} had {expected} rows in a block that has {len(rows.label)} now: it "
            "was changed while the run went on. Remove the directory ending in .partial, and run "
            "again."
        )
    frame = _restore_workflow(workflow, workflow.stat().st_mtime_ns).transform(rows.frame())
    nums, cats = column_names(shape.numerical, shape.categorical)
    label = frame[LABEL].to_numpy()
    numerical = [frame[name].to_numpy() for name in nums]
    categorical = [frame[name].to_numpy() for name in cats]
    written: dict[str, int] = {}
    files: dict[str, Any] = {}
    for split, start, stop in task.splits:
        chosen: Any = slice(start, stop)
        if split == "train":
            chosen = start + np.random.default_rng(task.seed).permutation(stop - start)
        part = data / split / part_name(task.number)
        part.parent.mkdir(parents=True, exist_ok=True)
        # A worker that outlives a killed run may write the same part.
        temporary = part.with_name(f".{part.name}.{os.getpid()}")
        try:
            write_part(
                temporary,
                label[chosen],
                [values[chosen] for values in numerical],
                [values[chosen] for values in categorical],
            )
            temporary.replace(part)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        written[split] = stop - start
        files |= entries_of(data, [part.relative_to(data).as_posix()])
    return Written(written, [int((ids == 0).sum()) for ids in categorical], files)


@functools.cache
def _keep_freed_memory() -> None:
    """Has this process reuse the memory of one block for the next.

    The C library gives large pieces back to the system and asks for them anew; getting them page
    by page took 0.8 of 2.9 us a row (measured on 2 cores, shared). No such call: no such gain.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for parameter in (_MALLOC_TRIM_THRESHOLD, _MALLOC_MMAP_THRESHOLD):
            library.mallopt(parameter, _LARGEST_PIECE)


@functools.lru_cache(maxsize=1)
def _restore_workflow(directory: Path, modified: int) -> Any:
    """`modified` is part of the cache's key: another run may have saved one there."""
    from lookback.workflows.tabular import ops

    return ops.restore_workflow(directory)
