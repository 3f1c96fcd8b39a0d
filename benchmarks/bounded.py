"""Commands of ours in processes of their own, whose memory has a limit and is measured.

The limit is of RLIMIT_DATA: private memory that a process can write, whether it is resident or not.
TensorFlow reserves address space, which RLIMIT_AS would count, and files that are mapped are the
system's to drop. What was resident at most (VmHWM) and how long cores worked is measured, too.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).resolve().parent.parent
_COMMAND = """
import json, pathlib, sys, time
from lookback import cli
from lookback.core.processes import resident_peak
failed = getattr(cli, sys.argv[1])(sys.argv[3:], sys.argv[1])
pathlib.Path(sys.argv[2]).write_text(json.dumps([resident_peak(), time.process_time()]))
sys.exit(failed)
"""
"""The process tells its own peak: what `wait4` and `getrusage` tell begins with its parent's."""


class Ended(NamedTuple):
    """A command that is through.

    Attributes:
      text: that it printed.
      peak: of what was resident, in bytes.
      cpu: seconds of all cores together, of this process alone.
    """

    text: str
    peak: int
    cpu: float


def run_bounded(
    door: str, words: Sequence[str], options: Mapping[str, object], limit: int | None = None
) -> Ended:
    """Runs a command to its end.

    Args:
      door: of `lookback.cli`: "train" or "workflows".
      words: that come before the options.
      options: by name; True is a flag.
      limit: of the memory that it can write, in bytes; None: none.

    Raises:
      RuntimeError: if it fails.
    """
    given = list(words)
    for name, value in options.items():
        given += [f"--{name}"] if value is True else [f"--{name}", str(value)]

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    with tempfile.TemporaryDirectory() as directory:
        told = Path(directory) / "told"
        ended = subprocess.run(
            [sys.executable, "-c", _COMMAND, door, str(told), *given],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=restrict,
            check=False,
        )
        if ended.returncode:
            raise RuntimeError(f"{door} {' '.join(given)} failed:\n{ended.stdout[-4000:]}")
        return Ended(ended.stdout, *json.loads(told.read_text()))
