"""Starts the processes of a job with horovodrun, and ends them: from outside, in plain Python."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Literal

from lookback.core.devices import require_shared_locks
from lookback.core.processes import ends_with_parent
from lookback.training.parallel.environment import handed_over
from lookback.training.parallel.hosts import interface_to
from lookback.training.parallel.job_store import (
    ERROR,
    LOST_CONNECTION,
    SECRET,
    STOP,
    JobStore,
    NoLauncherError,
)
from lookback.training.signals import TERMINATED_EXIT_STATUS

_HERE = Path(__file__).resolve().parent
START_RANK = _HERE / "start_rank.sh"
_HOROVODRUN = _HERE / "horovodrun.py"
_JOIN_RUN = _HERE / "join_run.py"

_OF_A_RANK = re.compile(r"\[(\d+)\]<(?:stdout|stderr)>:(.*)", re.DOTALL)
_END_OF_A_RANK = re.compile(r"Process (\d+) exit with status code (-?\d+)\.")
_SAID_BY_US = "Terminating remaining workers after failure of Process"
_SIGNS_OF_A_TRACEBACK = ("Traceback (most recent call last)", "Exception in thread")
_RECALLED = (0, TERMINATED_EXIT_STATUS)  # the last step was done, or it saved and ended
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SECONDS_TO_DRAIN = 10.0


@dataclasses.dataclass(frozen=True)
class Node:
    """One of the machines on which a scheduler has started a launcher each.

    Attributes:
      number: of this one, in [0, count).
      count: of all.
      address: of the first one, where all meet.
      port: there.
      secret: that all of them know.
    """

    number: int
    count: int
    address: str
    port: int
    secret: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Job:
    """Several processes of one command.

    Attributes:
      command: what each process runs.
      ranks: how many processes.
      hosts: where, as horovodrun reads it: "h1:4,h2:4"; None: all on this machine.
      bind: cores: each process runs on its share of its machine's cores; none: on any.
      interface: network interface that all machines have; None: horovodrun looks for one.
      variables: names of environment variables that the processes get besides those of
        `training.parallel.environment`.
      node: this machine's part, where each has a launcher of its own; None: this one starts all.
    """

    command: Sequence[str]
    ranks: int
    hosts: str | None = None
    bind: Literal["cores", "none"] = "cores"
    interface: str | None = None
    variables: Sequence[str] = ()
    node: Node | None = None


@dataclasses.dataclass(frozen=True)
class JobEnd:
    """How a job ended.

    Attributes:
      status: 0, or that of the process that failed first; 130 if Ctrl-C is why it ended.
      rank: the process that failed first; None: none did, or none was started.
      told: whether this process was told to end it.
      recalled: whether it was asked to end so that another job can go on.
    """

    status: int
    rank: int | None
    told: bool
    recalled: bool


def run_job(job: Job) -> int:
    """Runs a job to its end: `run_to_end`; gives its exit status."""
    return run_to_end(job).status


def run_to_end(job: Job, recall: Callable[[], bool] = lambda: False) -> JobEnd:
    """Runs a job to its end, with the output of its processes as that of this one.

    Lines of all processes but the first carry their rank. SIGTERM and SIGINT ask the processes to
    save and end; a second one ends them within seconds.

    Args:
      job: what to run.
      recall: called again and again; once it says True, the processes are asked to save and end.

    Raises:
      UserError: if a variable that the processes should get is not there, or processes cannot share
        locks here.
    """
    require_shared_locks("train in one process (--np 1)")
    announcement = secrets.token_hex(8)
    secret = secrets.token_hex(32) if job.node is None else job.node.secret
    horovodrun = _start(job, announcement, secret)
    listener = _Listener(announcement, secret)
    threads = [
        threading.Thread(target=listener.listen, args=pair, daemon=True)
        for pair in ((horovodrun.stdout, sys.stdout), (horovodrun.stderr, sys.stderr))
    ]
    for thread in threads:
        thread.start()
    recalled = False

    def look() -> None:
        nonlocal recalled
        # Before the first process has said where its store is, nobody could be asked.
        if not recalled and listener.job_store is not None and recall():
            recalled = _leave_word(listener.job_store)

    received = _wait(horovodrun, lambda: _ask_to_stop(listener, horovodrun), look)
    for thread in threads:
        thread.join(_SECONDS_TO_DRAIN)
    status = horovodrun.returncode
    if recalled and not received and (listener.first_end or (0, status))[1] in _RECALLED:
        return JobEnd(status, None, told=False, recalled=status != 0)
    status = _report(listener, status, received)
    rank = None if listener.first_end is None else listener.first_end[0]
    return JobEnd(status, rank, bool(received), recalled)


def _start(job: Job, announcement: str, secret: str) -> subprocess.Popen[str]:
    for_ssh = () if job.hosts is None else {"SSH_AUTH_SOCK"} & set(os.environ)
    environment = {
        **handed_over(os.environ, [*job.variables, *for_ssh]),
        "LOOKBACK_ANNOUNCEMENT": announcement,
        SECRET: secret,
    }
    return subprocess.Popen(
        [
            *(sys.executable, *map(str, _starter(job))),
            *("bash", str(START_RANK), job.bind, *job.command),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        bufsize=1,
        env=environment,
        start_new_session=True,  # Ctrl-C comes to us alone, and the processes have time to save
        preexec_fn=ends_with_parent(),
    )


def _starter(job: Job) -> list[object]:
    """The program that starts the processes, and its own arguments."""
    if job.node is not None:
        node, interface = job.node, job.interface or interface_to(job.node.address)
        place = (node.number, node.count, job.ranks, node.address, node.port)
        return [_JOIN_RUN, *place, interface]
    # The cache would hold for an hour which machines could be reached, and through what.
    hosts = [] if job.hosts is None else ["-H", job.hosts, "--disable-cache"]
    interfaces = [] if job.interface is None else ["--network-interfaces", job.interface]
    return [_HOROVODRUN, "--gloo", "-np", job.ranks, *hosts, *interfaces]


class _Listener:
    """Passes on what horovodrun and the processes print, and records what it means.

    Attributes:
      job_store: where to leave word for the processes; None until the first has started.
      first_end: rank and status of the first process that failed; None as long as none has.
      complaint: the last line of horovodrun's own traceback.
    """

    def __init__(self, announcement: str, secret: str) -> None:
        self.job_store: JobStore | None = None
        self.first_end: tuple[int, int] | None = None
        self.complaint = ""
        self._announcement = announcement
        self._secret = secret
        self._lock = threading.Lock()

    def listen(self, source: IO[str], sink: IO[str]) -> None:
        """Reads lines until there are no more."""
        in_traceback = False
        for line in source:
            match = _OF_A_RANK.match(line)
            if match is not None:
                rank, text = match.groups()
                if not self._is_announcement(text):
                    self._write(sink, text if rank == "0" else f"[{rank}] {text}")
                continue
            end = _END_OF_A_RANK.search(line)
            if end is not None:
                self._note_end(int(end[1]), int(end[2]))
                line = line.replace(end[0], "")
            # Its threads write at the same time, so that one line may begin within another.
            in_traceback |= any(sign in line for sign in _SIGNS_OF_A_TRACEBACK)
            if in_traceback:
                self.complaint = line.strip() or self.complaint
            elif line.strip() and not line.startswith(_SAID_BY_US):
                self._write(sink, line)

    def _is_announcement(self, text: str) -> bool:
        if not text.startswith(self._announcement):
            return False
        _, host, port = text.split()
        self.job_store = JobStore(host, int(port), self._secret)
        return True

    def _note_end(self, rank: int, status: int) -> None:
        """Who failed first is who left word; a process that was killed could not."""
        with self._lock:
            if self.first_end is not None or status == 0:
                return
            self.first_end = rank, status
            note = None
            if self.job_store is not None:
                try:
                    note = self.job_store.get(ERROR)
                except (NoLauncherError, OSError):
                    return
            if note is not None:
                self.first_end = int(note["rank"]), int(note["status"])

    def _write(self, sink: IO[str], text: str) -> None:
        # Who reads us may leave (`| head`); training goes on.
        with self._lock, contextlib.suppress(BrokenPipeError):
            sink.write(text)
            sink.flush()


def _wait(
    process: subprocess.Popen[str], on_signal: Callable[[], None], look: Callable[[], None]
) -> list[int]:
    """Waits for a process to end; does something each time that this one is told to end.

    Args:
      process: to wait for.
      on_signal: what to do then.
      look: what to do now and then, until it is told to end.

    Returns:
      The signals that told it.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = {number: signal.signal(number, receive) for number in _SIGNALS}
    try:
        answered = 0
        while True:
            try:
                process.wait(timeout=0.2)
                return received
            except subprocess.TimeoutExpired:
                if len(received) > answered:
                    answered += 1
                    on_signal()
                elif not received:
                    look()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ask_to_stop(listener: _Listener, horovodrun: subprocess.Popen[str]) -> None:
    """The first time, the processes may save; then, or where they cannot be told, they must end."""
    job_store = listener.job_store
    try:
        if job_store is None or job_store.get(STOP) is not None:
            horovodrun.terminate()
            return
        job_store.put(STOP, {})
    except (NoLauncherError, OSError):
        horovodrun.terminate()
        return
    say("told to end: the processes save a checkpoint first, if they were asked to save any")


def _leave_word(job_store: JobStore) -> bool:
    """Asks the processes to save and end; returns whether they can be asked."""
    try:
        job_store.put(STOP, {})
    except (NoLauncherError, OSError):
        return False  # they are about to end
    return True


def _report(listener: _Listener, returncode: int, received: Sequence[int]) -> int:
    """Says how the processes ended; gives the exit status.

    Args:
      listener: what it heard of them.
      returncode: of horovodrun.
      received: signals that told this process to end.
    """
    if returncode == 0:
        return 0
    # The processes get SIGTERM from their watch, whatever it was that we got.
    told = 128 + received[0] if received else TERMINATED_EXIT_STATUS
    if listener.first_end is None and received:
        say("told to end before the processes had started")
        return told
    if listener.first_end is None:
        say(f"error: horovodrun started no process: {listener.complaint or returncode}")
        return 1
    rank, status = listener.first_end
    status = told if status == TERMINATED_EXIT_STATUS else status
    say(f"rank {rank} ended with status {status}{_words(status)}")
    return status


_WORDS: Mapping[int, str] = {
    LOST_CONNECTION: ": it lost the connection to another process",
    TERMINATED_EXIT_STATUS: ": terminated (SIGTERM)",
    128 + signal.SIGINT: ": interrupted (Ctrl-C)",
    128 + signal.SIGKILL: ": killed (SIGKILL), by hand or because memory ran out",
}


def _words(status: int) -> str:
    if status in _WORDS:
        return _WORDS[status]
    try:
        return f" ({signal.Signals(status - 128).name})" if status > 128 else ""
    except ValueError:
        return ""


def say(text: str) -> None:
    """Prints a line of the launcher's own."""
    with contextlib.suppress(BrokenPipeError):
        print(f"run_model: {text}", file=sys.stderr, flush=True)
