"""Rates of calls by a clock that the test moves, and products that any machine can do."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lookback.core import rates


def test_calls_are_counted_after_the_first(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def work() -> None:
        now[0] += 0.25 if calls else 100.0  # the first traces
        calls.append(now[0])

    assert rates.calls_a_second(work, 1.0) == 4.0
    assert len(calls) == 6  # one to prepare, and until more than a second is over


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_is_one_of_random_matrices(dtype):
    product = rates.gemm(dtype, 64)
    found = product()
    assert (found.dtype, found.shape) == ("float32", ())
    assert 0 < abs(float(found)) < 6 * np.sqrt(64)  # 64 products of two normal numbers


def test_flops_are_plausible():
    assert rates.gemm_flops(2048) == 17_179_869_184
    # Any machine that runs TensorFlow lies within these.
    assert 1e7 < rates.gemm_rate("float32", 0.02, 256) < 1e16
