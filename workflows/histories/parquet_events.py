"""Parquet files → users, items, times, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.formats import history_columns as names
from lookback.workflows.text import BAD_LINES_SHOWN, EXCERPT, BadLine, Block, Parsed

ROWS_AT_A_TIME = 1 << 20
"""Rows of a block: about what a block of text holds."""

READ_BUFFER = 1 << 20
"""Bytes that a column is read ahead; without it Arrow reads a row group's column at once."""

_NAMES = (names.USER_ID, names.ITEM_ID, names.TIMESTAMP)
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_TOO_LARGE = 2.0**63


@dataclass(frozen=True, kw_only=True)
class RowBlock(Block):
    """Rows of a parquet file; start and stop count rows.

    Attributes:
      rows: user, item and time.
    """

    rows: pa.Table


def check_columns(path: Path, columns: tuple[str, str, str]) -> None:
    """Checks names and types.

    Args:
      path: the file.
      columns: names of users, items and times.

    Raises:
      UserError: if the file is no whole parquet file, or has not these columns.
    """
    schema = _open(path).schema_arrow
    for name in columns:
        if schema.names.count(name) != 1:
            raise UserError(
                f"{path} has no column {name!r}. It has: {', '.join(map(repr, schema.names))}. "
                "Name the ones to read with --user_column, --item_column and --time_column."
            )
    *ids, time = columns
    for name in ids:
        dtype = _value_type(schema.field(name).type)
        if not (pa.types.is_integer(dtype) or _is_text(dtype)):
            hint = " (a missing value makes pandas write integers as double)"
            raise UserError(
                f"{path}: column {name!r} is of type {dtype}; ids must be integers or strings"
                f"{hint if pa.types.is_floating(dtype) else ''}. Write it with another type."
            )
    dtype = _value_type(schema.field(time).type)
    if not (_is_number(dtype) or pa.types.is_timestamp(dtype) or pa.types.is_date(dtype)):
        raise UserError(
            f"{path}: column {time!r} is of type {dtype}; times must be seconds (integer or "
            "floating point) or timestamps. Write it with another type."
        )


def count_rows(path: Path) -> int:
    """Rows of a file."""
    return int(_open(path).metadata.num_rows)


def row_blocks(
    path: Path, columns: tuple[str, str, str], rows_at_a_time: int = ROWS_AT_A_TIME
) -> Iterator[RowBlock]:
    """The rows of a file, in order.

    Args:
      path: the file.
      columns: names of users, items and times.
      rows_at_a_time: rows of a block.

    Raises:
      UserError: if the file is damaged.
    """
    start = 0
    try:
        for batch in _open(path).iter_batches(rows_at_a_time, columns=list(columns)):
            rows = pa.Table.from_batches([batch]).select(columns)
            yield RowBlock(path, start, start + len(rows), start == 0, rows=rows)
            start += len(rows)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def parse(block: RowBlock) -> Parsed:
    """Users and items (int64 or string) and times; rows take the part of lines.

    Raises:
      UserError: if an unsigned id is too large for int64.
    """
    raw = block.rows
    try:
        arrays = [_ids(raw.column(0)), _ids(raw.column(1)), _seconds(raw.column(2))]
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{block.path}, rows {block.start + 1:,} to {block.stop:,}: {error}. Ids and times "
            "must fit into 64 bits with a sign."
        ) from error
    user, item, time = raw.column_names
    wrong = [
        (f"no {user}", _missing(arrays[0])),
        (f"no {item}", _missing(arrays[1])),
        (f"no {time}", _missing(arrays[2])),
        (f"{time} is negative", pc.less(arrays[2], 0)),
    ]
    if pa.types.is_floating(arrays[2].type):
        wrong.append((f"{time} is too large", pc.greater_equal(arrays[2], _TOO_LARGE)))
    good = pa.chunked_array([pa.array([True] * len(raw))])
    table = pa.table(arrays, list(_NAMES))
    bad: list[BadLine] = []
    reasons: dict[str, int] = {}
    for reason, mask in wrong:
        mask = pc.and_(mask.fill_null(False), good)
        count = pc.sum(mask).as_py() or 0
        if count:
            reasons[reason] = count
            places = pc.indices_nonzero(mask)[:BAD_LINES_SHOWN].to_pylist()
            bad += [BadLine(at + 1, reason, _shown(raw, at)) for at in places]
            good = pc.and_(good, pc.invert(mask))
    if reasons:
        table = table.filter(good)
        bad = sorted(bad, key=lambda line: line.line)[:BAD_LINES_SHOWN]
    return Parsed(table, len(raw), bad, reasons)


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


def _ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = column.cast(_value_type(column.type))
    return column.cast(pa.string() if _is_text(column.type) else pa.int64())


def _seconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Seconds as int64, or float64 where the type has fractions."""
    column = column.cast(_value_type(column.type))
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
        unit = column.type.unit
        ticks = column.cast(pa.int64())
        if unit == "s":
            return ticks
        return pc.divide(ticks.cast(pa.float64(), safe=False), float(_UNITS[unit]))
    return column.cast(pa.float64() if pa.types.is_floating(column.type) else pa.int64())


def _missing(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if _is_text(values.type):
        return pc.equal(values, "").fill_null(True)
    return pc.is_null(values, nan_is_null=True)


def _value_type(dtype: pa.DataType) -> pa.DataType:
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def _is_text(dtype: pa.DataType) -> bool:
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype)


def _is_number(dtype: pa.DataType) -> bool:
    return pa.types.is_integer(dtype) or pa.types.is_floating(dtype)


def _shown(rows: pa.Table, place: int) -> str:
    values = {name: rows[name][place].as_py() for name in rows.column_names}
    return ", ".join(f"{name} {value!r}" for name, value in values.items())[:EXCERPT]
