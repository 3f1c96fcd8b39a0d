"""Resident histories: every user's interactions as flat arrays and offsets, loaded once.

A feature costs four bytes an event, whatever its kind: see `formats.features`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from merlin.schema import Schema

from lookback.core.arrow_files import open_parquet, read_parquet
from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY, Verification
from lookback.dataloading.histories.columns import FeatureChecks, Int32, Values
from lookback.dataloading.histories.impressions import Impressions
from lookback.dataloading.histories.splits import (
    Int64,
    LeaveLastOut,
    Ranges,
    Split,
    read_split,
)
from lookback.dataloading.parts import WHOLE, Part
from lookback.dataloading.sampling import nothing_new
from lookback.formats.dataset_info import (
    AGAIN,
    BY_USERS,
    EXPLICIT,
    LABELS,
    read_histories_info,
)
from lookback.formats.features import HistoryFeatures, chosen, table_rows
from lookback.formats.histories import history_files, lengths_of, read_catalogue, values_of
from lookback.formats.history_columns import NEW, SPLIT
from lookback.formats.schema import read_schema
from lookback.formats.verification import verify_dataset

USERS_AT_A_TIME = 1 << 14
_LAST_OUT = LeaveLastOut()


@dataclasses.dataclass(frozen=True)
class ItemCounts:
    """How often the items of a catalogue occur.

    Attributes:
      training: int64 ``[I]``, in events that are not held out.
      all: int64 ``[I]``.
    """

    training: Int64
    all: Int64


@dataclasses.dataclass(frozen=True)
class Histories:
    """Users' interactions, oldest first, in U users and N events.

    Features are int32 where they are categories (ids, or numbers of bags), and float32 where they
    are numbers.

    Attributes:
      schema: of the dataset (one row a user).
      user_features: ``[U]`` by name.
      offsets: int64 ``[U + 1]``; user u's events are ``offsets[u]`` up to ``offsets[u + 1]``.
      item_features: ``[N]`` by name.
      timestamps: int64 ``[N]`` seconds, None if the dataset has none.
      catalogue: ``[I]`` by item feature, one entry for each distinct item.
      split: what is held out.
      part: whose users these are; all if it is the whole.
      event_features: ``[N]`` by feature of the context and of events.
      bags: int32 ``[R, M]`` by feature: the ids in each bag by number, padded with 0.
      impressions: the targets by split, where labels are explicit; None: events are.
      only_new: whether training is on what is new alone.
      new: int8 ``[N]``, 1 of events that are new; None where that is not asked, or of impressions,
        of which training's are the new ones already.
    """

    schema: Schema
    user_features: Mapping[str, Values]
    offsets: Int64
    item_features: Mapping[str, Values]
    timestamps: Int64 | None
    catalogue: Mapping[str, Values]
    split: Split = _LAST_OUT
    part: Part = WHOLE
    event_features: Mapping[str, Values] = dataclasses.field(default_factory=dict)
    bags: Mapping[str, Int32] = dataclasses.field(default_factory=dict)
    impressions: Mapping[str, Impressions] | None = None
    only_new: bool = False
    new: npt.NDArray[np.int8] | None = None

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """N."""
        return int(self.offsets[-1])

    @functools.cached_property
    def features(self) -> HistoryFeatures:
        """The feature columns by role."""
        return HistoryFeatures.from_schema(self.schema)

    @functools.cached_property
    def targets(self) -> Ranges:
        """Begin and end of the positions of targets, ``[U]`` each, by split."""
        return self.split.targets(self.offsets, self.timestamps)

    def require_targets(self) -> None:
        """Refuses users of whom nothing is left in front of their last ones, held out of each.

        Raises:
          UserError: with the shortest history.
        """
        if not isinstance(self.split, LeaveLastOut) or self.impressions is not None:
            return
        held_out = self.split.held_out
        shortest = int(np.diff(self.offsets).min(initial=held_out + 1))
        if shortest <= held_out:
            raise UserError(
                f"A user has {shortest} interactions; with {held_out} held out each user needs at "
                f"least {held_out + 1}. Run the workflow with a larger --min_interactions."
            )

    def in_training(self) -> npt.NDArray[np.bool_]:
        """Which events ``[N]`` are of training: not held out."""
        lengths, training = np.diff(self.offsets), self.targets["train"][1]
        pieces = np.stack([training, lengths - training], 1)  # [U, 2]
        return np.repeat(np.tile([True, False], self.num_users), pieces.ravel())

    def item_counts(self) -> ItemCounts:
        """Occurrences of each item of the catalogue among these events."""
        item = self.features.item[0]
        rows = int(self.catalogue[item].max(initial=0)) + 1
        ids = self.item_features[item]
        every = np.bincount(ids, minlength=rows)
        training = every - np.bincount(ids[~self.in_training()], minlength=rows)
        return ItemCounts(training[self.catalogue[item]], every[self.catalogue[item]])

    def training_counts(self, counts: ItemCounts | None = None) -> Int64:
        """Occurrences in training of items by id ``[rows of the table]``.

        Args:
          counts: of everybody's events, where these are not everybody's.
        """
        item = self.features.item[0]
        by_id = np.zeros(table_rows(self.schema)[item], np.int64)
        by_id[self.catalogue[item]] = (counts or self.item_counts()).training
        return by_id

    @classmethod
    def load(
        cls,
        dataset_dir: str | Path,
        part: Part = WHOLE,
        verification: Verification = WHOLLY,
        chosen_features: Sequence[str] | None = None,
        *,
        only_new: bool = False,
    ) -> Histories:
        """Reads a dataset written by `python -m workflows`.

        Args:
          dataset_dir: the directory with dataset.json, schema.pbtxt, histories/ and items.parquet.
          part: read every R-th user only, from this rank's on; memory follows.
          verification: how far its files are compared with what dataset.json says of them.
          chosen_features: to read beside the ids; None: all.
          only_new: train on what is new alone, see `formats.history_columns.NEW`.

        Raises:
          UserError: if the directory is no such dataset, or its parts contradict each other, or it
            has no such feature, or does not say what is new.
        """
        reader = HistoriesReader.open(
            Path(dataset_dir), verification, chosen_features, only_new=only_new
        )
        with reading(reader.directory):
            table, users = _read_users(history_files(reader.directory), reader.columns(), part)
        found = reader.histories(table, part)
        said = {"users": users}
        if part == WHOLE:
            said["events"] = found.num_events
        if reader.explicit:
            impressions, counts = Impressions.load(
                reader.checks, found.offsets, found.timestamps, users, part, only_new=only_new
            )
            found = dataclasses.replace(found, impressions=impressions)
            said |= counts
        reader.check_counts(said)
        return found


@dataclasses.dataclass(frozen=True)
class HistoriesReader:
    """A dataset of histories but for its users: what is the same for all, read once.

    Attributes:
      directory: of the dataset.
      info: its dataset.json.
      schema: of the features that are read.
      checks: of their values.
      catalogue: as of `Histories`.
      only_new: whether training is on what is new alone.
    """

    directory: Path
    info: Mapping[str, Any]
    schema: Schema
    checks: FeatureChecks
    catalogue: Mapping[str, Values]
    only_new: bool = False

    @classmethod
    def open(
        cls,
        directory: Path,
        verification: Verification,
        chosen_features: Sequence[str] | None,
        *,
        only_new: bool = False,
    ) -> HistoriesReader:
        """As `Histories.load` says."""
        info = read_histories_info(directory)
        verify_dataset(directory, verification)
        schema = read_schema(directory)
        if only_new and NEW not in schema.column_names:
            raise nothing_new(directory)
        if chosen_features is not None:
            schema = chosen(schema, chosen_features)
        names = HistoryFeatures.from_schema(schema).of("item")
        with reading(directory):
            items = read_catalogue(directory, names)
        checks = FeatureChecks.of(directory, schema)
        return cls(directory, info, schema, checks, checks.checked(items, names), only_new)

    @property
    def explicit(self) -> bool:
        """Whether the targets are impressions."""
        return bool(self.info.get(LABELS) == EXPLICIT)

    def columns(self) -> list[str]:
        """Names of all columns that are read of users."""
        features = self.checks.features
        split = [SPLIT] if self.info["split"]["rule"] == BY_USERS else []
        return [*features.of("user"), *split, *self._lists()]

    def _lists(self) -> list[str]:
        features = self.checks.features
        new = [NEW] if self.only_new and not self.explicit else []
        return [*features.of("item", "context", "event"), *filter(None, [features.time]), *new]

    def histories(self, table: pa.Table, part: Part = WHOLE) -> Histories:
        """The histories in rows of the files, without impressions.

        Args:
          table: of the columns.
          part: whose users they are.

        Raises:
          UserError: if they are not as the schema says.
        """
        with reading(self.directory):
            offsets = _offsets(table, self._lists(), self.directory)
            columns = {name: values_of(table[name]) for name in self.columns()}
        checks, features = self.checks, self.checks.features
        times = columns[features.time].astype(np.int64, copy=False) if features.time else None
        return Histories(
            schema=self.schema,
            user_features=checks.checked(columns, features.of("user")),
            offsets=offsets,
            item_features=checks.checked(columns, features.of("item")),
            timestamps=times,
            catalogue=self.catalogue,
            split=read_split(self.info, columns.get(SPLIT), self.directory),
            part=part,
            event_features=checks.checked(columns, features.of("context", "event")),
            bags=checks.bags,
            only_new=self.only_new,
            new=columns.get(NEW),
        )

    def check_counts(self, found: Mapping[str, int]) -> None:
        """Refuses a dataset that has more or less than it says.

        Args:
          found: numbers by the key of the counts.

        Raises:
          UserError: naming the first that differs.
        """
        said = self.info.get("counts", {})
        if not self.explicit:  # else the catalogue has those that were shown and never chosen, too
            found = {**found, "items": len(self.catalogue[self.checks.features.item[0]])}
        for name, number in found.items():
            if said.get(name, number) != number:
                raise UserError(
                    f"{self.directory} holds {number:,} {name}, dataset.json says "
                    f"{said[name]:,}. Files are missing, or not of this dataset. {AGAIN}"
                )


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Says what is wrong with a dataset that cannot be read."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"{directory} cannot be read ({error}). The dataset is damaged or incomplete: run "
            "the workflow again."
        ) from error


def _read_users(files: list[Path], columns: list[str], part: Part) -> tuple[pa.Table, int]:
    """The part's users of all files, without ever holding the others'; how many all are."""
    if part == WHOLE:
        table = pa.concat_tables(read_parquet(file, columns) for file in files)
        return table, len(table)
    tables, seen = [], 0
    for file in files:
        with open_parquet(file) as parquet:
            for batch in parquet.iter_batches(batch_size=USERS_AT_A_TIME, columns=columns):
                own = np.arange(len(batch))[(part.rank - seen) % part.ranks :: part.ranks]
                tables.append(pa.Table.from_batches([batch]).take(own))
                seen += len(batch)
    return pa.concat_tables(tables), seen


def _offsets(table: pa.Table, lists: list[str], directory: Path) -> Int64:
    """Row offsets of the list columns, which must all agree."""
    offsets: Int64 = np.zeros(1, np.int64)
    for name in lists:
        found = np.concatenate([[0], np.cumsum(lengths_of(table[name]))])
        if name != lists[0] and not np.array_equal(offsets, found):
            raise UserError(
                f"{directory}: the lists of {name!r} and {lists[0]!r} differ in length. Every "
                "user's lists must be equally long; run the workflow again."
            )
        offsets = found
    return offsets
