"""Whether the number of processes changes what a model learns."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.benchmarks.options import PROTOCOL, add_movielens, require_movielens

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "Does a model reach the same AUC, or HR@10, on 1, 2 and 4 processes?"

_ROOT = Path(__file__).resolve().parent.parent
_MICRO_BATCHES = 4
_ON_MOVIELENS = ("sim", "neumf")
_ON_CRITEO = ("dlrm", "dcnv2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    add_movielens(parser)
    parser.add_argument(
        "--model_type",
        choices=(*_ON_MOVIELENS, *_ON_CRITEO),
        default="sim",
        help=f"{' and '.join(_ON_MOVIELENS)} on MovieLens-100k, the others on synthetic Criteo "
        "rows",
    )
    parser.add_argument("--rows", type=int, default=500_000, help="synthetic Criteo rows")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")
    parser.add_argument("--ranks", type=int, nargs="+", help="default 1 2 4; quick 1 2")
    parser.add_argument("--epochs", type=int, help="default 3; quick 1")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Trains with train.py on each number of processes, in order and as it comes.

    Args:
      args: as from `add_arguments`, with `quick` (in order only).

    Raises:
      UserError: if MovieLens-100k is not there.
    """
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.training.output.logging import read_log

    ranks = args.ranks or ([1, 2] if args.quick else [1, 2, 4])
    epochs = args.epochs or (1 if args.quick else 3)
    kinds: dict[str, dict[str, int]] = {"--micro_batches 4": {"micro_batches": _MICRO_BATCHES}}
    if not args.quick:
        kinds["default"] = {}
    rows: list[list[object]] = []
    figures: dict[str, Any] = {}
    figure = "HR@10" if args.model_type == "neumf" else "AUC"
    with tempfile.TemporaryDirectory() as directory:
        training = training_options(args, Path(directory) / "dataset")
        for kind, more in kinds.items():
            for number in ranks:
                results = Path(directory) / f"{len(rows)}"
                train(number, {**training, **more, "epochs": epochs, "results_dir": results})
                records = read_log(results / "log.json")
                found = [r.data[f"test_{figure.lower()}"] for r in records if len(r.step) == 1]
                losses = [r.data["total_loss"] for r in records if len(r.step) == 2]
                rows.append(
                    [kind, number, *(f"{value:.6f}" for value in found), f"{losses[-1]:.7f}"]
                )
                figures[f"{kind}, {number}"] = {figure.lower(): found, "last_loss": losses[-1]}
                print(*rows[-1], sep="  ", flush=True)
    return BenchmarkReport(
        title=f"{args.model_type} by number of processes",
        columns=[
            "",
            "processes",
            *(f"{figure}, epoch {n + 1}" for n in range(epochs)),
            "last loss",
        ],
        rows=rows,
        config={**training, "epochs": epochs},
        figures=figures,
        notes=[
            "Without --micro_batches, sums over ranks round differently in the last bit, which "
            "training at this learning rate amplifies."
        ],
    )


def training_options(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Options of the runs; makes their dataset, that of histories in `directory`."""
    common = {"model_type": args.model_type, "seed": 1, "eval_split": "test"}
    if args.model_type in _ON_CRITEO:
        from lookback.benchmarks.data import generate_criteo_rows
        from lookback.benchmarks.dlrm_accuracy import MODELS, schedule

        dataset, oracle = generate_criteo_rows(args.rows, 0.01, args.cache_dir)
        training = schedule(oracle["counts"]["train"], 4096, 0.001)
        return {**common, "dataset_dir": dataset, **training, **MODELS[args.model_type]}
    require_movielens(args.input)
    from lookback.workflows.pipeline import run_dataset

    run_dataset("movielens", args.input, directory, **PROTOCOL)
    if args.model_type == "neumf":
        from lookback.benchmarks.ncf_accuracy import SETTINGS, VARIANTS

        return {**common, "dataset_dir": directory, **SETTINGS, **VARIANTS["neumf"][0]}
    return {**common, "dataset_dir": directory, "global_batch_size": 4096, "lr": 0.01}


def train(ranks: int, options: dict[str, Any]) -> None:
    """Trains by train.py in so many processes."""
    command = [str(_ROOT / "train.py")]
    for name, value in options.items():
        if value is True:
            command.append(f"--{name}")
        else:
            command += [
                f"--{name}",
                ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
            ]
    command = [sys.executable, *command]
    if ranks > 1:
        horovodrun = str(Path(sys.executable).parent / "horovodrun")
        command = [horovodrun, "-np", str(ranks), "-H", f"localhost:{ranks}", "--gloo", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
