"""What HR@10 and NDCG@10 NeuMF and its branches reach on MovieLens-100k, over several seeds."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.benchmarks.accuracy import of_seeds, with_deviation
from lookback.benchmarks.options import PROTOCOL, add_movielens, require_movielens
from lookback.core.errors import UserError

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.dataloading.histories.resident import Histories

QUESTION = "What HR@10 and NDCG@10 does NeuMF reach on MovieLens-100k, over several seeds?"

# Variant -> options of the model, the project's target for the mean HR@10. The defaults, made for
# 20 M interactions of 138,493 users, are too wide and too fast for 100,000 of 943.
VARIANTS: dict[str, tuple[dict[str, Any], float | None]] = {
    "neumf": ({"factors": 16, "layers": (64, 64, 32, 16)}, None),
    "mf": ({"factors": 16, "branches": "mf"}, None),
    "mlp": ({"layers": (64, 64, 32, 16), "branches": "mlp"}, None),
}
SETTINGS: dict[str, Any] = {
    "recipe": "nvidia",
    "epochs": 12,
    "global_batch_size": 4096,
    "lr": 0.005,
    "beta1": 0.9,
    "beta2": 0.999,
    "negative_samples": 8,
    "exact_negatives": True,
}
"""Options of the runs that are not the recipe's."""

_FIGURES = ("hr@10", "ndcg@10", "mrr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    add_movielens(parser)
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="models"
    )
    parser.add_argument("--seeds", type=int, help="runs of each (default 5; quick 1)")
    parser.add_argument("--epochs", type=int, help=f"default {SETTINGS['epochs']}; quick 3")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Trains every variant with every seed; each held-out item competes with 100 others.

    Args:
      args: as from `add_arguments`, with `quick` (one seed and few epochs, which shows that the
        models learn).

    Raises:
      UserError: if MovieLens-100k is not there, or there is nothing to run.
    """
    require_movielens(args.input)
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.training_runs import Variant
    from lookback.dataloading.histories.resident import Histories
    from lookback.dataloading.interactions.layout import InteractionsOptions
    from lookback.workflows.pipeline import run_dataset

    seeds = range(1, 1 + ((1 if args.quick else 5) if args.seeds is None else args.seeds))
    if not len(seeds):
        raise UserError(f"seeds: expected at least 1, received {args.seeds}.")
    training = dict(SETTINGS)
    training["test_negatives"] = InteractionsOptions().test_negatives
    training["epochs"] = args.epochs or (3 if args.quick else SETTINGS["epochs"])
    rows: list[tuple[object, ...]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        dataset = Path(directory) / "dataset"
        run_dataset("movielens", args.input, dataset, **PROTOCOL)
        for name in args.variants:
            options, target = VARIANTS[name]
            variant = Variant(name, "neumf", options)
            results = [variant.run(dataset, seed, **training) for seed in seeds]
            found = {key: value for f in _FIGURES for key, value in of_seeds(f, results).items()}
            figures[name] = found
            shown = [with_deviation(figure, found) for figure in _FIGURES]
            print(name, *shown, sep="  ", flush=True)
            rows.append((name, *shown, "" if target is None else f"{target:.3f}"))
        popularity = popularity_hit_ratio(Histories.load(dataset), training["test_negatives"])
    rows.append(("popularity", f"{popularity:.4f}", "", "", ""))
    return BenchmarkReport(
        title=f"MovieLens-100k, {len(seeds)} seed(s), {training['test_negatives']} negatives",
        columns=("ranked by", "HR@10", "NDCG@10", "MRR", "target"),
        rows=rows,
        config={
            "seeds": list(seeds),
            "training": training,
            "variants": {name: VARIANTS[name][0] for name in args.variants},
            "quick": args.quick,
        },
        figures={**figures, "popularity": {"hr@10": popularity}},
    )


def popularity_hit_ratio(histories: Histories, test_negatives: int, k: int = 10) -> float:
    """HR@k of items ranked by how many training events they have; ties count against them.

    Args:
      histories: of whose users the held-out items are ranked, among the models' negatives.
      test_negatives: of each.
      k: how many are shown.
    """
    import numpy as np

    from lookback.dataloading.interactions.source import InteractionSource

    source = InteractionSource(histories, seed=0, batch_size=1 << 16, test_negatives=test_negatives)
    item = histories.features.item[0]
    ids = histories.catalogue[item]
    counts = np.zeros(int(ids.max()) + 1, np.int64)
    counts[ids] = histories.item_counts().training
    hits = users = 0
    for feed in source.eval_feeds("test"):
        scores = counts[source.eval_batch("test", feed)[0][item].numpy()]  # [B, C]
        hits += int(((scores[:, 1:] >= scores[:, :1]).sum(1) < k).sum())
        users += len(scores)
    return hits / users
