"""Predicts training on 8 to 1,024 ranks, and checks the prediction where there are measurements."""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookback.benchmarks.harness import BenchmarkReport
from lookback.benchmarks.scaling_model import FABRICS, Work, step_time
from lookback.benchmarks.scaling_published import PUBLISHED, TOLERANCE, compared
from lookback.embeddings.types import TableSpec

if TYPE_CHECKING:
    from lookback.benchmarks.rank_groups import RankGroup

QUESTION = "How fast would it train on 8 to 1,024 ranks, and does the model of that hold?"

_RANKS = (8, 16, 64, 256, 1024)
_TOLERANCE_HERE = 0.25  # share by which a prediction may be off here: the project's target
_BUSY = 0.5  # load average from which on a measurement says nothing
_WORKER = "lookback.benchmarks.sharding_worker"
_NOT_IN_THE_MODEL = (
    "waiting for the slowest rank, reading data, a network that others use, and messages that hide "
    "behind computation"
)
_COLUMNS = (
    *("fabric", "ranks", "weak", "weak_efficiency", "weak_longest"),
    *("strong", "strong_efficiency", "strong_longest"),
)
"""Of `predictions`, in the order of the table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument(
        "--samples_per_second",
        type=float,
        default=571_728.0,
        help="of one device; default: SIM on an A100 with AMP and XLA (NVIDIA's)",
    )
    parser.add_argument(
        "--batch_per_rank", type=int, default=131_072, help="rows with which that was measured"
    )
    parser.add_argument(
        "--fixed_ms",
        type=float,
        help="milliseconds of a step that do not shrink with its rows; default: those of NVIDIA's "
        "SIM, from its table",
    )
    parser.add_argument("--dense_weights", type=int, default=200_000, help="that are all-reduced")
    parser.add_argument("--wire_dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--fabric", nargs="+", default=list(FABRICS), choices=list(FABRICS))
    parser.add_argument("--ranks", type=int, nargs="+", default=list(_RANKS))
    parser.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with 2 and 4 ranks here",
    )
    parser.add_argument("--users", type=int, default=20_000, help="of the data for that")
    parser.add_argument("--global_batch_size", type=int, default=8192, help="for that")
    parser.add_argument("--rounds", type=int, help="of that (default 5; quick 2)")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Predicts, and compares with what NVIDIA published and with what this machine does.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    rows = predictions(args)
    published = list(compared())
    fitted = {id(program.rows[0]) for program in PUBLISHED}
    errors = [error for _, row, error in published if id(row) not in fitted]
    off = [
        f"{program.name} on {row.ranks} GPUs of {row.machine} ({row.how}): {error:+.0%}. Missing: "
        f"{program.missing.get(row.machine, 'unknown')}."
        for program, row, error in published
        if abs(error) > TOLERANCE
    ]
    within = sum(abs(error) <= TOLERANCE for error in errors)
    notes = [
        f"Published: {within} of {len(errors)} throughputs on 8 and 16 GPUs within "
        f"{TOLERANCE:.0%}, median error {np.median(np.abs(errors)):.1%}; one row of each of "
        f"{len(PUBLISHED)} programs is fitted and not counted.",
        *off,
    ]
    figures: dict[str, Any] = {
        "published_errors": {
            f"{p.name}, {r.machine}, {r.how}, {r.ranks}": e for p, r, e in published
        },
        "rows": rows,
    }
    if args.measure:
        load = os.getloadavg()[0]
        found = measured(args)
        figures["here"] = found
        for ranks, one in found.items():
            note = "" if abs(one["error"]) <= _TOLERANCE_HERE else f" Missing: {one['missing']}."
            if load > _BUSY:  # more ranks then get more of the cores
                note = f" The machine was busy (load {load:.1f}): this says nothing. Measure again."
            notes.append(
                f"Here, {ranks} ranks on 2 cores: predicted {one['predicted']:.3f} s a step, "
                f"measured {one['measured']:.3f} s ({one['error']:+.0%}; tolerance "
                f"{_TOLERANCE_HERE:.0%}).{note}"
            )
    notes.append(f"Not in the model: {_NOT_IN_THE_MODEL}.")
    return BenchmarkReport(
        title="Predicted: SIM's tables by rows, dense parts data-parallel",
        columns=[
            "fabric",
            "ranks",
            "weak samples/s",
            "efficiency",
            "takes most",
            "strong samples/s",
            "efficiency",
            "takes most",
        ],
        rows=[[row[name] for name in _COLUMNS] for row in rows],
        config={k: v for k, v in vars(args).items() if k != "cache_dir"},
        figures=figures,
        ratios={"published_median_error": float(np.median(np.abs(errors)))},
        notes=notes,
    )


def predictions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each fabric and number of ranks.

    Weak: as many rows on every rank as on one. Strong: as many on all together.

    Args:
      args: as of `run`.
    """
    fixed = PUBLISHED[0].fixed if args.fixed_ms is None else args.fixed_ms / 1e3
    batch = args.batch_per_rank
    seconds = batch / args.samples_per_second
    if not 0 <= fixed < seconds:
        raise ValueError(
            f"fixed_ms: expected less than the {1e3 * seconds:.1f} ms of a step, received "
            f"{1e3 * fixed:.1f}"
        )
    tables = (
        TableSpec("user_id", 105_925, 16, hotness=(1,)),
        TableSpec("item_id", 1_209_081, 16, hotness=(1, 100)),
        TableSpec("category", 2_330, 16, hotness=(1, 100)),
    )
    wire = 4 if args.wire_dtype == "float32" else 2
    work = Work(fixed, (seconds - fixed) / batch, 4 * args.dense_weights, tables, wire)
    rows = []
    for name in args.fabric:
        for ranks in args.ranks:
            weak = step_time(work, ranks, batch * ranks, FABRICS[name])
            strong = step_time(work, ranks, batch, FABRICS[name])
            alone = args.samples_per_second
            rows.append(
                {
                    "fabric": name,
                    "ranks": ranks,
                    "weak": batch * ranks / weak.total,
                    "weak_efficiency": batch / weak.total / alone,
                    "weak_longest": weak.longest,
                    "strong": batch / strong.total,
                    "strong_efficiency": batch / strong.total / ranks / alone,
                    "strong_longest": strong.longest,
                }
            )
    return rows


def measured(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Steps of 2 and 4 ranks on this machine, beside what follows from one rank on one core.

    A step's compute is that of one rank with its share of the rows, times the ranks that share a
    core; messages are work of the cores here, at a rate that two ranks' lookups give.

    Args:
      args: as of `run`.
    """
    from lookback.benchmarks.data import cached, generate_histories
    from lookback.benchmarks.rank_groups import RankGroup

    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise RuntimeError("Measuring two ranks needs two cores.")
    users, batch = args.users, args.global_batch_size
    dataset = generate_histories(cached("histories", {"users": users}, args.cache_dir), users=users)
    config = {"dataset_dir": str(dataset), "wire_dtype": "float32", "prefetch_ids": False}
    config["warmup_steps"] = 3
    places = {1: [[cores[0]]], 2: [[c] for c in cores], 4: [[c] for c in cores for _ in range(2)]}
    wanted = {"half": (1, batch // 2), "quarter": (1, batch // 4), "2": (2, batch), "4": (4, batch)}
    with contextlib.ExitStack() as stack:
        groups = {
            name: stack.enter_context(
                RankGroup(ranks, _WORKER, {**config, "batch": rows}, places[ranks])
            )
            for name, (ranks, rows) in wanted.items()
        }
        rounds = args.rounds or (2 if args.quick else 5)
        times = [{name: _step(group) for name, group in groups.items()} for _ in range(rounds)]
    step = {name: float(np.median([t[name]["step"] for t in times])) for name in wanted}
    lookup = {name: float(np.median([t[name]["lookup"] for t in times])) for name in wanted}
    sent = {name: times[0][name]["sent"] for name in ("2", "4")}
    return compare(step, lookup, sent)


def compare(
    step: dict[str, float], lookup: dict[str, float], sent: dict[str, float]
) -> dict[str, dict[str, Any]]:
    """What follows from single ranks and from two ranks' lookups, beside what was measured.

    Args:
      step: seconds of a step of "half" and "quarter" of the batch on one rank with a core of its
        own, and of the whole on "2" ranks with a core each, and on "4" with half of one each.
      lookup: likewise, of the lookup alone and its gradient.
      sent: bytes of all ranks in a step, of "2" and "4".
    """
    # Two cores send at once.
    rate = sent["2"] / max(lookup["2"] - lookup["half"], 1e-9)
    predicted = {"2": step["half"] + sent["2"] / rate, "4": 2 * step["quarter"] + sent["4"] / rate}
    found = {}
    for name, seconds in predicted.items():
        error = seconds / step[name] - 1
        late = error < 0
        found[name] = {
            "predicted": seconds,
            "measured": step[name],
            "error": error,
            "missing": "ranks that wait for each other, and memory that cores share"
            if late
            else "messages that hide behind computation",
        }
    return found


def _step(group: RankGroup, steps: int = 3) -> dict[str, float]:
    counted = group.ask(do="counted", steps=steps)
    exchange = group.ask(do="exchange", steps=steps)
    return {
        "step": counted["seconds"] / steps,
        "sent": counted["sent"] / steps,
        "lookup": exchange["seconds"] / steps,
    }
