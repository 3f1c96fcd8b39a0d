"""Which rows of a log are for training, validation and test, where each row stands by itself.

Of the splits of histories (`workflows.histories.rules`) those by time and by users hold of rows,
too. What is drawn is a pure function of the seed and the row's number among those that are kept, in
the order of the files, so neither their format nor the number of processes has a say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from lookback.core.errors import UserError
from lookback.formats import history_columns as names
from lookback.formats.dataset_info import SPLITS
from lookback.workflows.histories.rules import (
    TEST,
    TRAIN,
    VALIDATION,
    Parts,
    TimeSplit,
    UserSplit,
)

_WEYL = 0x9E3779B97F4A7C15  # SplitMix64's step (Steele, Lea & Flood 2014), see `core.splitmix`
_BITS = (1 << 64) - 1


@dataclass(frozen=True)
class _Shares:
    """Fractions of all rows.

    Attributes:
      test: of the test, above 0.
      validation: of the validation part.
    """

    test: float
    validation: float = 0.0

    @property
    def expected(self) -> tuple[str, ...]:
        """Parts that must not be empty."""
        return SPLITS if self.validation else (SPLITS[TRAIN], SPLITS[TEST])

    def __post_init__(self) -> None:
        if not (self.test > 0 and self.validation >= 0 and self.test + self.validation < 1):
            raise UserError(
                "Split of rows: expected a share for the test above 0, one for validation of at "
                f"least 0, and both together below 1, received {self.test} and {self.validation}."
            )


@dataclass(frozen=True)
class RandomRows(_Shares):
    """Rows are drawn, each by itself.

    Attributes:
      seed: another one draws others.
    """

    seed: int = 0

    def parts(self, first: int, rows: int, total: int) -> Parts:
        """The part of each of some rows that follow each other.

        Args:
          first: number of the first of them.
          rows: how many they are (N).
          total: how many there are at all.

        Returns:
          ``[N]``
        """
        from pandas.util import hash_array  # of integers: SplitMix64's mixing function

        begin = int(hash_array(np.array([self.seed], np.uint64) + np.uint64(1))[0])
        numbers = np.arange(first, first + rows, dtype=np.uint64) * np.uint64(_WEYL)
        drawn = hash_array(numbers + np.uint64((begin + _WEYL) & _BITS)) / 2.0**64
        held_out = np.where(drawn < self.test + self.validation, VALIDATION, TRAIN)
        return np.where(drawn < self.test, TEST, held_out).astype(np.int8)


@dataclass(frozen=True)
class LastRows(_Shares):
    """The last rows, in the order of the files, are for the test, and those before for validation.

    Fractions of the rows are rounded to the nearest number of them.
    """

    def parts(self, first: int, rows: int, total: int) -> Parts:
        """See `RandomRows.parts`."""
        test = total - round(total * self.test)
        validation = test - round(total * self.validation)
        place = np.arange(first, first + rows)
        return np.searchsorted([validation, test], place, side="right").astype(np.int8)


RowSplit = RandomRows | LastRows | TimeSplit | UserSplit


def parts_of_rows(split: RowSplit, table: pa.Table, first: int, total: int) -> Parts:
    """The part of each row of a raw table ``[N]``; see `RandomRows.parts`."""
    if isinstance(split, RandomRows | LastRows):
        return split.parts(first, len(table), total)
    none = np.empty(0, np.int64)
    time = table[names.TIMESTAMP].to_numpy() if isinstance(split, TimeSplit) else none
    user = table[names.USER_ID] if isinstance(split, UserSplit) else pa.chunked_array([none])
    return split.parts(none, time, user)
