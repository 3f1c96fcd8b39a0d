"""How fast requests are scored in a process, against the naive path and an earlier version.

The naive path is what one writes first: `nvtabular.Workflow.transform` of the request's ids, then
`model.predict` of a row for each candidate, history and all. All score the same requests, of the
same weights; that their scores are the same is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.benchmarks.child import Child, python_child
from lookback.core.errors import UserError
from lookback.formats.dataset_info import DATASET_FILE

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How long does a request take to be scored, naively and by the version before?"

BASELINE = "26ee95b"
"""The last commit before scoring was made faster."""

_ROOT = Path(__file__).resolve().parent.parent
WORKER = Path(__file__).resolve().parent / "serving_core_worker.py"
_TARGETS = "p99 15 ms, 20 x naive, 4 x before (history 1,000, 256 candidates, 2 cores)"
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_SAME = 2e-5  # of logits: float32 sums of 1,000 events in other orders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument(
        "--candidates", type=int, nargs="+", help="of a request (1 64 256 1024; quick 1 256)"
    )
    parser.add_argument(
        "--history", type=int, nargs="+", help="its events (100 1000 2000; quick 1000)"
    )
    parser.add_argument("--calls", type=int, help="of each, that count (default 300; quick 60)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that these are split into")
    parser.add_argument("--naive_seconds", type=float, default=3.0, help="of a turn, at most")
    parser.add_argument(
        "--baseline", default=BASELINE, help="commit to compare with; none: none (needs git)"
    )
    parser.add_argument("--cache_dir", type=Path, help="for generated data")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Times requests, contender after contender, turn after turn.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.harness import BenchmarkReport

    candidates = args.candidates or ([1, 256] if args.quick else [1, 64, 256, 1024])
    calls = args.calls or (60 if args.quick else 300)
    dataset = sim_dataset(args)
    rows: list[list[object]] = []
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for history in args.history or ([1000] if args.quick else [100, 1000, 2000]):
        with _contenders(args, dataset, history) as contenders:
            for count in candidates:
                times = _turns(contenders, count, calls, args)
                for name, own in times.items():
                    found = _figures(own)
                    figures[f"{name}_{history}_{count}"] = found
                    over = statistics.median(
                        statistics.median(theirs) / statistics.median(ours)
                        for theirs, ours in zip(own, times["ours"], strict=True)
                    )
                    ratios[f"ours_over_{name}_{history}_{count}"] = over
                    cells = (found["requests_per_s"], *(found[q] for q in _QUANTILES))
                    rows.append([f"{history:,}", count, name, *cells, f"{over:.1f} x"])
    return BenchmarkReport(
        title="SIM, one request at a time, raw ids in and scores out",
        columns=("history", "candidates", "by", "requests/s", *(f"{q} ms" for q in _QUANTILES), ""),
        rows=rows,
        config={name: str(value) for name, value in vars(args).items()},
        figures=figures,
        ratios=ratios,
        notes=[
            "Last column: how many times as long as ours, the median of turns. Targets: "
            f"{_TARGETS}."
        ],
    )


@contextlib.contextmanager
def _contenders(
    args: argparse.Namespace, dataset: Path, history: int
) -> Iterator[Mapping[str, tuple[Child, str]]]:
    """The processes, and how each is asked."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lookback-core-")))

        def start(name: str, code: Path) -> Child:
            (place / name).mkdir()
            (place / name / "lookback").symlink_to(code)
            bundle = place / f"{name}-bundle"
            options = ("--dataset", dataset, "--bundle", bundle, "--history", history)
            return stack.enter_context(python_child(WORKER, place / name, *options))

        ours = start("ours", _ROOT)
        found = {"ours": (ours, "score"), "naive": (ours, "naive")}
        if args.baseline != "none":
            _checkout(args.baseline, place / "code")
            found[args.baseline] = (start("baseline", place / "code"), "score")
        yield found


def _turns(
    contenders: Mapping[str, tuple[Child, str]],
    candidates: int,
    calls: int,
    args: argparse.Namespace,
) -> dict[str, list[Sequence[float]]]:
    """Seconds of each call, by contender and turn; their scores must be the same."""
    import numpy as np

    times: dict[str, list[Sequence[float]]] = {name: [] for name in contenders}
    logits = {}
    for turn in range(args.rounds):
        for name, (process, how) in contenders.items():
            answer = process.ask(
                how=how,
                candidates=candidates,
                calls=max(3, calls // args.rounds),
                seconds=args.naive_seconds if how == "naive" else None,
                warmup=3 if turn == 0 else 1,
            )
            times[name].append(answer["seconds"])
            logits[name] = answer["logits"]
    for name, found in logits.items():
        if not np.allclose(found, logits["ours"], atol=_SAME, rtol=_SAME):
            raise RuntimeError(f"{name} scores {found[:3]}, where ours are {logits['ours'][:3]}")
    return times


def _figures(turns: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of all calls of a contender: medians over its turns of what each turn says."""
    import numpy as np

    def over_turns(of: Any) -> float:
        return float(np.median([of(np.asarray(turn)) for turn in turns]))

    rate = over_turns(lambda turn: len(turn) / turn.sum())
    at = {
        name: 1000 * float(np.quantile(np.concatenate([*map(np.asarray, turns)]), q))
        for name, q in _QUANTILES.items()
    }
    return {"requests_per_s": rate, **at, "calls": float(sum(map(len, turns)))}


def sim_dataset(args: argparse.Namespace) -> Path:
    """Generated reviews, gone through the workflow, once."""
    from lookback.benchmarks.data import cached
    from lookback.workflows.generators.oracle import OracleOptions
    from lookback.workflows.generators.synthetic import SyntheticConfig, generate_synthetic
    from lookback.workflows.pipeline import run_dataset

    sizes: dict[str, Any] = {"users": 1000, "items": 20_000, "events": 150_000}
    if not args.quick:
        sizes = {"users": 5000, "items": 200_000, "events": 750_000}
    directory = cached("serving_core", sizes, args.cache_dir)
    if not (directory / "dataset" / DATASET_FILE).is_file():
        config = SyntheticConfig(**sizes, categories=500)
        oracle = OracleOptions(history_users=0)
        generate_synthetic(config, directory / "raw", oracle=oracle, overwrite=True)
        run_dataset("amazon", directory / "raw", directory / "dataset", workers=0, overwrite=True)
    return directory / "dataset"


def _checkout(commit: str, directory: Path) -> None:
    """Lays a commit's files out.

    Raises:
      UserError: if git or the commit is not there.
    """
    command = ["git", "-C", str(_ROOT), "archive", "--format=tar", commit]
    try:
        found = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"--baseline: {commit} is not to be had ({error}). Name another commit of this "
            "checkout, or leave it out with --baseline none."
        ) from error
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(directory)
