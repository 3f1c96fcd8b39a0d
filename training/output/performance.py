"""Throughput and latency of steps, after a warm-up."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lookback.core.errors import UserError

PERCENTILES = (90, 95, 99)


class PerformanceMeter:
    """Measures steps: samples a second, and the distribution of their durations.

    A step lasts from the end of the one before (or `start`) to its own end, so that waiting for
    data counts, as it does for whoever waits for the result.

    Example:
      meter = PerformanceMeter(warmup_steps=20, steps=200)
      meter.start()
      for batch in batches:
          run(batch)
          meter.step(len(batch))
          if meter.completed:
              break
      meter.results()
    """

    def __init__(
        self,
        warmup_steps: int = 0,
        steps: int | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Sets up a meter; `start` starts it.

        Args:
          warmup_steps: how many first steps are not measured (tracing, caches, clocks).
          steps: how many to measure after them; None means all that follow.
          clock: seconds from any origin.
        """
        self.warmup_steps = warmup_steps
        self.steps = steps
        self._clock = clock
        self._steps_done = 0
        self.start()

    @property
    def completed(self) -> bool:
        """Whether the wanted number of steps has been measured; further steps change nothing."""
        return self.steps is not None and self._steps_done >= self.warmup_steps + self.steps

    @property
    def measured_steps(self) -> int:
        """How many steps since `start` the results are computed from."""
        return len(self._durations)

    def start(self) -> None:
        """Starts the clock, or starts it again, e.g. after an evaluation between two epochs.

        What was measured is forgotten. Steps done before still count as warm-up: a warm process
        does not cool down.
        """
        self._durations: list[float] = []  # seconds
        self._samples = 0
        self._started = self._step_began = self._measuring_since = self._clock()

    def resume(self) -> None:
        """Goes on after a pause, such as an evaluation within an epoch, which does not count."""
        self._step_began = self._clock()

    def step(self, *samples: int) -> float:
        """Ends a step, or several that ended together: each has then lasted as long as the others.

        Args:
          *samples: how many samples each of them processed, over all processes.

        Returns:
          Samples a second in these steps.
        """
        began, now = self._step_began, self._clock()
        duration = (now - began) / len(samples)
        for number, processed in enumerate(samples, start=1):
            if self.completed:
                break
            self._steps_done += 1
            if self._steps_done > self.warmup_steps:
                self._samples += processed
                self._durations.append(duration)
            else:
                self._measuring_since = now if number == len(samples) else began + number * duration
        self._step_began = now
        return sum(samples) / (now - began) if now > began else float("inf")

    def results(self) -> dict[str, float]:
        """The figures since `start`, without warm-up.

        Returns:
          `throughput` in samples/s, `latency_mean` and `latency_p90`, `_p95`, `_p99` of a step in
          ms, and `time` in s from `start` (warm-up included) to the end of the last step.

        Raises:
          UserError: if no step was measured.
        """
        if not self._durations:
            raise UserError(
                f"nothing measured: {self._steps_done} steps were run, expected more than the "
                f"{self.warmup_steps} of the warm-up. Lower --benchmark_warmup_steps or "
                f"--global_batch_size, or use a larger dataset."
            )
        milliseconds = 1000 * np.asarray(self._durations)
        measured = float(np.sum(self._durations))
        results = {
            "throughput": self._samples / measured if measured > 0 else float("inf"),
            "latency_mean": float(milliseconds.mean()),
        }
        for percentile in PERCENTILES:
            results[f"latency_p{percentile}"] = float(np.percentile(milliseconds, percentile))
        results["time"] = self._measuring_since - self._started + measured
        return results


def combined(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of processes that each did a part of every step.

    Args:
      figures: `PerformanceMeter.results` of each, which counted its own samples.

    Returns:
      The same figures: throughputs added up, of times the longest.
    """
    return {
        name: sum(f[name] for f in figures)
        if name == "throughput"
        else max(f[name] for f in figures)
        for name in figures[0]
    }
