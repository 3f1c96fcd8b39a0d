"""Rows of files by number, read in parts: of Parquet files, or of lines of JSON."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet
from lookback.core.digests import digest_of, reading
from lookback.core.errors import UserError
from lookback.serving.request_lines import load_line, request_lines

_PARQUET = b"PAR1"


class RowSource(abc.ABC):
    """R rows in order.

    Attributes:
      files: that hold them.
      total: R.
    """

    files: Sequence[Path]
    total: int

    def digests(self) -> list[str]:
        """SHA-256 of each file."""
        return [digest_of(path) for path in self.files]

    def parts(self, most: int) -> list[tuple[int, int]]:
        """Ranges of at most so many rows that together are all."""
        return [(first, min(first + most, self.total)) for first in range(0, self.total, most)]

    @abc.abstractmethod
    def fields(self) -> set[str]:
        """Names of what a row has, as far as one can tell before they are read."""

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> Any:
        """Rows from `start` to before `stop`: a table, or objects."""

    @abc.abstractmethod
    def where(self, row: int) -> str:
        """Where a row stands, for people."""


class ParquetRows(RowSource):
    """Rows of Parquet files of the same columns.

    Args:
      files: one at least.
      columns: to read; None: all.

    Raises:
      UserError: if a file cannot be read, or has other columns than the first.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str] | None = None) -> None:
        self.files, self._columns = files, columns
        self._groups: list[tuple[Path, int, int, int]] = []
        self._last: tuple[int, pa.Table] | None = None
        self.total = 0
        schemas = []
        for path in files:
            with _opened(path) as file:
                schemas.append(file.schema_arrow.remove_metadata())
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    self._groups.append((path, group, self.total, self.total + rows))
                    self.total += rows
            if not schemas[-1].equals(schemas[0]):
                raise UserError(
                    f"{path} has other columns than {files[0]}. Expected files of one table."
                )
        self._schema = schemas[0]

    def fields(self) -> set[str]:
        """The columns; parts of requests by their names."""
        return {name.partition(".")[0] for name in self._schema.names}

    def read(self, start: int, stop: int) -> pa.Table:
        """Of the row groups that have them, of which one stays in memory."""
        pieces = []
        for number, (path, group, first, end) in enumerate(self._groups):
            if first < stop and start < end:
                if self._last is None or self._last[0] != number:
                    with _opened(path) as file:
                        self._last = number, file.read_row_group(group, self._columns)
                low, high = max(start, first), min(stop, end)
                pieces.append(self._last[1].slice(low - first, high - low))
        return pa.concat_tables(pieces)

    def where(self, row: int) -> str:
        """The file, and the row in it, from 1 on."""
        path, _, _, _ = next(entry for entry in self._groups if row < entry[3])
        before = next(first for own, _, first, _ in self._groups if own == path)
        return f"{path}, row {row - before + 1}"


class JsonRows(RowSource):
    """Lines of JSON, an object each; blank ones are passed over.

    Args:
      path: of the file.

    Raises:
      UserError: if it cannot be read, or a line is too long.
    """

    def __init__(self, path: Path) -> None:
        self.files = [path]
        numbers, offsets, end = [], [], 0
        with reading(path), path.open("rb") as file:
            for number, line in request_lines(file, str(path)):
                end = file.tell()
                numbers.append(number)
                offsets.append(end - len(line))
        self._numbers, self._offsets = np.array(numbers, np.int64), np.array(offsets, np.int64)
        self.total = len(numbers)

    def fields(self) -> set[str]:
        """Of the first object."""
        (first,) = self.read(0, 1)
        return set(first) if isinstance(first, dict) else set()

    def read(self, start: int, stop: int) -> list[Any]:
        """From their place in the file."""
        (path,) = self.files
        rows = []
        with reading(path), path.open("rb") as file:
            file.seek(int(self._offsets[start]))
            lines = request_lines(file, str(path), int(self._numbers[start]))
            for _, (number, line) in zip(range(start, stop), lines, strict=False):
                rows.append(load_line(line, f"{path}, line {number}"))
        return rows

    def where(self, row: int) -> str:
        """The line."""
        return f"{self.files[0]}, line {self._numbers[row]}"


def open_rows(path: Path, option: str) -> RowSource:
    """The rows of a Parquet file or a directory of such, or of lines of JSON, by what is in it.

    Args:
      path: of the file or directory.
      option: that names it.

    Raises:
      UserError: if it cannot be read, or holds no row.
    """
    rows: RowSource
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise UserError(f"{option} {path}: expected *.parquet in the directory, found none.")
        rows = ParquetRows(files)
    else:
        with reading(path), path.open("rb") as file:
            rows = ParquetRows([path]) if file.read(4) == _PARQUET else JsonRows(path)
    if not rows.total:
        raise UserError(f"{option} {path}: expected one row at least, found none.")
    return rows


def _opened(path: Path) -> pq.ParquetFile:
    try:
        return open_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}.") from error
