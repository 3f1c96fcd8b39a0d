"""How long what arrives will wait, and what is refused because that is too long.

The seconds of a row are learned of the batches, model by model: with t_i seconds and n_i rows of
its batches, the newest last,

  seconds of a row = sum_i d^(k - i) t_i / sum_i d^(k - i) n_i,  i = 1..k, d = `_KEPT`.

A batch that takes longer than it should is taken to need as long again as it is overdue: so nothing
piles up behind one that hangs.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable

_KEPT = 0.8
"""What earlier batches still weigh when there is another: five of them make the figure."""


class OverloadedError(Exception):
    """It would wait for too long.

    Args:
      seconds: that it would have waited; None: unknown.
    """

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__()
        self.seconds = seconds

    @property
    def retry_seconds(self) -> int:
        """Whole seconds after which all that waits now is scored; at least 1."""
        return max(1, math.ceil(self.seconds or 0))


class Backlog:
    """What waits and what is being scored; one batch at a time."""

    def __init__(self, most_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts with nothing.

        Args:
          most_seconds: that what arrives may have to wait.
          clock: returns seconds.
        """
        self._most_seconds, self._clock = most_seconds, clock
        self._waiting: collections.Counter[str] = collections.Counter()
        self._measured: dict[str, tuple[float, float]] = {}  # the two sums
        self._batch: tuple[str, int, float] | None = None  # model, rows, when it began

    @property
    def rows(self) -> int:
        """That wait."""
        return self._waiting.total()

    @property
    def seconds(self) -> float:
        """That what arrives now would wait; models that never scored count nothing."""
        waiting = sum(rows * self._seconds_a_row(name) for name, rows in self._waiting.items())
        if self._batch is None:
            return waiting
        name, rows, began = self._batch
        expected, elapsed = rows * self._seconds_a_row(name), self._clock() - began
        return waiting + abs(expected - elapsed)

    def require_room(self) -> None:
        """Refuses what arrives, if it has to; what comes first, behind one batch, is always taken.

        Raises:
          OverloadedError: if it would wait for too long.
        """
        if self.rows and (seconds := self.seconds) > self._most_seconds:
            raise OverloadedError(seconds)

    def add(self, name: str, rows: int) -> None:
        """Has rows of a model wait; errors as of `require_room`."""
        self.require_room()
        self._waiting[name] += rows

    def begin(self, name: str, rows: int) -> None:
        """Makes some of what waits a batch."""
        self._waiting[name] -= rows
        self._batch = name, rows, self._clock()

    def end(self) -> None:
        """Ends the batch, and learns of it."""
        assert self._batch is not None, "end() follows begin()"
        (name, rows, began), self._batch = self._batch, None
        seconds, of_rows = self._measured.get(name, (0.0, 0.0))
        elapsed = self._clock() - began
        self._measured[name] = _KEPT * seconds + elapsed, _KEPT * of_rows + rows

    def _seconds_a_row(self, name: str) -> float:
        seconds, rows = self._measured.get(name, (0.0, 1.0))
        return seconds / rows
