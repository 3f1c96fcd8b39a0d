"""The end of `benchmarks.child` that is in the program: does what lines say, and answers each.

Only the standard library is used here, for this runs in the environments of peers, too.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def serve(
    functions: Mapping[str, Callable[..., Mapping[str, Any]]],
    facts: Mapping[str, Any],
    streams: tuple[IO[str], IO[str]] | None = None,
) -> None:
    """Writes the facts, then answers until the input ends.

    Args:
      functions: by name; each takes what stands beside `do` in a line, and gives the answer.
      facts: about the program: versions, threads.
      streams: where lines are read from and where answers go; None: standard input and output.
    """
    _end_with_parent()
    lines, answers = streams or (sys.stdin, _own_output())

    def write(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(dict(answer)) + "\n")
        answers.flush()

    write(facts)
    for line in lines:
        arguments = json.loads(line)
        function = functions.get(arguments.pop("do", ""))
        if function is None:
            write({"error": f"expected `do` of {', '.join(functions)}; got {line.strip()}"})
        else:
            write(function(**arguments))


def serve_steps(steps: Mapping[str, Callable[[], int]], facts: Mapping[str, Any]) -> None:
    """As `serve`; ``steps`` of a line repeats a step, whose ``samples`` and ``seconds`` it answers.

    Args:
      steps: by name; one call does a step and returns how many samples it was of.
      facts: about the program.
    """
    serve({name: _repeated(step) for name, step in steps.items()}, facts)


def _repeated(step: Callable[[], int]) -> Callable[..., Mapping[str, Any]]:
    def repeat(steps: int = 1) -> Mapping[str, Any]:
        start = time.perf_counter()
        samples = sum(step() for _ in range(steps))
        return {"samples": samples, "seconds": time.perf_counter() - start}

    return repeat


def _own_output() -> IO[str]:
    """The standard output, for answers alone: what libraries print goes to the standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _end_with_parent() -> None:
    """A stopped process does not see its input end, so the system has to end it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
