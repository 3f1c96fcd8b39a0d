"""Resident impressions: the targets of histories with explicit labels, as flat arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookback.core.errors import UserError
from lookback.dataloading.histories.columns import FeatureChecks, Int32, Values
from lookback.dataloading.histories.splits import Int64, ascending
from lookback.dataloading.parts import Part
from lookback.formats.dataset_info import AGAIN, SPLITS, impression_count
from lookback.formats.history_columns import NEW, TIMESTAMP
from lookback.formats.impressions import LABEL, POSITION, USER, read_impressions

_CHECKED_AT_A_TIME = 1 << 20


@dataclasses.dataclass(frozen=True)
class Impressions:
    """What users were shown, in N impressions of a split.

    Attributes:
      users: int32 ``[N]``, places of users in the histories.
      positions: int32 ``[N]``, how many of the user's events came before.
      features: ``[N]`` by feature of items and of the context, as in the histories.
      timestamps: int64 ``[N]`` seconds.
      labels: int8 ``[N]``, 0 or 1.
    """

    users: Int32
    positions: Int32
    features: Mapping[str, Values]
    timestamps: Int64
    labels: npt.NDArray[np.int8]

    @classmethod
    def load(
        cls,
        checks: FeatureChecks,
        offsets: Int64,
        timestamps: Int64 | None,
        users: int,
        part: Part,
        *,
        only_new: bool = False,
    ) -> tuple[dict[str, Impressions], dict[str, int]]:
        """Reads all splits of a dataset.

        Args:
          checks: of its features.
          offsets: ``[U + 1]``, of the histories of this part's users.
          timestamps: ``[N]``, of their events.
          users: how many all processes have.
          part: whose users' impressions to keep.
          only_new: of training, keep those that are new.

        Returns:
          The impressions by split, and how many there are of all users, by the key of the counts.

        Raises:
          UserError: if they do not belong to these histories, or what is at or after an
            impression would be taken for its history.
        """
        times = ascending(offsets, timestamps)
        names = checks.features.of("item", "context")
        found, counts = {}, {}
        for split in SPLITS:
            choosing = only_new and split == "train"
            columns = read_impressions(checks.directory, split, names, new=choosing)
            counts[impression_count(split)] = len(columns.get(USER, ()))
            if columns:
                require(_below(columns[USER], users), checks.directory, split, USER)
                own = columns[USER] % part.ranks == part.rank
                if choosing:
                    own &= columns[NEW] == 1
                if part.ranks > 1 or choosing:
                    columns = {name: values[own] for name, values in columns.items()}
                columns[USER] = columns[USER] // part.ranks
                found[split] = cls.of(checks, split, columns, offsets, times)
        return found, counts

    @classmethod
    def of(
        cls,
        checks: FeatureChecks,
        split: str,
        columns: Mapping[str, npt.NDArray[Any]],
        offsets: Int64,
        times: Int64,
    ) -> Impressions:
        """Impressions of some users.

        Args:
          checks: of the dataset's features.
          split: of which they are, for errors.
          columns: ``[N]`` by name, of users the places in these histories.
          offsets: ``[U + 1]``, of the users' histories.
          times: ``[N]``, of their events, ascending.

        Raises:
          UserError: as `load`.
        """
        require(_below(columns[USER], len(offsets) - 1), checks.directory, split, USER)
        require(_below(columns[LABEL], 2), checks.directory, split, LABEL)
        found = cls(
            users=columns[USER].astype(np.int32),
            positions=columns[POSITION].astype(np.int32, copy=False),
            features=checks.checked(columns, checks.features.of("item", "context")),
            timestamps=columns[TIMESTAMP].astype(np.int64, copy=False),
            labels=columns[LABEL].astype(np.int8, copy=False),
        )
        require(found._strictly_before(offsets, times), checks.directory, split, POSITION)
        return found

    def _strictly_before(self, offsets: Int64, times: Int64) -> bool:
        """Whether each position is how many of the user's events are before the impression."""
        for begin in range(0, len(self.users), _CHECKED_AT_A_TIME):
            rows = slice(begin, begin + _CHECKED_AT_A_TIME)
            user, position, time = self.users[rows], self.positions[rows], self.timestamps[rows]
            first, length = offsets[user], np.diff(offsets)[user]
            if not np.all((position >= 0) & (position <= length)):
                return False
            some, more = position > 0, position < length
            last, following = (first + position - 1)[some], (first + position)[more]
            if np.any(times[last] >= time[some]) or np.any(times[following] < time[more]):
                return False
        return True


def _below(values: npt.NDArray[Any], bound: int) -> bool:
    return not len(values) or bool(values.min() >= 0 and values.max() < bound)


def require(holds: bool, directory: Path, split: str, column: str) -> None:
    """Refuses impressions of which something does not hold.

    Args:
      holds: whether it does.
      directory: of the dataset.
      split: whose impressions they are.
      column: what it is about.

    Raises:
      UserError: saying what the column must be.
    """
    expected = {
        USER: "numbers of rows of the histories",
        LABEL: "0 or 1",
        POSITION: "how many of the user's events are strictly before the impression",
    }
    if not holds:
        raise UserError(
            f"{directory}: {column!r} of the impressions of {split!r} must be {expected[column]}, "
            f"and is not. {AGAIN}"
        )
