"""The workflow of histories on many raw events, within a limit of memory.

The limit (`benchmarks.bounded`) holds for each process, so the run has one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lookback.core.sizes import format_size, parse_size

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "Does the workflow of histories stay within a limit of memory?"

_QUICK = 25
_EVENTS_OF_A_USER = 100
_EVENTS_OF_AN_ITEM = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument("--events", default="50M", help="raw, generated (quick: a 25th)")
    parser.add_argument("--limit", default="6GB", help="of the memory that the run can write")
    parser.add_argument("--directory", type=Path, help="for all files; none: a temporary one")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Generates a raw log, asks what a run takes, and runs it.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.bounded import run_bounded
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.peers.usage import directory_bytes

    events = int(parse_size(args.events, "--events")) // (_QUICK if args.quick else 1)
    limit = int(parse_size(args.limit, "--limit"))
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        raw, dataset = Path(name) / "raw", Path(name) / "dataset"
        sizes = {"events": events, "users": max(1, events // _EVENTS_OF_A_USER)}
        sizes["items"] = max(1000, events // _EVENTS_OF_AN_ITEM)
        run_bounded("workflows", ["generate"], {"dataset": "synthetic", "output": raw, **sizes})
        options = {"dataset": "synthetic", "input": raw, "output": dataset}
        options |= {"workers": 0, "memory_limit": limit}
        told = run_bounded("workflows", ["run"], {**options, "dry_run": True}).text
        began = time.perf_counter()
        ended = run_bounded("workflows", ["run"], options, limit)
        seconds = time.perf_counter() - began
        written = directory_bytes(dataset)
    foretold = [line.split(maxsplit=1) for line in told.splitlines() if line.startswith("  ")]
    return BenchmarkReport(
        title=f"{events:,} raw events in one process",
        columns=["", "measured"],
        rows=[
            ["limit (RLIMIT_DATA)", format_size(limit)],
            ["resident at most (VmHWM)", format_size(ended.peak)],
            ["seconds", f"{seconds:,.0f}"],
            ["seconds of CPU", f"{ended.cpu:,.0f}"],
            ["dataset", format_size(written)],
            *([f"--dry_run: {words[0]}", words[1]] for words in foretold),
        ],
        config={name: str(value) for name, value in vars(args).items()},
        figures={
            "resident": ended.peak,
            "seconds": seconds,
            "cpu": ended.cpu,
            "limit": limit,
            "written": written,
        },
    )
