"""The log of a dataset, kept beside it, and what came since: written, and read as one.

What `formats.kept_log` holds is what a reader read, so an update is a run over all data, but that
nothing is parsed twice. Only what is in the log already, and was trained on, must be told apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookback.core.arrow_files import open_parquet
from lookback.formats import kept_log
from lookback.formats.dataset_info import UPDATE_DIRECTORY
from lookback.formats.history_columns import ITEM_ID, NEW, NEW_COLUMN, USER_ID, Column
from lookback.formats.vocabulary import together
from lookback.workflows.cluster import Runner
from lookback.workflows.histories.feature_specs import FeatureSpec
from lookback.workflows.histories.gather import (
    CAME,
    OLD,
    ROWS_READ_AT_ONCE,
    UNTRAINED,
    KnownFeatures,
    first_of_each,
)
from lookback.workflows.histories.ingest import common_type
from lookback.workflows.histories.reader import Reader
from lookback.workflows.histories.rules import EventRules
from lookback.workflows.text import BadLineCounter, Block, Parsed
from lookback.workflows.times import TimeUnit

CHANGED = {ITEM_ID: "changed_items", USER_ID: "changed_users"}
"""Counts: items and users of which something else is known than was."""

_Piece = tuple[Path, int, int]


def write_log(
    logs: Sequence[tuple[Path, int]],
    features: Sequence[KnownFeatures],
    output: Path,
    runner: Runner,
) -> None:
    """Writes all that was read beside a dataset's histories; removes the files it is written from.

    The files are the same however many partitions there are.

    Args:
      logs: of the partitions, in order: files, and their rows.
      features: what is known of users and items.
      output: directory of the dataset.
      runner: where the tasks run.
    """
    (output / UPDATE_DIRECTORY).mkdir()
    tasks = [
        (pieces, kept_log.event_file(output, number)) for number, pieces in enumerate(_cut(logs))
    ]
    for _ in runner.map(_write, tasks, label="keeping the log", total=len(tasks)):
        pass
    for file, _ in logs:
        file.unlink()
    for known in features:
        if known.table is not None:
            kept_log.write_known(output, known.key, known.table)


@dataclass(frozen=True)
class Continued(Reader):
    """Reads the log of a dataset, and then what came since.

    Attributes:
      described: reads all that the dataset has features of.
      since: reads what came; maybe without files of items or users.
      lacks: of what no file came: "items", "users".
      dataset: has the log.
    """

    takes_file: ClassVar[bool] = True

    described: Reader
    since: Reader
    lacks: tuple[str, ...]
    dataset: Path

    @classmethod
    def of(cls, reader: Reader, directory: Path, dataset: Path) -> Continued:
        """Reads with a reader what came.

        Args:
          reader: of all that the dataset has features of.
          directory: what came.
          dataset: has the log.
        """
        return cls(reader, *reader.of_new(directory), dataset)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those of the dataset, and what is new."""
        return (*self.described.columns, NEW_COLUMN)

    @property
    def feature_specs(self) -> Mapping[str, FeatureSpec]:
        """See `Reader.feature_specs`."""
        return self.described.feature_specs

    @property
    def explicit(self) -> bool:
        """See `Reader.explicit`."""
        return self.described.explicit

    @property
    def rules(self) -> EventRules:
        """See `Reader.rules`."""
        return self.described.rules

    def event_files(self, directory: Path) -> list[Path]:
        """The log's files, and then those of the events that came."""
        return [*kept_log.event_files(self.dataset), *self.since.event_files(directory)]

    def count_events(self, paths: list[Path]) -> int:
        """Those of the log, and about as many as came."""
        kept = [path for path in paths if self._keeps(path)]
        came = [path for path in paths if not self._keeps(path)]
        return sum(map(kept_log.event_count, kept)) + self.since.count_events(came)

    def blocks(self, path: Path) -> Iterator[Block]:
        """Cuts a file to blocks; of the log they have places of pieces."""
        if not self._keeps(path):
            yield from self.since.blocks(path)
            return
        for group in range(kept_log.event_groups(path)):
            yield Block(path, group, group + 1, first=not group)

    def parse_block(self, block: Block, unit: TimeUnit | None = None) -> Parsed:
        """See `Reader.parse_block`; each event with `NEW` as `gather` takes it."""
        if self._keeps(block.path):
            table = kept_log.read_events(block.path, block.start)
            trained = table[kept_log.TRAINED].to_numpy()
            parsed = Parsed(table.drop([kept_log.TRAINED]), len(table))
            new = np.where(trained, OLD, UNTRAINED)
        else:
            parsed = self.since.parse_block(block, unit)
            new = np.full(len(parsed.table), CAME)
        parsed.table = parsed.table.append_column(NEW, pa.array(new.astype(np.int8)))
        return parsed

    def features(
        self, directory: Path, runner: Runner, bad_lines: BadLineCounter
    ) -> tuple[list[KnownFeatures], dict[str, int]]:
        """What is known of users and items; of an id that came again what came counts."""
        found, counts = self.since.features(directory, runner, bad_lines)
        known = {features.key: features for features in found}
        for key, table in kept_log.read_known(self.dataset).items():
            columns = [name for name in table.column_names if name != key]
            came = known.get(key, KnownFeatures(key, dict.fromkeys(columns)))
            table, changed = _newest(came.table, table, key)
            known[key] = dataclasses.replace(came, table=table)
            counts = {**counts, CHANGED[key]: changed}
        return list(known.values()), counts

    def passed_over(self, directory: Path, paths: Sequence[Path]) -> list[str]:
        """What is not read of what came, and of what nothing came."""
        came = [path for path in paths if not self._keeps(path)]
        unknown = self.since.unknown(directory)
        said = [line for line in self.since.passed_over(directory, came) if line not in unknown]
        return said + [
            f"no file of {part} came: what was known of them stands" for part in self.lacks
        ]

    def _keeps(self, path: Path) -> bool:
        return path.parent == self.dataset / UPDATE_DIRECTORY


def _newest(came: pa.Table | None, table: pa.Table, key: str) -> tuple[pa.Table, int]:
    """What is known of each id by its newest row, and of how many ids that is something else."""
    if came is None:
        return table, 0
    names = table.column_names
    types = {name: common_type([came[name].type, table[name].type]) for name in names}
    schema = pa.schema(list(types.items()))
    came, table = came.select(names).cast(schema, safe=False), table.cast(schema, safe=False)
    place = pc.index_in(together(came[key]), value_set=together(table[key]))
    again = came.filter(place.is_valid())
    before = table.take(place.drop_null())
    differ = np.zeros(len(again), np.bool_)
    for name in names:
        new, old = together(again[name]), together(before[name])
        other = pc.not_equal(new, old).fill_null(False)
        other = pc.or_(other, pc.xor(new.is_null(), old.is_null()))
        differ |= other.to_numpy(zero_copy_only=False)
    return first_of_each(pa.concat_tables([came, table]), key)[0], int(differ.sum())


def _cut(logs: Sequence[tuple[Path, int]]) -> Iterator[list[_Piece]]:
    """Rows of the partitions, one after the other, as pieces of files of equal length.

    A piece is a file with the first row of it, and the row after its last.
    """
    pieces: list[_Piece] = []
    room = kept_log.EVENTS_PER_FILE
    for file, rows in logs:
        start = 0
        while start < rows:
            stop = min(rows, start + room)
            pieces.append((file, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield pieces
                pieces, room = [], kept_log.EVENTS_PER_FILE
    if pieces:
        yield pieces


def _write(task: tuple[list[_Piece], Path]) -> None:
    """Task: puts one file of the log together."""
    pieces, file = task
    kept_log.write_events(pa.concat_tables([_rows(*piece) for piece in pieces]), file)


def _rows(file: Path, start: int, stop: int) -> pa.Table:
    first = start // ROWS_READ_AT_ONCE
    groups = range(first, -(-stop // ROWS_READ_AT_ONCE))
    with open_parquet(file) as parquet:
        table = parquet.read_row_groups(list(groups))
    return table.slice(start - first * ROWS_READ_AT_ONCE, stop - start)
