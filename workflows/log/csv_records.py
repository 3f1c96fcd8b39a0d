"""CSV → some columns of its records: fast with Arrow, or carefully record by record.

A block goes through Arrow's reader. Where that fails, or a value is not what it should be, the
block is read again by Python's `csv` module, which can tell each bad record; both take the same
records.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv

from lookback.core.errors import UserError
from lookback.workflows.log.description import CsvFormat
from lookback.workflows.log.records import BadRecords, RecordBlock, Records, Wanted, listed
from lookback.workflows.text import (
    BLOCK_BYTES,
    EXCERPT,
    BadLineError,
    Block,
    blocks,
    first_line,
    record_blocks,
)

ARROW_BLOCK_BYTES = 4 << 20
"""What Arrow's threads parse at a time: enough of these in a block of ours to share out."""

_UNIT = "\x1f"  # ASCII's separator of units, which stands in for several characters


@dataclass(frozen=True)
class CsvColumns:
    """Where the columns are.

    Attributes:
      names: of those to read.
      places: theirs, from 0 on.
      others: names of the columns that nobody reads.
      count: fields of a record.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    others: tuple[str, ...]
    count: int


@dataclass(frozen=True, kw_only=True)
class CsvBlock(RecordBlock):
    """Whole records of a CSV file."""

    columns: CsvColumns
    csv: CsvFormat

    @property
    def decimal(self) -> str:
        """See `RecordBlock.decimal`."""
        return self.csv.decimal

    @property
    def is_written(self) -> bool:
        """See `RecordBlock.is_written`."""
        return True

    def quick(self) -> Records | None:
        """See `RecordBlock.quick`."""
        data = self._text()
        start = self._start(data)
        lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
        table: pa.Table | None = None
        if start == len(data):
            table = pa.table({name: pa.array([], pa.string()) for name in self.columns.names})
        elif data.count(b"\r") == data.count(b"\r\n"):  # Arrow takes one alone for a line's end
            quotes = data.count(self.csv.quote.encode(), start) if self.csv.quote else 0
            table = _parse_quickly(memoryview(data)[start:], quotes, self.columns, self.csv)
        return None if table is None else Records(table, lines, None, lambda row: "")

    def careful(self) -> Records:
        """See `RecordBlock.careful`."""
        # Bytes that are not UTF-8 do no harm in a column that nobody reads.
        data = self._text()
        marked = self._start(data) if not self._has_header else 0
        lines = data[marked:].decode("utf-8", "surrogateescape").split("\n")
        if not lines[-1]:
            lines.pop()
        rows, numbers, bad = [], [], BadRecords()
        for number, record in _records(lines, int(self._has_header), self.csv):
            try:
                if isinstance(record, csv.Error):
                    raise BadLineError(f"not CSV: {record}")
                if not "".join(record).strip() and len(record) < 2:
                    continue  # a blank line
                rows.append(_values(record, self.columns))
                numbers.append(number)
            except BadLineError as error:
                bad.add(number, str(error), _excerpt(lines[number - 1]))
        columns = zip(*rows, strict=True) if rows else [() for _ in self.columns.names]
        arrays = [pa.array(column, pa.string()) for column in columns]
        return Records(
            pa.table(arrays, list(self.columns.names)),
            len(lines),
            np.array(numbers, np.int64),
            lambda row: _excerpt(lines[numbers[row] - 1]),
            bad,
        )

    @property
    def _has_header(self) -> bool:
        return self.first and self.csv.header

    def _text(self) -> bytes:
        """The block in UTF-8."""
        data = self.read()
        if self.csv.encoding == "utf-8" or data.isascii():
            return data
        return data.decode(self.csv.encoding).encode()

    def _start(self, data: bytes) -> int:
        """Where the records begin."""
        if self._has_header:
            return data.find(b"\n") + 1 or len(data)
        return len(codecs.BOM_UTF8) if self.first and data.startswith(codecs.BOM_UTF8) else 0


def find_columns(path: Path, wanted: Wanted, form: CsvFormat) -> CsvColumns:
    """Finds columns in a file's header, or in the names that stand for it.

    Args:
      path: the file.
      wanted: the columns.
      form: how the file is written.

    Raises:
      UserError: if the file is empty or damaged, or has not these columns.
    """
    if form.columns is None:
        found, where = _read_header(path, form), "in its first line"
    else:
        found, where = list(form.columns), "named by csv.columns"
        _check_first(path, wanted, form)
    for name in wanted.names:
        if found.count(name) != 1:
            problem = "has no column" if name not in found else "has more than one column"
            raise UserError(
                f"{path} {problem} {name!r}. The columns {where}: {listed(found)}. {wanted.remedy}"
            )
    places = tuple(found.index(name) for name in wanted.names)
    others = tuple(name for name in found if name not in wanted.names)
    return CsvColumns(wanted.names, places, others, len(found))


def csv_blocks(
    path: Path, wanted: Wanted, form: CsvFormat, block_bytes: int = BLOCK_BYTES
) -> Iterator[CsvBlock]:
    """The blocks of a file, in order; see `find_columns` and `workflows.text.record_blocks`."""
    found = find_columns(path, wanted, form)
    cut = record_blocks(path, block_bytes, form.quote.encode()) if form.quote else None
    for block in cut or blocks(path, block_bytes):
        values: dict[str, Any] = {field.name: getattr(block, field.name) for field in fields(Block)}
        yield CsvBlock(**values, wanted=wanted, columns=found, csv=form)


def split_line(line: str, form: CsvFormat) -> list[str]:
    """The fields of a line that is a record.

    Raises:
      csv.Error: if it is none.
    """
    if not form.quote:
        return line.split(form.separator)
    return next(_reader([line], form, strict=True), [])


def _reader(lines: Any, form: CsvFormat, strict: bool = False) -> Any:
    return csv.reader(lines, delimiter=form.separator, quotechar=form.quote, strict=strict)


def _read_header(path: Path, form: CsvFormat) -> list[str]:
    """Names in the first line."""
    text = first_line(path, form.encoding, carriage_returns=True)
    if not text.strip():
        state = "begins with an empty line" if path.stat().st_size else "is empty"
        raise UserError(f"{path} {state}. Its first line must name the columns.")
    try:
        return [name.strip() for name in split_line(text, form)]
    except csv.Error as error:
        raise UserError(
            f"{path}:1: the first line, which must name the columns, is not CSV ({error}): "
            f"{text[:EXCERPT]!r}... Correct it."
        ) from error


def _check_first(path: Path, wanted: Wanted, form: CsvFormat) -> None:
    """Refuses a file whose first line is a header in spite of csv.header, or has other fields."""
    text = first_line(path, form.encoding, carriage_returns=True)
    names = form.columns or ()
    try:
        found = [field.strip() for field in split_line(text, form)]
    except csv.Error:
        return  # it goes on in the next line, or its block will say what is wrong
    if len(found) != len(names) and text.strip():
        raise UserError(
            f"{path}:1: expected the {len(names)} columns that csv.columns names, received "
            f"{len(found)} fields: {text[:EXCERPT]!r}. Correct csv.columns or csv.separator."
        )
    if {name.lower() for name in found} >= {name.lower() for name in wanted.names}:
        raise UserError(
            f"{path}:1: the first line names the columns, {listed(found)}. Say header: true under "
            "csv, and remove columns there."
        )


def _parse_quickly(
    body: memoryview, quotes: int, columns: CsvColumns, form: CsvFormat
) -> pa.Table | None:
    """All records at once, as strings, or None where any of them may be bad.

    Args:
      body: the records.
      quotes: number of quotes among them.
      columns: where things are.
      form: how they are written.
    """
    if quotes % 2:  # a field that does not end takes what follows
        return None
    if not np.frombuffer(body, np.uint8).min(initial=1):
        return None
    separator, data = form.separator, pa.py_buffer(body)
    if len(separator) > 1:
        text = bytes(body)
        if _UNIT.encode() in text:
            return None
        separator, data = _UNIT, pa.py_buffer(text.replace(separator.encode(), _UNIT.encode()))
    numbered = [str(place) for place in range(columns.count)]
    chosen = [numbered[place] for place in columns.places]
    try:
        table = pcsv.read_csv(
            pa.BufferReader(data),
            read_options=pcsv.ReadOptions(
                column_names=numbered,
                block_size=ARROW_BLOCK_BYTES,
                use_threads=pa.cpu_count() > 1,
            ),
            parse_options=pcsv.ParseOptions(
                delimiter=separator,
                quote_char=form.quote if quotes else False,
                newlines_in_values=quotes > 0,
            ),
            convert_options=pcsv.ConvertOptions(
                column_types=dict.fromkeys(chosen, pa.string()),
                include_columns=chosen,
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    return table.rename_columns(list(columns.names))


def _records(
    lines: Sequence[str], skip: int, form: CsvFormat
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Number of the first line of each record, and its fields, or why they cannot be told."""
    if not form.quote:
        for number, line in enumerate(lines[skip:], start=skip + 1):
            yield number, line.removesuffix("\r").split(form.separator)
        return
    source = (f"{line}\n" for line in lines[skip:])
    before = skip
    while True:
        reader = _reader(source, form)
        start = before
        try:
            for record in reader:
                last = before + reader.line_num == len(lines)
                error = _unclosed(lines[start:], form) if last else None
                yield start + 1, error or record
                start = before + reader.line_num
            return
        except csv.Error as error:
            yield start + 1, error
            before += reader.line_num


def _unclosed(lines: Sequence[str], form: CsvFormat) -> csv.Error | None:
    """The error of a record at the end of which a quoted field is still open."""
    try:
        list(_reader((f"{line}\n" for line in lines), form, strict=True))
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            return csv.Error("a quoted field does not end")
    return None


def _values(record: Sequence[str], columns: CsvColumns) -> tuple[str, ...]:
    if len(record) != columns.count:
        raise BadLineError(f"{len(record)} fields instead of {columns.count}")
    values = tuple(record[place] for place in columns.places)
    for name, value in zip(columns.names, values, strict=True):
        if "\0" in value:
            raise BadLineError(f"{name} holds a byte of value 0, which no text has")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadLineError(f"{name} is not UTF-8") from error
    return values


def _excerpt(line: str) -> str:
    raw = line[:EXCERPT].rstrip("\r").encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")
