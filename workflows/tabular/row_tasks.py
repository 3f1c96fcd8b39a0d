"""What is done with a block or a part of a log of rows, in this process or a worker of Dask."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import read_parquet
from lookback.formats import history_columns as names
from lookback.formats.dataset_info import SPLITS
from lookback.formats.part_files import part_name
from lookback.formats.tabular_files import LABEL, ROW_GROUP, write_part
from lookback.formats.transforms import Transform, Vocabulary
from lookback.formats.vocabulary import OUT_OF_VOCABULARY, encode_ids, read_ids, together
from lookback.workflows.histories.gather import COMPRESSION, PART, in_ticks, join_features
from lookback.workflows.histories.ingest import hash_name
from lookback.workflows.histories.typed import Encoding
from lookback.workflows.tabular.row_splits import RowSplit, parts_of_rows
from lookback.workflows.text import Block, Parsed, Parser

ROWS_A_PART = 4 * ROW_GROUP
"""Of a file of the dataset, all splits together: about as many as of Criteo's."""

StoredFeatures = Sequence[tuple[str, Mapping[str, str | None], Path | None]]


@dataclass(frozen=True)
class RowPiece:
    """Raw rows of a block.

    Attributes:
      path: the file that they stand in.
      parsed: without its rows.
      file: of the rows.
      rows: how many.
    """

    path: Path
    parsed: Parsed
    file: Path
    rows: int


def parse_rows(block: Block, parser: Parser, directory: Path) -> RowPiece:
    """Task: parses a block."""
    parsed = parser(block)
    file = directory / f"raw-{hash_name(block.path):016x}-{block.start:016d}.parquet"
    rows = len(parsed.table)
    pq.write_table(parsed.table, file, compression=COMPRESSION)
    parsed.table = parsed.table.slice(0, 0)
    return RowPiece(block.path, parsed, file, rows)


@dataclass(frozen=True)
class Joined:
    """Rows of a block with all their features.

    Attributes:
      rows: of each part of the split.
      positives: those of them with label 1.
      missing: rows without a value, by feature.
      without: rows whose id the files of items or users do not have, by feature.
    """

    rows: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]
    missing: dict[str, int]
    without: dict[str, int]


@dataclass(frozen=True)
class RowJoiner:
    """Adds to raw rows what is known of their users and items, and the part of each; must pickle.

    Attributes:
      schema: the types that hold the raw values of all blocks.
      features: of users and items, see `workflows.histories.gather.store_features`.
      columns: names of the features.
      split: which rows are held out.
      ticks: see `workflows.options.TimedOptions.ticks`.
      total: rows at all.
    """

    schema: pa.Schema
    features: StoredFeatures
    columns: tuple[str, ...]
    split: RowSplit
    ticks: int
    total: int

    def join(self, task: tuple[Path, int]) -> Joined:
        """Task: writes the rows of a file anew, the first of which has a number among all."""
        file, first = task
        table = read_parquet(file).cast(self.schema, safe=False)  # int64 to float64 rounds
        if names.TIMESTAMP in table.column_names:
            table = in_ticks(table, self.ticks)
        without = {}
        for key, defaults, path in self.features:
            table, missing = join_features(table, key, defaults, path)
            without.update(dict.fromkeys(defaults, missing))
        part = parts_of_rows(self.split, table, first, self.total)
        table = table.select([*self.columns, LABEL]).append_column(PART, pa.array(part))
        pq.write_table(table, file, compression=COMPRESSION)
        label = table[LABEL].to_numpy()
        return Joined(
            np.bincount(part, minlength=len(SPLITS)),
            np.bincount(part[label == 1], minlength=len(SPLITS)),
            {name: table[name].null_count for name in self.columns},
            without,
        )


@dataclass(frozen=True)
class RowEncoding:
    """Makes ids and numbers of raw rows; must pickle.

    Attributes:
      transforms: of each feature.
      vocabularies: files of the known values, by feature.
    """

    transforms: Mapping[str, Transform]
    vocabularies: Mapping[str, Path]

    def encode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """The values of each feature ``[N]``: int32 of ids, float32 of numbers."""
        table = Encoding(self.transforms, {}).encode(table)
        encoded = {}
        for name, transform in self.transforms.items():
            if isinstance(transform, Vocabulary):
                known = _known(self.vocabularies[name], name)
                encoded[name] = encode_ids(together(table[name]), known)
            else:
                encoded[name] = table[name].to_numpy()
        return encoded


@dataclass(frozen=True)
class PartTask:
    """A part of each split to write.

    Attributes:
      number: of the part.
      sources: files, and the first row and the row after the last of each.
    """

    number: int
    sources: tuple[tuple[Path, int, int], ...]


@dataclass(frozen=True)
class PartWriter:
    """Encodes the rows of a part and writes them by split; must pickle.

    Attributes:
      encoding: of the rows.
      columns: names of the numerical and of the categorical columns.
      directory: of the dataset.
      seed: of the shuffle of training rows, within the part.
    """

    encoding: RowEncoding
    columns: tuple[Sequence[str], Sequence[str]]
    directory: Path
    seed: int

    def write(self, task: PartTask) -> dict[str, int]:
        """Task: writes a part; gives how many values are not known, by feature."""
        tables = [read_parquet(file).slice(at, end - at) for file, at, end in task.sources]
        table = pa.concat_tables(tables)
        values = self.encoding.encode(table)
        part, label = table[PART].to_numpy(), table[LABEL].to_numpy()
        for number, split in enumerate(SPLITS):
            chosen = np.flatnonzero(part == number)
            if not len(chosen):
                continue
            if number == 0:
                random = np.random.default_rng((self.seed, task.number))
                chosen = random.permutation(chosen)
            file = self.directory / split / part_name(task.number)
            file.parent.mkdir(parents=True, exist_ok=True)
            numerical, categorical = (
                [values[name][chosen] for name in own] for own in self.columns
            )
            write_part(file, label[chosen], numerical, categorical, self.columns)
        return {
            name: int((values[name] == OUT_OF_VOCABULARY).sum())
            for name in self.encoding.vocabularies
        }


def part_tasks(files: Sequence[Path], rows: Sequence[int]) -> list[PartTask]:
    """Cuts the rows of files, which follow each other, to parts of `ROWS_A_PART`.

    So the dataset does not depend on how its input was cut to blocks.
    """
    sources: dict[int, list[tuple[Path, int, int]]] = {}
    before = 0
    for file, count in zip(files, rows, strict=True):
        at = 0
        while at < count:
            number, filled = divmod(before + at, ROWS_A_PART)
            end = min(count, at + ROWS_A_PART - filled)
            sources.setdefault(number, []).append((file, at, end))
            at = end
        before += count
    return [PartTask(number, tuple(own)) for number, own in sources.items()]


@functools.lru_cache(maxsize=256)
def _known_values(path: Path, name: str, modified: int) -> pa.Array:
    """`modified` is part of the cache's key: the next run to an output has files of these names."""
    return read_ids(path, name)


def _known(path: Path, name: str) -> pa.Array:
    return _known_values(path, name, path.stat().st_mtime_ns)
