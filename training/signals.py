"""SIGTERM and Ctrl-C as requests that the training loop answers between two steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

TERMINATED_EXIT_STATUS = 128 + signal.SIGTERM
"""143, what a shell reports for that signal; after Ctrl-C it is 130 (`core.faults`)."""


class TerminatedError(Exception):
    """The loop ends because it was asked to."""


class TerminationRequest:
    """Whether SIGTERM or SIGINT has arrived.

    Attributes:
      received: the first of them; None, until one has arrived.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def status(self) -> int:
        """The exit status: what a shell reports for the signal.

        Where another process got it, and this one ends with it, it is that of SIGTERM.
        """
        return TERMINATED_EXIT_STATUS if self.received is None else 128 + self.received

    def check(self) -> None:
        """Ends the loop, if it is to end.

        Raises:
          TerminatedError: if a signal has arrived.
        """
        if self:
            raise TerminatedError


@contextlib.contextmanager
def catch_termination() -> Iterator[TerminationRequest]:
    """Turns SIGTERM and SIGINT into a flag for the duration of the block, then restores handlers.

    Launchers and process groups often deliver SIGTERM twice, so a second one changes nothing. A
    second Ctrl-C is a person who does not want to wait: the system ends the process at once,
    whatever it is doing (checkpoints are atomic). Python runs handlers between two operations of
    the main thread: the flag is up when the current step returns.

    Example:
      with catch_termination() as termination:
          for step in steps:
              train(step)
              if termination:
                  save()
                  raise SystemExit(termination.status)

    Raises:
      ValueError: outside of the main thread, where Python allows no signal handlers.
    """
    request = TerminationRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        request.received = request.received or signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            # None: the handler was installed by C code and cannot be put back from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
