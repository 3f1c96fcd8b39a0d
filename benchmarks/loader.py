"""How fast training batches come off the disk, and how much disk a sample takes.

Three ways to the same samples: windows built in the graph from resident histories, the
materialised form of these histories through Arrow, and the same files through merlin-dataloader
(a few rows, as it converts them to Python lists and back). Tabular data is asked for by name:
`benchmarks.loader_tabular`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.core.errors import UserError

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport, Timing
    from lookback.dataloading.histories.resident import Histories
    from lookback.dataloading.histories.windows import WindowConfig

QUESTION = "How many training samples a second does each data layout give, and at how many bytes?"

LAYOUTS = ("histories", "materialised", "merlin")
TABULAR = "tabular"

# The project's targets on 2 cores.
_TARGET_WINDOWS = 150_000
_TARGET_MATERIALISED = 120_000
_TARGET_BYTES_RATIO = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument(
        "--layout",
        nargs="+",
        choices=(*LAYOUTS, TABULAR),
        default=list(LAYOUTS),
        help="what to measure; tabular data by itself",
    )
    parser.add_argument(
        "--dataset_dir",
        type=Path,
        help="histories (or tabular data) to use, written by python -m workflows; generated if "
        "absent",
    )
    parser.add_argument("--users", type=int, help="users to generate (default 50000; quick 5000)")
    parser.add_argument(
        "--rows",
        type=int,
        help="rows to materialise (default 400000; quick 60000), or of tabular data (default "
        "4194304; quick 1048576)",
    )
    parser.add_argument("--global_batch_size", type=int, default=16384, help="rows of a batch")
    parser.add_argument("--max_seq_length", type=int, default=100, help="history slots (T)")
    parser.add_argument("--long_seq_length", type=int, default=90, help="slots of the long history")
    parser.add_argument("--rounds", type=int, help="measurements of each (default 5; quick 3)")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Measures the chosen layouts.

    Args:
      args: as from `add_arguments`, with `quick`.

    Raises:
      UserError: if the dataset cannot be read, or has fewer rows than a batch.
    """
    if TABULAR in args.layout:
        if args.layout != [TABULAR]:
            raise UserError(
                f"--layout {TABULAR} has data of its own, so it cannot be compared with "
                f"{[name for name in args.layout if name != TABULAR]}. Measure it by itself."
            )
        from lookback.benchmarks.loader_tabular import run_tabular

        return run_tabular(args)
    from lookback.benchmarks.data import cached, generate_histories
    from lookback.benchmarks.harness import interleave
    from lookback.dataloading.histories.resident import Histories

    if args.dataset_dir is None:
        users = args.users or (5_000 if args.quick else 50_000)
        options: dict[str, Any] = {"users": users, "seed": 0}
        directory = generate_histories(cached("histories", options, args.cache_dir), **options)
    else:
        directory = args.dataset_dir
    histories = Histories.load(directory)
    copies = _materialised_copies(args, histories)
    timings = interleave(
        _contenders(args, histories, copies["snappy"]),
        rounds=args.rounds or (3 if args.quick else 5),
        min_seconds=0.5 if args.quick else 2.0,
    )
    return _report(args, histories, timings, _bytes_per_sample(directory, histories, copies))


def _materialised_copies(args: argparse.Namespace, histories: Histories) -> dict[str, Path]:
    """Materialised forms of the histories by compression, made once."""
    from lookback.benchmarks.data import cached, materialise

    rows = args.rows or (60_000 if args.quick else 400_000)
    # The dataset's own content names the copy made from it, so a changed dataset is copied anew.
    source = {
        "events": histories.num_events,
        "digest": _digest(histories),
        "T": args.max_seq_length,
        "rows": rows,
    }
    return {
        codec: materialise(
            histories,
            cached(f"materialised-{codec}", source, args.cache_dir),
            max_seq_length=args.max_seq_length,
            max_rows=rows,
            compression=codec,
        )
        for codec in ("snappy", "zstd")
    }


def _contenders(
    args: argparse.Namespace, histories: Histories, materialised: Path
) -> dict[str, Callable[[], int]]:
    """What to time, by name."""
    from lookback.dataloading.histories.materialised import MaterialisedDataset
    from lookback.dataloading.histories.windows import WindowConfig

    lengths = {"max_seq_length": args.max_seq_length, "long_seq_length": args.long_seq_length}
    users = len(histories.features.user)
    dataset = MaterialisedDataset(materialised, user_features=users, **lengths)
    if dataset.num_rows("train") < args.global_batch_size:
        raise UserError(
            f"Only {dataset.num_rows('train')} rows were materialised, fewer than one batch of "
            f"{args.global_batch_size}. Raise --rows or lower --global_batch_size."
        )
    contenders: dict[str, Callable[[], int]] = {}
    if "histories" in args.layout:
        config = WindowConfig(**lengths)
        contenders["windows"] = _windows(histories, config, args.global_batch_size)
    if "materialised" in args.layout:
        for name, shuffle in (("materialised", False), ("materialised_shuffled", True)):
            contenders[name] = _epoch(dataset, args.global_batch_size, shuffle)
    if "merlin" in args.layout:
        contenders["merlin"] = _merlin(materialised, _merlin_rows(args), args.cache_dir)
    return contenders


def _bytes_per_sample(
    directory: Path, histories: Histories, copies: Mapping[str, Path]
) -> dict[str, float]:
    """Bytes on disk of a training sample in each form."""
    from lookback.benchmarks.peers.usage import directory_bytes
    from lookback.dataloading.histories.materialised import MaterialisedDataset

    # Both forms hold a positive and a negative for each training target.
    sizes = {"histories": directory_bytes(directory) / (2 * _training_targets(histories))}
    for codec, copy in copies.items():
        dataset = MaterialisedDataset(copy, user_features=len(histories.features.user))
        sizes[f"materialised_{codec}"] = directory_bytes(copy / "train") / dataset.num_rows("train")
    return sizes


def _report(
    args: argparse.Namespace,
    histories: Histories,
    timings: Mapping[str, Timing],
    sizes: Mapping[str, float],
) -> BenchmarkReport:
    from lookback.benchmarks.harness import BenchmarkReport

    labels = {
        "windows": ("resident histories, windows in the graph", "histories"),
        "materialised": ("materialised, Arrow, in file order", "materialised_snappy"),
        "materialised_shuffled": ("materialised, Arrow, shuffled", "materialised_snappy"),
        "merlin": ("materialised, merlin-dataloader", "materialised_snappy"),
    }
    baseline = timings.get("merlin")
    rows = []
    ratios = {
        f"bytes_{form}_over_histories": size / sizes["histories"]
        for form, size in sizes.items()
        if form != "histories"
    }
    for name, timing in timings.items():
        times = ""
        if baseline is not None and name != "merlin":
            ratios[f"{name}_over_merlin"] = timing.over(baseline)
            times = f"{timing.over(baseline):,.0f} x"
        label, form = labels[name]
        speeds = (round(timing.median), round(timing.lowest), round(timing.highest))
        rows.append((label, *speeds, times, sizes[form]))
    for name, target in (("windows", _TARGET_WINDOWS), ("materialised", _TARGET_MATERIALISED)):
        if name in timings:
            ratios[f"{name}_over_target"] = timings[name].median / target
    snappy, zstd = sizes["materialised_snappy"], sizes["materialised_zstd"]
    return BenchmarkReport(
        title="Loading training samples",
        columns=(
            *("layout", "samples/s", "lowest", "highest", "vs merlin", "bytes/sample on disk"),
        ),
        rows=rows,
        config={
            "dataset": str(args.dataset_dir) if args.dataset_dir else "generated",
            "users": histories.num_users,
            "events": histories.num_events,
            "item_features": list(histories.features.item),
            "training_samples": 2 * _training_targets(histories),
            "merlin_rows": _merlin_rows(args) if "merlin" in args.layout else 0,
            "global_batch_size": args.global_batch_size,
            "max_seq_length": args.max_seq_length,
            "long_seq_length": args.long_seq_length,
            "quick": args.quick,
        },
        figures={
            **{f"{name}_samples_per_s": timing.as_dict() for name, timing in timings.items()},
            **{f"{name}_bytes_per_sample": size for name, size in sizes.items()},
        },
        ratios=ratios,
        notes=[
            f"On disk, a training sample takes {sizes['histories']:.1f} bytes as histories and "
            f"{snappy:.0f} materialised (zstd: {zstd:.0f}): 1/{snappy / sizes['histories']:.0f} "
            f"(zstd: 1/{zstd / sizes['histories']:.0f}); target 1/{_TARGET_BYTES_RATIO}. Histories "
            "include timestamps, which the other form lacks.",
            f"Targets on 2 cores: windows {_TARGET_WINDOWS:,}/s, materialised "
            f"{_TARGET_MATERIALISED:,}/s.",
        ],
    )


def _merlin_rows(args: argparse.Namespace) -> int:
    """Rows for merlin-dataloader, which takes a second for about 800."""
    return 512 if args.quick else 4096


def _windows(histories: Histories, config: WindowConfig, batch_size: int) -> Callable[[], int]:
    """A contender that builds one batch of windows a call."""
    import tensorflow as tf

    from lookback.dataloading.histories.windows import WindowBuilder

    builder = WindowBuilder(histories, config)
    build = tf.function(lambda step: builder.train_batch(0, 0, step, batch_size), autograph=False)
    steps = itertools.cycle(range(max(builder.train_steps(batch_size) - 1, 1)))

    def work() -> int:
        _, labels = build(tf.constant(next(steps), tf.int64))
        return int(labels.numpy().size)

    return work


def _epoch(dataset: Any, batch_size: int, shuffle: bool) -> Callable[[], int]:
    """A contender that reads one epoch a call, starting its threads included."""
    epochs = itertools.count()

    def work() -> int:
        batches: Iterator[Any] = dataset.batches(
            "train", batch_size, shuffle=shuffle, epoch=next(epochs)
        )
        return sum(len(labels) for _, labels in batches)

    return work


def _merlin(directory: Path, rows: int, cache_dir: Path | None) -> Callable[[], int]:
    """A contender that reads the first `rows` rows with merlin-dataloader a call.

    They get a file of their own: the loader converts a whole partition before its first batch.
    """
    import pyarrow.parquet as pq
    from merlin.io import Dataset
    from merlin.loader.tensorflow import Loader

    from lookback.benchmarks.data import cached
    from lookback.core.arrow_files import open_parquet
    from lookback.core.files import atomic_file

    file = cached("merlin", {"source": directory.name, "rows": rows}, cache_dir)
    file = file.with_suffix(".parquet")
    if not file.exists():
        with open_parquet(directory / "train" / "part.0.parquet") as source:
            table = source.read_row_group(0).slice(0, rows)
        with atomic_file(file) as temporary:
            pq.write_table(table, temporary, compression="snappy")

    def work() -> int:
        loader = Loader(Dataset([str(file)], engine="parquet"), batch_size=rows, shuffle=False)
        try:
            return sum(int(features["label"].shape[0]) for features, _ in loader)
        finally:
            loader.stop()

    return work


def _training_targets(histories: Histories) -> int:
    """Events that are targets of training: all but each user's first and the held-out ones."""
    import numpy as np

    return int(np.maximum(histories.targets["train"][1] - 1, 0).sum())


def _digest(histories: Histories) -> str:
    import hashlib

    digest = hashlib.sha256(histories.offsets.tobytes())
    for values in histories.item_features.values():
        digest.update(values.tobytes())
    return digest.hexdigest()
