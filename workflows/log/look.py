"""A look at a file that nobody has described: how it is written, and some of its values."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.workflows.log.csv_records import split_line
from lookback.workflows.log.description import CsvFormat, FileFormat, format_of
from lookback.workflows.text import damaged_gzip, first_line

LINES_BYTES = 1 << 20
"""Of text that are looked at, at the beginning of a file."""

ROWS = 2000
"""Of a row group of parquet that are looked at."""

PLACES = 4
"""Further on in a file that is larger, where as much together is looked at."""

_SEPARATORS = ("\t", ",", ";", "|", "::")
_ALIKE = 0.95  # share of lines that must have as many fields as most


@dataclass(frozen=True)
class Look:
    """What a look at a file found.

    Attributes:
      path: the file.
      kind: its format.
      csv: how it is written, of CSV.
      header_sure: whether there is no doubt about `csv.header`.
      columns: values by column, of JSON and structs by dotted path: text, numbers, lists or None.
      rows: how many rows were looked at.
      whole: whether these are all.
      reasons: what was concluded from what.
    """

    path: Path
    kind: FileFormat
    csv: CsvFormat | None
    header_sure: bool
    columns: Mapping[str, list[Any]]
    rows: int
    whole: bool
    reasons: tuple[str, ...]


def look_at(path: Path) -> Look:
    """Looks at a file.

    Raises:
      UserError: if it cannot be read, is empty, or is of no format that is known.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file. Name files of a log: CSV, JSON lines or parquet.")
    if format_of(path.name) == "parquet":
        return _look_at_parquet(path)
    first_line(path)  # refuses what is damaged, or no text of bytes
    lines, whole = _lines(path)
    if not lines:
        raise UserError(f"{path} is empty. Name a file with rows in it.")
    if lines[0].lstrip().startswith(b"{"):
        return _look_at_json(path, lines, whole)
    return _look_at_csv(path, lines, whole)


def _lines(path: Path) -> tuple[list[bytes], bool]:
    """Lines of the beginning and of some places further on, and whether they are all."""
    if path.suffix == ".gz":
        try:
            with gzip.open(path) as packed:
                data = packed.read(LINES_BYTES)
                whole = not packed.read(1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise damaged_gzip(path, 0, error) from error
        return _cut(data, whole), whole
    size = path.stat().st_size
    with path.open("rb") as file:
        data = file.read(LINES_BYTES)
        whole = len(data) == size
        lines = _cut(data, whole)
        for place in range(1, PLACES + 1) if not whole else ():
            file.seek(max(file.tell(), size * place // (PLACES + 1)))
            file.readline()
            lines += _cut(file.read(LINES_BYTES // PLACES), False)
    return lines, whole


def _cut(data: bytes, whole: bool) -> list[bytes]:
    """Lines that are not blank; of what is cut off, the last is none."""
    lines = data.split(b"\n")
    if not whole:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines if line.strip()]


def _look_at_json(path: Path, lines: Sequence[bytes], whole: bool) -> Look:
    columns: dict[str, list[Any]] = {}
    rows = 0
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if not isinstance(value, dict):
            continue
        for name, entry in _flat(value):
            columns.setdefault(name, [None] * rows).append(entry)
        rows += 1
        for values in columns.values():
            values += [None] * (rows - len(values))
    if not rows:
        raise UserError(f"{path}: expected a JSON object in each line, found none.")
    for name in [n for n, values in columns.items() if not any(v is not None for v in values)]:
        if any(other.startswith(f"{name}.") for other in columns):
            del columns[name]  # null instead of an object
    return Look(path, "jsonl", None, True, columns, rows, whole, ("each line is a JSON object",))


def _flat(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, entry in value.items():
        if isinstance(entry, dict):
            yield from _flat(entry, f"{above}{key}.")
        else:
            yield f"{above}{key}", entry


def _look_at_parquet(path: Path) -> Look:
    try:
        file = open_parquet(path)
        groups = file.metadata.num_row_groups
        chosen = sorted(
            {groups * place // (PLACES + 1) for place in range(PLACES + 1)} & {*range(groups)}
        )
        tables = [next(file.iter_batches(ROWS, row_groups=[group]), None) for group in chosen]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole parquet file: {error}") from error
    columns: dict[str, list[Any]] = {}
    rows = 0
    for batch in tables:
        table = pa.Table.from_batches([batch]) if batch is not None else None
        while table is not None and any(pa.types.is_struct(kind) for kind in table.schema.types):
            table = table.flatten()
        if table is not None:
            rows += len(table)
            for name in table.column_names:
                columns.setdefault(name, []).extend(table[name].to_pylist())
    if not rows:
        raise UserError(f"{path} is empty. Name a file with rows in it.")
    whole = rows == file.metadata.num_rows
    return Look(path, "parquet", None, True, columns, rows, whole, ())


def _look_at_csv(path: Path, lines: Sequence[bytes], whole: bool) -> Look:
    reasons = []
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    try:
        text = [line.decode("utf-8-sig") for line in lines]
    except UnicodeDecodeError:
        encoding = "latin-1"
        text = [line.decode(encoding) for line in lines]
        reasons.append("bytes that are not UTF-8: latin-1 (or another of its kind: check a name)")
    separator, quote = _dialect(text, path)
    form = CsvFormat(separator=separator, quote=quote, encoding=encoding)
    records = []
    for line in text:
        try:
            records.append(split_line(line, form))
        except csv.Error:
            continue
    width = Counter(map(len, records)).most_common(1)[0][0]
    rows = [record for record in records[1:] if len(record) == width]
    header, sure, why = _header(records[0], rows)
    names = [name.strip() for name in records[0]] if header else _numbered(width)
    reasons += [f"{width} fields a line between {separator!r}", why]
    if not header:
        rows = [records[0], *rows]
        form = CsvFormat(
            separator=separator, quote=quote, encoding=encoding, header=False, columns=tuple(names)
        )
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    return Look(path, "csv", form, sure, columns, len(rows), whole, tuple(reasons))


def _numbered(width: int) -> list[str]:
    return [f"column_{place}" for place in range(1, width + 1)]


def _dialect(lines: Sequence[str], path: Path) -> tuple[str, str]:
    """The separator by which most lines have equally many fields, and the quote."""
    found = []
    for separator in _SEPARATORS:
        for quote in ('"', "") if len(separator) == 1 else ("",):
            form = CsvFormat(separator=separator, quote=quote)
            widths = Counter(_width(line, form) for line in lines)
            width, alike = widths.most_common(1)[0]
            if width > 1 and alike >= _ALIKE * len(lines):
                quoted = quote == '"' and any('"' in line for line in lines)
                found.append((alike, len(separator), width, quoted, separator, quote))
    if not found:
        raise UserError(
            f"{path}: expected CSV with one of {' '.join(map(repr, _SEPARATORS))} between fields, "
            "or an object of JSON in each line; most lines have no number of fields in common."
        )
    *_, separator, quote = max(found)
    plain = not any('"' in line for line in lines)
    return separator, '"' if plain and len(separator) == 1 and separator != "\t" else quote


def _width(line: str, form: CsvFormat) -> int:
    try:
        return len(split_line(line, form))
    except csv.Error:
        return 0


def _header(first: Sequence[str], rows: Iterable[Sequence[str]]) -> tuple[bool, bool, str]:
    """Whether the first line names the columns, whether that is sure, and why."""
    rows = list(rows)
    if any(is_number(field) or not field.strip() for field in first):
        return False, True, "the first line has numbers, so it names no columns"
    if len(set(first)) < len(first):
        return False, True, "the first line has a value twice, so it names no columns"
    for place, field in enumerate(first):
        values = [row[place] for row in rows if len(row) == len(first) and row[place].strip()]
        if values and sum(map(is_number, values)) > _ALIKE * len(values):
            return True, True, f"the first line names the columns: {field!r} is above numbers"
    return True, False, "the first line may name the columns, or be one of text as all others are"


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return "_" not in text and abs(float(text)) < float("inf")
    except ValueError:
        return False
