"""How long what arrives will take, and what is refused because that is too long.

How long a batch takes is learned of the batches, model by model: t seconds of n rows are taken for
a + b n, and a and b are those of the least squares over the batches, of which each weighs `_KEPT`
of the one after it. (Of batches that all have as many rows, a is 0.)

A limit on the wait that was given is obeyed. Else it depends on how many clients, which are open
connections, have called within the last ten seconds, or may still be waiting for an answer.

Up to `MOST_CLIENTS` wait for each other, however long that takes: each waits for the answer before
it calls again, so no more than that can pile up, and who was refused would come again at once.

Of more than that, what arrives is taken if it, and what waits in its batch already, will be
answered in less than twice the time that a call takes when nobody else calls; and what waits is
refused when its turn comes too late for that after all. So a server that is asked for three times
what it can do answers whom it takes nearly as fast as ever. That time is learned of calls during
which no other came, while less was asked for than can be done: in an overload batches take longer,
as what is refused takes its share of the cores. Where less is asked for, chance still brings some
together: at a share u of what can be done, a call may take 1 - u times `PATIENCE` longer.

A batch that takes longer than it should is taken to need as long again as it is overdue: so nothing
piles up behind one that hangs.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Hashable

_KEPT = 0.9
"""What earlier batches still weigh when there is another: ten of them make the figures."""
MOST_CLIENTS = 24
"""That are no crowd, however fast they call: sixteen, and some that come and go."""
CLIENT_SECONDS = 10.0
"""Without a call, after which a client counts no more."""
TIMES = 1.6
"""As long as a call's batch takes alone, its answer may take by what is foretold: twice as long is
promised, and some of it is for what nobody foretells, and for reading and writing."""
PATIENCE = 0.06
"""Seconds; of random arrivals at half of what the server can do 2 % are refused (10 % without)."""
_MOMENTS = 0.2
"""Seconds after which two thirds of what was asked for are forgotten."""
_OUTLIER = 2.0
"""Times the usual, as which a longer call counts that nobody else's was beside: what interrupted
one just before an overload must not stretch the limit as long as that lasts."""
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

    def __str__(self) -> str:
        """For the client."""
        return f"More requests wait than are scored soon. Try again in {self.retry_seconds} s."

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
    """The one that is being scored, since `began`."""

    name: str
    rows: int
    began: float


class Backlog:
    """What waits and what is being scored; one batch at a time."""

    def __init__(
        self,
        most_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        client_seconds: float = CLIENT_SECONDS,
    ) -> None:
        """Starts with nothing.

        Args:
          most_seconds: that what arrives may have to wait; None: see the module.
          clock: returns seconds.
          client_seconds: without a call, after which a client counts no more.
        """
        self._most_seconds, self._clock = most_seconds, clock
        self._client_seconds = client_seconds
        self._waiting: collections.Counter[str] = collections.Counter()
        self._learned: dict[str, BatchTimes] = collections.defaultdict(BatchTimes)
        self._alone: dict[str, BatchTimes] = collections.defaultdict(BatchTimes)
        self._usual: dict[str, float] = {}  # rows of a call
        self._batch: _Batch | None = None
        self._is_alone = False  # nobody has come since that batch began
        self._clients: collections.OrderedDict[Hashable, float] = collections.OrderedDict()
        self._asked, self._seen = 0.0, clock()  # share of what can be done, when it was written
        self._first = self._ended = 0.0  # when what waits began to, and the last batch's end

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

    def arrive(self, name: str, client: Hashable) -> None:
        """A call comes, and is refused if it has to be; what it asks for nobody knows yet.

        Args:
          name: of the model.
          client: who calls.

        Raises:
          OverloadedError: if it would wait for too long.
        """
        now, usual = self._clock(), self._usual.get(name, 0.0)
        self._is_alone = False
        self._asked = self._share() + self._learned[name].seconds(usual) / _MOMENTS
        self._seen = now
        self._clients[client] = now
        self._clients.move_to_end(client)
        self._forget_clients()
        self._require_room(name, usual)

    def leave(self, client: Hashable) -> None:
        """A client has gone."""
        self._clients.pop(client, None)

    def add(self, name: str, rows: int) -> float:
        """Has a call that came wait; gives the moment. Errors as of `arrive`."""
        self._is_alone = False
        self._require_room(name, rows)
        if not self.rows:
            self._first = self._clock()
        self._waiting[name] += rows
        usual = self._usual.get(name, float(rows))
        self._usual[name] = _KEPT * usual + (1 - _KEPT) * rows
        return self._clock()

    def drop(self, name: str, rows: int, since: float) -> bool:
        """Whether what has waited for a batch would be answered too late; then it waits no more."""
        if self._most_seconds is not None or not self._is_crowded or since >= self._ended:
            return False  # of the last, nothing was in its way
        late = self._clock() - since + self._learned[name].seconds(rows)
        if late <= self._limit(name, rows):
            return False
        self._waiting[name] -= rows
        return True

    def begin(self, name: str, rows: int, calls: int = 1) -> None:
        """Makes some of what waits a batch."""
        self._waiting[name] -= rows
        now = self._clock()
        self._first = now  # what is left waits for the next batch from now on
        self._batch = _Batch(name, rows, now)
        self._is_alone = calls == 1 and not self.rows

    def end(self) -> None:
        """Ends the batch, and learns of it."""
        assert self._batch is not None, "end() follows begin()"
        batch, self._batch, self._ended = self._batch, None, self._clock()
        seconds = self._ended - batch.began
        self._learned[batch.name].add(batch.rows, seconds)
        if self._is_alone and self._share() < 1:
            alone = self._alone[batch.name]
            if usual := alone.seconds(batch.rows):
                seconds = min(seconds, _OUTLIER * usual)
            alone.add(batch.rows, seconds)

    def _require_room(self, name: str, rows: float) -> None:
        """Refuses a call of so many rows, if it has to; errors as of `arrive`."""
        if self._batch is None and not self.rows:
            return
        if self._most_seconds is not None:
            # What comes first is taken, however long the batch before it takes.
            too_long = self.rows > 0 and self.seconds > self._most_seconds
        elif not self._is_crowded:
            return
        else:
            learned, waiting = self._learned[name], self._waiting[name]
            # It is in one batch with what waits of its model.
            batch = learned.seconds(waiting + rows) - (learned.seconds(waiting) if waiting else 0)
            # What waits already has waited, and waits for it, too.
            waited = self._clock() - self._first if self.rows else 0.0
            too_long = waited + self.seconds + batch > self._limit(name, rows)
        if too_long:
            raise OverloadedError(self.seconds)

    def _limit(self, name: str, rows: float) -> float:
        """Seconds in which a call is to be answered."""
        alone = self._alone[name] if self._alone[name].n else self._learned[name]
        return TIMES * alone.seconds(rows) + PATIENCE * max(0.0, 1 - self._share())

    @property
    def _is_crowded(self) -> bool:
        """Whether more clients call than may wait for each other."""
        self._forget_clients()
        return len(self._clients) > MOST_CLIENTS

    def _forget_clients(self) -> None:
        """Those that call no more; who waits for an answer cannot."""
        oldest = self._clock() - self._client_seconds - self.seconds
        while self._clients and next(iter(self._clients.values())) < oldest:
            self._clients.popitem(last=False)

    def _share(self) -> float:
        """What was asked for in the last moments, as a share of what can be done."""
        return self._asked * math.exp((self._seen - self._clock()) / _MOMENTS)

    @property
    def _left(self) -> float:
        """Seconds of the batch that is being scored."""
        if self._batch is None:
            return 0.0
        expected = self._learned[self._batch.name].seconds(self._batch.rows)
        return abs(expected - (self._clock() - self._batch.began))
