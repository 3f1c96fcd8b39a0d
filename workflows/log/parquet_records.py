"""Parquet files → some columns of their rows, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.workflows.log.records import RecordBlock, Records, Wanted, column_at, listed
from lookback.workflows.text import EXCERPT

ROWS_AT_A_TIME = 1 << 20
"""Rows of a block: about what a block of text holds."""

READ_BUFFER = 1 << 20
"""Bytes that a column is read ahead; without it Arrow reads a row group's column at once."""


@dataclass(frozen=True, kw_only=True)
class RowBlock(RecordBlock):
    """Rows of a parquet file; start and stop count rows.

    Attributes:
      rows: the wanted columns.
    """

    rows: pa.Table

    @property
    def is_written(self) -> bool:
        """See `RecordBlock.is_written`."""
        return False

    def quick(self) -> Records:
        """See `RecordBlock.quick`: rows take the part of lines."""
        numbers = np.arange(1, len(self.rows) + 1)
        return Records(self.rows, len(self.rows), numbers, self._shown)

    def careful(self) -> Records:
        """See `RecordBlock.careful`."""
        return self.quick()

    def _shown(self, place: int) -> str:
        values = {name: self.rows[name][place].as_py() for name in self.rows.column_names}
        return ", ".join(f"{name} {value!r}" for name, value in values.items())[:EXCERPT]


def find_types(path: Path, wanted: Wanted) -> tuple[dict[str, pa.DataType], list[str]]:
    """The types of the wanted columns, and the names of the columns that nobody reads.

    Args:
      path: the file.
      wanted: the columns.

    Raises:
      UserError: if the file is no whole parquet file, or has not these columns.
    """
    schema = _open(path).schema_arrow
    types = {}
    for name in wanted.names:
        found = _type_at(schema, name)
        if found is None:
            several = schema.names.count(_top(schema, name)) > 1
            raise UserError(
                f"{path} has {'more than one' if several else 'no'} column {name!r}. It has: "
                f"{listed(schema.names)}. {wanted.remedy}"
            )
        types[name] = found
    read = {_top(schema, name) for name in wanted.names}
    return types, [name for name in schema.names if name not in read]


def count_rows(path: Path) -> int:
    """Rows of a file."""
    return int(_open(path).metadata.num_rows)


def row_blocks(
    path: Path, wanted: Wanted, rows_at_a_time: int = ROWS_AT_A_TIME
) -> Iterator[RowBlock]:
    """The rows of a file, in order.

    Args:
      path: the file.
      wanted: columns to read.
      rows_at_a_time: rows of a block.

    Raises:
      UserError: if the file is damaged.
    """
    start, held = 0, list[pa.Table]()
    for table in _tables(path, wanted, rows_at_a_time):
        if sum(map(len, held)) + len(table) > rows_at_a_time:
            yield _block(path, wanted, start, held)
            start, held = start + sum(map(len, held)), []
        held.append(table)
    if held:
        yield _block(path, wanted, start, held)


def _block(path: Path, wanted: Wanted, start: int, tables: list[pa.Table]) -> RowBlock:
    rows = pa.concat_tables(tables)
    return RowBlock(path, start, start + len(rows), start == 0, wanted=wanted, rows=rows)


def _tables(path: Path, wanted: Wanted, most: int) -> Iterator[pa.Table]:
    """The wanted columns of a file, at most so many rows at a time, and those of one row group.

    Of several row groups Arrow makes no batch where a dictionary is nested ("Nested data
    conversions not implemented for chunked array outputs").
    """
    names = list(wanted.names)
    try:
        file = _open(path)
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(most, row_groups=[group], columns=names):
                found = pa.Table.from_batches([batch])
                yield pa.table([column_at(found, name) for name in names], names)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _top(schema: pa.Schema, name: str) -> str:
    return name if name in schema.names else name.split(".")[0]


def _type_at(schema: pa.Schema, name: str) -> pa.DataType | None:
    """The type of a column that is there once; None of others."""
    if schema.names.count(name) == 1:
        return schema.field(name).type
    first, *steps = name.split(".")
    if not steps or schema.names.count(first) != 1:
        return None
    found = schema.field(first).type
    for step in steps:
        place = found.get_field_index(step) if pa.types.is_struct(found) else -1
        if place < 0:
            return None
        found = found.field(place).type
    return found


def _open(path: Path) -> pq.ParquetFile:
    try:
        return open_parquet(path, buffer_size=READ_BUFFER, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a whole parquet file: {error} It was probably cut off while it was written "
        "or copied: write or fetch it again."
    )
