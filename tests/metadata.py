"""What `dataset.json` says of the data, without what it says of files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lookback.core.manifests import DIGEST, FILES


def of_data(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Without files and their digests: a pickle of NVTabular's differs from run to run."""
    return {key: value for key, value in metadata.items() if key not in (FILES, DIGEST)}
