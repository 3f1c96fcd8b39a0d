"""What sharding SIM's tables costs: speed by ranks, bytes exchanged, and weak scaling."""

from __future__ import annotations

import argparse
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.benchmarks.harness import BenchmarkReport, Timing, interleave

if TYPE_CHECKING:
    from collections.abc import Callable

    from lookback.benchmarks.rank_groups import RankGroup

QUESTION = "What does sharding cost: samples/s on 1, 2 and 4 ranks, bytes, weak scaling?"

_WORKER = "lookback.benchmarks.sharding_worker"
_TARGET = 0.85  # weak-scaling efficiency: the project's target (benchmarks/README.md)
_WARMUP_STEPS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument(
        "--users", type=int, help="users to generate (default: Amazon Books' 105925; quick 20000)"
    )
    parser.add_argument(
        "--global_batch_size",
        type=int,
        help="rows of a batch, however many ranks share it (default 16384; quick 8192)",
    )
    parser.add_argument(
        "--batch_per_rank",
        type=int,
        help="rows of a rank's part in weak scaling (default 32768, which on four ranks is the "
        "batch of NVIDIA's SIM; quick 2048)",
    )
    parser.add_argument("--ranks", type=int, nargs="+", help="default 1 2 4; quick 1 2")
    parser.add_argument(
        "--wire_dtype", default="float32", choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument(
        "--prefetch_ids",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="as in train.py (default: with it)",
    )
    parser.add_argument("--steps", type=int, help="steps of a measurement (default 16; quick 4)")
    parser.add_argument("--weak_steps", type=int, help="the same in weak scaling (default 3)")
    parser.add_argument("--rounds", type=int, help="measurements of each (default 5; quick 3)")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Times training steps of groups of processes in turn, all on this machine.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.data import cached, generate_histories

    quick = args.quick
    users = args.users or (20_000 if quick else 105_925)
    batch = args.global_batch_size or (8192 if quick else 16_384)
    batch_per_rank = args.batch_per_rank or (2048 if quick else 32_768)
    ranks = args.ranks or ([1, 2] if quick else [1, 2, 4])
    dataset = generate_histories(cached("histories", {"users": users}, args.cache_dir), users=users)
    config = {
        "dataset_dir": str(dataset),
        "wire_dtype": args.wire_dtype,
        "prefetch_ids": args.prefetch_ids,
        "warmup_steps": _WARMUP_STEPS,
    }
    rounds = args.rounds or (3 if quick else 5)
    steps = args.steps or (4 if quick else 16)
    strong = _strong(config, ranks, batch, steps=steps, rounds=rounds)
    weak_steps = args.weak_steps or 3
    weak = _weak(config, batch_per_rank, steps=weak_steps, rounds=rounds)
    sizes = {"users": users, "steps": steps, "weak_steps": weak_steps, "rounds": rounds}
    return _report(strong, weak, batch, batch_per_rank, {**config, **sizes})


def _report(
    strong: dict[int, dict[str, Any]],
    weak: dict[str, Timing],
    batch: int,
    batch_per_rank: int,
    config: dict[str, Any],
) -> BenchmarkReport:
    efficiency = weak["2 ranks"].over(weak["1 rank"]) / 2
    apart = weak["2 apart"].over(weak["1 rank"]) / 2
    rows: list[list[object]] = []
    for number, found in strong.items():
        rows.append(
            [
                f"{number} ranks, {batch:,} rows in all",
                found["rate"].median,
                found["sent"] / 1e6,
                found["undeduplicated"] / 1e6,
                found["all_reduce"] / 1e6,
                1e3 * found["exchange_seconds"],
                f"{100 * found['exchange_seconds'] / found['step_seconds']:.0f} %",
            ]
        )
    for name, timing in weak.items():
        rows.append(
            [f"{name}, a core and {batch_per_rank:,} rows each", timing.median, *[None] * 5]
        )
    figures: dict[str, Any] = {
        "samples_per_second": {str(n): found["rate"].as_dict() for n, found in strong.items()},
        "weak_samples_per_second": {name: timing.as_dict() for name, timing in weak.items()},
        "by_ranks": {
            str(n): {key: value for key, value in found.items() if key != "rate"}
            for n, found in strong.items()
        },
    }
    return BenchmarkReport(
        title="SIM with row-wise tables, Amazon Books cardinalities",
        columns=[
            "processes",
            "samples/s",
            "MB a step",
            "without dedup",
            "dense all-reduce",
            "lookup ms",
            "of the step",
        ],
        rows=rows,
        config={**config, "global_batch_size": batch, "batch_per_rank": batch_per_rank},
        figures=figures,
        ratios={"weak_scaling_efficiency": efficiency, "without_exchange": apart},
        notes=[
            f"Weak scaling, 2 ranks against 1, one core each: {efficiency:.3f} (target {_TARGET}). "
            f"Two processes that exchange nothing and do not wait for each other: {apart:.3f}, "
            "which is what the machine leaves of a core when the other one is busy.",
            "MB are sent by all ranks together in a step; what a rank sends to itself is left out. "
            "Dense all-reduce: what a ring sends for whole-table gradients, as NVIDIA's SIM has "
            "them. Lookup: ids out, vectors back, gradients out, alone; on one rank, a gather.",
        ],
    )


def _strong(
    config: dict[str, Any], ranks: list[int], batch: int, *, steps: int, rounds: int
) -> dict[int, dict[str, Any]]:
    """The same global batch on different numbers of ranks, all cores for everybody."""
    found: dict[int, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        groups = {n: stack.enter_context(_group(n, config, batch, None)) for n in ranks}

        def contender(number: int) -> Any:
            return lambda: int(groups[number].ask(do="train", steps=steps)["rows"])

        rates = interleave({str(n): contender(n) for n in ranks}, rounds=rounds, warmup=1)
        for number, group in groups.items():
            counted = group.ask(do="counted", steps=steps)
            exchange = group.ask(do="exchange", steps=steps)
            undeduplicated = group.ask(do="without_deduplication", steps=2)
            found[number] = {
                "rate": rates[str(number)],
                "sent": counted["sent"] / steps,
                "step_seconds": counted["seconds"] / steps,
                "exchange_seconds": exchange["seconds"] / steps,
                "undeduplicated": undeduplicated["sent"] / 2,
                "all_reduce": 2 * (number - 1) * 4 * _parameters(config),
            }
    return found


def _weak(config: dict[str, Any], batch: int, *, steps: int, rounds: int) -> dict[str, Timing]:
    """Twice the ranks for twice the batch, a core for each; and two that know nothing of it."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("Weak scaling needs two cores.")
    with contextlib.ExitStack() as stack:
        groups = {
            "1 rank": stack.enter_context(_group(1, config, batch, [cores[:1]])),
            "2 ranks": stack.enter_context(_group(2, config, 2 * batch, [cores[:1], cores[1:2]])),
        }
        other = stack.enter_context(_group(1, config, batch, [cores[1:2]]))
        pool = stack.enter_context(ThreadPoolExecutor(2))

        def train(group: RankGroup) -> int:
            return int(group.ask(do="train", steps=steps)["rows"])

        contenders: dict[str, Callable[[], int]] = {
            name: partial(train, group) for name, group in groups.items()
        }
        contenders["2 apart"] = lambda: sum(pool.map(train, (groups["1 rank"], other)))
        rates = interleave(contenders, rounds=rounds, warmup=1)
    return rates


def _group(
    ranks: int, config: dict[str, Any], batch: int, cores: list[list[int]] | None
) -> RankGroup:
    from lookback.benchmarks.rank_groups import RankGroup

    one_process = {"prefetch_ids": False} if ranks == 1 else {}
    return RankGroup(ranks, _WORKER, {**config, **one_process, "batch": batch}, cores)


def _parameters(config: dict[str, Any]) -> int:
    """Weights of all tables."""
    from lookback.dataloading.histories.resident import Histories
    from lookback.formats.features import table_rows
    from lookback.models.config import SIMConfig

    rows = table_rows(Histories.load(config["dataset_dir"]).schema)
    return sum(rows.values()) * SIMConfig().embedding_dim
