"""How long what arrives will take, and what is refused because that is too long.

How long a batch takes is learned of the batches, model by model: t seconds of n rows are taken for
a + b n, and a and b are those of the least squares over the batches, of which each weighs `_KEPT`
of the one after it. (Of batches that all have as many rows, a is 0.)

Who says how long one may wait is obeyed. Else what arrives is taken if it, and what waits in its
batch already, will be answered in twice the time that it takes alone, or `_SOON`, whichever is
longer: so a server that is asked for three times what it can do answers whom it takes nearly as
fast as ever, and batches grow as far as that allows. Where it was idle in the last moments, it may
take up to `_PATIENCE` more: at a share u of them in which something was scored, 1 - u times that.
A burst is no overload, and who is idle half of the time should refuse nobody for arriving second.

A batch that takes longer than it should is taken to need as long again as it is overdue: so nothing
piles up behind one that hangs.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable

_KEPT = 0.9
"""What earlier batches still weigh when there is another: ten of them make the figures."""
_SOON = 0.02
"""Seconds in which nobody minds to be answered."""
_PATIENCE = 0.05
"""Seconds; of random arrivals at half of what the server can do 2 % are refused (10 % without)."""
_MOMENTS = 0.05
"""Seconds after which two thirds of what was are forgotten: an overload is seen as fast."""
_SPREAD = 0.1
"""Least deviation of the batches' rows, relative to their mean, for a and b to be told apart."""


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


@dataclasses.dataclass
class BatchTimes:
    """What is known of a model: weighted sums over its batches, of n rows and t seconds each."""

    weight: float = 0.0
    n: float = 0.0
    t: float = 0.0
    nn: float = 0.0
    nt: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """Another batch."""
        own = (1.0, rows, seconds, rows * rows, rows * seconds)
        before = dataclasses.astuple(self)
        self.weight, self.n, self.t, self.nn, self.nt = (
            _KEPT * old + new for old, new in zip(before, own, strict=True)
        )

    def seconds(self, rows: float) -> float:
        """Of a batch of so many rows; 0 before there was one."""
        if not self.n:
            return 0.0
        mean, variance = self.n / self.weight, self.nn / self.weight - (self.n / self.weight) ** 2
        slope = self.t / self.n
        if variance > (_SPREAD * mean) ** 2:
            covariance = self.nt / self.weight - mean * self.t / self.weight
            # Neither can be negative, whatever chance has it.
            slope = min(max(0.0, covariance / variance), slope)
        return self.t / self.weight + slope * (rows - mean)


@dataclasses.dataclass(frozen=True)
class _Batch:
    """The one that is being scored: of `calls` clients, since `began`."""

    name: str
    rows: int
    calls: int
    began: float


class Backlog:
    """What waits and what is being scored; one batch at a time."""

    def __init__(
        self, most_seconds: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Starts with nothing.

        Args:
          most_seconds: that what arrives may have to wait; None: see the module.
          clock: returns seconds.
        """
        self._most_seconds, self._clock = most_seconds, clock
        self._waiting: collections.Counter[str] = collections.Counter()
        self._learned: dict[str, BatchTimes] = collections.defaultdict(BatchTimes)
        self._usual: dict[str, float] = {}  # rows of a call
        self._batch: _Batch | None = None
        self._used, self._seen = 0.0, clock()  # the share when it was last written
        self._first = 0.0  # when what waits began to

    @property
    def rows(self) -> int:
        """That wait."""
        return self._waiting.total()

    @property
    def seconds(self) -> float:
        """That what arrives now would wait; models that never scored count nothing."""
        return self._left + sum(
            self._learned[name].seconds(rows) for name, rows in self._waiting.items() if rows
        )

    def require_room(self, name: str, rows: float | None = None) -> None:
        """Refuses a call, if it has to; what comes first, behind one call, is always taken.

        Args:
          name: of the model.
          rows: that it asks for; None: as many as calls of that model mostly do.

        Raises:
          OverloadedError: if it would wait for too long.
        """
        if not self.rows and (self._batch is None or self._batch.calls == 1):
            return
        if self._most_seconds is not None:
            too_long = self.rows > 0 and self.seconds > self._most_seconds
        else:
            own = self._usual.get(name, 0.0) if rows is None else rows
            learned, waiting = self._learned[name], self._waiting[name]
            # It is in one batch with what waits of its model.
            batch = learned.seconds(waiting + own) - (learned.seconds(waiting) if waiting else 0)
            limit = max(_SOON, 2 * learned.seconds(own)) + _PATIENCE * (1 - self._busy())
            # What waits already has waited, and waits for it, too.
            waited = self._clock() - self._first if self.rows else 0.0
            too_long = waited + self.seconds + batch > limit
        if too_long:
            raise OverloadedError(self.seconds)

    def add(self, name: str, rows: int) -> None:
        """Has a call wait; errors as of `require_room`."""
        self.require_room(name, rows)
        if not self.rows:
            self._first = self._clock()
        self._waiting[name] += rows
        usual = self._usual.get(name, float(rows))
        self._usual[name] = _KEPT * usual + (1 - _KEPT) * rows

    def begin(self, name: str, rows: int, calls: int = 1) -> None:
        """Makes some of what waits a batch."""
        self._waiting[name] -= rows
        self._used, self._seen = self._busy(), self._clock()
        self._first = self._seen  # what is left waits for the next batch from now on
        self._batch = _Batch(name, rows, calls, self._seen)

    def end(self) -> None:
        """Ends the batch, and learns of it."""
        assert self._batch is not None, "end() follows begin()"
        self._used, self._seen = self._busy(), self._clock()
        batch, self._batch = self._batch, None
        self._learned[batch.name].add(batch.rows, self._seen - batch.began)

    def _busy(self) -> float:
        """The share of the last moments in which something was scored."""
        share = 0.0 if self._batch is None else 1.0
        return share + (self._used - share) * math.exp((self._seen - self._clock()) / _MOMENTS)

    @property
    def _left(self) -> float:
        """Seconds of the batch that is being scored."""
        if self._batch is None:
            return 0.0
        expected = self._learned[self._batch.name].seconds(self._batch.rows)
        return abs(expected - (self._clock() - self._batch.began))
