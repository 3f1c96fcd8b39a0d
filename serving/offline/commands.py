"""The command `score-file`: scores of many users, or the best items for each, to a Parquet file."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lookback.core.digests import read_trusted
from lookback.core.errors import UserError
from lookback.core.limits import MOST_ROWS, MOST_THREADS
from lookback.core.options import SET, UNSET, Command, CommandLine, option
from lookback.formats.verification import DatasetChecks

if TYPE_CHECKING:
    from lookback.serving.offline.ranking import Counts


@dataclasses.dataclass(frozen=True)
class ScoreFileOptions:
    """Whom and what to score, and where the scores go."""

    scope: ClassVar[str] = "users and scores"
    bundle: Path = option(help="what train.py exported", positional=True)
    output: Path = option(
        help="Parquet file to write; parts of it lie in OUTPUT.parts until it is whole"
    )
    input: Path | None = option(
        None,
        help="users with their histories (and candidates), or rows: a Parquet file, a directory of "
        "such, or JSON lines as of `serving score`",
    )
    dataset_dir: Path | None = option(
        None,
        help="score every user of this dataset, by all their events",
        needs={"input": UNSET},
    )
    top_k: int | None = option(
        None,
        help="keep so many items for each user, the best ones: of the user's candidates, of "
        "--candidates, or else of the whole catalogue; none: all candidates",
        at_least=1,
        limit=MOST_ROWS,
    )
    candidates: Path | None = option(
        None,
        help="items to rank for every user, a row each: Parquet, or JSON lines, of the item id and "
        "maybe other item features",
    )
    exclude_seen: bool = option(False, help="leave out the items of the user's history (flag)")
    timestamp: int | None = option(
        None,
        help="the moment of scoring, for users of a dataset and models that read times",
        unit="seconds",
        needs={"dataset_dir": SET},
    )
    workers: int = option(
        1,
        help="processes, each with a part of the users and of the cores",
        at_least=1,
        limit=MOST_THREADS,
    )
    trusted_digest: str | None = option(
        None, help="open the bundle only if this is the SHA-256 of its bundle.json"
    )

    def __post_init__(self) -> None:
        """Validates."""
        if self.input is None and self.dataset_dir is None:
            raise UserError("--input or --dataset_dir: expected one of them, received none.")


def score_file(options: ScoreFileOptions, checks: DatasetChecks) -> None:
    """Scores, and says what was found.

    Raises:
      UserError: for what the user can put right; what is done stays for the next run.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    if options.dataset_dir is not None:
        note = checks.begin(options.dataset_dir)
        if note is not None:
            print(note, file=sys.stderr)
    elif checks != DatasetChecks():
        raise UserError(
            "--no_verify, --trusted_dataset_digest: they are about --dataset_dir, which is not "
            "given. Leave them out."
        )
    from lookback.serving.manifest import MANIFEST_FILE, Manifest
    from lookback.serving.offline.job import run_job
    from lookback.serving.offline.work import Task

    Manifest.read(options.bundle, options.trusted_digest)
    _, digest = read_trusted(options.bundle / MANIFEST_FILE, options.trusted_digest)
    task = Task(
        options.bundle,
        digest,
        options.input,
        options.dataset_dir,
        options.candidates,
        options.top_k,
        options.exclude_seen,
        options.timestamp,
        checks.verification,
    )
    counts, seconds = run_job(task, options.output, options.workers)
    for line in report(counts):
        print(line)
    print(f"{options.output}: scored in {seconds:,.1f} s", file=sys.stderr)


def report(counts: Counts) -> list[str]:
    """What was found, in lines for people."""
    what = "users" if "without_items" in counts else "rows"
    lines = [
        f"{counts['users']:,} {what}, {counts['pairs']:,} scores, of which {counts['rows']:,} are "
        "kept"
    ]
    unknown = [
        f"{counts[f'unknown_{name}']:,} of {counts[of]:,} {name}"
        for name, of in (("users", "users"), ("events", "events"), ("candidates", "pairs"))
        if counts[f"unknown_{name}"]
    ]
    if unknown:
        lines.append(
            f"unknown to the bundle: {', '.join(unknown)}. All such ids share one row of a table, "
            "which tells nothing of them apart."
        )
    if counts["without_items"]:
        lines.append(f"{counts['without_items']:,} users have no item left to recommend")
    return lines


SCORE_FILE = Command(
    "score many users, or rank all items for each of them: a file in, a file out",
    CommandLine((ScoreFileOptions, DatasetChecks)),
    score_file,
)
