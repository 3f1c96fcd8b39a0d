"""What ranks send in a step, against sums done by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from lookback.core.world import SOLO
from lookback.training import traffic


class TwoRanks:
    """The other rank sends as much again."""

    size = 2

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


def test_bytes_are_those_of_all_ranks_a_step_since_the_last_call(monkeypatch):
    sent = {"ids": 0, "vectors": 0}
    collection = SimpleNamespace(backend=SimpleNamespace(sent_bytes=sent))
    monkeypatch.setattr(traffic, "collections_of", lambda model: [collection, collection])
    meter = traffic.TrafficMeter(None, TwoRanks())  # type: ignore[arg-type]
    sent.update(ids=100, vectors=50)
    assert meter.figures(5) == {"sent_bytes_a_step": 2 * 2 * 150 / 5}
    assert meter.figures(5) == {}
    sent.update(ids=108)
    assert meter.figures(7) == {"sent_bytes_a_step": 2 * 2 * 8 / 2}
    assert traffic.TrafficMeter(None, SOLO).figures(9) == {}  # type: ignore[arg-type]
