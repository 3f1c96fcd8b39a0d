"""Latency of a bundle's signature by batch size, as one client sees it that waits for each answer.

What is measured is `Bundle.predict`: encoded arrays in, logits and probabilities as arrays out.
Reading and encoding requests is not in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from lookback.core.errors import UserError
from lookback.serving.bundle import Bundle
from lookback.serving.layouts.registry import LAYOUTS
from lookback.training.output.performance import PerformanceMeter

DIFFERENT_BATCHES = 16
"""Inputs that are drawn and used in turn, so that not all lookups hit rows in the caches."""

FIGURES = ("latency_mean", "latency_p90", "latency_p95", "latency_p99", "throughput")


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """What to measure.

    Attributes:
      batch_sizes: rows of a batch, each measured on its own.
      steps: batches that are measured.
      warmup_steps: batches before them that are not.
      seed: of the inputs.
    """

    batch_sizes: tuple[int, ...] = (1, 64, 4096)
    steps: int = 200
    warmup_steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Validates."""
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise UserError(
                f"--batch_sizes must be sizes of at least 1 such as 1,64,4096, received "
                f"{','.join(map(str, self.batch_sizes))!r}."
            )
        for name, least in (("steps", 1), ("warmup_steps", 0), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"--{name} must be at least {least}, received {value}.")


def measure(bundle: Bundle, options: BenchmarkOptions) -> Iterator[dict[str, float]]:
    """Measures one batch size after another.

    Args:
      bundle: a loaded one.
      options: what to measure.

    Yields:
      `batch_size`; `latency_mean`, `latency_p90`, `_p95` and `_p99` in ms; `throughput` in rows/s.
      A row of a model over histories is a full history with one candidate, one of a model over
      interactions a user with one candidate.
    """
    layout = LAYOUTS[bundle.manifest.layout]
    for batch_size in options.batch_sizes:
        random = np.random.default_rng((options.seed, batch_size))
        total = options.warmup_steps + options.steps
        batches = [
            layout.draw(bundle.manifest, batch_size, random)
            for _ in range(min(total, DIFFERENT_BATCHES))
        ]
        meter = PerformanceMeter(options.warmup_steps, options.steps)
        meter.start()
        for step in range(total):
            bundle.predict(batches[step % len(batches)])
            meter.step(batch_size)
        results = meter.results()
        yield {"batch_size": batch_size, **{name: results[name] for name in FIGURES}}


def as_table(rows: Sequence[dict[str, float]]) -> str:
    """The figures as a table for people."""
    lines = [f"{'batch':>8}{'mean ms':>10}{'p90 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'rows/s':>14}"]
    for row in rows:
        *latencies, throughput = (row[name] for name in FIGURES)
        cells = "".join(f"{latency:10.3f}" for latency in latencies)
        lines.append(f"{row['batch_size']:>8,}{cells}{throughput:14,.0f}")
    return "\n".join(lines)
