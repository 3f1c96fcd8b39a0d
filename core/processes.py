"""Processes that this one starts."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def ends_with_parent() -> Callable[[], Any] | None:
    """What a child calls to get SIGTERM when its parent is killed; None where that cannot be."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        return None
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
