from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lookback.training.signals import TERMINATED_EXIT_STATUS, TerminatedError, catch_termination

PROGRAM = """
import sys, time
from lookback.training.signals import catch_termination

with catch_termination() as termination:
    print("ready", flush=True)
    while not termination:
        time.sleep(0.01)
    print("asked", flush=True)
    if "hang" not in sys.argv:
        time.sleep(0.2)  # a second signal may arrive while the checkpoint is saved
        print("saved", flush=True)
        sys.exit(termination.status)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_raises_the_flag_and_the_old_handler_returns(number):
    before = signal.getsignal(number)
    with catch_termination() as termination:
        assert not termination
        termination.check()
        os.kill(os.getpid(), number)
        assert termination
        assert termination.status == 128 + number
        with pytest.raises(TerminatedError):
            termination.check()
    assert signal.getsignal(number) is before


@contextlib.contextmanager
def program(*words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def test_a_program_may_finish_its_step_and_exit_with_143():
    assert TERMINATED_EXIT_STATUS == 143
    with program() as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "asked\nsaved\n"
        assert process.wait(10) == 143


def test_a_second_ctrl_c_does_not_wait():
    with program("hang") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT  # 130 to a shell


def test_other_threads_are_refused():
    errors = []

    def run() -> None:
        with pytest.raises(ValueError, match="main thread"), catch_termination():
            pass
        errors.append("refused")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == ["refused"]
