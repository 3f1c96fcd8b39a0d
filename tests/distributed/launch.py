"""Starts ranks as users do, and looks at them from outside: which there are, how far they came."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
RUN_MODEL = ROOT / "scripts" / "run_model.sh"
TRAIN = ROOT / "train.py"
# For tests of launching, failing and ending: its graph is traced at once.
TINY_NEUMF = (
    *("--model_type", "neumf", "--factors", "4", "--layers", "8,6", "--global_batch_size", "10"),
    *("--lr", "0.01", "--test_negatives", "20", "--seed", "3"),
)

# For tests that are not about the model: its graph is traced in half the time.
TINY_DIN = (
    *("--model_type", "din", "--embedding_dim", "4", "--max_seq_length", "9"),
    *("--long_seq_length", "5", "--stage_two_mlp_dims", "7,4", "--global_batch_size", "150"),
    *("--seed", "3"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished command left."""

    status: int
    stdout: str
    stderr: str

    @property
    def last_error(self) -> str:
        """The last line that says error, with all after it."""
        return self.stderr[self.stderr.rindex("error: ") :]


class Started:
    """A running command and all that it starts."""

    def __init__(self, *command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
        self._process = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever a failed test leaves must not disturb the next one."""
        for process in [*self.descendants(), *self._seen.values()]:
            if process.is_running():
                process.kill()
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def descendants(self) -> list[psutil.Process]:
        """Every process below the command."""
        try:
            found = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._seen |= {process.pid: process for process in found}
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """The training processes by rank."""
        ranks = {}
        for process in self.descendants():
            try:
                environment, words = process.environ(), process.cmdline()
            except psutil.Error:
                continue
            if "HOROVOD_RANK" in environment and "python" in Path(words[0]).name:
                ranks[int(environment["HOROVOD_RANK"])] = process
        return ranks

    def send(self, number: signal.Signals) -> None:
        """Sends the command, and nothing else, a signal."""
        self._process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """Sends what a terminal sends to the group of the command that it runs."""
        os.killpg(self._process.pid, signal.SIGINT)

    def wait_for_steps(self, log: Path, steps: int, seconds: float = 120) -> None:
        """Waits until rank 0 has logged so many training steps."""
        deadline = time.monotonic() + seconds
        while steps_in(log) < steps:
            if self._process.poll() is not None:
                raise AssertionError(f"ended before step {steps}: {self._process.communicate()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"step {steps} of {log} not reached in {seconds} s")
            time.sleep(0.02)
        self.descendants()

    def finish(self, seconds: float = 180) -> Result:
        """Waits for the end."""
        try:
            out, err = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            alive = [(p.pid, p.status(), p.cmdline()[:4]) for p in self.descendants()]
            raise AssertionError(f"not done after {seconds} s; running: {alive}") from None
        return Result(self._process.returncode, out, err)

    def left_over(self, seconds: float = 5) -> list[psutil.Process]:
        """Processes that outlive the command."""
        _, alive = psutil.wait_procs(list(self._seen.values()), timeout=seconds)
        return alive


def run_model(*arguments: str | Path, cwd: Path = ROOT, **environment: str) -> Result:
    """Runs scripts/run_model.sh to its end."""
    with Started(RUN_MODEL, *arguments, cwd=cwd, **environment) as started:
        return started.finish()


def start_forked(
    preloaded: Sequence[str],
    directory: Path,
    *arguments: str,
    before: Sequence[str] = (),
    **environment: str,
) -> Started:
    """Starts what scripts/run_model.sh starts; its processes are forks, of preloaded.py."""
    program, server = preloaded
    train = directory / "train.py"
    train.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(program).parent)!r})\nimport preloaded\n"
        f"sys.exit(preloaded.ask({server!r}, [{str(TRAIN)!r}, *sys.argv[1:]]))\n"
    )
    code = (
        f"import pathlib, sys; sys.path.insert(0, {str(ROOT)!r}); "
        "from lookback.training.parallel import run_model; "
        f"run_model.TRAIN = pathlib.Path({str(train)!r}); "
        "sys.exit(run_model.main(sys.argv[1:], 'run_model'))"
    )
    return Started(*before, sys.executable, "-c", code, *arguments, **environment)


def run_script(ranks: int, script: Path, *arguments: str | Path) -> Result:
    """Runs another program than train.py on several ranks, by what run_model.sh uses."""
    with start_script(ranks, script, *arguments) as started:
        return started.finish()


def start_script(
    ranks: int,
    script: str | Path,
    *arguments: str | Path,
    cwd: Path = ROOT,
    before: Sequence[str] = (),
    job: Mapping[str, Any] = {"bind": "none"},
    **environment: str,
) -> Started:
    """Starts a program as run_model.sh starts train.py."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        "from lookback.training.parallel.launch import Job, run_job; "
        f"sys.exit(run_job(Job(sys.argv[1:], {ranks}, **{dict(job)!r})))"
    )
    command = (*before, sys.executable, "-c", code, sys.executable, str(script))
    return Started(*command, *arguments, cwd=cwd, **environment)


def log_entries(log: Path) -> Iterator[Mapping]:
    """The entries of a run's log."""
    if log.exists():
        for line in log.read_text().splitlines():
            if line.startswith("DLLL ") and line.endswith("}"):
                yield json.loads(line.removeprefix("DLLL "))


def steps_in(log: Path) -> int:
    """How many training steps a log has."""
    return sum(len(entry.get("step", ())) == 2 for entry in log_entries(log))


def losses(log: Path) -> list[float]:
    """The loss of each training step."""
    return [e["data"]["total_loss"] for e in log_entries(log) if len(e.get("step", ())) == 2]


def summary_of(log: Path) -> Mapping:
    """The figures that a finished run ends its log with."""
    return [entry for entry in log_entries(log) if entry.get("step") == []][-1]["data"]
