"""Whether a run may write to `results_dir`: the logs of earlier runs say that it is one.

A run starts its log anew and writes its configuration, report and scores under fixed names, so
these may be there only if an earlier run wrote them.
"""

from __future__ import annotations

from pathlib import Path

from lookback.core.errors import UserError

LOG_PREFIX = "DLLL "
REPLACED = (
    "config.yaml",
    "scores.parquet",
    "bad_batch.json",
    *(f"report/{name}" for name in ("metrics.json", "learning_curve.png", "roc.png")),
)
"""What a run writes besides its log, and replaces if it is there."""
OTHER_NAMES = frozenset({Path(name).parts[0] for name in REPLACED} | {"tensorboard"})
"""Names in `results_dir` that its log cannot have."""


def check_results(results_dir: Path, log_filename: str) -> None:
    """Checks that a run would replace nothing but what an earlier run wrote.

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
            f"results_dir: {log} is there and is no log of a run, so it is not replaced. Choose "
            "another --results_dir or --log_filename."
        )
    if not results_dir.is_dir() or any(_is_log(path) for path in results_dir.iterdir()):
        return
    of_ranks = [path.name for path in results_dir.glob("bad_batch.*.json")]
    for name in (*REPLACED, *of_ranks):
        if (results_dir / name).exists():
            raise UserError(
                f"results_dir: {results_dir} holds {name}, which a run replaces, but no log of an "
                "earlier run that could have written it. Choose another directory, or move it away."
            )


def _is_log(path: Path) -> bool:
    """Whether a file begins as a log does."""
    try:
        with path.open("rb") as file:
            return file.read(len(LOG_PREFIX)) == LOG_PREFIX.encode()
    except OSError:
        return False
