from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from lookback.benchmarks import harness


class Clock:
    """Time that passes only as the contenders say."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def contender(self, name, seconds, units):
        def work():
            self.calls.append(name)
            self.now += seconds
            return units

        return work


def test_interleave_runs_contenders_in_turn_after_warming_up():
    clock = Clock()
    contenders = {"a": clock.contender("a", 2.0, 10), "b": clock.contender("b", 1.0, 10)}
    timings = harness.interleave(contenders, rounds=3, warmup=2, clock=lambda: clock.now)
    assert "".join(clock.calls) == "aabb" + "ababab"
    assert timings["a"].rates == (5.0, 5.0, 5.0)
    assert timings["b"].over(timings["a"]) == 2.0


def test_interleave_repeats_short_work_until_the_time_is_up():
    clock = Clock()
    timings = harness.interleave(
        {"a": clock.contender("a", 0.25, 3)},
        rounds=1,
        warmup=0,
        min_seconds=1.0,
        clock=lambda: clock.now,
    )
    assert len(clock.calls) == 4
    assert timings["a"].median == 12.0


def test_timing_reports_median_extremes_and_the_median_of_ratios():
    ours, theirs = harness.Timing((30.0, 10.0, 40.0)), harness.Timing((10.0, 5.0, 80.0))
    assert ours.as_dict() == {"median": 30.0, "lowest": 10.0, "highest": 40.0}
    assert ours.over(theirs) == 2.0  # of 3, 2 and 0.5


def test_peaks_are_plausible():
    # Any machine that runs TensorFlow lies within these.
    assert 1e8 < harness.gemm_peak(size=256, repeats=2) < 1e16
    assert 1e6 < harness.gemm_peak("bfloat16", size=256, repeats=2) < 1e16


def test_machine_info_names_the_machine():
    info = harness.machine_info()
    assert info["cpu"]
    assert info["cores"] >= 1
    assert info["memory_bytes"] > 2**28
    assert info["numpy"] == np.__version__


def test_the_kernels_that_ran_are_named(monkeypatch):
    from lookback.kernels import loader

    levels = {"float32": "avx512", "bfloat16": None}
    monkeypatch.setattr(loader, "cpu_kernels", object)
    monkeypatch.setattr(loader, "history_level", levels.get)
    used = {"operations": "C++", "history_step_float32": "avx512"}
    used["history_step_bfloat16"] = "TensorFlow"
    assert harness.kernels_used() == used
    output = io.StringIO()
    machine = {"cpu": "X", "cores": 2, "memory_bytes": 2**30, "kernels": used}
    report = harness.BenchmarkReport("t", ("a",), [], failures=["too slow"])
    harness.print_report("name", report, machine, console=Console(file=output, width=200))
    assert "kernels: operations C++, history_step_float32 avx512, history" in output.getvalue()
    assert "FAILED: too slow" in output.getvalue()
    monkeypatch.setattr(loader, "cpu_kernels", lambda: None)
    monkeypatch.setattr(loader, "history_level", lambda dtype: None)
    assert set(harness.kernels_used().values()) == {"TensorFlow"}


def test_report_is_a_table_and_then_one_json_line():
    report = harness.BenchmarkReport(
        title="A title",
        columns=("what", "samples/s"),
        rows=[("ours", 12345.6), ("theirs", 0.12345), ("none", None)],
        config={"batch": np.int64(8), "sizes": np.array([1, 2])},
        figures={"ours": np.float32(2.5), "timing": harness.Timing((1.0,))},
        ratios={"ours_over_theirs": 3.0},
        notes=["A note [in brackets]."],
    )
    output = io.StringIO()
    console = Console(file=output, width=40)
    harness.print_report("name", report, harness.machine_info(), seconds=2.0, console=console)
    lines = output.getvalue().splitlines()
    text = "\n".join(lines[:-1])
    for part in ("A title", "12,346", "0.1235", "A note [in brackets]."):
        assert part in text
    line = json.loads(lines[-1])
    assert line["benchmark"] == "name"
    assert line["config"] == {"batch": 8, "sizes": [1, 2]}
    assert line["figures"] == {"ours": 2.5, "timing": {"rates": [1.0]}}
    assert line["ratios"] == {"ours_over_theirs": 3.0}
    assert line["machine"]["cores"] >= 1
    assert line["seconds"] == 2.0


def test_figures_that_are_no_numbers_are_refused():
    report = harness.BenchmarkReport("t", ("a",), [], figures={"x": float("nan")})
    console = Console(file=io.StringIO())
    with pytest.raises(ValueError, match="not JSON compliant"):
        harness.print_report("name", report, harness.machine_info(), console=console)
    with pytest.raises(TypeError, match="set cannot be written as JSON"):
        harness.print_report(
            "name",
            harness.BenchmarkReport("t", ("a",), [], figures={"x": {1}}),
            harness.machine_info(),
            console=console,
        )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (12345, "12,345"), (1234.5, "1,234"), (0.98765, "0.9877"), ("x", "x"),
     (None, ""), (True, "True"), (np.int32(5000), "5,000")],
)  # fmt: skip
def test_cells(value, text):
    assert harness.format_cell(value) == text
