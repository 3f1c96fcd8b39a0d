"""How close DLRM and DCNv2 come to the best possible AUC, on data whose truth is known."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How close to the best possible AUC do DLRM and DCNv2 come on synthetic Criteo data?"

_TARGET_GAP = 0.005  # below the Bayes AUC: the project's target

SMALL: dict[str, Any] = {
    "embedding_dim": 16,
    "bottom_mlp_sizes": (512, 256, 16),
    "top_mlp_sizes": (256, 128, 1),
}
MODELS: dict[str, dict[str, Any]] = {
    "dlrm": SMALL,
    "dcnv2": {**SMALL, "cross_layer_projection_dim": 64},
}
"""Options of the models: the generator's law is learnt by small ones, in minutes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument("--rows", type=int, help="generated rows (default 6000000; quick 300000)")
    parser.add_argument("--scale", type=float, help="of T15's tables (default 0.1; quick 0.01)")
    parser.add_argument("--model_types", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--global_batch_size", type=int, default=2048, help="rows of a batch")
    parser.add_argument("--lr", type=float, default=0.002, help="highest learning rate of Adam")
    parser.add_argument("--seed", type=int, default=1, help="of training")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Generates data and trains one epoch of each model.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.data import generate_criteo_rows
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.training_runs import Variant

    rows = args.rows or (300_000 if args.quick else 6_000_000)
    scale = args.scale or (0.01 if args.quick else 0.1)
    dataset, oracle = generate_criteo_rows(rows, scale, args.cache_dir)
    bayes = oracle["bayes_auc"]["test"]
    training = schedule(oracle["counts"]["train"], args.global_batch_size, args.lr)
    aucs = {}
    for name in args.model_types:
        variant = Variant(name, name, MODELS[name])
        aucs[name] = variant.run(dataset, args.seed, **training)["auc"]
        print(f"{name}  {aucs[name]:.4f}", flush=True)
    best = bayes["drawn"]
    others = {
        "Bayes, on these labels": best,
        "Bayes, expected": bayes["expected"],
        "the law without interactions": bayes["without_interactions"],
    }
    return BenchmarkReport(
        title=f"Test AUC on synthetic Criteo data ({rows:,} rows, T15 x {scale})",
        columns=("scored by", "AUC", "below Bayes"),
        rows=[(n, f"{auc:.4f}", f"{best - auc:.4f}") for n, auc in {**others, **aucs}.items()],
        config={"rows": rows, "scale": scale, "seed": args.seed, **training, "models": MODELS},
        figures={f"auc_{name}": auc for name, auc in aucs.items()} | {"bayes": bayes},
        ratios={f"gap_{name}": best - auc for name, auc in aucs.items()},
        notes=[
            f"Target: at most {_TARGET_GAP} below Bayes, the AUC of the true probabilities on the "
            f"same labels (its standard error: {bayes['standard_error']:.4f})."
        ],
    )


def schedule(rows: int, batch_size: int, lr: float) -> dict[str, Any]:
    """Options of a run: one epoch of Adam, whose rate falls linearly after a third of the steps."""
    steps = -(-rows // batch_size)
    return {
        "epochs": 1,
        "global_batch_size": batch_size,
        "shuffle_batch_order": True,
        "optimizer": "adam",
        "lr": lr,
        "warmup_steps": min(100, steps // 4),
        "decay_start_step": steps // 3,
        "decay_steps": steps - steps // 3,
        "decay_power": 1.0,
    }
