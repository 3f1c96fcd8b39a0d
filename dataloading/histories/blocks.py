"""Histories in blocks of users, for those that memory does not hold: the row groups of the files.

One pass over the blocks, shared among the processes, counts what each has (`BlockTable`), a few
numbers a block. From then on blocks are read in any order, and several at a time are put together
to the histories of a window (docs/decisions/0025).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tensorflow as tf

from lookback.core.arrow_files import open_parquet
from lookback.core.devices import HOST, whole_numbers
from lookback.core.errors import UserError
from lookback.core.world import World, agree
from lookback.dataloading.evaluations import LeftOut
from lookback.dataloading.histories.impressions import Impressions, require
from lookback.dataloading.histories.resident import (
    Histories,
    HistoriesReader,
    ItemCounts,
    reading,
)
from lookback.dataloading.histories.splits import Int64, KnownTargets, ascending
from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
from lookback.dataloading.parts import Part
from lookback.formats.dataset_info import AGAIN, SPLITS, impression_count
from lookback.formats.histories import history_files
from lookback.formats.history_columns import NEW
from lookback.formats.impressions import USER, ImpressionRows, impression_files
from lookback.formats.vocabulary import FIRST_KNOWN

_ALIGNED = 64
"""Bytes to whose multiples TensorFlow wants the memory of an array that it is not to copy."""
_NUMBER = 8
"""Bytes of an int64."""


@dataclasses.dataclass(frozen=True)
class BlockTable:
    """What is in each of K blocks of users.

    Attributes:
      users: numbers of the blocks' first users, and behind them how many there are, ``[K + 1]``.
      events: ``[K]``.
      bytes: that a block takes in a window, ``[K]``.
      samples: by split, ``[K]``.
      left_out: of all blocks, by split.
      classes: which labels there are, by split.
      longest: events of the longest history.
      counts: of items, in all blocks.
    """

    users: Int64
    events: Int64
    bytes: Int64
    samples: Mapping[str, Int64]
    left_out: Mapping[str, LeftOut]
    classes: Mapping[str, set[int]]
    longest: int
    counts: ItemCounts


class Blocks:
    """The blocks of a dataset's users, read one at a time.

    Attributes:
      nobody: the histories of no user: what is the same for all.
    """

    def __init__(self, reader: HistoriesReader, config: WindowConfig) -> None:
        """Looks up where they are.

        Args:
          reader: of the dataset.
          config: of the windows, which says whether times are kept.

        Raises:
          UserError: if a file cannot be read.
        """
        self._reader, self._config = reader, config
        self._groups: list[tuple[Path, int]] = []
        rows = [0]
        with reading(reader.directory):
            for file in history_files(reader.directory):
                with open_parquet(file) as parquet:
                    empty = parquet.schema_arrow.empty_table().select(reader.columns())
                    for group in range(parquet.num_row_groups):
                        self._groups.append((file, group))
                        rows.append(parquet.metadata.row_group(group).num_rows)
        self.users = np.cumsum(rows, dtype=np.int64)
        names = reader.checks.features.of("item", "context")
        found = [s for s in SPLITS if reader.explicit and impression_files(reader.directory, s)]
        self._shown = {
            s: ImpressionRows(reader.directory, s, names, new=reader.only_new and s == "train")
            for s in found
        }
        self._begins = {s: rows.begins(self.users) for s, rows in self._shown.items()}
        for split, begins in self._begins.items():
            inside = begins[0] == 0 and begins[-1] == self._shown[split].count
            require(inside, reader.directory, split, USER)
        self.nobody = self._with_impressions(reader.histories(empty), 0, 0, (0, 0))

    def __len__(self) -> int:
        return len(self._groups)

    def read(self, block: int) -> Histories:
        """The histories of a block's users, checked as those of a whole dataset.

        Args:
          block: its number.

        Raises:
          UserError: if it is damaged, or does not belong to the dataset.
        """
        (found,) = self._each([block])
        return found

    def _each(self, blocks: Sequence[int]) -> Iterator[Histories]:
        """The histories of blocks, one after another; of each run in a file it is opened once."""
        columns = self._reader.columns()
        for file, run in itertools.groupby(blocks, lambda block: self._groups[block][0]):
            with reading(file):
                opened = open_parquet(file)
            with opened as parquet:
                for block in run:
                    with reading(file):
                        group = self._groups[block][1]
                        # One thread: others train meanwhile, and small groups pay for more.
                        table = parquet.read_row_group(group, columns, use_threads=False)
                    yield self._checked(block, table)

    def _checked(self, block: int, table: pa.Table) -> Histories:
        found = self._reader.histories(table)
        first, behind = self.users[block : block + 2].tolist()
        if found.num_users != behind - first:
            raise self.changed(block)
        found = self._with_impressions(found, first, block, (block, block + 1))
        found.require_targets()
        return found

    def _with_impressions(
        self, histories: Histories, first: int, block: int, places: tuple[int, int]
    ) -> Histories:
        """Histories with the impressions of their users, where labels are explicit.

        Args:
          histories: of users from number `first` on.
          first: likewise.
          block: of the users.
          places: in `_begins`, of the first impression and of that behind the last.
        """
        if not self._reader.explicit:
            return histories
        shown = {}
        times = ascending(histories.offsets, histories.timestamps)
        for split, rows in self._shown.items():
            begin, end = (int(self._begins[split][place]) for place in places)
            columns = rows.read(begin, end)
            if len(columns[USER]) != end - begin:
                raise self.changed(block)
            if NEW in columns:
                new = columns[NEW] == 1
                columns = {name: values[new] for name, values in columns.items()}
            columns[USER] = columns[USER] - first
            checks, offsets = self._reader.checks, histories.offsets
            shown[split] = Impressions.of(checks, split, columns, offsets, times)
        return dataclasses.replace(histories, impressions=shown)

    def changed(self, block: int) -> UserError:
        """The error where a block is not what it was when it was counted."""
        file, group = self._groups[block]
        return UserError(
            f"{file}: row group {group} is another than it was when the run began. Expected the "
            f"dataset's files to stay as they are while it is trained on. {AGAIN}"
        )

    def survey(self, world: World) -> BlockTable:
        """Counts what the blocks have, in one pass over them that the processes share.

        Raises:
          UserError: if a block is damaged, or there is more or less than dataset.json says.
        """
        zeros = np.zeros(len(self._reader.catalogue[self._item]), np.int64)
        windows = WindowBuilder(self.nobody, self._config, ItemCounts(zeros, zeros))
        splits = ("train", *windows.held_out)
        numbers = np.zeros((len(self), _WIDTH + _OF_SPLIT * len(splits)), np.int64)
        counts = ItemCounts(zeros.copy(), zeros.copy())

        def count() -> None:
            for block in range(len(self))[Part(world.rank, world.size).every]:
                histories = self.read(block)
                own = histories.item_counts()
                np.add(counts.training, own.training, out=counts.training)
                np.add(counts.all, own.all, out=counts.all)
                over = windows.over(histories, np.arange(histories.num_users))
                numbers[block] = [
                    histories.num_events,
                    self._bytes(histories),
                    int(np.diff(histories.offsets).max(initial=0)),
                    *(number for split in splits for number in _of_split(over, split)),
                ]

        with tf.device(HOST):
            agree(world, count)
        told = world.sum([tf.constant(v) for v in (numbers, counts.training, counts.all)])
        numbers, training, every = (values.numpy() for values in told)
        by_split = {
            split: numbers[:, _WIDTH + _OF_SPLIT * place :][:, :_OF_SPLIT].T
            for place, split in enumerate(splits)
        }
        found = BlockTable(
            users=self.users,
            events=numbers[:, 0],
            bytes=numbers[:, 1],
            samples={split: columns[0] for split, columns in by_split.items()},
            left_out={
                split: LeftOut(*columns[3:].sum(1).tolist()) for split, columns in by_split.items()
            },
            classes={
                split: {label for label in (0, 1) if columns[1 + label].any()}
                for split, columns in by_split.items()
            },
            longest=int(numbers[:, 2].max(initial=0)),
            counts=ItemCounts(training, every),
        )
        self._check_counts(found)
        return found

    def _check_counts(self, found: BlockTable) -> None:
        shown = {impression_count(split): rows.count for split, rows in self._shown.items()}
        events, users = int(found.events.sum()), int(found.users[-1])
        self._reader.check_counts({"users": users, "events": events, **shown})

    @property
    def _item(self) -> str:
        return self._reader.checks.features.item[0]

    def _bytes(self, histories: Histories) -> int:
        """What histories take in a window: its arrays, and the windows' of users and targets."""
        features = self._reader.checks.features
        values, times = np.dtype(whole_numbers()).itemsize, _NUMBER * self._config.time_features
        splits = 0 if self._reader.explicit else len(SPLITS)
        # Offset and number; begin and end of each split's targets, and what `EventTargets` has.
        user = _NUMBER * (2 + 5 * splits) + values * len(features.of("user"))
        event = values * len(features.of("item", "context", "event")) + times
        shown = values * (2 + len(features.of("item", "context"))) + 1 + times
        unknown = int((histories.item_features[self._item] < FIRST_KNOWN).sum())
        impressions = sum(len(of.users) for of in (histories.impressions or {}).values())
        return (
            histories.num_users * user
            + histories.num_events * event
            + unknown * _NUMBER * (1 + splits)
            + (0 if histories.new is None else int(histories.new.sum()) * _NUMBER)
            + impressions * shown
        )

    def joined(self, blocks: Sequence[int], table: BlockTable) -> tuple[Histories, Int64]:
        """The histories of some blocks' users, one block after another, and the users' numbers.

        Args:
          blocks: their numbers.
          table: what they have.

        Raises:
          UserError: as `read`, or if one has changed since the table was made.
        """
        if not len(blocks):
            return self.nobody, np.zeros(0, np.int64)
        columns: dict[Any, _Column] = {}
        sizes = {
            "users": int(np.diff(self.users)[blocks].sum()),
            "events": int(table.events[blocks].sum()),
        }
        shown = {split: int(table.samples[split][blocks].sum()) for split in self._shown}
        behind = 0
        offsets = np.zeros(sizes["users"] + 1, np.int64)
        place = 0
        for block, one in zip(blocks, self._each(blocks), strict=True):
            if one.num_events != table.events[block]:
                raise self.changed(block)
            offsets[place + 1 : place + 1 + one.num_users] = behind + one.offsets[1:]
            for key, values in self._parts_of(one, place, int(self.users[block])):
                if key not in columns:
                    size = shown[key[1]] if key[0] == "shown" else sizes[key[0]]
                    columns[key] = _Column(size, values.dtype)
                columns[key].add(values)
            behind, place = behind + one.num_events, place + one.num_users
        return self._assembled(columns, offsets)

    def _parts_of(
        self, one: Histories, place: int, first: int
    ) -> list[tuple[tuple[str, ...], npt.NDArray[Any]]]:
        """The arrays of a block by what they are: of "users", "events" or "shown"."""
        found: list[tuple[tuple[str, ...], npt.NDArray[Any]]] = [
            (("users", "number"), np.arange(first, first + one.num_users)),
            *((("users", "feature", n), v) for n, v in one.user_features.items()),
            *((("events", "item", n), v) for n, v in one.item_features.items()),
            *((("events", "event", n), v) for n, v in one.event_features.items()),
        ]
        if self._config.time_features and one.timestamps is not None:
            found.append((("events", "time"), one.timestamps))
        if one.new is not None:
            found.append((("events", "new"), one.new))
        for split, of in (one.impressions or {}).items():
            found += [
                (("shown", split, "user"), of.users + np.int32(place)),
                (("shown", split, "position"), of.positions),
                (("shown", split, "label"), of.labels),
                *((("shown", split, "feature", n), v) for n, v in of.features.items()),
            ]
            if self._config.time_features:
                found.append((("shown", split, "time"), of.timestamps))
        if one.impressions is None:
            for split, (begins, ends) in one.targets.items():
                found += [(("users", "begin", split), begins), (("users", "end", split), ends)]
        return found

    def _assembled(self, columns: Mapping[Any, _Column], offsets: Int64) -> tuple[Histories, Int64]:
        def named(*key: str) -> dict[str, npt.NDArray[Any]]:
            return {k[-1]: c.values for k, c in columns.items() if k[:-1] == key}

        nobody, shown = self.nobody, None
        if nobody.impressions is not None:
            shown = {
                split: Impressions(
                    users=columns["shown", split, "user"].values,
                    positions=columns["shown", split, "position"].values,
                    features=named("shown", split, "feature"),
                    timestamps=named("shown", split).get("time", np.zeros(0, np.int64)),
                    labels=columns["shown", split, "label"].values,
                )
                for split in nobody.impressions
            }
        begins, ends = named("users", "begin"), named("users", "end")
        ranges = {split: (begins[split], ends[split]) for split in begins}
        times, new = columns.get(("events", "time")), columns.get(("events", "new"))
        histories = dataclasses.replace(
            nobody,
            user_features=named("users", "feature"),
            offsets=offsets,
            item_features=named("events", "item"),
            event_features=named("events", "event"),
            timestamps=None if times is None else times.values,
            split=KnownTargets(ranges or nobody.targets, nobody.split.has_validation),
            impressions=shown,
            new=None if new is None else new.values,
        )
        return histories, columns["users", "number"].values


_WIDTH = 3
"""Columns of a survey's numbers that are of a block: events, bytes, the longest history."""
_OF_SPLIT = 3 + len(LeftOut().counts)
"""Columns that are of a split: samples, whether there are those of label 0 and 1, left out."""


def _of_split(windows: WindowBuilder, split: str) -> list[int]:
    classes = windows.classes(split)
    samples = windows.num_samples(split)
    return [samples, *(int(label in classes) for label in (0, 1)), *windows.left_out(split).counts]


class _Column:
    """An array of a known size that is filled piece by piece, where TensorFlow need not copy it."""

    def __init__(self, size: int, dtype: np.dtype[Any]) -> None:
        space = np.empty(size * dtype.itemsize + _ALIGNED, np.uint8)
        begin = -space.ctypes.data % _ALIGNED
        self.values: npt.NDArray[Any] = space[begin : begin + size * dtype.itemsize].view(dtype)
        self._end = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Puts values behind those that are there."""
        self.values[self._end : self._end + len(values)] = values
        self._end += len(values)
