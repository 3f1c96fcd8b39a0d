"""What a program and all that it starts take: time, memory, disk."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_EVERY_SECONDS = 1.0  # a look at a large Java heap takes some 10 ms of a core


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a program took.

    Attributes:
      seconds: from its start to its end.
      peak_memory_bytes: of all its processes at one time, pages that they share counted once
        (the sum of their PSS).
      peak_disk_bytes: of the directory that it writes in.
      output: its standard output.
    """

    seconds: float
    peak_memory_bytes: int
    peak_disk_bytes: int
    output: str


def measure(
    command: Sequence[str], directory: Path, cwd: Path, *, every: float = _EVERY_SECONDS
) -> Usage:
    """Runs a program to its end.

    Args:
      command: with its arguments.
      directory: whose size is looked at.
      cwd: that it runs in.
      every: seconds between two looks at memory and disk.

    Raises:
      RuntimeError: if it fails, with the end of what it said.
    """
    ended = threading.Event()
    memory, disk = [0], [0]
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=errors, text=True
        )

        def watch() -> None:
            while not ended.wait(every):
                memory[0] = max(memory[0], tree_memory(process.pid))
                disk[0] = max(disk[0], directory_bytes(directory))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            output, _ = process.communicate()
        finally:
            seconds = time.perf_counter() - start
            ended.set()
            watcher.join()
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(
                f"{' '.join(command)} ended with {process.returncode}:\n"
                f"{output[-2000:]}{errors.read()[-4000:]}"
            )
    return Usage(seconds, memory[0], max(disk[0], directory_bytes(directory)), output)


def tree_memory(pid: int) -> int:
    """Memory of a process and all below it, in bytes; what has ended counts nothing."""
    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total


def directory_bytes(directory: Path) -> int:
    """Size of all files below a directory, as far as they are there still when looked at."""
    total = 0
    for root, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(root) / name).stat().st_size
    return total
