"""The fused steps of SIM, DIEN and DIN: against the formulas in float64, gradients by a tape."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from lookback.kernels import loader
from tests.kernels.history_cases import Batch, Case, Result, by_formulas

Array = npt.NDArray[Any]

pytestmark = pytest.mark.skipif(
    loader.history_kernels() is None, reason="a GPU, a CPU without AVX2, or nothing built"
)

CASES = {
    "sim": Case("sim"),
    "sim, one candidate, whole tiles": Case("sim", users=32, candidates=1, k=30),
    "sim, many tiles": Case("sim", users=37, candidates=3, short=4, long=16, k=1),
    "sim, more than are searched": Case("sim", users=3, long=40, k=40, short=1),
    "sim, hard": Case("sim", hard=True, k=3, users=19),
    "sim, time": Case(
        "sim", time_features=True, event_parts=(0, 1, 2, 3), user_parts=(2, 1), users=9
    ),
    "sim, hard, time, vectors": Case(
        "sim",
        time_features=True,
        hard=True,
        target_parts=(-1, 0, 1),
        event_parts=(-1, 0, 1, -1, 2),
        user_parts=(-1, 0),
        rate=0.4,
        k=2,
    ),
    "sim, deep": Case(
        "sim",
        stage_one=(100, 50, 17),
        stage_two=(200, 80, 40, 1),
        auxiliary=(100, 50, 33),
        rate=0.25,
        user_parts=(),
    ),
    "sim, wide": Case("sim", width=32, target_parts=(0,), event_parts=(0, 1), users=18),
    "dien": Case("dien"),
    "dien, one layer, dropout": Case(
        "dien", auxiliary=(7,), stage_two=(12,), rate=0.5, users=33, candidates=1, short=9
    ),
    "dien, wide, vectors": Case("dien", width=48, target_parts=(-1,), event_parts=(-1, 0)),
    "din": Case("din", users=21, event_parts=(0, 1, 2)),
    "din, vectors, dropout": Case("din", event_parts=(0, 1, -1), rate=0.3, user_parts=()),
    "din, unit": Case("din", unit=True, users=11, event_parts=(0, 1, 2)),
    "din, unit, many events": Case("din", unit=True, long=130, candidates=3, target_parts=(1,)),
}


def step(batch: Batch, precision: str = "float32", **changes: Any) -> Result:
    """The operation's results; rows' gradients summed into tables."""
    operations = loader.history_kernels()
    assert operations is not None
    function = getattr(operations, f"lookback_{batch.case.model}_step")
    found = function(**{**batch.arguments(True, precision), **changes})
    slots: list[list[Array]] = [[] for _ in batch.tables]
    ids = iter(batch.ids)
    for group in ("target", "long", "short", "negative", "user"):
        for table in batch.lists.get(group, ()):
            if table >= 0:
                slots[table].append(next(ids).ravel())
    tables = []
    for rows, gradients in zip(slots, found.table_gradients, strict=True):
        summed = np.zeros((batch.case.rows, batch.case.width))
        np.add.at(summed, np.concatenate([*rows, np.zeros(0, int)]), gradients.numpy())
        tables.append(summed)
    return Result(
        found.sums.numpy(),
        found.total.numpy(),
        found.logits.numpy(),
        [gradient.numpy() for gradient in found.weight_gradients],
        tables,
        [gradient.numpy() for gradient in found.vector_gradients],
    )


def score(batch: Batch, precision: str = "float32") -> Array:
    operations = loader.history_kernels()
    assert operations is not None
    function = getattr(operations, f"lookback_{batch.case.model}_score")
    logits: Array = function(**batch.arguments(False, precision)).numpy()
    return logits


def assert_close(found: Result, expected: Result, tolerance: float) -> None:
    """Each gradient to `tolerance` of the largest that its kind has; losses likewise."""
    np.testing.assert_allclose(found.sums, expected.sums, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.total, expected.total, rtol=tolerance)
    scale = max(1.0, float(np.abs(expected.logits).max(initial=0)))
    np.testing.assert_allclose(found.logits, expected.logits, atol=tolerance * scale)
    for kind in ("weights", "tables", "vectors"):
        for number, (one, other) in enumerate(
            zip(getattr(found, kind), getattr(expected, kind), strict=True)
        ):
            # A softmax does not change with its scores' bias: the gradient is a sum of errors.
            largest = max(float(np.abs(other).max(initial=0)), 1e-2)
            np.testing.assert_allclose(
                one, other, rtol=0, atol=tolerance * largest, err_msg=f"{kind} {number}"
            )


@pytest.mark.parametrize("name", CASES)
def test_it_equals_the_formulas(name: str) -> None:
    batch = Batch(CASES[name])
    expected = by_formulas(batch)
    assert_close(step(batch), expected, 1e-4)
    if batch.case.rate is None:
        np.testing.assert_allclose(score(batch), expected.logits, rtol=2e-4, atol=2e-4)
