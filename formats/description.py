"""What a directory holds, by the files that say so. Plain Python, so that command lines may ask."""

from __future__ import annotations

import json
from pathlib import Path

MATERIALISED = "materialised samples"
"""What a directory holds that somebody else made samples of, in words."""


def is_materialised(directory: str | Path) -> bool:
    """Whether the directory holds materialised samples rather than histories."""
    return (Path(directory) / "metadata.json").is_file()


def format_named_in(directory: str | Path) -> str | None:
    """The format that the directory's dataset.json names (in whatever version), if it does."""
    try:
        description = json.loads((Path(directory) / "dataset.json").read_text())
    except (OSError, ValueError):
        return None
    return description.get("format") if isinstance(description, dict) else None
