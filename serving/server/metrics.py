"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from lookback.serving.columns import HISTORY
from lookback.serving.scores import Scores
from lookback.serving.store.store import HistoryStore

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 4, 16, 64, 256, 1024, 4096, 16384)

CONTENT_TYPE: str = prometheus_client.CONTENT_TYPE_LATEST

COUNTED = {
    "lookback_scored_requests_total": "Requests that were scored",
    "lookback_history_events_total": "Events in their histories",
    "lookback_items_total": "Candidates that were scored",
    "lookback_unknown_items_total": "Candidates that the bundle does not know",
}
"""What is counted of the requests of a model that were scored, whichever engine scores them."""

CACHED = {
    "lookback_history_cache_hits_total": ("Histories that were cached", "hits"),
    "lookback_history_cache_misses_total": ("Histories that were not", "misses"),
}
"""What a store counts: a text, and its attribute."""


def tally(requests: Sequence[Any], scores: Sequence[Scores]) -> dict[str, int]:
    """What some requests, which were scored, add to each counter of `COUNTED`, in its order."""
    histories = [r[HISTORY] for r in requests if isinstance(r, Mapping) and HISTORY in r]
    known = [known for found in scores for known in found.known or ()]
    counts = (
        len(requests),
        sum(len(next(iter(history.values()), ())) for history in histories),
        sum(len(found.logit) for found in scores),
        len(known) - sum(known),
    )
    return dict(zip(COUNTED, counts, strict=True))


class _StoreCounters(Collector):
    """What a store has counted, read when it is asked for."""

    def __init__(self, store: HistoryStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """A family for each counter."""
        for name, (text, attribute) in CACHED.items():
            yield CounterMetricFamily(name, text, getattr(self._store, attribute))


class ScoringMetrics(Protocol):
    """What a scorer tells of."""

    def waits(self, rows: int) -> None:
        """So many scores wait now."""

    def begins(self, rows: int) -> None:
        """A batch of so many scores begins."""

    def scored(self, model: str, requests: Sequence[Any], scores: Sequence[Scores]) -> None:
        """Some requests of a model were scored."""


class Metrics:
    """Counters of one server.

    Attributes:
      requests: HTTP requests, by model and status.
      seconds: from a request's last byte to its answer, by model; of those that were scored.
      batch_rows: scores of a batch.
      waiting: scores that wait for a batch.
      counted: what `COUNTED` names, by model.
      loads: bundles that were loaded, or refused, by model and outcome.
    """

    def __init__(self, *, scores: bool = True) -> None:
        """Starts at 0.

        Args:
          scores: whether this process scores, and counts what it does.
        """
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "lookback_requests", "HTTP requests", ["model", "status"], registry=registry
        )
        self.seconds = Histogram(
            "lookback_request_seconds",
            "From a request's last byte to its answer",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_rows = Histogram(
            "lookback_batch_rows", "Scores of a batch", buckets=_ROWS, registry=registry
        )
        self.waiting = Gauge(
            "lookback_waiting_rows", "Scores that wait for a batch", registry=registry
        )
        self.counted = {
            name: Counter(name, text, ["model"], registry=registry)
            for name, text in (COUNTED if scores else {}).items()
        }
        self.loads = Counter(
            "lookback_loads", "Bundles loaded or refused", ["model", "outcome"], registry=registry
        )

    def waits(self, rows: int) -> None:
        """As of `ScoringMetrics`."""
        self.waiting.set(rows)

    def begins(self, rows: int) -> None:
        """As of `ScoringMetrics`."""
        self.batch_rows.observe(rows)

    def scored(self, model: str, requests: Sequence[Any], scores: Sequence[Scores]) -> None:
        """As of `ScoringMetrics`."""
        for name, count in tally(requests, scores).items():
            self.counted[name].labels(model).inc(count)

    def watch_cache(self, store: HistoryStore) -> None:
        """Tells from now on how often a history was still decoded when it was asked for."""
        self._registry.register(_StoreCounters(store))

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return bytes(prometheus_client.generate_latest(self._registry))
