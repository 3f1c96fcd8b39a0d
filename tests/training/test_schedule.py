"""The learning rate against NVIDIA's description, computed number by number."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.training.schedule import Schedule


def rates(schedule: Schedule, steps: int) -> np.ndarray:
    return np.array([float(schedule.at(tf.constant(float(t)))) for t in range(1, steps + 1)])


def expected(
    t: int, base: float, warmup: int, factor: int, start: int, steps: int, power: float, end: float
) -> float:
    if t <= warmup:
        return base * (1 - (warmup - t) / (warmup * 2**factor))
    if steps and t > start + steps:
        return end
    if steps and t > start:
        return max(base * ((start + steps - t) / steps) ** power, end)
    return base


@pytest.mark.parametrize("factor", [0, 1, 3])
@pytest.mark.parametrize(("power", "end"), [(2.0, 0.0), (1.0, 3.0), (3.0, 1e-3)])
def test_warm_up_plateau_and_decay(factor: int, power: float, end: float) -> None:
    schedule = Schedule(24.0, 8, factor, 20, 10, power, end)
    oracle = [expected(t, 24.0, 8, factor, 20, 10, power, end) for t in range(1, 41)]
    np.testing.assert_allclose(rates(schedule, 40), oracle, rtol=1e-5, atol=1e-6)


def test_decay_follows_the_warm_up_where_no_start_is_given() -> None:
    schedule = Schedule(1.0, warmup_steps=4, decay_steps=4)
    oracle = [expected(t, 1.0, 4, 0, 4, 4, 2.0, 0.0) for t in range(1, 11)]
    np.testing.assert_allclose(rates(schedule, 10), oracle, rtol=1e-5, atol=1e-6)


def test_without_warm_up_and_decay_the_rate_is_constant() -> None:
    assert Schedule(0.1).constant
    np.testing.assert_allclose(rates(Schedule(0.1), 5), 0.1, rtol=1e-6)
