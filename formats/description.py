"""What a directory holds, by the files that say so. Plain Python, so that command lines may ask."""

from __future__ import annotations

from pathlib import Path

METADATA_FILE = "metadata.json"
"""Describes materialised samples."""

FEATURE_SPEC_FILE = "feature_spec.yaml"
"""Describes split-binary files."""

MATERIALISED = "materialised samples"
"""What a directory holds that somebody else made samples of, in words."""

RESIDENT = "histories"
"""What a directory holds that our workflows made of users' events, in words."""


def is_materialised(directory: str | Path) -> bool:
    """Whether the directory holds materialised samples rather than histories."""
    return (Path(directory) / METADATA_FILE).is_file()


def is_split_binary(directory: str | Path) -> bool:
    """Whether the directory holds split-binary files, by their description."""
    return (Path(directory) / FEATURE_SPEC_FILE).is_file()
