"""How fast DLRM scores, and how long a batch takes, beside plain Keras and PyTorch DLRMs."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from lookback.benchmarks import dlrm_options

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How many samples a second does DLRM score, and what is a batch's latency?"

_LATENCY_SIZES = (1, 64, 4096)  # NVIDIA's inference_benchmark_batch_sizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    dlrm_options.add_arguments(parser)
    parser.add_argument(
        "--latency_steps", type=int, help="batches timed one by one (default 200; quick 50)"
    )


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Times forward passes over batches made beforehand: throughput, then latency of single ones.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.dlrm_contenders import LABELS, Contenders, compare
    from lookback.benchmarks.harness import latencies, latency_note
    from lookback.models.tabular_config import DLRMConfig

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
            notes.append(latency_note(size, LABELS[name], found))
    return dataclasses.replace(report, figures=figures, notes=notes)
