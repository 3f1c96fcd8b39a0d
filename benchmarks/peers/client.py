"""Our side of a peer: starts its program, gives it turns, and stops it while others have theirs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / ".venv" / "src"  # where `lookback` is found
ENVIRONMENTS = ROOT / ".tools" / "peers"

PEERS: dict[str, str] = {
    "deepctr_histories": "deepctr_torch",
    "fuxictr_histories": "fuxictr",
    "spark_criteo": "spark",
    "torch_dlrm": "torch",
    "torch_neumf": "torch",
}
"""The environment of each program: ``benchmarks/peers/NAME.py`` runs in ``.tools/peers/...``."""

_WAIT_SECONDS = 600.0


class Peer:
    """A program of `PEERS` that runs beside this process, and only when it is told to.

    Attributes:
      facts: what the program says about itself: versions, threads.
    """

    def __init__(self, name: str, **options: Any) -> None:
        """Starts the program and waits until it is ready; then it is stopped.

        Args:
          name: a key of `PEERS`.
          **options: of its command line; None and False are left out, True is a bare flag.

        Raises:
          RuntimeError: if it ends before it is ready, with its last words.
        """
        command = [str(peer_python(name)), "-m", f"lookback.benchmarks.peers.{name}"]
        for option, value in options.items():
            if value is True:
                command.append(f"--{option}")
            elif value is not None and value is not False:
                command += [f"--{option}", str(value)]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (close() closes it)
        # Its own environment decides what it imports.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment["PYTHONPATH"] = str(SOURCES)
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        try:
            self.facts: dict[str, Any] = self._answer()["ready"]
        except BaseException:
            self.close()
            raise
        self._process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, command: str, steps: int = 1) -> tuple[int, float]:
        """Lets the program do steps; gives the number of samples and the seconds it counted.

        Raises:
          RuntimeError: if it does not know the command, or ended.
        """
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(f"{command} {steps}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        answer = self._answer()
        self._process.send_signal(signal.SIGSTOP)
        if "error" in answer:
            raise RuntimeError(f"The peer {answer['error']}")
        return answer["samples"], answer["seconds"]

    @property
    def pid(self) -> int:
        """The number of the program's process."""
        return self._process.pid

    def peak_rss_bytes(self) -> int:
        """The most memory that the program has had in RAM so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024

    def close(self) -> None:
        """Ends the program."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # One line answers one command, so nothing is left in the buffer that select cannot see.
        ready, _, _ = select.select([self._process.stdout], [], [], _WAIT_SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> RuntimeError:
        self._log.seek(0)
        return RuntimeError(f"The peer ended, or did not answer:\n{self._log.read()[-4000:]}")


@contextlib.contextmanager
def contender(
    name: str, mode: str, *, steps: int = 1, **options: Any
) -> Iterator[Callable[[], int] | None]:
    """A peer for `benchmarks.harness.interleave`; None where its environment is not set up.

    Example:
      with contender("torch_dlrm", "train", batch=4096, rows=100_000) as peer:
          contenders = {"ours": ours, **({"torch": peer} if peer else {})}

    Args:
      name: a key of `PEERS`.
      mode: the program's command, such as "train" or "infer".
      steps: of one call.
      **options: of the program's command line.

    Yields:
      A function that does the steps and returns the number of samples. Between calls, the program
      is stopped and costs no time.
    """
    if missing(name):
        yield None
        return
    with Peer(name, **options) as peer:
        yield lambda: peer.call(mode, steps)[0]


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment, whether or not it is there."""
    return ENVIRONMENTS / PEERS[name] / "bin" / "python"


def missing(name: str) -> str | None:
    """What to tell the reader of a report if a peer's environment is not set up; else None."""
    ready = ENVIRONMENTS / PEERS[name] / ".lookback-ready"
    if ready.exists() and peer_python(name).exists():
        return None
    return f"{name} was not measured: benchmarks/peers/setup.sh {PEERS[name]} sets it up."
