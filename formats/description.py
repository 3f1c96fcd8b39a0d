"""dataset.json: what a directory says that it holds."""

from __future__ import annotations

import json
from pathlib import Path


def format_named_in(directory: str | Path) -> str | None:
    """The format that the directory's dataset.json names (in whatever version), if it does."""
    try:
        description = json.loads((Path(directory) / "dataset.json").read_text())
    except (OSError, ValueError):
        return None
    return description.get("format") if isinstance(description, dict) else None
