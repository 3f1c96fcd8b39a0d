"""A program of ours that does what a line of JSON asks, and answers with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class Worker:
    """A running one.

    Attributes:
      process: its id.
    """

    def __init__(
        self, program: Path, source: Path, *options: str, variables: Mapping[str, str] | None = None
    ) -> None:
        """Starts it and waits until it is ready, which it says with a line.

        Args:
          program: a file of Python.
          source: the directory in which it finds `lookback`.
          *options: of its command line.
          variables: of its environment; None: those of this process.

        Raises:
          RuntimeError: if it ends, with its last words.
        """
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (__exit__ closes it)
        given = os.environ if variables is None else variables
        self._process = subprocess.Popen(
            [sys.executable, str(program), *options],
            cwd=source,
            env={**given, "PYTHONPATH": str(source), "TF_CPP_MIN_LOG_LEVEL": "2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
        )
        self.process = self._process.pid
        self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def ask(self, **what: Any) -> dict[str, Any]:
        """One turn; see the program."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        self._log.seek(0)
        raise RuntimeError(f"a contender ended:\n{self._log.read()[-4000:]}")
