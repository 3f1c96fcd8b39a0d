"""Which events of a log are used for what: sessions, rare items, and how they are split.

A split says of each event to which part it belongs, as its place in `dataset_info.SPLITS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookback.core.errors import UserError
from lookback.formats.dataset_info import BY_TIME, BY_USERS, LEAVE_LAST_OUT, SPLITS
from lookback.formats.history_columns import SPLIT
from lookback.formats.vocabulary import HASHED, hashed_keys
from lookback.workflows.times import in_words

TRAIN, VALIDATION, TEST = range(len(SPLITS))
"""Parts, as numbers."""

TEST_EVENTS = 1  # of each user, the last

Parts = npt.NDArray[np.int8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LeaveLast:
    """Each history's last event is for the test, and the one before for validation.

    Attributes:
      validation: whether there is a validation part.
    """

    validation: bool = True

    expected = ()

    @property
    def held_out(self) -> int:
        """Events at the end of each history that are not for training."""
        return TEST_EVENTS + self.validation

    def parts(self, history: Ints, time: Ints, users: pa.ChunkedArray) -> Parts:
        """The part of each event.

        Args:
          history: number of its history, in order. ``[N]``
          time: as it is written. ``[N]``
          users: raw ids. ``[N]``
        """
        last = np.searchsorted(history, history, side="right") - 1
        left = last - np.arange(len(history))  # events of the history after this one
        return np.where(
            left < TEST_EVENTS, TEST, np.where(left < self.held_out, VALIDATION, TRAIN)
        ).astype(np.int8)

    def to_json(self, events: npt.NDArray[np.int64]) -> dict[str, Any]:
        """``split`` of dataset.json.

        Args:
          events: of each part. ``[3]``
        """
        validation = int(self.validation)
        return {"rule": LEAVE_LAST_OUT, "test": TEST_EVENTS, "validation": validation}


@dataclass(frozen=True)
class TimeSplit:
    """An event belongs to the part that its time falls in.

    Attributes:
      test_from: first time of the test, in the unit of the written times (seconds, or steps).
      validation_from: first time of the validation part, before it; None: there is none.
    """

    test_from: int
    validation_from: int | None = None

    held_out = 0

    @property
    def held_out_from(self) -> int:
        """First time that is not trained on."""
        return self.test_from if self.validation_from is None else self.validation_from

    @property
    def expected(self) -> tuple[str, ...]:
        """Parts that must not be empty."""
        return SPLITS if self.validation_from is not None else (SPLITS[TRAIN], SPLITS[TEST])

    def __post_init__(self) -> None:
        if self.validation_from is not None and self.validation_from >= self.test_from:
            raise UserError(
                f"Split by time: expected validation_from before test_from {self.test_from}, "
                f"received {self.validation_from}. Exchange them, or leave out the first."
            )

    def __str__(self) -> str:
        moments = {VALIDATION: self.validation_from, TEST: self.test_from}
        told = [f"{SPLITS[p]} from {in_words(m)}" for p, m in moments.items() if m is not None]
        return f"a split by time, {', '.join(told)} (validation_from, test_from)"

    def parts(self, history: Ints, time: Ints, users: pa.ChunkedArray) -> Parts:
        """See `LeaveLast.parts`."""
        moments = [self.held_out_from, self.test_from]
        return np.searchsorted(moments, time, side="right").astype(np.int8)

    def to_json(self, events: npt.NDArray[np.int64]) -> dict[str, Any]:
        """See `LeaveLast.to_json`."""
        return {
            "rule": BY_TIME,
            "validation_from": self.validation_from,
            "test_from": self.test_from,
            **_held_out(events),
        }


@dataclass(frozen=True)
class UserSplit:
    """A user's events all belong to one part, which a hash of the raw id and the seed draws.

    Attributes:
      test: share of the users that are tested on, above 0.
      validation: share of the users of the validation part.
      seed: another one draws others.
    """

    test: float
    validation: float = 0.0
    seed: int = 0

    held_out = 0

    @property
    def expected(self) -> tuple[str, ...]:
        """Parts that must not be empty."""
        return SPLITS if self.validation else (SPLITS[TRAIN], SPLITS[TEST])

    def __post_init__(self) -> None:
        if not (self.test > 0 and self.validation >= 0 and self.test + self.validation < 1):
            raise UserError(
                "Split by users: expected a share for the test above 0, one for validation of at "
                f"least 0, and both together below 1, received {self.test} and {self.validation}."
            )

    def __str__(self) -> str:
        return f"a split by users, validation {self.validation:g}, test {self.test:g} of them"

    def parts(self, history: Ints, time: Ints, users: pa.ChunkedArray) -> Parts:
        """See `LeaveLast.parts`."""
        distinct = users.unique()
        keys = hashed_keys(
            pc.binary_join_element_wise(str(self.seed), distinct.cast(pa.string()), ":")
        )
        drawn = (keys & (HASHED - 1)) / HASHED  # uniform in [0, 1)
        part = np.where(
            drawn < self.test,
            TEST,
            np.where(drawn < self.test + self.validation, VALIDATION, TRAIN),
        )
        return part.astype(np.int8)[pc.index_in(users, value_set=distinct).to_numpy()]

    def to_json(self, events: npt.NDArray[np.int64]) -> dict[str, Any]:
        """See `LeaveLast.to_json`."""
        return {"rule": BY_USERS, **_held_out(events), "column": SPLIT}


Split = LeaveLast | TimeSplit | UserSplit


@dataclass(frozen=True, kw_only=True)
class EventRules:
    """What a log's reader asks for beside `HistoryOptions`.

    Attributes:
      min_events_per_item: events of items that have fewer are left out; 0: none are. Items are
        counted first, and then users (`--min_interactions`).
      iterate: whether to do both again until nothing changes, so that what is left has enough of
        either.
      session_gap: a pause that is longer begins another history of the same user, in seconds (or
        steps); None: a user has one history.
      split: which events are held out; None: `LeaveLast`, as the options say.
    """

    min_events_per_item: int = 0
    iterate: bool = False
    session_gap: int | None = None
    split: TimeSplit | UserSplit | None = None


def _held_out(events: npt.NDArray[np.int64]) -> dict[str, int]:
    return {"validation": int(events[VALIDATION]), "test": int(events[TEST])}
