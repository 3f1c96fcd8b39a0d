"""Resident histories: every user's interactions as flat arrays and offsets, loaded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from merlin.schema import Schema

from lookback.core.arrow_files import open_parquet, read_parquet
from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY, Verification
from lookback.dataloading.parts import WHOLE, Part
from lookback.formats.dataset_info import AGAIN, read_histories_info
from lookback.formats.features import HistoryFeatures, table_rows
from lookback.formats.histories import history_files, lengths_of, read_catalogue, values_of
from lookback.formats.schema import read_schema
from lookback.formats.verification import verify_dataset

_USERS_AT_A_TIME = 1 << 14

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Split:
    """How many of a user's last interactions are held out.

    Attributes:
      test: 1, the last interaction.
      validation: 1 if the one before is held out too, else 0.
    """

    test: int = 1
    validation: int = 0

    @property
    def held_out(self) -> int:
        """Interactions at the end of a history that training never targets."""
        return self.test + self.validation


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

    Attributes:
      schema: of the dataset (one row a user).
      user_features: int32 ``[U]`` by name.
      offsets: int64 ``[U + 1]``; user u's events are ``offsets[u]`` up to ``offsets[u + 1]``.
      item_features: int32 ``[N]`` by name.
      timestamps: int64 ``[N]`` seconds, None if the dataset has none.
      catalogue: int32 ``[I]`` by item feature, one entry for each distinct item.
      split: what is held out.
      part: whose users these are; all if it is the whole.
    """

    schema: Schema
    user_features: Mapping[str, Int32]
    offsets: Int64
    item_features: Mapping[str, Int32]
    timestamps: Int64 | None
    catalogue: Mapping[str, Int32]
    split: Split = Split()
    part: Part = WHOLE

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """N."""
        return int(self.offsets[-1])

    @property
    def features(self) -> HistoryFeatures:
        """The feature columns by role."""
        return HistoryFeatures.from_schema(self.schema)

    def require_targets(self) -> None:
        """Refuses users of whom nothing is left in front of what is held out.

        Raises:
          UserError: with the shortest history.
        """
        held_out = self.split.held_out
        shortest = int(np.diff(self.offsets).min(initial=held_out + 1))
        if shortest <= held_out:
            raise UserError(
                f"A user has {shortest} interactions; with {held_out} held out each user needs at "
                f"least {held_out + 1}. Run the workflow with a larger --min_interactions."
            )

    def in_training(self, held_out: int) -> npt.NDArray[np.bool_]:
        """Which events ``[N]`` are not among the last `held_out` of their user."""
        lengths = np.diff(self.offsets)
        number = np.arange(self.num_events) - np.repeat(self.offsets[:-1], lengths)
        return number < np.repeat(lengths - held_out, lengths)

    def item_counts(self) -> ItemCounts:
        """Occurrences of each item of the catalogue among these events."""
        item = self.features.item[0]
        rows = int(self.catalogue[item].max(initial=0)) + 1
        every = np.bincount(self.item_features[item], minlength=rows)
        held_out = [self.offsets[1:] - 1 - back for back in range(self.split.held_out)]
        last = self.item_features[item][np.concatenate([np.zeros(0, np.int64), *held_out])]
        training = every - np.bincount(last, minlength=rows)
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
    ) -> Histories:
        """Reads a dataset written by `python -m workflows`.

        Args:
          dataset_dir: the directory with dataset.json, schema.pbtxt, histories/ and items.parquet.
          part: read every R-th user only, from this rank's on; memory follows.
          verification: how far its files are compared with what dataset.json says of them.

        Raises:
          UserError: if the directory is no such dataset, or its parts contradict each other.
        """
        directory = Path(dataset_dir)
        info = read_histories_info(directory)
        verify_dataset(directory, verification)
        schema = read_schema(directory)
        features = HistoryFeatures.from_schema(schema)
        files = history_files(directory)
        lists = [*features.item, *([features.time] if features.time else [])]
        try:
            table, users = _read_users(files, [*features.user, *lists], part)
            items = read_catalogue(directory, features.item)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UserError(
                f"{directory} cannot be read ({error}). The dataset is damaged or incomplete: run "
                "the workflow again."
            ) from error
        offsets = _offsets(table, lists, directory)
        found = {"users": users, "items": len(items[features.item[0]])}
        if part == WHOLE:
            found["events"] = int(offsets[-1])
        _check_counts(found, info.get("counts", {}), directory)
        split = info["split"]
        rows = table_rows(schema)

        def ids(values: npt.NDArray[Any], name: str) -> Int32:
            return _ids(values, name, largest=rows[name] - 1, directory=directory)

        return cls(
            schema=schema,
            user_features={n: ids(values_of(table[n]), n) for n in features.user},
            offsets=offsets,
            item_features={n: ids(values_of(table[n]), n) for n in features.item},
            timestamps=(
                values_of(table[features.time]).astype(np.int64, copy=False)
                if features.time
                else None
            ),
            catalogue={n: ids(items[n], n) for n in features.item},
            split=Split(test=int(split["test"]), validation=int(split["validation"])),
            part=part,
        )


def _read_users(files: list[Path], columns: list[str], part: Part) -> tuple[pa.Table, int]:
    """The part's users of all files, without ever holding the others'; how many all are."""
    if part == WHOLE:
        table = pa.concat_tables(read_parquet(file, columns) for file in files)
        return table, len(table)
    tables, seen = [], 0
    for file in files:
        with open_parquet(file) as parquet:
            for batch in parquet.iter_batches(batch_size=_USERS_AT_A_TIME, columns=columns):
                own = np.arange(len(batch))[(part.rank - seen) % part.ranks :: part.ranks]
                tables.append(pa.Table.from_batches([batch]).take(own))
                seen += len(batch)
    return pa.concat_tables(tables), seen


def _check_counts(found: Mapping[str, int], said: Mapping[str, int], directory: Path) -> None:
    """Refuses a dataset that has more or less than it says."""
    for name, number in found.items():
        if said.get(name, number) != number:
            raise UserError(
                f"{directory} holds {number:,} {name}, dataset.json says {said[name]:,}. Files are "
                f"missing, or not of this dataset. {AGAIN}"
            )


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


def _ids(values: npt.NDArray[Any], name: str, *, largest: int, directory: Path) -> Int32:
    ids = values.astype(np.int32, copy=False)
    if len(ids) and not 0 < int(ids.min()) <= int(ids.max()) <= largest:
        raise UserError(
            f"{directory}: ids of {name!r} must lie in [1, {largest}] (0 is padding), found "
            f"[{ids.min()}, {ids.max()}]. Schema and data do not belong together; run the workflow "
            "again."
        )
    return ids
