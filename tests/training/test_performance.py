from __future__ import annotations

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.training.output.performance import PerformanceMeter, combined


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(meter: PerformanceMeter, clock: Clock, durations, samples: int = 10) -> list[float]:
    speeds = []
    for duration in durations:
        clock.now += duration
        speeds.append(meter.step(samples))
    return speeds


def test_results_leave_out_the_warm_up():
    clock = Clock()
    meter = PerformanceMeter(warmup_steps=2, clock=clock)
    durations = [5.0, 4.0, *np.linspace(0.1, 0.9, 9)]
    speeds = run(meter, clock, durations)
    assert speeds == pytest.approx([10 / d for d in durations])
    clock.now += 1000  # time after the last step is nobody's
    measured = np.linspace(100, 900, 9)
    assert meter.results() == pytest.approx(
        {
            "throughput": 90 / (measured.sum() / 1000),
            "latency_mean": measured.mean(),
            "latency_p90": np.percentile(measured, 90),
            "latency_p95": np.percentile(measured, 95),
            "latency_p99": np.percentile(measured, 99),
            "time": sum(durations),
        }
    )
    assert meter.measured_steps == 9


def test_it_completes_after_the_wanted_steps_and_then_stands_still():
    clock = Clock()
    meter = PerformanceMeter(warmup_steps=1, steps=2, clock=clock)
    run(meter, clock, [9, 1])
    assert not meter.completed
    run(meter, clock, [3])
    assert meter.completed
    results = meter.results()
    run(meter, clock, [50, 60])
    assert meter.results() == results
    assert results["throughput"] == 20 / 4
    assert results["time"] == 13


def test_steps_that_end_together_have_lasted_as_long_as_each_other():
    clock = Clock()
    meter = PerformanceMeter(warmup_steps=2, steps=4, clock=clock)
    clock.now += 12
    assert meter.step(10, 20, 30) == 60 / 12  # two of the warm-up, one that counts
    clock.now += 4
    meter.step(40, 50)
    clock.now += 100
    meter.step(60, 70)  # one that counts, and one beyond the wanted four
    results = meter.results()
    durations = [4, 2, 2, 50]
    assert results["throughput"] == (30 + 40 + 50 + 60) / sum(durations)
    assert results["latency_mean"] == pytest.approx(1000 * np.mean(durations))
    assert results["time"] == 2 * 4 + sum(durations)


def test_a_restart_forgets_the_measurements_but_stays_warm():
    clock = Clock()
    meter = PerformanceMeter(warmup_steps=2, clock=clock)
    run(meter, clock, [9, 9, 9])
    clock.now += 77  # an evaluation
    meter.start()
    run(meter, clock, [2])
    assert meter.results()["throughput"] == 5
    assert meter.results()["time"] == 2


def test_nothing_measured_is_an_error_that_says_what_to_do():
    clock = Clock()
    meter = PerformanceMeter(warmup_steps=20, clock=clock)
    run(meter, clock, [1] * 20)
    with pytest.raises(UserError, match=r"20 steps were run.*Lower --benchmark_warmup_steps"):
        meter.results()


def test_processes_that_share_every_step_add_up_what_they_did_in_the_same_time():
    figures = []
    for samples, durations in ((10, [2, 1, 3]), (30, [2, 1, 5])):
        clock = Clock()
        meter = PerformanceMeter(warmup_steps=1, clock=clock)
        run(meter, clock, durations, samples)
        figures.append(meter.results())
    together = combined(figures)
    assert together["throughput"] == 20 / 4 + 60 / 6
    assert together["latency_mean"] == 3000.0
    assert together["time"] == 8.0
    assert set(together) == set(figures[0])
    assert combined(figures[:1]) == figures[0]
