"""What a server counts, for Prometheus."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from lookback.serving.store.store import HistoryStore

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_ROWS = (1, 4, 16, 64, 256, 1024, 4096, 16384)

CONTENT_TYPE: str = prometheus_client.CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one server.

    Attributes:
      requests: HTTP requests, by model and status.
      seconds: from a request's last byte to its answer, by model; of those that were scored.
      batch_rows: scores of a batch.
      waiting: scores that wait for a batch.
      items: candidates that were scored, by model.
      unknown: those of them that the bundle does not know, by model.
      loads: bundles that were loaded, or refused, by model and outcome.
    """

    def __init__(self) -> None:
        """Starts at 0."""
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
        self.items = Counter(
            "lookback_items", "Candidates that were scored", ["model"], registry=registry
        )
        self.unknown = Counter(
            "lookback_unknown_items",
            "Candidates that the bundle does not know",
            ["model"],
            registry=registry,
        )
        self.loads = Counter(
            "lookback_loads", "Bundles loaded or refused", ["model", "outcome"], registry=registry
        )

    def watch_cache(self, store: HistoryStore) -> None:
        """Tells from now on how often a history was still decoded when it was asked for."""
        for name, text, count in (
            ("lookback_history_cache_hits", "Histories that were cached", lambda: store.hits),
            ("lookback_history_cache_misses", "Histories that were not", lambda: store.misses),
        ):
            Gauge(name, text, registry=self._registry).set_function(count)

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return bytes(prometheus_client.generate_latest(self._registry))
