"""What lies in an input and is not read: named, so that nobody takes it for read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

NAMES_SHOWN = 8

_LABEL = re.compile(
    r"((is|has)_?)?(labels?|targets?|click(s|ed)?|ratings?|stars?|overall|likes?|liked|dislikes?|"
    r"feedback|response|conver(sion|ted)|purchased?|hate|scores?)"
)


def files_not_read(directory: Path, read: Collection[Path]) -> list[str]:
    """A line with the names of the other files and directories; none where there are none.

    Args:
      directory: the input; a single file has nothing beside it.
      read: files in it that are read.
    """
    if not directory.is_dir():
        return []
    others = sorted(
        f"{path.name}/" if path.is_dir() else path.name
        for path in directory.iterdir()
        if path not in read and not path.name.startswith(".")
    )
    return [f"not read: {_listed(others)}"] if others else []


def columns_not_read(names: Iterable[str]) -> list[str]:
    """A line with the names of columns that are passed over; none where there are none."""
    others = list(dict.fromkeys(names))
    return [f"columns that are not read: {_listed(others)}"] if others else []


def labels_not_read(names: Iterable[str]) -> list[str]:
    """A line with the names of those columns that look like labels; none where there are none."""
    labels = [name for name in dict.fromkeys(names) if _LABEL.fullmatch(name.lower())]
    if not labels:
        return []
    return [
        f"WARNING: {_listed(labels)} looks like a label or a rating, and is not read: every row "
        "counts as a positive, those with 0 in it, too. If that is wrong, take such rows out of "
        "the input first."
    ]


def _listed(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
