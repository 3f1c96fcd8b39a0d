"""What a directory holds, by the files that say so. Plain Python, so that command lines may ask."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.manifests import DIGEST, is_whole, sealed
from lookback.core.yaml_files import read_yaml

METADATA_FILE = "metadata.json"
"""Describes materialised samples."""

FEATURE_SPEC_FILE = "feature_spec.yaml"
"""Describes the files of NVIDIA's recipes."""

SPECIFICATION_METADATA = "metadata"
"""The section of a specification that may hold anything."""

_SPECIFICATION, _OURS = "specification", "lookback"

MATERIALISED = "materialised samples"
"""What a directory holds that somebody else made samples of, in words."""

RESIDENT = "histories"
"""What a directory holds that our workflows made of users' events, in words."""

IMPRESSIONS = "impressions"
"""What the targets of histories are where labels are explicit, in words."""

WITHOUT_AUXILIARY_LOSS = "impressions, read by a model without an auxiliary loss,"
"""The same, where nothing is drawn at all."""


def is_materialised(directory: str | Path) -> bool:
    """Whether the directory holds materialised samples rather than histories."""
    return (Path(directory) / METADATA_FILE).is_file()


def is_split_binary(directory: str | Path) -> bool:
    """Whether the directory holds split-binary files, by their description."""
    return (Path(directory) / FEATURE_SPEC_FILE).is_file()


def described(specification: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A specification with facts about its files, in a section that NVIDIA's tools ignore.

    Args:
      specification: its sections.
      facts: `core.manifests.FILES`, and what else is known of the data.
    """
    digest = sealed({**facts, _SPECIFICATION: dict(specification)})[DIGEST]
    return {**specification, SPECIFICATION_METADATA: {_OURS: {**facts, DIGEST: digest}}}


def read_specification(file: Path) -> tuple[Any, dict[str, Any]]:
    """The content of a feature_spec.yaml, and the facts that `described` added, if any.

    Raises:
      UserError: if it cannot be read, or is not as `described` wrote it.
    """
    content = read_yaml(file, shared_lists=True)  # NVIDIA's tools dump a list of names twice
    metadata = content.get(SPECIFICATION_METADATA) if isinstance(content, Mapping) else None
    ours = metadata.get(_OURS) if isinstance(metadata, Mapping) else None
    if ours is None:
        return content, {}
    rest = {name: section for name, section in content.items() if name != SPECIFICATION_METADATA}
    if not isinstance(ours, Mapping) or not is_whole({**ours, _SPECIFICATION: rest}):
        raise UserError(
            f"{file} is not what was written: its content has another digest than it says. Copy "
            "the files again from where they were written, or export them again with `python -m "
            "workflows export-feature-spec`. (To change it on purpose, remove its section "
            "'metadata'.)"
        )
    return content, dict(ours)
