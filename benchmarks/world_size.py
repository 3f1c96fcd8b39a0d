"""Whether the number of processes changes what SIM learns."""

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

QUESTION = "Does SIM reach the same AUC on 1, 2 and 4 processes?"

_ROOT = Path(__file__).resolve().parent.parent
_TRAINING = {"model_type": "sim", "global_batch_size": 4096, "lr": 0.01, "seed": 1}
_MICRO_BATCHES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument(
        "--input",
        type=Path,
        default=Path("data/ml-100k"),
        help="MovieLens-100k as scripts/download_movielens.sh leaves it",
    )
    parser.add_argument("--ranks", type=int, nargs="+", help="default 1 2 4; quick 1 2")
    parser.add_argument("--epochs", type=int, help="default 3; quick 1")


def run(args: argparse.Namespace) -> Report:
    """Trains with train.py on each number of processes, in order and as it comes.

    Args:
      args: as from `add_arguments`, with `quick` (in order only).

    Raises:
      UserError: if MovieLens-100k is not there.
    """
    if not (args.input / "u.data").is_file():
        raise UserError(
            f"{args.input} holds no MovieLens-100k (u.data). Run `scripts/download_movielens.sh "
            "100k`, or name its directory with --input."
        )
    from benchmarks.harness import Report
    from training.logging import read_log
    from workflows.base import run_dataset

    ranks = args.ranks or ([1, 2] if args.quick else [1, 2, 4])
    epochs = args.epochs or (1 if args.quick else 3)
    kinds: dict[str, dict[str, int]] = {"--micro_batches 4": {"micro_batches": _MICRO_BATCHES}}
    if not args.quick:
        kinds["default"] = {}
    rows: list[list[object]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        dataset = Path(directory) / "dataset"
        run_dataset("movielens", args.input, dataset)
        for kind, more in kinds.items():
            for number in ranks:
                results = Path(directory) / f"{len(rows)}"
                options = {
                    **_TRAINING,
                    **more,
                    "epochs": epochs,
                    "dataset_dir": dataset,
                    "results_dir": results,
                }
                _train(number, options)
                records = read_log(results / "log.json")
                aucs = [r.data["test_auc"] for r in records if len(r.step) == 1]
                losses = [r.data["total_loss"] for r in records if len(r.step) == 2]
                rows.append([kind, number, *(f"{auc:.6f}" for auc in aucs), f"{losses[-1]:.7f}"])
                figures[f"{kind}, {number}"] = {"auc": aucs, "last_loss": losses[-1]}
                print(*rows[-1], sep="  ", flush=True)
    return Report(
        title="SIM on MovieLens-100k by number of processes",
        columns=["", "processes", *(f"AUC, epoch {n + 1}" for n in range(epochs)), "last loss"],
        rows=rows,
        config={**_TRAINING, "epochs": epochs},
        figures=figures,
        notes=[
            "Without --micro_batches, sums over ranks round differently in the last bit, which "
            "training at this learning rate amplifies."
        ],
    )


def _train(ranks: int, options: dict[str, Any]) -> None:
    command = [str(_ROOT / "train.py")]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    command = [sys.executable, *command]
    if ranks > 1:
        horovodrun = str(Path(sys.executable).parent / "horovodrun")
        command = [horovodrun, "-np", str(ranks), "-H", f"localhost:{ranks}", "--gloo", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
