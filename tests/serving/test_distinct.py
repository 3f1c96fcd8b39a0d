"""Items that a request asks for twice: scored once, and told as often as they were asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lookback.serving.bundle import Bundle
from lookback.serving.requests import EncodedBatch


def drawn(seed: int) -> EncodedBatch:
    """Requests of few different items, of ids, numbers and bags."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, 25, 6)
    count = int(counts.sum())
    return EncodedBatch(
        {"user": np.arange(6, dtype=np.int32)},
        counts.tolist(),
        {
            "item": random.integers(1, 4, count).astype(np.int32),
            "price": random.choice(np.float32([0.5, np.nan]), count),
            "tags": random.integers(0, 2, (count, 2)).astype(np.int32),
        },
    )


@pytest.mark.parametrize("seed", range(5))
def test_items_are_there_once_in_their_order_and_come_back(seed: int) -> None:
    batch = drawn(seed)
    found, which = batch.distinct()
    start = kept = 0
    expected: list[int] = []
    for request, count in enumerate(batch.counts):
        places: dict[Any, int] = {}
        for place in range(start, start + count):
            key = tuple(str(values[place]) for values in batch.items.values())
            if key not in places:
                places[key] = kept + len(places)
                for name, values in batch.items.items():
                    np.testing.assert_array_equal(found.items[name][places[key]], values[place])
            expected.append(places[key])
        assert found.counts[request] == len(places)
        start, kept = start + count, kept + len(places)
    assert which.tolist() == expected and len(found.items["item"]) == kept < start
    assert found.shared is batch.shared


def test_nothing_changes_where_nothing_is_twice() -> None:
    ids = np.int32([3, 1, 2, 3])
    batch = EncodedBatch({}, [3, 1], {"item": ids})
    found, which = batch.distinct()
    assert found is batch and which.tolist() == [0, 1, 2, 3]
    nothing = EncodedBatch({}, [0], {"item": ids[:0]})
    found, which = nothing.distinct()
    assert found is nothing and which.tolist() == []
    rows = EncodedBatch({"categorical": np.int32([[1], [1]])}, [1, 1])
    found, which = rows.distinct()
    assert found is rows and which.tolist() == [0, 1]


def test_a_request_is_scored_by_its_distinct_items(
    sim_bundle: Any, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, predict, asked = Bundle.load(sim_bundle), Bundle.predict, []

    def counted(self: Bundle, inputs: Any) -> Any:
        asked.append(inputs["item_id"].shape)
        return predict(self, inputs)

    once = raw.request("U001", ["B003", "B001", "B002"])
    places = np.random.default_rng(0).integers(0, 3, 50)
    often = {
        **once,
        "candidates": {n: [v[p] for p in places] for n, v in once["candidates"].items()},
    }
    new = {"item_id": [f"new {n}" for n in range(20)], "category_id": ["cat 1 ü"] * 20}
    (expected,) = bundle.score([once])
    monkeypatch.setattr(Bundle, "predict", counted)
    found, unknown = bundle.score([often, {**once, "candidates": new}])
    np.testing.assert_allclose(found.logit, expected.logit[places], atol=1e-6)
    np.testing.assert_allclose(found.probability, 1 / (1 + np.exp(-found.logit)), atol=1e-6)
    assert found.known == (True,) * 50 and unknown.known == (False,) * 20
    assert len(set(unknown.logit.tolist())) == 1
    assert asked == [(2, 3)]
