"""SIGTERM as a request that the training loop answers between two steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

TERMINATED_EXIT_STATUS = 128 + signal.SIGTERM  # 143, what a shell reports for that signal


class TerminationRequest:
    """Whether SIGTERM has arrived.

    Attributes:
      requested: False, until it has.
    """

    def __init__(self) -> None:
        self.requested = False

    def __bool__(self) -> bool:
        return self.requested


@contextlib.contextmanager
def catch_sigterm() -> Iterator[TerminationRequest]:
    """Turns SIGTERM into a flag for the duration of the block, then restores the old handler.

    Launchers and process groups often deliver the signal twice, so a second one changes nothing
    (SIGKILL still ends the process at once, and checkpoints are atomic). Python runs handlers
    between two operations of the main thread: the flag is up when the current step returns.

    Example:
      with catch_sigterm() as termination:
          for step in steps:
              train(step)
              if termination.requested:
                  save()
                  raise SystemExit(TERMINATED_EXIT_STATUS)

    Raises:
      ValueError: outside of the main thread, where Python allows no signal handlers.
    """
    request = TerminationRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        request.requested = True

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield request
    finally:
        # None: the handler was installed by C code and cannot be put back from Python.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
