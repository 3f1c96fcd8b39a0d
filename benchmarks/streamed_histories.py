"""Histories that stream against those that are resident: accuracy, speed, and memory."""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.benchmarks.options import PROTOCOL, add_movielens, require_movielens
from lookback.core.sizes import format_size, parse_size

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "Do histories that memory does not hold train as well and as fast as resident ones?"

PARTS = ("accuracy", "speed", "limit")

_BLOCKS = 120
"""In which small sets are written anew, so that they have windows of several."""
_SHARE = 4
"""That small sets are larger than the memory they are given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    add_movielens(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model_type", choices=("sim", "din", "dien"), default="sim")
    parser.add_argument("--seeds", type=int, help="runs for accuracy (default 5; quick 2)")
    parser.add_argument("--rounds", type=int, help="runs for speed (default 5; quick 2)")
    parser.add_argument("--events", default="2M", help="for speed: resident histories hold them")
    parser.add_argument("--many_events", default="200M", help="under the limit (quick: 2M)")
    parser.add_argument("--limit", default="6GB", help="of the memory that a run can write")
    parser.add_argument("--history_memory", default="1GB", help="under the limit")
    parser.add_argument("--steps", type=int, help="to train (default 400; quick 40)")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Trains with train.py, each run in a process of its own.

    Args:
      args: as from `add_arguments`, with `quick`.

    Raises:
      UserError: if MovieLens-100k is not there.
    """
    from lookback.benchmarks.harness import BenchmarkReport

    args.steps = args.steps or (40 if args.quick else 400)
    rows: list[list[object]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, measure in zip(PARTS, (_accuracy, _speed, _limit), strict=True):
            if name in args.parts:
                found = measure(args, Path(directory))
                figures[name] = found
                rows += [[name, what, value] for what, value in found.items()]
                print(*rows[-len(found) :], sep="\n", flush=True)
    return BenchmarkReport(
        title=f"{args.model_type} over histories that stream",
        columns=["", "", "measured"],
        rows=rows,
        config={name: str(value) for name, value in vars(args).items()},
        figures=figures,
    )


def _accuracy(args: argparse.Namespace, directory: Path) -> dict[str, object]:
    """AUC on MovieLens-100k, in blocks of a few users of which memory holds a quarter."""
    from lookback.workflows.pipeline import run_dataset

    require_movielens(args.input)
    dataset = directory / "movielens"
    run_dataset("movielens", args.input, dataset, **PROTOCOL)
    _in_small_blocks(dataset)
    memory = _bytes(dataset) // _SHARE
    common = {"model_type": args.model_type, "dataset_dir": dataset, "eval_split": "test"}
    common |= {"global_batch_size": 1024, "epochs": 1 if args.quick else 3, "eval_every": "none"}
    found: dict[str, list[float]] = {"resident": [], "streamed": []}
    for seed in range(args.seeds or (2 if args.quick else 5)):
        for kind, more in (("resident", {}), ("streamed", {"history_memory": memory})):
            results = _train({**common, "seed": seed, **more}, directory / f"{kind}{seed}")
            found[kind].append(results["test_auc"])
    return {
        f"AUC, {kind}": f"{statistics.mean(v):.4f} +- {statistics.stdev(v):.4f} ({len(v)} seeds)"
        for kind, v in found.items()
    }


def _speed(args: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Samples a second in training, of generated histories of which memory holds a quarter.

    Beside the clock, seconds of CPU of the whole run: they bear a machine that others use, too.
    """
    dataset = directory / "many"
    shutil.copytree(_generated(int(parse_size(args.events, "events")), args.cache_dir), dataset)
    _in_small_blocks(dataset)
    memory = _bytes(dataset) // _SHARE
    common = {"model_type": args.model_type, "dataset_dir": dataset, "global_batch_size": 4096}
    common |= {"benchmark": True, "benchmark_steps": args.steps, "seed": 1}
    figures = ("throughput", "cpu")
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(args.rounds or (2 if args.quick else 5)):
        for kind, more in (("resident", {}), ("streamed", {"history_memory": memory})):
            results = _train({**common, **more}, directory / f"speed-{kind}{number}")
            for figure in figures:
                found.setdefault(figure, {}).setdefault(kind, []).append(results[figure])
    told: dict[str, object] = {
        f"{figure}, {kind}": f"{statistics.median(v):,.0f} ({min(v):,.0f} to {max(v):,.0f})"
        for figure in figures
        for kind, v in found[figure].items()
    }
    for figure in figures:
        streamed, resident = (statistics.median(found[figure][k]) for k in ("streamed", "resident"))
        told[f"ratio of {figure}, of {format_size(memory)}"] = f"{streamed / resident:.3f}"
    return told


def _limit(args: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Trains some steps on many events and evaluates all users, under a hard limit of memory."""
    events = int(parse_size("2M" if args.quick else args.many_events, "many_events"))
    limit = int(parse_size(args.limit, "limit"))
    dataset = _generated(events, args.cache_dir)
    options = {"model_type": args.model_type, "dataset_dir": dataset, "global_batch_size": 4096}
    options |= {"history_memory": args.history_memory, "max_steps": args.steps, "seed": 1}
    options |= {"eval_split": "test", "valid_batch_size": 16384, "log_every": 50}
    results = _train(options, directory / "limit", limit)
    return {
        "events": f"{_events(dataset):,}",
        "limit (RLIMIT_DATA)": format_size(limit),
        "resident at most (VmHWM)": format_size(results["resident"]),
        "test AUC": results["test_auc"],
    }


def _train(options: dict[str, Any], results: Path, limit: int | None = None) -> dict[str, Any]:
    """Runs train.py; gives its last figures, what was resident at most (bytes), seconds of CPU."""
    from lookback.benchmarks.bounded import run_bounded
    from lookback.training.output.logging import read_log

    ended = run_bounded("train", [], {**options, "results_dir": results}, limit)
    (summary,) = (record.data for record in read_log(results / "log.json") if not record.step)
    return {**summary, "resident": ended.peak, "cpu": ended.cpu}


def _generated(events: int, cache_dir: Path | None) -> Path:
    from lookback.benchmarks.data import cached, generate_many_histories

    users = max(1, events // 100)
    return generate_many_histories(cached("many", {"users": users}, cache_dir), users=users)


def _bytes(dataset: Path) -> int:
    """What the events of a dataset take in memory: four bytes a feature."""
    from lookback.formats.features import HistoryFeatures
    from lookback.formats.schema import read_schema

    features = HistoryFeatures.from_schema(read_schema(dataset))
    return _events(dataset) * 4 * len(features.of("item", "context", "event"))


def _events(dataset: Path) -> int:
    from lookback.formats.dataset_info import read_histories_info

    return int(read_histories_info(dataset)["counts"]["events"])


def _in_small_blocks(dataset: Path) -> None:
    """Writes the histories of a dataset again in `_BLOCKS` blocks of users, or some more."""
    from lookback.core.arrow_files import read_parquet
    from lookback.formats.dataset_info import HISTORIES, read_histories_info, write_info
    from lookback.formats.histories import history_files, write_users

    info = read_histories_info(dataset)
    events = max(1, int(info["counts"]["events"]) // _BLOCKS)
    for file in history_files(dataset):
        write_users(read_parquet(file), file, row_group_events=events)
    ours = ("format", "format_version", "created_by", "files", "sha256")
    write_info(dataset, HISTORIES, {k: v for k, v in info.items() if k not in ours})
