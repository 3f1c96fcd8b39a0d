"""How fast batches of tabular data come off the disk: the layout "tabular" of `benchmarks.loader`.

The data imitates Criteo's: 13 numbers, 26 ids by a power law over tables as large as NVIDIA's
recipe with threshold 15 has them. There is nothing in it to learn.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.core.errors import UserError

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport, Timing
    from lookback.formats.tabular_rows import TabularData

_TARGET = 1_000_000  # rows a second on 2 cores: the project's target
_NUMBERS = 13
_ROWS_AT_ONCE = 2**17
_ROWS_A_FILE = 2**20


def run_tabular(args: argparse.Namespace) -> BenchmarkReport:
    """Measures reading in file order and shuffled, beside merlin-dataloader on the same rows.

    Args:
      args: as from `benchmarks.loader.add_arguments`, with `quick`.

    Raises:
      UserError: if the dataset cannot be read, or has fewer rows than a batch.
    """
    from lookback.benchmarks.harness import interleave
    from lookback.dataloading.tabular.source import open_tabular

    directory = args.dataset_dir or _generated(args)
    dataset = open_tabular(directory)
    if dataset.num_rows("train") < args.global_batch_size:
        raise UserError(
            f"Only {dataset.num_rows('train')} rows are there, fewer than one batch of "
            f"{args.global_batch_size}. Raise --rows or lower --global_batch_size."
        )
    contenders = {
        "tabular": _epoch(dataset, args.global_batch_size, shuffle=False),
        "tabular_shuffled": _epoch(dataset, args.global_batch_size, shuffle=True),
    }
    files = sorted((directory / "train").glob("*.parquet"))
    if files:
        contenders["merlin"] = _merlin(files[0], args.global_batch_size)
    timings = interleave(
        contenders,
        rounds=args.rounds or (3 if args.quick else 5),
        min_seconds=0.5 if args.quick else 2.0,
    )
    return _report(args, directory, dataset, timings)


def _generated(args: argparse.Namespace) -> Path:
    """A dataset written as `python -m workflows` does, once."""
    import numpy as np

    from lookback.benchmarks.data import cached
    from lookback.core.files import atomic_directory
    from lookback.formats.tabular_files import TabularWriter, write_description
    from lookback.workflows.generators.criteo_tables import ROWS

    options = {"rows": args.rows or (2**20 if args.quick else 2**22), "seed": 0}
    directory = cached("tabular", options, args.cache_dir)
    if directory.exists():
        return directory
    tables = ROWS["t15"]
    rng = np.random.default_rng(options["seed"])
    with atomic_directory(directory) as temporary:
        writer = TabularWriter(temporary, "train", _NUMBERS, len(tables), _ROWS_A_FILE)
        for begin in range(0, options["rows"], _ROWS_AT_ONCE):
            rows = min(_ROWS_AT_ONCE, options["rows"] - begin)
            # size**u - 1 of a uniform u: the probability of an id falls with its inverse.
            ids = [size ** rng.random(rows) - 1 for size in tables]
            writer.write(
                (rng.random(rows) < 0.03).astype(np.float32),
                np.log(rng.geometric(0.1, (rows, _NUMBERS)) + 1).astype(np.float32),
                np.stack(ids, axis=1).astype(np.int32),
            )
        count = writer.close()
        write_description(
            temporary,
            dataset="benchmark",
            options=options,
            counts={"train": count},
            cardinalities={f"cat_{number}": size for number, size in enumerate(tables)},
            numerical=_NUMBERS,
        )
    return directory


def _epoch(dataset: TabularData, batch_size: int, *, shuffle: bool) -> Callable[[], int]:
    """A contender that reads one epoch a call, starting its threads included."""
    from lookback.dataloading.tabular.source import TabularSource

    source = TabularSource(dataset, seed=0, batch_size=batch_size, shuffle=shuffle)
    epochs = itertools.count()

    def work() -> int:
        return sum(len(labels) for _, labels in source.train_feeds(next(epochs), 0))

    return work


def _merlin(file: Path, batch_size: int) -> Callable[[], int]:
    """A contender that reads a file with merlin-dataloader a call, in file order."""
    from merlin.io import Dataset
    from merlin.loader.tensorflow import Loader

    def work() -> int:
        dataset = Dataset([str(file)], engine="parquet")
        loader = Loader(dataset, batch_size=batch_size, shuffle=False)
        try:
            return sum(int(features["cat_0"].shape[0]) for features, _ in loader)
        finally:
            loader.stop()

    return work


def _report(
    args: argparse.Namespace, directory: Path, dataset: TabularData, timings: dict[str, Timing]
) -> BenchmarkReport:
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.peers.usage import directory_bytes

    labels = {
        "tabular": "tabular, in file order",
        "tabular_shuffled": "tabular, shuffled",
        "merlin": "one file, merlin-dataloader",
    }
    size = directory_bytes(directory / "train") / dataset.num_rows("train")
    baseline = timings.get("merlin")
    rows, ratios = [], {}
    for name, timing in timings.items():
        times = ""
        if baseline is not None and name != "merlin":
            ratios[f"{name}_over_merlin"] = timing.over(baseline)
            times = f"{timing.over(baseline):,.1f} x"
        if name != "merlin":
            ratios[f"{name}_over_target"] = timing.median / _TARGET
        speeds = (round(timing.median), round(timing.lowest), round(timing.highest))
        rows.append((labels[name], *speeds, times, size))
    figures: dict[str, Any] = {f"{name}_rows_per_s": t.as_dict() for name, t in timings.items()}
    return BenchmarkReport(
        title="Loading tabular rows",
        columns=("layout", "rows/s", "lowest", "highest", "vs merlin", "bytes/row on disk"),
        rows=rows,
        config={
            "dataset": str(args.dataset_dir) if args.dataset_dir else "generated",
            "rows": dataset.num_rows("train"),
            "numerical": len(dataset.features.numerical),
            "categorical": len(dataset.features.categorical),
            "global_batch_size": args.global_batch_size,
            "quick": args.quick,
        },
        figures={**figures, "tabular_bytes_per_row": size},
        ratios=ratios,
        notes=[
            f"Target on 2 cores: {_TARGET:,} rows/s, shuffled. All files are in the page cache."
        ],
    )
