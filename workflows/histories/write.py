"""Encoded histories → a dataset on disk.

Partitions come out of the workflow in the order of their users' hash; the dataset is ordered by
encoded user id. So each partition is written with one row group for each range of user ids, and
then each range is put together from all partitions. Only one range is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet
from lookback.formats import history_columns as names
from lookback.formats.histories import write_users
from lookback.formats.history_columns import Column
from lookback.formats.part_files import part_name
from lookback.formats.vocabulary import FIRST_KNOWN

EVENTS_PER_FILE = 2_000_000


@dataclass(frozen=True)
class Encoded:
    """One partition of encoded histories: its file, and the rows of each row group.

    Row group 0 holds users out of the vocabulary, in the order of the events; group g the users
    of range g - 1, by id. An empty group is not in the file.
    """

    file: Path
    rows: tuple[int, ...]


def user_ranges(event_counts: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[int, ...]:
    """First user ids of the ranges that become a file each, from the users' numbers of events."""
    total = np.cumsum(event_counts)
    cuts = np.arange(EVENTS_PER_FILE, int(total[-1]) if len(total) else 0, EVENTS_PER_FILE)
    firsts = np.searchsorted(total, cuts) + FIRST_KNOWN + 1
    return (FIRST_KNOWN, *sorted(set(firsts.tolist())))


def write_encoded(
    frame: Any, file: Path, columns: Sequence[Column], ranges: Sequence[int]
) -> Encoded:
    """Task: writes a partition that the workflow gave.

    Args:
      frame: one row a history (pandas; a cuDF frame is brought to the host).
      file: to write.
      columns: of the dataset.
      ranges: see `user_ranges`.
    """
    if hasattr(frame, "to_pandas"):
        frame = frame.to_pandas()
    table = pa.table(
        {column.name: _to_arrow(frame[column.name].to_numpy(), column) for column in columns}
    )
    users = table[names.USER_ID].to_numpy()
    group = np.searchsorted(np.asarray(ranges), users, side="right")
    order = np.lexsort((np.where(group > 0, users, 0), group))  # stable where out of vocabulary
    return write_groups(_take_rows(table, order), group, len(ranges) + 1, file)


def write_groups(table: pa.Table, group: np.ndarray[Any, Any], groups: int, file: Path) -> Encoded:
    """Writes a row group for each group that has rows.

    Args:
      table: rows by group. ``[N]``
      group: of each row, in any order. ``[N]``
      groups: how many there are.
      file: to write.
    """
    rows = np.bincount(group, minlength=groups).tolist()
    start = 0
    with pq.ParquetWriter(file, table.schema, compression="lz4") as writer:
        for count in rows:
            if count:
                writer.write_table(table.slice(start, count), row_group_size=count)
            start += count
    return Encoded(file, tuple(rows))


def write_part(task: tuple[list[tuple[Path, int]], Path]) -> Path:
    """Task: puts one file of the histories together, by user id."""
    sources, file = task
    write_users(read_groups(sources, names.USER_ID), file)
    return file


def read_groups(sources: Sequence[tuple[Path, int]], key: str) -> pa.Table:
    """Rows of files and their row groups, each in the order of a column, in that order."""
    table = pa.concat_tables(
        [open_parquet(source).read_row_group(group) for source, group in sources]
    ).combine_chunks()
    if len(sources) == 1:
        return table
    return _take_rows(table, np.argsort(table[key].to_numpy(), kind="stable"))


def part_tasks(
    partitions: Sequence[Encoded], directory: Path
) -> list[tuple[list[tuple[Path, int]], Path]]:
    """The tasks for `write_part`, in the order of the dataset.

    Users out of the vocabulary come first, as their id is the smallest. They need no sorting, and
    each partition's make a file: new data may hold nobody else.
    """
    groups: dict[int, list[tuple[Path, int]]] = {}
    unknown = []
    for partition in partitions:
        place = 0
        for number, rows in enumerate(partition.rows):
            if not rows:
                continue
            if number:
                groups.setdefault(number, []).append((partition.file, place))
            else:
                unknown.append([(partition.file, place)])
            place += 1
    sources = [*unknown, *(groups[number] for number in sorted(groups))]
    return [(source, directory / part_name(number)) for number, source in enumerate(sources)]


def _to_arrow(values: np.ndarray[Any, Any], column: Column) -> pa.Array:
    dtype = pa.from_numpy_dtype(column.dtype)
    if not column.is_list:
        return pa.array(values.astype(column.dtype), dtype)
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in values], out=offsets[1:])
    flat = np.concatenate(values) if len(values) else np.zeros(0)
    return pa.ListArray.from_arrays(offsets, pa.array(flat.astype(column.dtype), dtype))


def _take_rows(table: pa.Table, order: np.ndarray[Any, Any]) -> pa.Table:
    if len(order) and (np.diff(order) == 1).all():
        return table
    return table.take(pa.array(order))
