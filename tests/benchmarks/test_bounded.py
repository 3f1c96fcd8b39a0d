from __future__ import annotations

import numpy as np
import pytest

from lookback.benchmarks.bounded import run_bounded

MADE = {"dataset": "synthetic", "events": 2000, "users": 20, "items": 200}


def test_a_process_tells_its_own_peak(tmp_path):
    """Less than what its parent has, with which the figures of `getrusage` begin."""
    held = np.ones(1 << 30, np.uint8)
    ended = run_bounded("workflows", ["generate"], {**MADE, "output": tmp_path / "raw"})
    assert list((tmp_path / "raw").iterdir())
    assert 30 << 20 < ended.peak < len(held)
    assert 0.1 < ended.cpu < 60


def test_a_limit_holds(tmp_path):
    """Of a gigabyte, where the catalogue alone takes more.

    With less than what imports take, OpenBLAS waits for ever for its buffers.
    """
    made = {**MADE, "items": 300_000_000, "output": tmp_path / "raw"}
    with pytest.raises(RuntimeError, match=r"(?i)memory"):
        run_bounded("workflows", ["generate"], made, 1 << 30)
