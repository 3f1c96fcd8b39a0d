"""Child processes that end with this one, and the memory that this one takes."""

from __future__ import annotations

import ctypes
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def ends_with_parent() -> Callable[[], Any] | None:
    """What a child calls to get SIGTERM when its parent is killed; None where that cannot be."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        return None
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def resident_peak() -> int:
    """Peak resident memory of this process since its program began, in bytes.

    Not `getrusage`: its figure begins with what the process had that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None, status
    return int(match[1]) << 10
