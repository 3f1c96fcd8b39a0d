"""Whether the number of processes changes what a model learns."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import UserError

if TYPE_CHECKING:
    from benchmarks.harness import Report

QUESTION = "Does a model reach the same AUC on 1, 2 and 4 processes?"

_ROOT = Path(__file__).resolve().parent.parent
_MICRO_BATCHES = 4
_MODELS = ("sim", "dlrm", "dcnv2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument(
        "--input",
        type=Path,
        default=Path("data/ml-100k"),
        help="MovieLens-100k as scripts/download_movielens.sh leaves it",
    )
    parser.add_argument(
        "--model_type",
        choices=_MODELS,
        default="sim",
        help="sim on MovieLens-100k, the others on synthetic Criteo rows",
    )
    parser.add_argument("--rows", type=int, default=500_000, help="synthetic Criteo rows")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")
    parser.add_argument("--ranks", type=int, nargs="+", help="default 1 2 4; quick 1 2")
    parser.add_argument("--epochs", type=int, help="default 3; quick 1")


def run(args: argparse.Namespace) -> Report:
    """Trains with train.py on each number of processes, in order and as it comes.

    Args:
      args: as from `add_arguments`, with `quick` (in order only).

    Raises:
      UserError: if MovieLens-100k is not there.
    """
    from benchmarks.harness import Report
    from training.logging import read_log

    ranks = args.ranks or ([1, 2] if args.quick else [1, 2, 4])
    epochs = args.epochs or (1 if args.quick else 3)
    kinds: dict[str, dict[str, int]] = {"--micro_batches 4": {"micro_batches": _MICRO_BATCHES}}
    if not args.quick:
        kinds["default"] = {}
    rows: list[list[object]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        training = _training(args, Path(directory) / "dataset")
        for kind, more in kinds.items():
            for number in ranks:
                results = Path(directory) / f"{len(rows)}"
                _train(number, {**training, **more, "epochs": epochs, "results_dir": results})
                records = read_log(results / "log.json")
                aucs = [r.data["test_auc"] for r in records if len(r.step) == 1]
                losses = [r.data["total_loss"] for r in records if len(r.step) == 2]
                rows.append([kind, number, *(f"{auc:.6f}" for auc in aucs), f"{losses[-1]:.7f}"])
                figures[f"{kind}, {number}"] = {"auc": aucs, "last_loss": losses[-1]}
                print(*rows[-1], sep="  ", flush=True)
    return Report(
        title=f"{args.model_type} by number of processes",
        columns=["", "processes", *(f"AUC, epoch {n + 1}" for n in range(epochs)), "last loss"],
        rows=rows,
        config={**training, "epochs": epochs},
        figures=figures,
        notes=[
            "Without --micro_batches, sums over ranks round differently in the last bit, which "
            "training at this learning rate amplifies."
        ],
    )


def _training(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Options of the runs; makes their dataset, that of histories in `directory`."""
    common = {"model_type": args.model_type, "seed": 1}
    if args.model_type != "sim":
        from benchmarks.data import generate_criteo_rows
        from benchmarks.dlrm_accuracy import MODELS, schedule

        dataset, oracle = generate_criteo_rows(args.rows, 0.01, args.cache_dir)
        training = schedule(oracle["counts"]["train"], 4096, 0.001)
        return {**common, "dataset_dir": dataset, **training, **MODELS[args.model_type]}
    if not (args.input / "u.data").is_file():
        raise UserError(
            f"{args.input} holds no MovieLens-100k (u.data). Run `scripts/download_movielens.sh "
            "100k`, or name its directory with --input."
        )
    from workflows.base import run_dataset

    run_dataset("movielens", args.input, directory)
    return {**common, "dataset_dir": directory, "global_batch_size": 4096, "lr": 0.01}


def _train(ranks: int, options: dict[str, Any]) -> None:
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
