"""What Lookback is from Python: the public names, which `lookback.__all__` lists.

Each imports what it needs when it is called: TensorFlow takes seconds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lookback.serving.bundle import Bundle


def load_bundle(path: str | Path, trusted_digest: str | None = None) -> Bundle:
    """Verifies and loads what ``train.py --export_dir`` wrote.

    Its SavedModel is code that scoring runs: see docs/trust.md.

    Args:
      path: of the bundle.
      trusted_digest: SHA-256 that its bundle.json must have; None: any.

    Returns:
      What scores requests.

    Raises:
      UserError: if it is no bundle, another one than is trusted, or damaged; the text names the
        file.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    from lookback.serving.bundle import Bundle

    return Bundle.load(path, trusted_digest)
