"""Tabular data in parquet files, as `python -m workflows` writes it.

DIR/
  dataset.json      format, version, rows of each split, rows of each table
  schema.pbtxt      columns by tag: `formats.tabular_schema`
  train/part-00000.parquet ...  validation/ ...  test/ ...   (a split without rows has none)
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from merlin.schema import Schema

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY, Verification
from lookback.formats.dataset_info import AGAIN, SPLITS, read_tabular_info
from lookback.formats.features import table_rows
from lookback.formats.labels import both_classes
from lookback.formats.schema import read_schema
from lookback.formats.tabular_rows import (
    Array,
    Place,
    TabularRows,
    check_ids,
    check_label,
    check_numbers,
    known_split,
)
from lookback.formats.tabular_schema import TabularFeatures
from lookback.formats.verification import verify_dataset

# Rows that are turned from columns into a matrix at once: a piece of the matrix and of all columns
# stay in a core's cache. Measured for 26 columns: 42 ns a row; 512 rows 88, all 65,536 at once 59.
_TURNED_AT_ONCE = 4096
_FOOTERS_KEPT = 64


class _Block(NamedTuple):
    """A row group: where it is, and the number of its first row in the file."""

    file: Path
    group: int
    first_row: int
    rows: int


class TabularDataset:
    """A tabular dataset of our own format.

    Args:
      path: its directory.
      verification: how far its files are compared with what dataset.json says of them.

    Attributes:
      schema: of a row.
      features: names of the columns by role.
      cardinalities: rows of the table of each id column, by name.

    Raises:
      UserError: if the directory is no such dataset, or its parts are missing, damaged or
        contradict each other.
    """

    def __init__(self, path: str | Path, verification: Verification = WHOLLY) -> None:
        self._path = Path(path)
        description = read_tabular_info(self._path)
        verify_dataset(self._path, verification)
        self.schema: Schema = read_schema(self._path)
        self.features = TabularFeatures.from_schema(self.schema)
        self.cardinalities: dict[str, int] = table_rows(self.schema)
        if description["cardinalities"] != self.cardinalities:
            raise UserError(
                f"{self._path}: dataset.json gives the tables other sizes than schema.pbtxt: "
                f"{_differing(description['cardinalities'], self.cardinalities)}. {AGAIN}"
            )
        self._counts: dict[str, int] = {}
        self._blocks: dict[str, list[_Block]] = {}
        for split in SPLITS:
            expected = description["counts"].get(split, 0)
            self._blocks[split] = _read_footers(self._path / split, expected, self.features)
            self._counts[split] = expected
        # Shared by the threads. A footer of 64 row groups of 40 columns is parsed in about 2 ms.
        self._footer = functools.lru_cache(_FOOTERS_KEPT)(_read_footer)

    def num_rows(self, split: str) -> int:
        """Rows of a split.

        Raises:
          UserError: if there is no such split, or it has no rows.
        """
        return known_split(split, self._counts, self._path)

    def has(self, split: str) -> bool:
        """Whether there are rows of a split."""
        return self._counts.get(split, 0) > 0

    def blocks(self, split: str) -> Sequence[int]:
        """Rows of each row group, in file order."""
        return [block.rows for block in self._blocks[split]]

    def both_classes(self, split: str) -> bool:
        """Whether a split has labels of both classes."""
        groups = ((block.file, block.group) for block in self._blocks[split])
        return both_classes(groups, self.features.label)

    def read(self, split: str, block: int, begin: int, rows: TabularRows) -> None:
        """Fills `rows` with a row group's rows from number `begin` on.

        Raises:
          UserError: if the file cannot be read, or holds nulls, NaN or an id without a table row.
        """
        where = self._blocks[split][block]
        columns = self._decode(where)
        end = begin + len(rows)
        place = Place(split, where.file, where.first_row + begin)
        arrays = {
            name: _values(column, name, place)[begin:end]
            for name, column in zip(self.features.names, columns, strict=True)
        }
        label = arrays[self.features.label]
        check_label(label, self.features.label, place)
        for name in self.features.numerical:
            check_numbers(arrays[name], name, place)
        for name in self.features.categorical:
            check_ids(arrays[name], name, self.cardinalities[name], place)
        rows.labels[:, 0] = label
        _turn([arrays[name] for name in self.features.numerical], rows.numerical)
        _turn([arrays[name] for name in self.features.categorical], rows.categorical)

    def _decode(self, where: _Block) -> list[pa.ChunkedArray]:
        try:
            footer = self._footer(where.file)
            with open_parquet(where.file, metadata=footer, memory_map=True) as file:
                # Other row groups keep the other cores busy.
                table = file.read_row_group(
                    where.group, columns=list(self.features.names), use_threads=False
                )
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{where.file} cannot be read ({error}). The file is damaged, or changed while it "
                f"was read. {AGAIN}"
            ) from error
        return [table.column(name) for name in self.features.names]


def _values(column: pa.ChunkedArray, name: str, place: Place) -> Array:
    """A column's values ``[n]``, not copied if they lie together."""
    if column.null_count:
        raise UserError(
            f"{place.file} ({place.split}): column {name!r} holds {column.null_count} nulls in "
            f"the row group of row {place.row}. Expected none: missing numbers are 0, and missing "
            f"ids have id 0. {AGAIN}"
        )
    together = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    values: Array = together.to_numpy()
    return values


def _turn(columns: list[Array], matrix: Array) -> None:
    """Fills a matrix ``[n, C]`` with C columns ``[n]``."""
    for begin in range(0, len(matrix), _TURNED_AT_ONCE):
        rows = slice(begin, begin + _TURNED_AT_ONCE)
        piece = matrix[rows]
        for number, column in enumerate(columns):
            piece[:, number] = column[rows]


def _read_footers(directory: Path, expected: int, features: TabularFeatures) -> list[_Block]:
    """The row groups of a split's files, which must hold `expected` rows of `features`.

    Files are numbered by the day or the block that they came from, so numbers may be left out.
    """
    files = sorted(directory.glob("*.parquet"), key=_number)
    blocks: list[_Block] = []
    for file in files:
        try:
            footer = _read_footer(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file} cannot be read as parquet ({error}). It is damaged or cut off. {AGAIN}"
            ) from error
        _check_columns(file, footer.schema.to_arrow_schema(), features)
        row = 0
        for index in range(footer.num_row_groups):
            rows = footer.row_group(index).num_rows
            if rows:
                blocks.append(_Block(file, index, row, rows))
            row += rows
    rows = sum(block.rows for block in blocks)
    if rows != expected:
        raise UserError(
            f"{directory} holds {rows} rows in {len(files)} files, dataset.json says {expected}. "
            f"Files are missing, or not of this dataset. {AGAIN}"
        )
    return blocks


def _read_footer(file: Path) -> pq.FileMetaData:
    with open_parquet(file) as parquet:
        return parquet.metadata


def _number(file: Path) -> int:
    match = re.fullmatch(r"part-(\d+)\.parquet", file.name)
    if match is None:
        raise UserError(f"{file} is not named part-00000.parquet and so on. {AGAIN}")
    return int(match[1])


def _check_columns(file: Path, found: pa.Schema, features: TabularFeatures) -> None:
    kinds = {name: pa.float32() for name in (features.label, *features.numerical)}
    kinds |= {name: pa.int32() for name in features.categorical}
    missing = [name for name in kinds if name not in found.names]
    if missing:
        raise UserError(
            f"{file} lacks the columns {missing} of schema.pbtxt; it has {found.names}. {AGAIN}"
        )
    for name, kind in kinds.items():
        if found.field(name).type != kind:
            raise UserError(
                f"{file}: column {name!r} is {found.field(name).type}, expected {kind}. {AGAIN}"
            )


def _differing(found: Mapping[str, int], expected: Mapping[str, int]) -> str:
    names = [n for n in {**found, **expected} if found.get(n) != expected.get(n)]
    shown = [f"{n}: {found.get(n)} and {expected.get(n)}" for n in names[:3]]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
