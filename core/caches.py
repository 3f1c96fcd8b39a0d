"""A place for the caches of libraries, where their own directories cannot be written."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from lookback.core.errors import UserError

_CHECKOUT = Path(__file__).resolve().parents[1]


def provide_caches(checkout: Path = _CHECKOUT) -> None:
    """Gives Numba and matplotlib a temporary directory where they cannot write to their own.

    Without a place, Numba refuses to compile (numba/core/caching.py: "no locator available") and
    matplotlib to be imported ("Could not determine home directory"): in a container with a
    read-only disk, or for a user without a home. Call it before they are imported; child processes
    get it from the environment. The directory is removed when this process ends.

    Args:
      checkout: where Numba keeps what it has compiled, if it can: beside our code.

    Raises:
      UserError: if there is no place for temporary files either.
    """
    needing = [] if _writable_home() else ["MPLCONFIGDIR"]
    if needing and not os.access(checkout, os.W_OK):
        needing.append("NUMBA_CACHE_DIR")
    needing = [name for name in needing if not os.environ.get(name)]
    if not needing:
        return
    try:
        place = tempfile.mkdtemp(prefix="lookback-caches-")
    except OSError as error:
        raise UserError(
            f"Neither the home directory nor one for temporary files can be written ({error}). "
            "Set TMPDIR to a directory that can."
        ) from error
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for name in needing:
        os.environ[name] = place


def _writable_home() -> bool:
    """Whether there is, or could be, a directory for caches in the user's home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and a user whom the system does not know
        return False
    there = next(place for place in (cache, *cache.absolute().parents) if os.path.lexists(place))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
