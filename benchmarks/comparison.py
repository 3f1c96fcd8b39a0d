"""Our models against others' on the same batches: turns, a table, ratios."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import merlin.models.tf as mm
import tensorflow as tf

from lookback.benchmarks.harness import BenchmarkReport, Timing, gemm_peak, interleave
from lookback.benchmarks.options import batch_sizes, turns
from lookback.dataloading.sources import BatchSource
from lookback.training.optimizers import Optimizer
from lookback.training.precision import LossScale, amp_policy
from lookback.training.steps import Steps

Contender = Callable[[], int]
"""Does a batch to its end and returns its rows."""


def compare(
    args: argparse.Namespace,
    *,
    title: str,
    labels: Mapping[str, str],
    reference: str,
    contenders: Callable[[int], AbstractContextManager[Mapping[str, Contender]]],
    flops: float,
    config: Mapping[str, Any],
    notes: Sequence[str],
) -> BenchmarkReport:
    """Times contenders at each batch size and sets ours against the others.

    Args:
      args: of the command line, with the options of `benchmarks.options.add_timing`.
      title: of the table.
      labels: names of the contenders, by key. Keys of ours begin with "ours"; one that ends with
        "amp" is measured by the peak of bf16.
      reference: key of the contender that the table compares with, if it takes part.
      contenders: gives those of a batch size, by key, for as long as it is entered.
      flops: floating point operations of a sample, products of matrices only.
      config: what was measured, beside --quick.
      notes: lines for below the table.
    """
    peaks = {"float32": gemm_peak(), "bfloat16": gemm_peak("bfloat16")}
    rows: list[tuple[object, ...]] = []
    figures: dict[str, Any] = {"flops_per_sample": flops}
    figures |= {f"gemm_peak_flops_per_s_{dtype}": peak for dtype, peak in peaks.items()}
    ratios: dict[str, float] = {}
    for size in batch_sizes(args):
        with contenders(size) as functions:
            timings = interleave(functions, **turns(args))
        for name, found in timings.items():
            peak = peaks["bfloat16" if name.endswith("amp") else "float32"]
            fraction = found.median * flops / peak
            figures[f"{name}_samples_per_s_{size}"] = found.as_dict()
            figures[f"{name}_fraction_of_gemm_peak_{size}"] = fraction
            speeds = (round(found.median), round(found.lowest), round(found.highest))
            over = f"{found.over(timings[reference]):.2f} x" if reference in timings else ""
            rows.append((size, labels[name], *speeds, f"{fraction:.0%}", over))
        ratios |= _ratios(timings, size)
    return BenchmarkReport(
        title=title,
        columns=(
            *("batch", "model", "samples/s", "lowest", "highest"),
            *("of GEMM peak", f"over {labels[reference]}"),
        ),
        rows=rows,
        config={**config, "quick": args.quick},
        figures=figures,
        ratios=ratios,
        notes=[
            f"{flops / 1e6:.2f} MFLOP a sample, products of matrices only. GEMM peak "
            f"{peaks['float32'] / 1e9:,.0f} GFLOP/s, bf16 {peaks['bfloat16'] / 1e9:,.0f} (for "
            "--amp).",
            *notes,
        ],
    )


@contextlib.contextmanager
def precision(amp: bool) -> Iterator[str]:
    """Within it, Keras' policy is that of --amp, or float32; gives its name."""
    before = tf.keras.mixed_precision.global_policy()
    policy = amp_policy() if amp else "float32"
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield policy
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def train_step(
    model: mm.Model, optimizer: Optimizer, source: BatchSource, feeds: Iterator[Any]
) -> Contender:
    """Our training step, as the trainer takes it; traced under the policy in force.

    Args:
      model: built.
      optimizer: of the model.
      source: of batches.
      feeds: of the source, one a step.
    """
    fp16 = tf.keras.mixed_precision.global_policy().compute_dtype == "float16"
    results = Steps(model, optimizer, source, LossScale() if fp16 else None).train(feeds)
    next(results)

    def work() -> int:
        _, result = next(results)
        float(result["total_loss"])
        return int(result["rows"])

    return work


def endless_feeds(source: BatchSource) -> Iterator[Any]:
    """Feeds of one epoch after another."""
    for epoch in itertools.count():
        yield from source.train_feeds(epoch, 0)


def _ratios(timings: Mapping[str, Timing], size: int) -> dict[str, float]:
    """Each of ours over each of the others."""
    mine = [name for name in timings if name.startswith("ours")]
    return {
        f"{name}_over_{other}_{size}": timings[name].over(timings[other])
        for name in mine
        for other in timings
        if other not in mine
    }
