"""Criteo's click logs, and data of their format: one line an impression.

A line is label, N integers and M hashed categorical values, separated by tabs; an empty field is
a missing value. Criteo has 13 and 26 of them, in one of two forms:

- the Terabyte logs: ``day_0`` ... ``day_23``, or each with ``.gz``; the last file is the last day;
- the Kaggle challenge: ``train.txt`` (or ``.gz``), seven days in order; its last seventh, by rows,
  is the last day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lookback.core.errors import UserError
from lookback.core.limits import MOST_WIDTH
from lookback.core.options import option
from lookback.workflows.tabular.reader import RawFiles, TabularReader

KAGGLE_FILES = ("train.txt", "train.txt.gz")
KAGGLE_DAYS = 7
DAY_FILE = re.compile(r"day_(\d+)(\.gz)?")
LIKE_A_DAY = re.compile(r"day[_-]?\d", re.IGNORECASE)


@dataclass(frozen=True)
class CriteoReader(TabularReader):
    """Finds the files of Criteo's logs."""

    scope = "options of criteo"

    numerical: int = option(
        13, help="integers of a line", at_least=0, continued=True, limit=MOST_WIDTH
    )
    categorical: int = option(
        26, help="categorical values of a line", at_least=0, continued=True, limit=MOST_WIDTH
    )

    def files(self, directory: Path) -> RawFiles:
        """Kaggle's file, or the days in the order of their numbers."""
        kaggle = [directory / name for name in KAGGLE_FILES if (directory / name).exists()]
        days = _days(directory)
        found = [*kaggle, *days.values()]
        if not found:
            raise UserError(
                f"{directory} has neither day_0, day_1, ... (or day_0.gz, ...) nor train.txt. "
                "Point --input at the directory of the unpacked logs "
                "(scripts/download_criteo.sh fetches them)."
            )
        if kaggle and len(found) > 1:
            names = ", ".join(path.name for path in found[:4])
            raise UserError(f"{directory} has {names}: which to read? Move the others away.")
        missing = sorted(set(range(min(days, default=0), max(days, default=-1) + 1)) - set(days))
        if missing:
            names = ", ".join(f"day_{number}" for number in missing[:5])
            raise UserError(
                f"{directory} has day_{min(days)} to day_{max(days)}, but not {names}. Fetch what "
                "is missing, or move the days after the gap away."
            )
        for path in found:
            if not path.stat().st_size:
                raise UserError(f"{path} is empty. Fetch it again, or move it away.")
        return RawFiles(tuple(found), KAGGLE_DAYS if kaggle else 1)


def _days(directory: Path) -> dict[int, Path]:
    days: dict[int, Path] = {}
    for path in directory.iterdir():
        match = DAY_FILE.fullmatch(path.name)
        if match is None:
            if LIKE_A_DAY.match(path.name):
                raise UserError(
                    f"{directory} has {path.name}, which is not read: days are named day_0 or "
                    "day_0.gz, with nothing after that. Rename it, or move it away."
                )
            continue
        number = int(match[1])
        if number in days:
            raise UserError(
                f"{directory} has {days[number].name} and {path.name}, the same day. Move one of "
                "them away."
            )
        days[number] = path
    return dict(sorted(days.items()))
