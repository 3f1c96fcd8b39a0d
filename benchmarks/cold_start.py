"""How well models score items that they have never seen, with ids hidden in training and without.

Of MovieLens-100k, or of a log with a planted taste for kinds of items, a share of the items is held
out: no event of theirs is trained on. Then each user who had some of them is asked for all of them,
by requests to an exported bundle that bring the items' features, as a shop would ask for what came
in today; and once more without the features, which tells what these are worth.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.benchmarks.accuracy import of_seeds, with_deviation
from lookback.benchmarks.options import add_movielens, require_movielens

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "What AUC do models reach on items that they have never seen, by --oov_rate?"

SETTINGS: dict[str, Any] = {"global_batch_size": 1024, "lr": 0.003, "epochs": 4}
"""Options of the runs: the second protocol of `benchmarks.accuracy`."""

_PLANTED = {
    "version": 1,
    "events": {"files": "events.csv", "user": "user", "item": "item", "time": "time"},
    "items": {"files": "items.csv", "key": "item", "features": {"kind": {"type": "category"}}},
    "filters": {"min_events_per_user": 10},
    "split": {"by": "last", "validation": True},
}
"""The YAML of the planted log, as JSON, which is YAML."""
_GENRES = slice(5, 24)  # columns of u.item
_RECIPE = Path(__file__).parents[1] / "workflows" / "recipes" / "movielens-100k.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    add_movielens(parser)
    parser.add_argument(
        "--data", choices=("movielens", "planted"), default="movielens", help="what is trained on"
    )
    parser.add_argument("--models", nargs="+", choices=("din", "dien", "sim"), default=["din"])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.0, 0.1], help="--oov_rate")
    parser.add_argument("--seeds", type=int, help="runs of each (default 5; quick 1)")
    parser.add_argument("--share", type=float, default=0.1, help="of the items to hold out")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Trains every model with every rate and seed, and scores the items held out.

    Args:
      args: as from `add_arguments`, with `quick` (one seed and one epoch).

    Raises:
      UserError: if MovieLens-100k is asked for and not there.
    """
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.training_runs import Variant
    from lookback.workflows.commands import PROGRAM

    settings = {**SETTINGS, **({"epochs": 1} if args.quick else {})}
    seeds = range(1, 1 + (args.seeds or (1 if args.quick else 5)))
    rows: list[tuple[object, ...]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        raw, dataset = Path(directory) / "raw", Path(directory) / "dataset"
        if args.data == "planted":
            config, requests, labels = raw / "log.yaml", *planted(raw, args.share)
        else:
            require_movielens(args.input)
            config, requests, labels = _RECIPE, *hold_out(args.input, raw, args.share)
        words = ("run", "--config", config, "--input", raw, "--output", dataset)
        if PROGRAM.main(list(map(str, words))):
            raise RuntimeError("the workflow failed; it has said why")
        nameless = [without_features(request) for request in requests]
        for model_type in args.models:
            for rate in args.rates:
                results = []
                for seed in seeds:
                    variant, bundle = Variant(model_type, model_type), Path(directory) / "bundle"
                    known = variant.run(dataset, seed, bundle, oov_rate=rate, **settings)
                    new, bare = score(bundle, requests, labels), score(bundle, nameless, labels)
                    results.append({"known": known["auc"], **new, "bare": bare["gauc"]})
                    print(f"{model_type}, rate {rate:g}, seed {seed}: {results[-1]}", flush=True)
                figure = {k: v for name in results[0] for k, v in of_seeds(name, results).items()}
                figures[f"{model_type}_{rate:g}"] = figure
                told = [
                    with_deviation(name, figure)
                    for name in ("auc", "gauc", "mixed", "bare", "known")
                ]
                rows.append((model_type, f"{rate:g}", *told))
    positives = sum(map(sum, labels))
    return BenchmarkReport(
        title=f"AUC on {len(labels[0])} new items, {args.data}, {len(seeds)} seed(s): "
        f"{len(labels)} users, {positives:,} positives",
        columns=(
            *("model", "oov_rate", "AUC, new items", "GAUC, new items"),
            *("GAUC among known ones, too", "GAUC without features", "test AUC, known"),
        ),
        rows=rows,
        config={"seeds": list(seeds), "share": args.share, **settings, "quick": args.quick},
        figures=figures,
        ratios={},
    )


def hold_out(
    source: Path, target: Path, share: float
) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Copies MovieLens-100k without the events of some items.

    Args:
      source: directory of the data.
      target: to create.
      share: of the items.

    Returns:
      A request for all held-out items of each user who had some of them, and behind these for as
      many others that the user did not have, with all other events of the user as the history; and
      the labels of the held-out items, 1 where the user had the item.
    """
    import numpy as np

    with (source / "u.item").open(encoding="latin-1") as file:
        items = list(csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE))
    with (source / "u.user").open() as file:
        users = {row[0]: row for row in csv.reader(file, delimiter="|")}
    names = _genre_names()
    genres = {
        row[0]: [n for n, flag in zip(names, row[_GENRES], strict=True) if flag == "1"]
        for row in items
    }
    held_out = np.random.default_rng(0).choice(len(items), int(share * len(items)), replace=False)
    new = [items[place][0] for place in sorted(held_out.tolist())]
    target.mkdir()
    for name in ("u.item", "u.user"):
        shutil.copyfile(source / name, target / name)
    events: dict[str, list[list[str]]] = {}
    for line in (source / "u.data").read_text().splitlines():
        row = line.split("\t")
        events.setdefault(row[0], []).append(row)
    kept = [row for rows in events.values() for row in rows if row[1] not in set(new)]
    (target / "u.data").write_text("".join("\t".join(row) + "\n" for row in kept))
    requests, labels, rng = [], [], np.random.default_rng(1)
    for user, rows in events.items():
        had = {row[1] for row in rows}
        if not had & set(new):
            continue
        past = sorted((row for row in rows if row[1] not in set(new)), key=lambda row: int(row[3]))
        history = {"item_id": [int(r[1]) for r in past], "rating": [int(r[2]) for r in past]}
        beside = [item for item in genres if item not in had and item not in set(new)]
        shown = [*new, *rng.choice(beside, len(new), replace=False).tolist()]
        candidates = {
            "item_id": [int(item) for item in shown],
            "genres": [genres[i] for i in shown],
        }
        _, age, gender, occupation, _ = users[user]
        requests.append(
            {
                **{"user_id": int(user), "age": int(age), "gender": gender},
                **{"occupation": occupation, "history": history, "candidates": candidates},
            }
        )
        labels.append([int(item in had) for item in new])
    return requests, labels


def planted(target: Path, share: float) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Makes a log of users who mostly want items of two kinds, and holds some of the items out.

    Args:
      target: directory to create: events.csv, items.csv and log.yaml.
      share: of the items.

    Returns:
      As `hold_out`.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    kinds, items, users, length = 150, 600, 1500, 30
    kind_of = rng.permutation(np.arange(items) % kinds)
    of_kind = [np.flatnonzero(kind_of == kind) for kind in range(kinds)]
    new = sorted(rng.choice(items, int(share * items), replace=False).tolist())
    target.mkdir()
    lines, requests, labels = ["user,item,time"], [], []
    for user in range(users):
        liked = rng.choice(kinds, 4, replace=False)
        wanted = np.where(rng.random(length) < 0.8, rng.choice(liked, length), -1)
        had = [int(rng.choice(of_kind[k]) if k >= 0 else rng.integers(items)) for k in wanted]
        past = [item for item in had if item not in new]
        lines += [f"{user},{item},{1_700_000_000 + n}" for n, item in enumerate(past)]
        if len(past) < len(had):
            history = {"item_id": past}
            beside = rng.choice([i for i in range(items) if i not in {*had, *new}], len(new))
            shown = [*new, *beside.tolist()]
            candidates = {"item_id": shown, "kind": [f"k{kind_of[item]}" for item in shown]}
            requests.append({"user_id": user, "history": history, "candidates": candidates})
            labels.append([int(item in had) for item in new])
    (target / "events.csv").write_text("\n".join(lines) + "\n")
    rows = [f"{item},k{kind}" for item, kind in enumerate(kind_of) if item not in new]
    (target / "items.csv").write_text("\n".join(["item,kind", *rows]) + "\n")
    (target / "log.yaml").write_text(json.dumps(_PLANTED))
    return requests, labels


def without_features(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request whose candidates are ids alone."""
    candidates = {
        name: values if name == "item_id" else [None] * len(values)
        for name, values in request["candidates"].items()
    }
    return {**request, "candidates": candidates}


def score(
    bundle_dir: Path, requests: Sequence[Mapping[str, Any]], labels: Sequence[Sequence[int]]
) -> dict[str, float]:
    """AUC of new items' scores, the mean of the users' own, and that with known items among them.

    Args:
      bundle_dir: of the model.
      requests: of `hold_out`.
      labels: likewise.
    """
    import numpy as np
    from sklearn.metrics import roc_auc_score

    from lookback.serving.bundle import Bundle

    whole = [s.logit for s in Bundle.load(bundle_dir).score(requests)]
    scores = [found[: len(own)] for own, found in zip(labels, whole, strict=True)]
    mixed = [
        [*own, *[0] * (len(found) - len(own))] for own, found in zip(labels, whole, strict=True)
    ]
    of_users = [(o, s) for o, s in zip(labels, scores, strict=True) if 0 < sum(o) < len(o)]
    auc = roc_auc_score(np.concatenate([np.asarray(own) for own in labels]), np.concatenate(scores))
    return {
        "auc": float(auc),
        "gauc": float(np.mean([roc_auc_score(*pair) for pair in of_users])),
        "mixed": float(np.mean([roc_auc_score(*pair) for pair in zip(mixed, whole, strict=True)])),
    }


def _genre_names() -> list[str]:
    """Names of the flags of u.item, as the recipe has them."""
    from lookback.core.yaml_files import read_yaml

    names: list[str] = read_yaml(_RECIPE)["items"]["features"]["genres"]["flags"]
    return names
