"""Latency of a bundle's signature by batch size, as one client sees it that waits for each answer.

What is measured is `Bundle.predict`: encoded arrays in, logits and probabilities as arrays out.
Reading and encoding requests is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lookback.core.errors import UserError
from lookback.serving.bundle import Bundle
from lookback.serving.layouts.registry import LAYOUTS
from lookback.training.output.performance import PerformanceMeter

DIFFERENT_BATCHES = 16
"""Inputs that are drawn and used in turn, so that not all lookups hit rows in the caches."""

FIGURES = ("latency_mean", "latency_p90", "latency_p95", "latency_p99", "throughput")


def measure(
    bundle: Bundle, batch_sizes: Sequence[int], steps: int, warmup_steps: int, seed: int
) -> Iterator[dict[str, float]]:
    """Measures one batch size after another.

    Args:
      bundle: a loaded one.
      batch_sizes: rows of a batch, each measured on its own.
      steps: batches that are measured.
      warmup_steps: batches before them that are not.
      seed: of the inputs.

    Yields:
      `batch_size`; `latency_mean`, `latency_p90`, `_p95` and `_p99` in ms; `throughput` in rows/s.
      A row of a model over histories is a full history with one candidate, one of a model over
      interactions a user with one candidate.

    Raises:
      UserError: if the model's scores are not finite, or not as many as rows.
    """
    layout = LAYOUTS[bundle.manifest.layout]
    for batch_size in batch_sizes:
        random = np.random.default_rng((seed, batch_size))
        total = warmup_steps + steps
        batches = [
            layout.draw(bundle.manifest, batch_size, random)
            for _ in range(min(total, DIFFERENT_BATCHES))
        ]
        meter = PerformanceMeter(warmup_steps, steps)
        meter.start()
        for step in range(total):
            _, probability = bundle.predict(batches[step % len(batches)])
            meter.step(batch_size)
        if len(probability) != batch_size or not np.isfinite(probability).all():
            raise UserError(
                f"The bundle's model gives no finite score for each of {batch_size:,} rows "
                f"(shape {list(probability.shape)}), so how fast it does says nothing. Export a "
                "model whose evaluation is sound."
            )
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
