"""The workflow of histories on many raw events, within a limit of memory.

The limit is of RLIMIT_DATA, as in `streamed_histories`: private memory that a process can write. It
holds for each process, so the run has one. What was resident at most (VmHWM) is printed beside it.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lookback.core.sizes import format_size, parse_size

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "Does the workflow of histories stay within a limit of memory?"

_ROOT = Path(__file__).resolve().parent.parent
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
    from lookback.benchmarks.harness import BenchmarkReport

    events = int(parse_size(args.events, "--events")) // (_QUICK if args.quick else 1)
    limit = int(parse_size(args.limit, "--limit"))
    with tempfile.TemporaryDirectory(dir=args.directory) as name:
        raw, dataset = Path(name) / "raw", Path(name) / "dataset"
        sizes = {"events": events, "users": max(1, events // _EVENTS_OF_A_USER)}
        sizes["items"] = max(1000, events // _EVENTS_OF_AN_ITEM)
        _workflows("generate", {"dataset": "synthetic", "output": raw, **sizes})
        options = {"dataset": "synthetic", "input": raw, "output": dataset}
        options |= {"workers": 0, "memory_limit": limit}
        told, _ = _workflows("run", {**options, "dry_run": True})
        began = time.perf_counter()
        _, resident = _workflows("run", options, limit)
        seconds = time.perf_counter() - began
        written = sum(file.stat().st_size for file in dataset.rglob("*") if file.is_file())
    foretold = [line.split(maxsplit=1) for line in told.splitlines() if line.startswith("  ")]
    return BenchmarkReport(
        title=f"{events:,} raw events in one process",
        columns=["", "measured"],
        rows=[
            ["limit (RLIMIT_DATA)", format_size(limit)],
            ["resident at most (VmHWM)", format_size(resident)],
            ["seconds", f"{seconds:,.0f}"],
            ["dataset", format_size(written)],
            *([f"--dry_run: {words[0]}", words[1]] for words in foretold),
        ],
        config={name: str(value) for name, value in vars(args).items()},
        figures={"resident": resident, "seconds": seconds, "limit": limit, "written": written},
    )


def _workflows(
    command: str, options: dict[str, object], limit: int | None = None
) -> tuple[str, int]:
    """Runs `python -m workflows`; gives what it printed, and what was resident at most, in bytes.

    Args:
      command: of it.
      options: by name; True is a flag.
      limit: of the memory that it can write, in bytes.
    """
    words = [sys.executable, "-m", "workflows", command]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    process = subprocess.Popen(
        words,
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=restrict,
    )
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # what this process used, and no other
    if status:
        raise RuntimeError(f"{' '.join(words)} failed:\n{text[-4000:]}")
    return text, usage.ru_maxrss * 1024
