from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lookback.training.signals import TERMINATED_EXIT_STATUS, catch_sigterm

PROGRAM = """
import sys, time
from lookback.training.signals import TERMINATED_EXIT_STATUS, catch_sigterm

with catch_sigterm() as termination:
    print("ready", flush=True)
    while not termination.requested:
        time.sleep(0.01)
    time.sleep(0.2)  # a second signal may arrive while the checkpoint is saved
    print("saved", flush=True)
    sys.exit(TERMINATED_EXIT_STATUS)
"""


def test_sigterm_raises_the_flag_and_the_old_handler_returns():
    before = signal.getsignal(signal.SIGTERM)
    with catch_sigterm() as termination:
        assert not termination
        os.kill(os.getpid(), signal.SIGTERM)
        assert termination.requested and termination
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_program_may_finish_its_step_and_exit_with_143():
    assert TERMINATED_EXIT_STATUS == 143
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "saved\n"
        assert process.wait(10) == 143


def test_other_threads_are_refused():
    errors = []

    def run() -> None:
        with pytest.raises(ValueError), catch_sigterm():
            pass
        errors.append("refused")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == ["refused"]
