"""What a directory holds, by the files that say so. Plain Python, so that command lines may ask."""

from __future__ import annotations

from pathlib import Path

MATERIALISED = "materialised samples"
"""What a directory holds that somebody else made samples of, in words."""


def is_materialised(directory: str | Path) -> bool:
    """Whether the directory holds materialised samples rather than histories."""
    return (Path(directory) / "metadata.json").is_file()
