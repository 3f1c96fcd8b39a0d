"""Groups of ranks that take turns on one machine: those that wait are stopped, and cost nothing.

Ranks speak the lines of `benchmarks.child`, through a socket: horovodrun keeps their standard
streams to itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lookback.benchmarks.child import checked, killing_late, receive, send

_SOCKET = "ranks"
_POLL_SECONDS = 0.5


class RankGroup:
    """Processes that do what they are told, all together, when they are told.

    Example:
      worker = "lookback.benchmarks.sharding_worker"
      with RankGroup(2, worker, {"batch": 4096}, cores=[[0], [1]]) as group:
          group.ask(do="train", steps=10)
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
          module: run with ``-m`` and the path that `join_group` takes.
          config: for the module.
          cores: that each rank may use; None: all.
        """
        self._directory = Path(tempfile.mkdtemp(prefix="lookback-ranks-"))
        self._log = (self._directory / "log.txt").open("w")
        self._pids: list[int] = []
        self._streams: list[tuple[IO[str], IO[str]]] = []
        command = [sys.executable, "-m", module, str(self._directory / _SOCKET)]
        if ranks > 1:
            horovodrun = str(Path(sys.executable).parent / "horovodrun")
            hosts = ["-np", str(ranks), "-H", f"localhost:{ranks}", "--gloo"]
            command = [horovodrun, *hosts, *command]
        # No rank may take another for dead because one of them is stopped (Gloo's default is 30 s).
        environment = {
            **os.environ,
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "HOROVOD_GLOO_TIMEOUT_SECONDS": "600",
        }
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._directory / _SOCKET))
            listener.listen(ranks)
            self._process = subprocess.Popen(
                command, stdout=self._log, stderr=subprocess.STDOUT, env=environment
            )
            try:
                self._meet(listener, ranks)
                for rank, (_, out) in enumerate(self._streams):
                    send(out, {**config, "cores": None if cores is None else cores[rank]})
                self._answers()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> RankGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, **what: Any) -> dict[str, Any]:
        """Has all ranks do something; gives the answer of rank 0.

        Raises:
          RuntimeError: if they do not know how, or one of them ended.
        """
        self._signal(signal.SIGCONT)
        for _, out in self._streams:
            with contextlib.suppress(BrokenPipeError):  # it ended: then there is no answer
                send(out, what)
        return checked(self._answers()[0])

    def close(self) -> None:
        """Ends the ranks."""
        self._signal(signal.SIGKILL)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        for stream in (self._log, *(stream for pair in self._streams for stream in pair)):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _meet(self, listener: socket.socket, ranks: int) -> None:
        """Accepts the ranks, in whatever order they come."""
        found: dict[int, tuple[int, tuple[IO[str], IO[str]]]] = {}
        listener.settimeout(_POLL_SECONDS)
        with killing_late(self._process.kill):
            while len(found) < ranks:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    if self._process.poll() is not None:
                        raise self._ended() from None
                    continue
                connection.settimeout(None)
                with connection:
                    streams = connection.makefile("r"), connection.makefile("w")
                met = receive(streams[0])
                if met is not None:  # it ended at once
                    found[met["rank"]] = met["pid"], streams
        self._pids = [found[rank][0] for rank in range(ranks)]
        self._streams = [found[rank][1] for rank in range(ranks)]

    def _answers(self) -> list[dict[str, Any]]:
        """What all say, by rank; then they are stopped."""
        with killing_late(lambda: self._signal(signal.SIGKILL)):
            answers = [receive(stream) for stream, _ in self._streams]
        if None in answers:
            raise self._ended()
        self._signal(signal.SIGSTOP)
        return [answer for answer in answers if answer is not None]

    def _signal(self, number: int) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _ended(self) -> RuntimeError:
        self._log.flush()
        log = (self._directory / "log.txt").read_text()
        return RuntimeError(f"The ranks ended, or did not answer:\n{log[-4000:]}")


def join_group(path: str) -> tuple[dict[str, Any], tuple[IO[str], IO[str]]]:
    """Joins a group as one of its ranks, bound to its cores, if it has any of its own.

    Args:
      path: of the group's socket.

    Returns:
      The group's config, and the streams for `benchmarks.child_server.serve`.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        lines, answers = connection.makefile("r"), connection.makefile("w")
    send(answers, {"rank": int(os.environ.get("HOROVOD_RANK", "0")), "pid": os.getpid()})
    config = receive(lines)
    if config is None:
        raise SystemExit("the benchmark has ended")
    cores = config.pop("cores")
    if cores is not None:
        os.sched_setaffinity(0, cores)
    return config, (lines, answers)
