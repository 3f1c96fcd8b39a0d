"""What AUC each model reaches on MovieLens-100k, over several seeds."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.benchmarks.options import PROTOCOL, add_movielens, require_movielens
from lookback.core.errors import UserError

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "What test AUC do the models reach on MovieLens-100k, over several seeds?"

# Variant -> (model_type, options of the model, the project's target for the mean, NVIDIA's recipe
# on the same protocol), at batch 4,096, learning rate 0.01, 3 epochs.
_VARIANTS: dict[str, tuple[str, dict[str, Any], float | None, str]] = {
    "sim": ("sim", {}, 0.818, "0.813, 0.815"),
    "sim_amp": ("sim", {"amp": True}, None, ""),
    "sim_layers": ("sim", {"kernels": "none"}, None, ""),  # TensorFlow's operations, not ours
    "sim_hard": ("sim", {"gsu": "hard"}, None, ""),
    "sim_time": ("sim", {"time_features": True}, None, ""),
    "dien": ("dien", {}, 0.811, "0.811"),
    "din": ("din", {}, 0.75, "0.743"),
}
_PROTOCOLS: dict[str, dict[str, Any]] = {
    "4096": {"global_batch_size": 4096, "lr": 0.01, "epochs": 3},
    "1024": {"global_batch_size": 1024, "lr": 0.003, "epochs": 4},
}
_SECOND_TARGET = 0.835  # SIM at batch 1,024, learning rate 0.003, 4 epochs (NVIDIA's: 0.832)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    add_movielens(parser)
    parser.add_argument(
        "--variants", nargs="+", choices=list(_VARIANTS), default=list(_VARIANTS), help="models"
    )
    parser.add_argument("--seeds", type=int, help="runs of each (default 5; quick 1)")
    parser.add_argument("--test_negatives", type=int, default=1, help="for each test positive")
    parser.add_argument(
        "--protocols",
        nargs="+",
        choices=("4096", "1024"),
        default=["4096", "1024"],
        help="batch size, which stands for learning rate and epochs, too (1024: SIM only)",
    )


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Trains every variant with every seed.

    Args:
      args: as from `add_arguments`, with `quick` (one epoch of SIM and DIN, which shows that they
        learn, and is below the targets).

    Raises:
      UserError: if MovieLens-100k is not there.
    """
    require_movielens(args.input)
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.training_runs import Variant
    from lookback.workflows.pipeline import run_dataset

    seeds = range(1, 1 + ((1 if args.quick else 5) if args.seeds is None else args.seeds))
    names = [name for name in args.variants if not args.quick or name in ("sim", "din")]
    runs = [(name, "4096") for name in names if "4096" in args.protocols]
    if "1024" in args.protocols and "sim" in names and not args.quick:
        runs.append(("sim", "1024"))
    if not runs or not len(seeds):
        raise UserError(
            "Nothing to run: --quick runs sim and din only, protocol 1024 is for sim, and --seeds "
            "must be at least 1."
        )
    rows: list[tuple[object, ...]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        dataset = Path(directory) / "dataset"
        run_dataset("movielens", args.input, dataset, **PROTOCOL)
        for name, protocol in runs:
            model_type, options, target, nvidia = _VARIANTS[name]
            if protocol == "1024":
                target, nvidia = _SECOND_TARGET, "0.832"
            variant = Variant(name, model_type, options)
            more = {"test_negatives": args.test_negatives, **_PROTOCOLS[protocol]}
            if args.quick:
                more["epochs"] = 1
            results = [variant.run(dataset, seed, **more) for seed in seeds]
            figure = {**of_seeds("auc", results), **of_seeds("gauc", results)}
            figures[f"{name}_{protocol}"] = figure
            auc = with_deviation("auc", figure)
            print(f"{name}, batch {protocol}: AUC {auc}", flush=True)
            wanted = "" if target is None else f"{target:.3f}"
            rows.append((name, int(protocol), auc, f"{figure['gauc_mean']:.4f}", wanted, nvidia))
    return BenchmarkReport(
        title=f"Test AUC on MovieLens-100k, {len(seeds)} seed(s), leave the last one out",
        columns=("model", "batch", "AUC", "GAUC", "target", "NVIDIA's recipe"),
        rows=rows,
        config={
            "seeds": list(seeds),
            "test_negatives": args.test_negatives,
            "protocols": _PROTOCOLS,
            "quick": args.quick,
        },
        figures=figures,
        ratios={},
    )


def of_seeds(name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A figure of some runs: every value, mean, standard deviation.

    Args:
      name: of the figure.
      results: of the runs.
    """
    values = [float(result[name] or 0) for result in results]
    return {
        name: values,
        f"{name}_mean": statistics.mean(values),
        f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
    }


def with_deviation(name: str, figure: Mapping[str, Any]) -> str:
    """A mean and its standard deviation, if there is one, for a table."""
    mean, deviation = figure[f"{name}_mean"], figure[f"{name}_std"]
    return f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")
