"""Which events of each user are the targets of which split.

A split gives of every user a range of positions for each of "train", "validation" and "test". What
a target is predicted from is always everything before it.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookback.core.errors import UserError
from lookback.formats.dataset_info import (
    AGAIN,
    BY_TIME,
    BY_USERS,
    DATASET_FILE,
    SPLITS,
)

Int64 = npt.NDArray[np.int64]
Ranges = dict[str, tuple[Int64, Int64]]
"""Begin and end of the targets' positions, ``[U]`` each, by split."""


class Split(abc.ABC):
    """A rule of what is held out."""

    @property
    @abc.abstractmethod
    def has_validation(self) -> bool:
        """Whether a split "validation" is held out, too."""

    @abc.abstractmethod
    def targets(self, offsets: Int64, timestamps: Int64 | None) -> Ranges:
        """The positions of targets.

        Training's begin with each user's first event, and end with its last event of training.

        Args:
          offsets: int64 ``[U + 1]``, of users among the events.
          timestamps: int64 ``[N]``, None if the dataset has none.
        """


@dataclasses.dataclass(frozen=True)
class LeaveLastOut(Split):
    """Each user's last interactions are held out.

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

    @property
    def has_validation(self) -> bool:
        """Whether the one before the last is held out."""
        return bool(self.validation)

    def targets(self, offsets: Int64, timestamps: Int64 | None) -> Ranges:
        """All but the last ones, the one before the last (or none), and the last."""
        del timestamps
        length = np.diff(offsets)
        train, validation = (np.maximum(length - n, 0) for n in (self.held_out, self.test))
        return _ranges(train, validation, length)


@dataclasses.dataclass(frozen=True)
class ByTime(Split):
    """What happens from certain times on is held out.

    Attributes:
      validation_from: seconds of the first instant of validation, None without it.
      test_from: likewise.
    """

    validation_from: int | None
    test_from: int

    @property
    def has_validation(self) -> bool:
        """Whether there is a time between training and test."""
        return self.validation_from is not None

    def targets(self, offsets: Int64, timestamps: Int64 | None) -> Ranges:
        """Each event by its time.

        Raises:
          UserError: if there are no times, or a user's do not ascend.
        """
        times = ascending(offsets, timestamps)
        first = self.test_from if self.validation_from is None else self.validation_from
        train, validation = (_before(offsets, times, time) for time in (first, self.test_from))
        return _ranges(train, validation, np.diff(offsets))


@dataclasses.dataclass(frozen=True, eq=False)
class ByUsers(Split):
    """Users are held out with all that they did, and evaluated on the last of it.

    Attributes:
      parts: int8 ``[U]``, the place of each user's split in `SPLITS`.
      has_validation: whether users of validation are among the dataset's.
    """

    parts: npt.NDArray[np.int8]
    has_validation: bool = True

    def targets(self, offsets: Int64, timestamps: Int64 | None) -> Ranges:
        """Of users of training every event, of others the last one."""
        del timestamps
        length = np.diff(offsets)
        last = np.maximum(length - 1, 0)
        found: Ranges = {"train": (np.zeros_like(length), np.where(self.parts == 0, length, 0))}
        for part, name in enumerate(SPLITS[1:], start=1):
            found[name] = last, np.where(self.parts == part, length, last)
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class KnownTargets(Split):
    """What another split found of some users.

    Attributes:
      ranges: of these users.
      has_validation: as of the other.
    """

    ranges: Ranges
    has_validation: bool = True

    def targets(self, offsets: Int64, timestamps: Int64 | None) -> Ranges:
        """The ranges."""
        del offsets, timestamps
        return self.ranges


def read_split(info: Mapping[str, Any], parts: npt.NDArray[Any] | None, directory: Path) -> Split:
    """The split of a dataset.

    Args:
      info: its dataset.json.
      parts: ``[U]``, the column of histories that says it, of `BY_USERS` alone.
      directory: for the error.

    Raises:
      UserError: if the rule is not as its writer must have it.
    """
    said = info["split"]
    if said.get("rule") == BY_TIME:
        validation, test = said.get("validation_from"), said.get("test_from")
        instants = [test] if validation is None else [validation, test]
        if any(type(instant) is not int for instant in instants) or instants != sorted(instants):
            raise _no_rule(directory, "'validation_from' (or null) before 'test_from', seconds")
        return ByTime(validation, test)
    if said.get("rule") == BY_USERS:
        if parts is None or parts.dtype.kind not in "iu" or not _below(parts, len(SPLITS)):
            raise _no_rule(directory, f"a column of histories with places in {SPLITS}")
        return ByUsers(parts.astype(np.int8, copy=False), said["validation"] > 0)
    if said["test"] != 1 or said["validation"] not in (0, 1):
        raise _no_rule(directory, "'test' 1 and 'validation' 0 or 1")
    return LeaveLastOut(said["test"], said["validation"])


def ascending(offsets: Int64, timestamps: Int64 | None) -> Int64:
    """Times ``[N]`` of which each user's ascend, so that a time cuts a history in two.

    Raises:
      UserError: if there are none, or they do not.
    """
    if timestamps is None:
        raise UserError(
            f"A split by time, and impressions, need timestamps, and the dataset has none. {AGAIN}"
        )
    falls = np.flatnonzero(np.diff(timestamps) < 0) + 1
    if not np.isin(falls, offsets).all():
        raise UserError(f"A user's events must ascend in time, and do not. {AGAIN}")
    return timestamps


def _before(offsets: Int64, times: Int64, instant: int) -> Int64:
    """How many events ``[U]`` of each user are before an instant; times ascend in each user."""
    before = np.concatenate([[0], np.cumsum(times < instant)])
    found: Int64 = before[offsets[1:]] - before[offsets[:-1]]
    return found


def _ranges(train: Int64, validation: Int64, test: Int64) -> Ranges:
    """Of splits that follow each other in every history, by their ends."""
    begins = (np.zeros_like(train), train, validation)
    return dict(zip(SPLITS, zip(begins, (train, validation, test), strict=True), strict=True))


def _below(values: npt.NDArray[Any], bound: int) -> bool:
    return not len(values) or bool(values.min() >= 0 and values.max() < bound)


def _no_rule(directory: Path, expected: str) -> UserError:
    return UserError(
        f"{directory / DATASET_FILE}: the split must have {expected}, which it has not. {AGAIN}"
    )
