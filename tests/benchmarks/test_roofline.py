"""Limits of a machine, by division; and that the machine's own are measured."""

from __future__ import annotations

import pytest

from lookback.benchmarks.costs import Cost
from lookback.benchmarks.peaks import copy_bandwidth, random_rows
from lookback.benchmarks.roofline import MODELS, Peaks, limits
from lookback.models import MODELS as KNOWN

PEAKS = Peaks({"float32": 100.0, "bfloat16": 400.0}, copy=50.0, rows={4: 10.0, 8: 5.0})


def test_limits_are_what_each_peak_alone_allows():
    cost = Cost(flops=20.0, streamed_bytes=25.0, rows={4: 1.0, 8: 2.0})
    expected = {"products": 5.0, "bandwidth": 2.0, "random rows": 1 / (1 / 10 + 2 / 5)}
    assert limits(cost, PEAKS, "float32") == pytest.approx(expected)
    assert limits(cost, PEAKS, "bfloat16")["products"] == pytest.approx(20.0)
    assert limits(Cost(20.0, 0.0, {}), PEAKS, "float32") == {"products": 5.0}


def test_every_model_has_limits():
    assert {name.removesuffix("_unit") for name in MODELS} == set(KNOWN)


def test_peaks_of_memory_are_plausible():
    """Of small buffers, which caches hold: between a slow disk's and what no core can move."""
    assert 1e8 < copy_bandwidth(1 << 20, repeats=1) < 1e13
    assert 1e5 < random_rows(16, 1 << 20, repeats=1) < 1e11
