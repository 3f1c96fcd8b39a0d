"""Parquet files → users, items, times, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.formats import history_columns as names
from lookback.workflows.text import (
    BAD_LINES_SHOWN,
    EXCERPT,
    BadLine,
    BadLineError,
    Block,
    Parsed,
)
from lookback.workflows.times import (
    STEPS,
    TIMES_WITHOUT_ZONE,
    Array,
    Mask,
    problem,
    read_numbers,
    read_text,
    read_word,
)

ROWS_AT_A_TIME = 1 << 20
"""Rows of a block: about what a block of text holds."""

READ_BUFFER = 1 << 20
"""Bytes that a column is read ahead; without it Arrow reads a row group's column at once."""

_NAMES = (names.USER_ID, names.ITEM_ID, names.TIMESTAMP)


@dataclass(frozen=True, kw_only=True)
class RowBlock(Block):
    """Rows of a parquet file; start and stop count rows.

    Attributes:
      rows: user, item and time.
    """

    rows: pa.Table


def check_columns(path: Path, columns: tuple[str, str, str]) -> tuple[str, ...]:
    """Checks names and types; gives the names of the columns that nobody reads.

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
    typed = _is_text(dtype) or pa.types.is_timestamp(dtype) or pa.types.is_date(dtype)
    if not (_is_number(dtype) or typed):
        raise UserError(
            f"{path}: column {time!r} is of type {dtype}; times must be numbers (--time_unit says "
            "of what), timestamps or dates, or text of ISO 8601. Write it with another type."
        )
    return tuple(name for name in schema.names if name not in columns)


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


def parse(block: RowBlock, unit: str) -> Parsed:
    """Users and items (int64 or string) and times; rows take the part of lines.

    Args:
      block: the rows.
      unit: of times that are numbers; see `workflows.times`.

    Raises:
      UserError: if an unsigned id is too large for int64, or the unit is not for the times' type.
    """
    raw = block.rows
    dtype = _value_type(raw.schema.types[2])
    if unit == STEPS and not _is_number(dtype):
        raise UserError(
            f"{block.path}: column {raw.column_names[2]!r} is of type {dtype}; --time_unit {STEPS} "
            "takes numbers. Leave the option out."
        )
    try:
        ids = [_ids(raw.column(0)), _ids(raw.column(1))]
        times = _times(raw.column(2), unit, raw.column_names[2])
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{block.path}, rows {block.start + 1:,} to {block.stop:,}: {error}. Ids and times "
            "must fit into 64 bits with a sign."
        ) from error
    user, item, time = raw.column_names
    missing = [(f"no {user}", _missing(ids[0])), (f"no {item}", _missing(ids[1]))]
    good = np.ones(len(raw), np.bool_)
    table = pa.table([*ids, pa.array(times.values)], list(_NAMES))
    bad: list[BadLine] = []
    reasons: dict[str, int] = {}
    for reason, mask in [*missing, (f"no {time}", times.missing), *times.wrong.items()]:
        mask = mask & good
        count = int(mask.sum())
        if count:
            reasons[reason] = count
            places = np.flatnonzero(mask)[:BAD_LINES_SHOWN].tolist()
            bad += [BadLine(at + 1, reason, _shown(raw, at)) for at in places]
            good &= ~mask
    if reasons:
        table = table.filter(pa.array(good))
        bad = sorted(bad, key=lambda line: line.line)[:BAD_LINES_SHOWN]
    without_zone = len(table) if times.without_zone else 0
    counts = {TIMES_WITHOUT_ZONE: without_zone} if without_zone else {}
    return Parsed(table, len(raw), bad, reasons, counts)


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


@dataclass(frozen=True)
class _Times:
    """Times of a column.

    Attributes:
      values: as `workflows.times.read_numbers` has them; without meaning where they are wrong. [N]
      missing: which are not there. [N]
      wrong: why some are no times -> which. [N]
      without_zone: whether they name no zone.
    """

    values: Array
    missing: Mask
    wrong: dict[str, Mask]
    without_zone: bool = False


def _times(column: pa.ChunkedArray, unit: str, name: str) -> _Times:
    column = column.cast(_value_type(column.type))
    if _is_text(column.type):
        return _times_of_text(column, unit, name)
    zoneless = False
    if pa.types.is_date(column.type):
        column, zoneless = column.cast(pa.timestamp("ms")), True
    if pa.types.is_timestamp(column.type):
        unit, zoneless = column.type.unit, column.type.tz is None
        column = column.cast(pa.int64())
    missing = _missing(column)
    column = column.cast(pa.float64() if pa.types.is_floating(column.type) else pa.int64())
    numbers = column.fill_null(0).to_numpy()
    with np.errstate(invalid="ignore"):  # not a number
        values, plausible = read_numbers(numbers, unit)
    wrong: dict[str, Mask] = {}
    for at in np.flatnonzero(~plausible & ~missing).tolist():
        reason = problem(numbers[at].item(), unit, name)
        wrong.setdefault(reason, np.zeros(len(numbers), np.bool_))[at] = True
    return _Times(values, missing, wrong, zoneless)


def _times_of_text(column: pa.ChunkedArray, unit: str, name: str) -> _Times:
    column = column.cast(pa.string())
    missing = _missing(column)
    found = None if missing.any() else read_text(column, unit)
    if found is not None:
        return _Times(found[0], missing, {}, bool(found[1]))
    values: list[int | float] = [0] * len(column)
    wrong: dict[str, Mask] = {}
    without_zone = False
    for at, text in enumerate(column.to_pylist()):
        if missing[at]:
            continue
        try:
            values[at], zoneless = read_word(text, unit, name)
            without_zone |= zoneless
        except BadLineError as error:
            wrong.setdefault(str(error), np.zeros(len(column), np.bool_))[at] = True
    return _Times(np.array(values), missing, wrong, without_zone)


def _missing(values: pa.ChunkedArray) -> Mask:
    if _is_text(values.type):
        missing = pc.equal(values, "").fill_null(True)
    else:
        missing = pc.is_null(values, nan_is_null=True)
    found: Mask = missing.to_numpy()
    return found


def _value_type(dtype: pa.DataType) -> pa.DataType:
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def _is_text(dtype: pa.DataType) -> bool:
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype)


def _is_number(dtype: pa.DataType) -> bool:
    return pa.types.is_integer(dtype) or pa.types.is_floating(dtype)


def _shown(rows: pa.Table, place: int) -> str:
    values = {name: rows[name][place].as_py() for name in rows.column_names}
    return ", ".join(f"{name} {value!r}" for name, value in values.items())[:EXCERPT]
