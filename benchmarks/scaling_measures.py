"""The sweeps of `scaling`: training steps by table rows, history length, batch and ranks."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from lookback.benchmarks.data import cached, equal_histories, generate_histories
from lookback.benchmarks.harness import interleave
from lookback.benchmarks.history_contenders import Contenders
from lookback.benchmarks.options import turns
from lookback.benchmarks.rank_groups import RankGroup
from lookback.benchmarks.scaling_sweep import Sweep
from lookback.dataloading.histories.resident import Histories
from lookback.models import DIENConfig, DINConfig, SIMConfig
from lookback.models.config import HistoryModelConfig

CONFIGS: Mapping[str, type[HistoryModelConfig]] = {
    "sim": SIMConfig,
    "dien": DIENConfig,
    "din": DINConfig,
}
_SHORT = 10  # events of the short history, as by default
_USERS = 400
_TARGETS = 100  # of each user, behind a full history
_ADAM = 3  # values of a weight: itself and two moments
_SHARE_OF_MEMORY = 0.7  # of what is free, that tables may take
_WORKER = "lookback.benchmarks.sharding_worker"


def by_table_rows(args: argparse.Namespace, rows: Sequence[int]) -> Sweep:
    """Steps that look up equally many distinct ids, in tables of so many rows.

    The items are spread over all rows, in the same order whatever their number; so all tables see
    the same draws, and what differs is where rows lie.

    Args:
      args: with `model_type`, `batch_size`, `distinct_ids`, and those of `turns`.
      rows: of the items' table.
    """
    config = CONFIGS[args.model_type]()
    fitting, left_out = fit_memory(rows, config.embedding_dim)
    items, slots, work = args.distinct_ids, config.max_seq_length, {}
    for count in fitting:
        histories = equal_histories(users=_USERS, events=2 * slots, items=items, item_rows=count)
        contenders = Contenders(histories, args.batch_size, config, min_history=slots)
        work[count] = contenders.train_ours()
    return _sweep(
        args,
        "table rows",
        work,
        fixed=f"batch {args.batch_size:,}, {items:,} distinct items, width {config.embedding_dim}",
        left_out=left_out,
    )


def by_history_length(args: argparse.Namespace, lengths: Sequence[int]) -> Sweep:
    """Steps over full histories of so many slots, the last ten of them short."""
    work = {}
    events = max(lengths) + _TARGETS
    histories = equal_histories(users=_USERS, events=events, items=args.distinct_ids)
    for length in lengths:
        config = _with_length(CONFIGS[args.model_type], length)
        contenders = Contenders(histories, args.batch_size, config, min_history=length)
        work[length] = contenders.train_ours()
    return _sweep(args, "history slots", work, fixed=f"batch {args.batch_size:,}")


def by_batch(args: argparse.Namespace, sizes: Sequence[int]) -> Sweep:
    """Steps of batches of so many rows, of Amazon Books' cardinalities."""
    histories = _generated(args)
    config = CONFIGS[args.model_type]()
    work = {size: Contenders(histories, size, config).train_ours() for size in sizes}
    return _sweep(args, "rows of a batch", work, fixed=f"{config.max_seq_length} history slots")


def by_ranks(args: argparse.Namespace, ranks: Sequence[int]) -> Sweep:
    """Steps of SIM with its tables over so many processes, which share all cores and the batch."""
    options = {"dataset_dir": str(_dataset(args)), "batch": args.ranks_batch_size}
    options |= {"wire_dtype": "float32", "warmup_steps": 2}
    with contextlib.ExitStack() as stack:

        def trains(number: int) -> Callable[[], int]:
            prefetch = {"prefetch_ids": number > 1}
            group = stack.enter_context(RankGroup(number, _WORKER, {**options, **prefetch}))
            return lambda: int(group.ask(do="train", steps=2)["rows"])

        work = {number: trains(number) for number in ranks}
        found = interleave(
            {str(number): run for number, run in work.items()},
            rounds=turns(args)["rounds"],
            warmup=1,
        )
    return Sweep(
        "ranks",
        dict.fromkeys(ranks, args.ranks_batch_size),
        {int(name): timing for name, timing in found.items()},
        fixed=f"batch {args.ranks_batch_size:,} of all ranks together, SIM",
    )


def fit_memory(
    rows: Sequence[int], dim: int, free: int | None = None
) -> tuple[list[int], dict[int, str]]:
    """Which tables fit together, the smaller ones first; and why the others do not.

    Args:
      rows: of the tables.
      dim: of a row.
      free: bytes; None: what the system says is available.
    """
    allowed = _SHARE_OF_MEMORY * (psutil.virtual_memory().available if free is None else free)
    fitting, left_out, taken = list[int](), dict[int, str](), 0
    for count in sorted(rows):
        needed = 4 * _ADAM * count * dim
        if taken + needed <= allowed:
            fitting.append(count)
            taken += needed
        else:
            left_out[count] = (
                f"its table and Adam's moments take {needed / 2**30:.1f} GiB, beside the smaller "
                f"ones' {taken / 2**30:.1f}, and {allowed / 2**30:.1f} may be taken"
            )
    return fitting, left_out


def _sweep(
    args: argparse.Namespace,
    size: str,
    work: Mapping[int, Callable[[], int]],
    fixed: str,
    left_out: Mapping[int, str] = {},
) -> Sweep:
    samples = {value: run() for value, run in work.items()}
    found = interleave({str(value): run for value, run in work.items()}, **turns(args))
    timings = {int(name): timing for name, timing in found.items()}
    return Sweep(size, samples, timings, f"{args.model_type.upper()}, {fixed}", left_out)


def _with_length(config: type[HistoryModelConfig], length: int) -> HistoryModelConfig:
    """So many slots, all but the last ten of them long."""
    return dataclasses.replace(config(), max_seq_length=length, long_seq_length=length - _SHORT)


def _dataset(args: argparse.Namespace) -> Path:
    options: dict[str, Any] = {"users": 5_000 if args.quick else 20_000}
    return generate_histories(cached("histories", options, args.cache_dir), **options)


def _generated(args: argparse.Namespace) -> Histories:
    return Histories.load(_dataset(args))
