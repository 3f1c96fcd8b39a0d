"""How fast DLRM scores, and how long a batch takes, beside plain Keras and PyTorch DLRMs."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks import dlrm_options

if TYPE_CHECKING:
    from benchmarks.harness import Report

QUESTION = "How many samples a second does DLRM score, and what is a batch's latency?"

_LATENCY_SIZES = (1, 64, 4096)  # seed 004's inference_benchmark_batch_sizes
_QUANTILES = (0.9, 0.95, 0.99)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    dlrm_options.add_arguments(parser)
    parser.add_argument(
        "--latency_steps", type=int, help="batches timed one by one (default 200; quick 50)"
    )


def run(args: argparse.Namespace) -> Report:
    """Times forward passes over batches made beforehand: throughput, then latency of single ones.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from benchmarks.dlrm_contenders import LABELS, Contenders, compare
    from models.tabular_config import DLRMConfig

    report = compare(
        args,
        title="DLRM inference",
        mode="infer",
        choose=lambda contenders: {
            "ours": contenders.infer_ours(),
            "ours_amp": contenders.infer_ours(amp=True),
            "plain": contenders.infer_plain(),
        },
    )
    steps = args.latency_steps or (50 if args.quick else 200)
    figures, notes = dict(report.figures), list(report.notes)
    for size in _LATENCY_SIZES:
        contenders = Contenders(DLRMConfig(), args.tables, args.table_rows, args.numerical, size)
        for name, work in (
            ("ours", contenders.infer_ours()),
            ("ours_amp", contenders.infer_ours(amp=True)),
            ("plain", contenders.infer_plain()),
        ):
            found = latencies(work, steps)
            figures[f"{name}_latency_ms_{size}"] = found
            shown = ", ".join(f"{key} {value:.2f}" for key, value in found.items())
            notes.append(f"latency of batch {size:,}, {LABELS[name]}, ms: {shown}")
    return dataclasses.replace(report, figures=figures, notes=notes)


def latencies(
    work: Callable[[], int],
    steps: int,
    *,
    warmup: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Mean and upper quantiles of the time of single calls, in milliseconds.

    Args:
      work: does one batch to its end.
      steps: calls that count.
      warmup: calls before them.
      clock: returns seconds.
    """
    import numpy as np

    for _ in range(warmup):
        work()
    times = []
    for _ in range(steps):
        start = clock()
        work()
        times.append(1000.0 * (clock() - start))
    quantiles = {f"p{round(100 * q)}": float(np.quantile(times, q)) for q in _QUANTILES}
    return {"mean": float(np.mean(times)), **quantiles}
