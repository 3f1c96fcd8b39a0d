"""Groups of ranks that take turns on one machine: those that wait are stopped, and cost nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

_POLL_SECONDS = 0.02
_START_SECONDS = 300.0


class RankGroup:
    """Processes that do what they are told, all together, when they are told.

    Example:
      worker = "lookback.benchmarks.sharding_worker"
      with RankGroup(2, worker, {"batch": 4096}, cores=[[0], [1]]) as group:
          group.call({"steps": 10})
    """

    def __init__(
        self,
        ranks: int,
        module: str,
        config: Mapping[str, Any],
        cores: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Starts the ranks and waits until all are ready; then they are stopped.

        Args:
          ranks: how many (R); one runs without Horovod.
          module: run with ``-m`` and the control directory; it uses the functions below.
          config: for the module.
          cores: that each rank may use; None: all.
        """
        self._directory = Path(tempfile.mkdtemp(prefix="lookback-ranks-"))
        (self._directory / "config.json").write_text(
            json.dumps({**config, "ranks": ranks, "cores": cores, "owner": os.getpid()})
        )
        self._log = (self._directory / "log.txt").open("w")
        self._ranks, self._calls = ranks, 0
        command = [sys.executable, "-m", module, str(self._directory)]
        if ranks > 1:
            horovodrun = str(Path(sys.executable).parent / "horovodrun")
            hosts = ["-np", str(ranks), "-H", f"localhost:{ranks}", "--gloo"]
            command = [horovodrun, *hosts, *command]
        # Who is stopped must not take the others, or be taken, for frozen (Gloo's default is 30 s).
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "HOROVOD_GLOO_TIMEOUT_SECONDS": "600",
        }
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=environment
        )
        try:
            self._wait("ready")
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Lets the ranks do something; returns the answer of rank 0."""
        self._calls += 1
        path = self._directory / f"command-{self._calls}"
        path.with_suffix(".tmp").write_text(json.dumps(command))
        path.with_suffix(".tmp").rename(path)
        self._signal(signal.SIGCONT)
        answer = self._wait(f"answer-{self._calls}")
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """Ends the ranks."""
        self._signal(signal.SIGKILL)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._log.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _signal(self, number: int) -> None:
        for rank in range(self._ranks):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self._directory / f"pid-{rank}").read_text()), number)

    def _wait(self, name: str) -> dict[str, Any]:
        path, deadline = self._directory / name, time.monotonic() + _START_SECONDS
        while not path.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._log.flush()
                log = (self._directory / "log.txt").read_text()
                raise RuntimeError(f"The ranks ended, or did not answer:\n{log[-4000:]}")
            time.sleep(_POLL_SECONDS)
        answer: dict[str, Any] = json.loads(path.read_text())
        return answer


def rank_config(directory: Path, rank: int) -> dict[str, Any]:
    """What a rank is to do; binds it to its cores, if it has any of its own."""
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    if config["cores"] is not None:
        os.sched_setaffinity(0, config["cores"][rank])
    _write(directory / f"pid-{rank}", str(os.getpid()))
    return config


def commands(directory: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The commands that a rank gets, numbered, until its group ends it, or is no more."""
    config = json.loads((directory / "config.json").read_text())
    number, owner = 1, Path(f"/proc/{config['owner']}")
    while True:
        path = directory / f"command-{number}"
        while not path.exists():
            if not owner.exists():  # killed: nobody would ever end this rank
                return
            time.sleep(_POLL_SECONDS)
        yield number, json.loads(path.read_text())
        number += 1


def answer(directory: Path, name: str, found: Mapping[str, Any]) -> None:
    """Says what rank 0 found."""
    _write(directory / name, json.dumps(found))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.rename(path)
