"""CSV with a header line → users, items, times: fast with Arrow, or carefully record by record.

A block goes through Arrow's reader. Where that fails, or a value is not what it should be, the
block is read again by Python's `csv` module, which can tell each bad record; both take the same
records.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from lookback.core.errors import UserError
from lookback.formats import history_columns as names
from lookback.workflows.text import (
    BAD_LINES_SHOWN,
    BLOCK_BYTES,
    EXCERPT,
    BadLine,
    BadLineError,
    Block,
    Parsed,
    damaged_gzip,
    record_blocks,
)

HEADER_BYTES = 1 << 20
"""A first line longer than this is no header."""

ARROW_BLOCK_BYTES = 4 << 20
"""What Arrow's threads parse at a time: enough of these in a block of ours to share out."""

_NAMES = (names.USER_ID, names.ITEM_ID, names.TIMESTAMP)
_STRINGS = pa.schema([(name, pa.string()) for name in _NAMES])
_TOO_LARGE = 2.0**63
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_QUOTE = b'"'


@dataclass(frozen=True)
class CsvColumns:
    """Where the columns are.

    Attributes:
      names: of users, items and times.
      places: theirs, from 0 on.
      count: fields of a record.
    """

    names: tuple[str, str, str]
    places: tuple[int, ...]
    count: int


@dataclass(frozen=True, kw_only=True)
class CsvBlock(Block):
    """Whole records of a CSV file."""

    columns: CsvColumns


def find_columns(path: Path, columns: tuple[str, str, str]) -> CsvColumns:
    """Finds columns in a file's header.

    Args:
      path: the file.
      columns: names of users, items and times.

    Raises:
      UserError: if the file is empty or damaged, or has no header with these columns.
    """
    found = _read_header(path)
    for name in columns:
        if found.count(name) != 1:
            problem = "has no column" if name not in found else "has more than one column"
            raise UserError(
                f"{path} {problem} {name!r}. The columns in its first line: "
                f"{', '.join(map(repr, found))}. Name the ones to read with --user_column, "
                "--item_column and --time_column."
            )
    return CsvColumns(columns, tuple(found.index(name) for name in columns), len(found))


def csv_blocks(
    path: Path, columns: tuple[str, str, str], block_bytes: int = BLOCK_BYTES
) -> Iterator[CsvBlock]:
    """The blocks of a file, in order; see `find_columns` and `workflows.text.record_blocks`."""
    found = find_columns(path, columns)
    for block in record_blocks(path, block_bytes):
        values = {field.name: getattr(block, field.name) for field in fields(Block)}
        yield CsvBlock(**values, columns=found)


def parse(block: CsvBlock) -> Parsed:
    """Users and items (int64 if all of the block's are integers, else string) and times."""
    data = block.read()
    lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    header = block.first
    start = data.find(b"\n") + 1 or len(data) if header else 0
    if start == len(data):
        return Parsed(_STRINGS.empty_table(), lines)
    bad: list[BadLine] = []
    reasons: dict[str, int] = {}
    table = _parse_quickly(memoryview(data)[start:], data.count(_QUOTE, start), block.columns)
    times = None if table is None else _seconds(table[names.TIMESTAMP])
    if table is None or times is None:
        table, bad, reasons = _parse_carefully(data, header, block.columns)
        times = _seconds(table[names.TIMESTAMP])
    arrays = [_integers(table[name]) for name in (names.USER_ID, names.ITEM_ID)]
    return Parsed(pa.table([*arrays, times], list(_NAMES)), lines, bad, reasons)


def _read_header(path: Path) -> list[str]:
    """Names in the first line."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            line = file.readline(HEADER_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged_gzip(path, 0, error) from error
    if not line.strip():
        state = "is empty" if not line else "begins with an empty line"
        raise UserError(f"{path} {state}. Its first line must name the columns.")
    text = line.decode("utf-8-sig", "backslashreplace")  # Excel begins files with a mark
    return [name.strip() for name in next(csv.reader([text.rstrip("\r\n")]), [])]


def _parse_quickly(body: memoryview, quotes: int, columns: CsvColumns) -> pa.Table | None:
    """All records at once, as strings, or None where any of them may be bad.

    Args:
      body: the records.
      quotes: number of quotes among them.
      columns: where things are.
    """
    if quotes % 2:  # a field that does not end takes what follows
        return None
    numbered = [str(place) for place in range(columns.count)]
    chosen = [numbered[place] for place in columns.places]
    try:
        table = pcsv.read_csv(
            pa.BufferReader(pa.py_buffer(body)),
            read_options=pcsv.ReadOptions(
                column_names=numbered,
                block_size=ARROW_BLOCK_BYTES,
                use_threads=pa.cpu_count() > 1,
            ),
            parse_options=pcsv.ParseOptions(
                quote_char='"' if quotes else False, newlines_in_values=quotes > 0
            ),
            convert_options=pcsv.ConvertOptions(
                column_types=dict.fromkeys(chosen, pa.string()),
                include_columns=chosen,
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    if any(pc.min(pc.binary_length(column)).as_py() == 0 for column in table.columns):
        return None
    return table.rename_columns(list(_NAMES))


def _parse_carefully(
    data: bytes, header: bool, columns: CsvColumns
) -> tuple[pa.Table, list[BadLine], dict[str, int]]:
    """Record by record: the good ones as strings, and what is wrong with the others."""
    # Bytes that are not UTF-8 do no harm in a column that nobody reads.
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    if not lines[-1]:
        lines.pop()
    rows = []
    bad: list[BadLine] = []
    reasons: dict[str, int] = {}
    for number, record in _records(lines, int(header)):
        try:
            if isinstance(record, csv.Error):
                raise BadLineError(f"not CSV: {record}")
            if not "".join(record).strip() and len(record) < 2:
                continue  # a blank line
            rows.append(_values(record, columns))
        except BadLineError as error:
            reason = str(error)
            reasons[reason] = reasons.get(reason, 0) + 1
            if len(bad) < BAD_LINES_SHOWN:
                excerpt = lines[number - 1].rstrip("\r")[:EXCERPT]
                shown = excerpt.encode("utf-8", "surrogateescape").decode(
                    "utf-8", "backslashreplace"
                )
                bad.append(BadLine(number, reason, shown))
    values = list(zip(*rows, strict=True)) if rows else [()] * len(_STRINGS)
    arrays = [pa.array(column, pa.string()) for column in values]
    return pa.Table.from_arrays(arrays, schema=_STRINGS), bad, reasons


def _records(lines: Sequence[str], skip: int) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Number of the first line of each record, and its fields, or why they cannot be told."""
    source = (f"{line}\n" for line in lines[skip:])
    before = skip
    while True:
        reader = csv.reader(source)
        start = before
        try:
            for record in reader:
                last = before + reader.line_num == len(lines)
                error = _unclosed(lines[start:]) if last else None
                yield start + 1, error or record
                start = before + reader.line_num
            return
        except csv.Error as error:
            yield start + 1, error
            before += reader.line_num


def _unclosed(lines: Sequence[str]) -> csv.Error | None:
    """The error of a record at the end of which a quoted field is still open."""
    try:
        list(csv.reader((f"{line}\n" for line in lines), strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            return csv.Error("a quoted field does not end")
    return None


def _values(record: Sequence[str], columns: CsvColumns) -> tuple[str, ...]:
    if len(record) != columns.count:
        raise BadLineError(f"{len(record)} fields instead of {columns.count}")
    values = tuple(record[place] for place in columns.places)
    for name, value in zip(columns.names, values, strict=True):
        if not value:
            raise BadLineError(f"no {name}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadLineError(f"{name} is not UTF-8") from error
    time = values[-1]
    if not _NUMBER.fullmatch(time):
        raise BadLineError(f"{columns.names[-1]} is not a number of seconds")
    if float(time) < 0:
        raise BadLineError(f"{columns.names[-1]} is negative")
    if not float(time) < _TOO_LARGE:
        raise BadLineError(f"{columns.names[-1]} is too large")
    return values


def _seconds(values: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Times as int64, or float64 if any has a fraction; None where one of them is no time."""
    for dtype in (pa.int64(), pa.float64()):
        try:
            times = values.cast(dtype)
        except pa.ArrowInvalid:
            continue
        return times if is_time(times) else None
    return None


def is_time(times: Any) -> bool:
    """Whether all of some numbers are finite, not negative, and fit into int64."""
    if not len(times):
        return True
    found = pc.min_max(times).as_py()
    if pa.types.is_floating(times.type) and pc.any(pc.is_nan(times)).as_py():
        return False
    return found["min"] >= 0 and found["max"] < _TOO_LARGE and math.isfinite(found["max"])


def _integers(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as int64 if that loses nothing, else as they are."""
    try:
        numbers = values.cast(pa.int64())
    except pa.ArrowInvalid:
        return values
    # What else the cast takes: leading zeros, 0x1F, -0.
    long = pc.greater(pc.binary_length(values), 1)
    other = pc.or_(pc.and_(pc.starts_with(values, "0"), long), pc.starts_with(values, "-0"))
    return values if pc.any(other).as_py() else numbers
