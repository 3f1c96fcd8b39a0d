"""How close SIM comes to the best possible AUC, on data whose truth is known."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lookback.benchmarks.options import PROTOCOL
from lookback.formats.dataset_info import DATASET_FILE

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.dataloading.histories.resident import Histories

QUESTION = "How close to the best possible AUC does SIM come on synthetic data, and to baselines?"

_TARGET_GAP = 0.03  # below the generator's oracle: the project's target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument("--preset", help="size of the data (default 1m; quick tiny)")
    parser.add_argument("--epochs", type=int, default=1, help="of training")
    parser.add_argument("--global_batch_size", type=int, default=4096, help="rows of a batch")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate")
    parser.add_argument("--test_negatives", type=int, default=4, help="for each test positive")
    parser.add_argument("--seed", type=int, default=1, help="of training")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Generates data, trains SIM and scores the baselines on the same test rows.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.data import cached
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.training_runs import Variant
    from lookback.dataloading.histories.resident import Histories
    from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
    from lookback.training.evaluation.metrics import auc
    from lookback.workflows.generators.synthetic import PRESETS, generate_synthetic
    from lookback.workflows.pipeline import run_dataset

    preset = args.preset or ("tiny" if args.quick else "1m")
    root = cached("synthetic", {"preset": preset}, args.cache_dir)
    if not (root / "dataset" / DATASET_FILE).is_file():
        generate_synthetic(PRESETS[preset], root / "raw", overwrite=True)
        run_dataset("synthetic", root / "raw", root / "dataset", overwrite=True, **PROTOCOL)
    oracle = json.loads((root / "raw" / "oracle.json").read_text())
    result = Variant("sim", "sim").run(
        root / "dataset",
        args.seed,
        epochs=args.epochs,
        global_batch_size=args.global_batch_size,
        lr=args.lr,
        test_negatives=args.test_negatives,
    )
    histories = Histories.load(root / "dataset")
    builder = WindowBuilder(histories, WindowConfig(auxiliary_negatives=False))
    everything = histories.num_users * (1 + args.test_negatives)
    features, labels = builder.eval_batch("test", 0, 0, everything, args.test_negatives)
    batch = {name: value.numpy() for name, value in features.items()}
    baselines = {
        "popularity": _popularity(histories, batch),
        "category affinity": _category_affinity(histories, batch),
    }
    best = float(oracle["oracle_auc"]["popularity"])
    aucs = {"oracle": best, "SIM": result["auc"]}
    aucs |= {n: auc(labels.numpy().ravel(), scores.ravel()) for n, scores in baselines.items()}
    return BenchmarkReport(
        title=f"Test AUC on synthetic data ({preset}: {histories.num_events:,} events)",
        columns=("scored by", "AUC", "below the oracle"),
        rows=[(n, f"{value:.4f}", f"{best - value:.4f}") for n, value in aucs.items()],
        config={
            "preset": preset,
            "epochs": args.epochs,
            "global_batch_size": args.global_batch_size,
            "lr": args.lr,
            "test_negatives": args.test_negatives,
            "seed": args.seed,
            "quick": args.quick,
        },
        figures={f"auc_{name.replace(' ', '_').lower()}": value for name, value in aucs.items()},
        ratios={"gap_to_oracle": best - result["auc"]},
        notes=[
            f"Target: SIM at most {_TARGET_GAP} below the oracle, which knows the users' latent "
            f"interests (its standard error: {oracle['standard_error']['popularity']:.4f})."
        ],
    )


Batch = dict[str, npt.NDArray[Any]]


def _popularity(histories: Histories, batch: Batch) -> npt.NDArray[Any]:
    """Scores ``[B, C]``: how often the candidate occurs, held-out events not counted."""
    item = histories.features.item[0]
    counts = histories.training_counts()
    scores: npt.NDArray[Any] = counts[batch[item]]
    return scores


def _category_affinity(histories: Histories, batch: Batch) -> npt.NDArray[Any]:
    """Scores ``[B, C]``: the share of the history that is of the candidate's category."""
    category = histories.features.item[1]
    history = batch[f"{category}_history"]  # [B, T]
    same = history[:, None, :] == batch[category][:, :, None]  # [B, C, T]
    events = np.maximum((history > 0).sum(1), 1)
    return same.sum(2) / events[:, None]
