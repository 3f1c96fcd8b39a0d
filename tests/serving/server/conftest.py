from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where pictures are kept: LOOKBACK_ARTEFACTS, if it is set."""
    kept = Path(os.environ.get("LOOKBACK_ARTEFACTS", tmp_path))
    kept.mkdir(parents=True, exist_ok=True)
    return kept
