"""What a model's process counts, reported through Triton's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lookback.serving.scores import Scores
from lookback.serving.server.metrics import CACHED, COUNTED, tally
from lookback.serving.store.store import HistoryStore


class ModelMetrics:
    """As `serving.server.metrics.Metrics`, of one model.

    Args:
      triton: the module that Triton gives its models.
      model: its name.
      store: that it reads; None: it reads none.
    """

    def __init__(self, triton: Any, model: str, store: HistoryStore | None) -> None:
        texts = COUNTED | {name: text for name, (text, _) in CACHED.items() if store is not None}
        family = triton.MetricFamily
        self._families = {  # metrics are gone with their family
            name: family(name=name, description=text, kind=family.COUNTER)
            for name, text in texts.items()
        }
        self._counters = {
            name: found.Metric(labels={"model": model}) for name, found in self._families.items()
        }
        self._store, self._reported = store, dict.fromkeys(CACHED, 0)

    def waits(self, rows: int) -> None:
        """Not reported: Triton has figures of its own queue alone."""

    def begins(self, rows: int) -> None:
        """Not reported either."""

    def scored(self, model: str, requests: Sequence[Any], scores: Sequence[Scores]) -> None:
        """Some requests were scored."""
        del model
        for name, count in tally(requests, scores).items():
            self._counters[name].increment(count)
        if self._store is None:
            return
        for name, (_, attribute) in CACHED.items():
            count = getattr(self._store, attribute)
            self._counters[name].increment(count - self._reported[name])
            self._reported[name] = count
