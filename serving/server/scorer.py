"""Scores what several clients ask for, together: one batch after another, on one thread.

While a batch is scored, what arrives waits; the next batch takes of it what fits. Under little load
each request so is a batch of its own, without any delay; under much, batches grow until they are
full, and what would have to wait for too long is refused at once (`serving.server.backlog`).
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from lookback.core.errors import UserError
from lookback.serving.requests import Request, RequestError
from lookback.serving.scores import Scores
from lookback.serving.server.backlog import Backlog, OverloadedError
from lookback.serving.server.metrics import ScoringMetrics
from lookback.serving.server.models import Served, ServedModel

_log = logging.getLogger(__name__)


class ScoringError(Exception):
    """Scoring failed, through no fault of the request."""


@dataclasses.dataclass(frozen=True)
class CheckedRequests:
    """Requests of one client whose shape was checked.

    Attributes:
      requests: one or more.
      counts: scores that each asks for.
    """

    requests: Sequence[Request]
    counts: Sequence[int]

    @classmethod
    def of(cls, model: ServedModel, requests: Sequence[Any]) -> CheckedRequests:
        """Checks them.

        Raises:
          RequestError: about the first of them that is not as it must be.
        """
        return cls(requests, [model.rows(i, request) for i, request in enumerate(requests)])


@dataclasses.dataclass
class _Call:
    """What one client waits for: all of its requests, or an error."""

    model: ServedModel
    checked: CheckedRequests
    done: asyncio.Future[list[Scores]]
    since: float

    @property
    def rows(self) -> int:
        return sum(self.checked.counts)


class Scorer:
    """Scores calls of an event loop; to be made and used within it."""

    def __init__(self, most_rows: int, backlog: Backlog, metrics: ScoringMetrics) -> None:
        """Starts to wait for calls.

        Args:
          most_rows: scores of a batch. A single call may have more.
          backlog: with nothing in it; refuses what would wait for too long.
          metrics: are told of batches and of what waits.
        """
        self._most_rows, self._backlog, self._metrics = most_rows, backlog, metrics
        self._waiting: collections.deque[_Call] = collections.deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._task = asyncio.get_running_loop().create_task(self._work())

    def arrive(self, model: Served, client: Hashable) -> None:
        """Refuses what arrives, if it has to, before it is read; errors as of `Backlog`."""
        self._backlog.arrive(model.name, client)

    def leave(self, client: Hashable) -> None:
        """A client has gone."""
        self._backlog.leave(client)

    async def score(self, model: ServedModel, requests: Sequence[Request]) -> list[Scores]:
        """Scores a call's requests, in a batch with those of others.

        Raises:
          RequestError: about the first of them that is not as it must be.
          OverloadedError: if it would wait for too long.
          ScoringError: if it failed; what, the log says.
        """
        if not requests:
            return []
        checked = CheckedRequests.of(model, requests)
        since = self._backlog.add(model.name, sum(checked.counts))
        call = _Call(model, checked, asyncio.get_running_loop().create_future(), since)
        self._metrics.waits(self._backlog.rows)
        self._waiting.append(call)
        self._arrived.set()
        return await call.done

    async def answers(self, model: Served, requests: Sequence[Any]) -> list[dict[str, Any]]:
        """What a call's requests are answered with; errors as of `score`."""
        own = cast(ServedModel, model)  # of this scorer's `Models`
        requests = await self._completed(own, requests)
        scores = await self.score(own, requests)
        self._metrics.scored(model.name, requests, scores)
        return [own.answer(r, found) for r, found in zip(requests, scores, strict=True)]

    async def probe(self, model: Served) -> None:
        """Has a model score something, in its turn: behind the batch that is under way."""
        own = cast(ServedModel, model)
        await asyncio.get_running_loop().run_in_executor(self._thread, own.probe)

    async def close(self) -> None:
        """Ends; what waits is not answered any more."""
        self._task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _completed(self, model: ServedModel, requests: Sequence[Any]) -> Sequence[Any]:
        """Requests with the histories that a store has; it may have to wait for a disk."""
        if model.histories is None:
            return requests
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, completed, model, requests)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            calls = self._next()
            if not calls:
                continue
            try:
                results = await loop.run_in_executor(
                    self._thread, score_calls, calls[0].model, [call.checked for call in calls]
                )
            except Exception as error:  # nobody may wait for ever
                results = [ScoringError(str(error))] * len(calls)
            self._backlog.end()
            for call, result in zip(calls, results, strict=True):
                if call.done.done():  # its client has gone
                    continue
                if isinstance(result, Exception):
                    call.done.set_exception(result)
                else:
                    call.done.set_result(result)

    def _drop(self) -> None:
        """Refuses what waits and would be answered too late."""
        waiting = list(self._waiting)
        self._waiting.clear()
        for call in waiting:
            if not self._backlog.drop(call.model.name, call.rows, call.since):
                self._waiting.append(call)
            elif not call.done.done():
                call.done.set_exception(OverloadedError())
        self._metrics.waits(self._backlog.rows)

    def _next(self) -> list[_Call]:
        """Takes the calls of the next batch: of one model, in the order in which they came."""
        self._drop()
        if not self._waiting:
            self._arrived.clear()
            return []
        first = self._waiting.popleft()
        calls, rows, others = [first], first.rows, []
        while self._waiting and rows < self._most_rows:
            call = self._waiting.popleft()
            if call.model is not first.model:
                others.append(call)
            elif rows + call.rows > self._most_rows:
                others.append(call)
                break
            else:
                calls.append(call)
                rows += call.rows
        self._waiting.extendleft(reversed(others))
        if not self._waiting:
            self._arrived.clear()
        self._backlog.begin(first.model.name, rows, len(calls))
        self._metrics.waits(self._backlog.rows)
        self._metrics.begins(rows)
        return calls


def completed(model: ServedModel, requests: Sequence[Any]) -> Sequence[Any]:
    """Requests with the histories that a store has.

    Raises:
      RequestError: about the first of them that names no user of it.
      ScoringError: if the store cannot be read.
    """
    if model.histories is None:
        return requests
    try:
        return model.histories.completed(requests)
    except RequestError:
        raise
    except (UserError, OSError) as error:
        _log.error("%s", error)
        raise ScoringError(str(error)) from error


def score_calls(
    model: ServedModel, calls: Sequence[CheckedRequests]
) -> list[list[Scores] | Exception]:
    """The result of each call; what is wrong with one is nothing to the others.

    Args:
      model: that scores.
      calls: the requests of each.

    Returns:
      Scores, or `RequestError` or `ScoringError`.
    """
    try:
        requests = [request for call in calls for request in call.requests]
        counts = [count for call in calls for count in call.counts]
        every = iter(model.score(requests, counts))
        return [[next(every) for _ in call.requests] for call in calls]
    except RequestError as error:
        if len(calls) == 1:
            return [error]
    except UserError as error:
        if len(calls) == 1:
            return [ScoringError(str(error))]
    except Exception as error:  # of TensorFlow, whatever it is
        if len(calls) == 1:
            _log.exception("scoring failed")
            return [ScoringError(type(error).__name__)]
    return [result for call in calls for result in score_calls(model, [call])]
