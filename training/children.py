"""Runs of `lookback train` in processes of their own, one after another, and what they found."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lookback.training.output.logging import read_log

TERMINAL_FILE = "terminal.txt"
"""In the directory of a run's results: what it printed."""
SECONDS_BETWEEN_LOOKS = 0.5
_SHOWN_OF_TERMINAL = 600  # characters

Start = Callable[[Sequence[str], Path, Callable[[], bool]], int]
"""Runs a command line, its terminal a file, until it ends or is told to; gives the exit status."""


def run_process(words: Sequence[str], terminal: Path, ends: Callable[[], bool]) -> int:
    """Runs a command line in a process, which ends with this one.

    Args:
      words: of the command line, after ``lookback train``.
      terminal: the file that takes what it prints.
      ends: whether it is to end now; asked twice a second.

    Returns:
      The exit status.
    """
    code = "import sys; from lookback.cli import main; sys.exit(main())"
    with terminal.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "train", *words], stdout=file, stderr=subprocess.STDOUT
        )
        try:
            while True:
                try:
                    return process.wait(SECONDS_BETWEEN_LOOKS)
                except subprocess.TimeoutExpired:
                    if ends():
                        process.terminate()
                        return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def summary_in(log: Path) -> dict[str, Any]:
    """The last figures of a run, by name."""
    return dict([record.data for record in read_log(log) if not record.step][-1])


def last_words(terminal: Path) -> str:
    """The end of what a run printed."""
    text = terminal.read_text(encoding="utf-8", errors="replace").strip()
    return text[-_SHOWN_OF_TERMINAL:]
