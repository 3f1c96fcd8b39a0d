"""Where TensorFlow would run each node of the models' graphs on a GPU; no GPU is needed."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from lookback.benchmarks.harness import BenchmarkReport
from lookback.benchmarks.peers.client import ENVIRONMENTS, ROOT, SOURCES

QUESTION = "What would cross PCIe in a step on a GPU, and how many kernels would be launched?"

ENVIRONMENT = "gpu_placement"
_MODELS = ("sim", "din", "dien", "dlrm", "dcnv2", "neumf")
_ROWS = ("dlrm", "dcnv2")
_LISTED = 4
_WORKER = "lookback.benchmarks.gpu_placement_worker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument("--models", nargs="+", choices=_MODELS, help="default: all; quick: sim")
    parser.add_argument("--batch_size", type=int, default=4096, help="rows")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Traces each model in an environment of its own, and adds up what was found.

    Args:
      args: as from `add_arguments`, with `quick`.

    Raises:
      RuntimeError: if the environment is not there, or a model cannot be traced.
    """
    python = ENVIRONMENTS / ENVIRONMENT / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"benchmarks/peers/setup.sh {ENVIRONMENT} sets its environment up.")
    models = args.models or (("sim",) if args.quick else _MODELS)
    found = {model: _traced(python, model, args) for model in models}
    rows, notes = [], []
    for model, graphs in found.items():
        for graph, one in graphs.items():
            compiled = one.get("compiled", {"alone": 0, "merged": 0})
            rows.append(
                [
                    *(model, graph, one["launches"], compiled["merged"], compiled["alone"]),
                    *(one["crossed_bytes"], one["waits"]),
                    one["fed_bytes"],
                    sum(one["without_kernel"].values()),
                    sum(one["on_host"].values()),
                ]
            )
            most = [_said(c) for c in one["crossings"][:_LISTED] if c["bytes"] >= args.batch_size]
            if most:
                notes.append(f"{model}, {graph}: {'; '.join(most)}")
            if one["without_kernel"]:
                notes.append(f"{model}, {graph}: no kernel for {one['without_kernel']}")
    return BenchmarkReport(
        title=f"On a GPU, {args.batch_size:,} rows a step (from registered kernels, estimated)",
        columns=[
            "model",
            "graph",
            "kernels",
            "XLA's",
            "unmerged",
            "bytes across",
            "waits",
            "bytes fed",
            "no kernel",
            "on host",
        ],
        rows=rows,
        config={"batch_size": args.batch_size, "models": list(models)},
        figures=found,
        notes=[
            *notes,
            "Kernels: nodes that launch at least one. XLA's: of what it compiles, estimated from "
            "its code for CPUs, fusions joined that its compiler for GPUs may join; unmerged: "
            "not joined. Bytes across: of tensors that are made in "
            "one memory and read in the other; waits: how many of them the host reads. Bytes fed: "
            "of a step that is not in the graph. On host: nodes whose kernels keep all their data "
            "there, most of them of shapes.",
        ],
    )


def _traced(python: Path, model: str, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "found.json"
        words = [model, str(_dataset(model, args)), str(args.batch_size), str(output)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        done = subprocess.run(
            [str(python), "-m", _WORKER, *words],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(SOURCES), "TF_CPP_MIN_LOG_LEVEL": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{model} cannot be traced:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(output.read_text())
        return found


def _dataset(model: str, args: argparse.Namespace) -> Path:
    from lookback.benchmarks.data import cached, generate_criteo_rows, generate_histories

    if model in _ROWS:
        return generate_criteo_rows(200_000, 0.01, args.cache_dir)[0]
    users = 20_000
    return generate_histories(cached("histories", {"users": users}, args.cache_dir), users=users)


def _said(crossing: dict[str, Any]) -> str:
    way = "to the device" if crossing["to_device"] else "to the host"
    size = f"{crossing['bytes']:,} bytes of {crossing['dtype']}"
    return f"{size} {way} ({crossing['operation']} {crossing['name']})"
