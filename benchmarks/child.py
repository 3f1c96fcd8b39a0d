"""Programs that run beside a benchmark and answer each line of JSON with one.

The first line that a program writes says that it is ready, and its facts. A line to it then names
a function in `do`, with the function's arguments beside it; the answer is an object, with `error`
if the function is not known. `benchmarks.child_server` is the other end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

WAIT_SECONDS = 600.0
"""For an answer; a program that takes longer is killed."""


class Child:
    """A running program.

    Example:
      with Child([sys.executable, "program.py"], cwd=directory, env=os.environ) as child:
          child.ask(do="train", steps=3)["samples"]

    Attributes:
      facts: what it says about itself when it is ready: versions, threads.
      pid: the number of its process.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stopped: bool = False,
    ) -> None:
        """Starts it and waits until it is ready.

        Args:
          command: its words.
          cwd: its directory.
          env: its environment.
          stopped: whether it is stopped (SIGSTOP) but while it answers, and so costs no time.

        Raises:
          RuntimeError: if it ends before it is ready, with its last words.
        """
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (close() closes it)
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        self.pid, self._stopped = self._process.pid, stopped
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        try:
            self.facts = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, **what: Any) -> dict[str, Any]:
        """Has the program do something; gives its answer.

        Raises:
          RuntimeError: if it does not know how, or ended.
        """
        self._process.send_signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # it ended: then there is no answer
            send(self._input, what)
        return checked(self._answer())

    def peak_rss_bytes(self) -> int:
        """The most memory that the program has had in RAM so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024

    def close(self) -> None:
        """Ends the program."""
        self._process.kill()
        self._process.wait()
        for stream in (self._input, self._output, self._log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def _answer(self) -> dict[str, Any]:
        with killing_late(self._process.kill):
            answer = receive(self._output)
        if answer is None:
            self._log.seek(0)
            raise RuntimeError(f"The program ended, or did not answer:\n{self._log.read()[-4000:]}")
        if self._stopped:
            self._process.send_signal(signal.SIGSTOP)
        return answer


def python_child(
    program: Path, source: Path, *options: object, variables: Mapping[str, str] | None = None
) -> Child:
    """A file of Python as a program that is never stopped.

    Args:
      program: the file.
      source: the directory in which it finds `lookback`, and in which it runs.
      *options: of its command line.
      variables: of its environment; None: those of this process.
    """
    given = os.environ if variables is None else variables
    env = {**given, "PYTHONPATH": str(source), "TF_CPP_MIN_LOG_LEVEL": "2"}
    return Child([sys.executable, str(program), *map(str, options)], cwd=source, env=env)


def send(stream: IO[str], what: Mapping[str, Any]) -> None:
    """Writes one line."""
    stream.write(json.dumps(what) + "\n")
    stream.flush()


def receive(stream: IO[str]) -> dict[str, Any] | None:
    """Reads the next object, past what libraries print; None at the end."""
    for line in stream:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return None


def checked(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer that is none of a mistake.

    Raises:
      RuntimeError: of one that is.
    """
    if "error" in answer:
        raise RuntimeError(f"The program {answer['error']}")
    return answer


@contextlib.contextmanager
def killing_late(kill: Callable[[], None]) -> Iterator[None]:
    """Kills those who are waited for within it, should that take longer than `WAIT_SECONDS`."""
    timer = threading.Timer(WAIT_SECONDS, kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
