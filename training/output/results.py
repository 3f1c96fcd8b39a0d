"""Where a run's results go, and what becomes of those of an earlier run that are there.

A run writes its log, configuration, report and scores under fixed names. Where an earlier run has
written them, which its log says, they are moved to `earlier/`, so that no directory mixes two runs.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.files import require_writable
from lookback.core.json_files import load_object

RUNS = Path("runs")
"""Where the directories of runs are that were given none."""

LOG_PREFIX = "DLLL "
IDENTITY = "run"
"""Metric of the METADATA line that a log begins with: it says which run the log is of."""
REPLACED = (
    "config.yaml",
    "scores.parquet",
    "bad_batch.json",
    *(
        f"report/{name}"
        for name in (
            "index.html",
            "metrics.json",
            "learning_curve.png",
            "evaluation.png",
            "roc.png",
            "precision_recall.png",
            "calibration.png",
            "strata.png",
            "attention.png",
        )
    ),
)
"""What a run writes besides its log."""
EARLIER = "earlier"
"""Where results of earlier runs are, below `results_dir`."""
OTHER_NAMES = frozenset({*(Path(name).parts[0] for name in REPLACED), "tensorboard", EARLIER})
"""Names in `results_dir` that its log cannot have."""
_TIME = "%Y%m%d-%H%M%S"


@contextlib.contextmanager
def new_results(model_type: str) -> Iterator[Path]:
    """A directory of its own for a run: ``runs/<UTC time>-<model>``; removed if it stays empty.

    Raises:
      UserError: if it cannot be created.
    """
    require_writable(RUNS, "results_dir")
    name = f"{datetime.datetime.now(datetime.timezone.utc):{_TIME}}-{model_type}"
    path = _made(RUNS, name)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.rmdir()


def set_aside(results_dir: Path) -> Path | None:
    """Moves what an earlier run has written to a directory of its own in `results_dir`/earlier.

    Returns:
      That directory; None if no run has written anything.
    """
    logs = [path for path in results_dir.iterdir() if _is_log(path)]
    if not logs:
        return None
    began = min(_began(path) for path in logs)
    aside = _made(results_dir / EARLIER, f"{began:{_TIME}}")
    names = {*(path.name for path in logs), *(OTHER_NAMES - {EARLIER})}
    for pattern in ("bad_batch.*.json", "traceback-*.txt"):
        names |= {path.name for path in results_dir.glob(pattern)}
    for name in sorted(names):
        with contextlib.suppress(FileNotFoundError):
            (results_dir / name).rename(aside / name)
    return aside


def check_results(results_dir: Path, log_filename: str) -> None:
    """Checks that nothing is in a run's way but what an earlier run wrote.

    Args:
      results_dir: of the run; may be missing.
      log_filename: name of its log in there.

    Raises:
      UserError: naming what is in the way.
    """
    log = results_dir / log_filename
    empty = log.is_file() and not log.stat().st_size
    if log.is_symlink() or (log.exists() and not empty and not _is_log(log)):
        raise UserError(
            f"results_dir: {log} is there and is no log of a run, so it stays. Choose "
            "another --results_dir or --log_filename."
        )
    if not results_dir.is_dir() or any(_is_log(path) for path in results_dir.iterdir()):
        return
    of_ranks = [path.name for path in results_dir.glob("bad_batch.*.json")]
    for name in (*REPLACED, *of_ranks):
        if (results_dir / name).exists():
            raise UserError(
                f"results_dir: {results_dir} holds {name}, as a run writes it, but no log of an "
                "earlier run that could have written it. Choose another directory, or move it away."
            )


def identity_of(log: Path) -> str | None:
    """What a log says of the run that it belongs to; None if it says nothing."""
    try:
        entry = _first_entry(log)
        identity = entry["metadata"]["identity"] if entry["metric"] == IDENTITY else None
    except (UserError, KeyError, TypeError):
        return None
    return identity if isinstance(identity, str) else None


def _made(directory: Path, name: str) -> Path:
    """A new directory of that name, or with a number after it if there is one already."""
    for number in itertools.count(1):
        path = directory / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("there is always another number")


def _began(log: Path) -> datetime.datetime:
    """When a run began, by its log's first line; else when it was last written."""
    try:
        moment = float(_first_entry(log)["timestamp"])
        return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)
    except (UserError, KeyError, TypeError, ValueError, OverflowError, OSError):
        written = log.stat().st_mtime
    return datetime.datetime.fromtimestamp(written, datetime.timezone.utc)


def _first_entry(log: Path) -> dict[str, Any]:
    with log.open(encoding="utf-8", errors="replace") as file:
        return load_object(file.readline().removeprefix(LOG_PREFIX), str(log))


def _is_log(path: Path) -> bool:
    """Whether a file begins as a log does."""
    try:
        with path.open("rb") as file:
            return file.read(len(LOG_PREFIX)) == LOG_PREFIX.encode()
    except OSError:
        return False
