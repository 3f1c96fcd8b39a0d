"""CSV with a header line → users, items, times: fast with Arrow, or carefully record by record.

A block goes through Arrow's reader. Where that fails, or a value is not what it should be, the
block is read again by Python's `csv` module, which can tell each bad record; both take the same
records.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

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
    first_line,
    record_blocks,
)
from lookback.workflows.times import TIMES_WITHOUT_ZONE, read_text, read_word

COLUMNS_SHOWN = 1000  # characters of their names in an error

ARROW_BLOCK_BYTES = 4 << 20
"""What Arrow's threads parse at a time: enough of these in a block of ours to share out."""

_NAMES = (names.USER_ID, names.ITEM_ID, names.TIMESTAMP)
_STRINGS = pa.schema([(name, pa.string()) for name in _NAMES])
_QUOTE = b'"'


@dataclass(frozen=True)
class CsvColumns:
    """Where the columns are.

    Attributes:
      names: of users, items and times.
      places: theirs, from 0 on.
      others: names of the columns that nobody reads.
      count: fields of a record.
    """

    names: tuple[str, str, str]
    places: tuple[int, ...]
    others: tuple[str, ...]
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
            listed = ", ".join(map(repr, found))
            listed = listed if len(listed) <= COLUMNS_SHOWN else f"{listed[:COLUMNS_SHOWN]}..."
            raise UserError(
                f"{path} {problem} {name!r}. The columns in its first line: {listed}. "
                "Name the ones to read with --user_column, --item_column and --time_column."
            )
    places = tuple(found.index(name) for name in columns)
    others = tuple(name for name in found if name not in columns)
    return CsvColumns(columns, places, others, len(found))


def csv_blocks(
    path: Path, columns: tuple[str, str, str], block_bytes: int = BLOCK_BYTES
) -> Iterator[CsvBlock]:
    """The blocks of a file, in order; see `find_columns` and `workflows.text.record_blocks`."""
    found = find_columns(path, columns)
    for block in record_blocks(path, block_bytes):
        values = {field.name: getattr(block, field.name) for field in fields(Block)}
        yield CsvBlock(**values, columns=found)


def parse(block: CsvBlock, unit: str) -> Parsed:
    """Users and items (int64 if all of the block's are integers, else string) and times.

    Args:
      block: the records.
      unit: of times that are numbers; see `workflows.times`.
    """
    data = block.read()
    lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    header = block.first
    start = data.find(b"\n") + 1 or len(data) if header else 0
    if start == len(data):
        return Parsed(_STRINGS.empty_table(), lines)
    bad: list[BadLine] = []
    reasons: dict[str, int] = {}
    table = None
    if data.count(b"\r") == data.count(b"\r\n"):  # Arrow takes one alone for the end of a line
        table = _parse_quickly(memoryview(data)[start:], data.count(_QUOTE, start), block.columns)
    found = None if table is None else read_text(table[names.TIMESTAMP], unit)
    if table is None or found is None:
        table, times, without_zone, bad, reasons = _parse_carefully(
            data, header, block.columns, unit
        )
    else:
        times, without_zone = pa.array(found[0]), found[1]
    arrays = [_integers(table[name]) for name in (names.USER_ID, names.ITEM_ID)]
    counts = {TIMES_WITHOUT_ZONE: without_zone} if without_zone else {}
    return Parsed(pa.table([*arrays, times], list(_NAMES)), lines, bad, reasons, counts)


def _read_header(path: Path) -> list[str]:
    """Names in the first line."""
    text = first_line(path)
    if not text.strip():
        state = "begins with an empty line" if path.stat().st_size else "is empty"
        raise UserError(f"{path} {state}. Its first line must name the columns.")
    try:
        return [name.strip() for name in next(csv.reader([text], strict=True), [])]
    except csv.Error as error:
        raise UserError(
            f"{path}:1: the first line, which must name the columns, is not CSV ({error}): "
            f"{text[:EXCERPT]!r}... Correct it."
        ) from error


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
    data: bytes, header: bool, columns: CsvColumns, unit: str
) -> tuple[pa.Table, pa.Array, int, list[BadLine], dict[str, int]]:
    """Record by record: the good ones' ids and times, and what is wrong with the others.

    Also gives how many of the times name no zone.
    """
    # Bytes that are not UTF-8 do no harm in a column that nobody reads.
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    if not lines[-1]:
        lines.pop()
    rows = []
    times = []
    without_zone = 0
    bad: list[BadLine] = []
    reasons: dict[str, int] = {}
    for number, record in _records(lines, int(header)):
        try:
            if isinstance(record, csv.Error):
                raise BadLineError(f"not CSV: {record}")
            if not "".join(record).strip() and len(record) < 2:
                continue  # a blank line
            *ids, text = _values(record, columns)
            time, zoneless = read_word(text, unit, columns.names[-1])
            rows.append(ids)
            times.append(time)
            without_zone += zoneless
        except BadLineError as error:
            reason = str(error)
            reasons[reason] = reasons.get(reason, 0) + 1
            if len(bad) < BAD_LINES_SHOWN:
                excerpt = lines[number - 1].rstrip("\r")[:EXCERPT]
                shown = excerpt.encode("utf-8", "surrogateescape").decode(
                    "utf-8", "backslashreplace"
                )
                bad.append(BadLine(number, reason, shown))
    users, items = zip(*rows, strict=True) if rows else ((), ())
    table = pa.table(
        {
            names.USER_ID: pa.array(users, pa.string()),
            names.ITEM_ID: pa.array(items, pa.string()),
        }
    )
    fractions = any(isinstance(time, float) for time in times)
    found = pa.array(times, pa.float64() if fractions else pa.int64())
    return table, found, without_zone, bad, reasons


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
    return values


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
