"""The peer's side: does what lines on the standard input say, and answers each with one of JSON.

A program of a peer calls `serve` with its functions. Only the standard library is used here, for
this runs in the peer's environment.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def serve(functions: Mapping[str, Callable[[], int]], facts: Mapping[str, Any]) -> None:
    """Answers commands until the input ends.

    The first line that is written is ``{"ready": facts}``. A command is ``NAME STEPS``, and its
    answer ``{"samples": n, "seconds": s}``, or ``{"error": text}`` if it is no command.

    Args:
      functions: by name; one call does a step and returns how many samples it was of.
      facts: about the peer: versions, threads.
    """
    _end_with_parent()
    # What libraries print goes to the standard error: the standard output is for answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answers.write(json.dumps({"ready": dict(facts)}) + "\n")
    for line in sys.stdin:
        name, _, steps = line.strip().partition(" ")
        if name not in functions or not steps.isdecimal():
            expected = ", ".join(f"{known} STEPS" for known in functions)
            answers.write(
                json.dumps({"error": f"expected {expected}; got {line.strip()!r}"}) + "\n"
            )
            continue
        start = time.perf_counter()
        samples = sum(functions[name]() for _ in range(int(steps)))
        answers.write(
            json.dumps({"samples": samples, "seconds": time.perf_counter() - start}) + "\n"
        )


def _end_with_parent() -> None:
    """A stopped process does not see its input end, so the system has to end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
