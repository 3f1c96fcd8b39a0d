"""A job that goes on without a process that was lost, and with it again once it is back.

All processes end when one is lost; then the job starts again from its last checkpoint, on as many
as there are, and tables are cut for that many as they are read (docs/decisions/0033-elastic.md).
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lookback.checkpoints.manifest import checkpoints_in
from lookback.core.errors import UserError
from lookback.training.parallel.hosts import Hosts, hosts_of_ranks, listed
from lookback.training.parallel.job_store import LOST_CONNECTION
from lookback.training.parallel.launch import Job, JobEnd, run_to_end, say
from lookback.training.signals import TERMINATED_EXIT_STATUS

_MOST_LOSSES = 3
"""In a row, with no checkpoint in between: then another start would not help."""

_SECONDS_BETWEEN_LOOKS = 5.0
"""Between two looks at which machines are there."""

_ENDED_BY_US = (TERMINATED_EXIT_STATUS, 128 + signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class Elasticity:
    """How a job copes with losses.

    Attributes:
      sizes: numbers of processes with which it can go on.
      checkpoints: directory in which it saves.
      hosts: where its processes may run.
      patience: seconds to wait for the least of `sizes`.
    """

    sizes: Sequence[int]
    checkpoints: Path
    hosts: Hosts
    patience: float

    def size_for(self, slots: int) -> int | None:
        """The most processes that go into so many slots; None: too few slots for any."""
        return max((size for size in self.sizes if size <= slots), default=None)


def run_elastic(job: Job, elasticity: Elasticity) -> int:
    """Runs a job to its end, however many processes are lost on the way.

    Args:
      job: with the most processes that it may have.
      elasticity: how it goes on.

    Returns:
      The exit status of its last start.

    Raises:
      UserError: if there are too few machines for too long, or as `run_to_end`.
    """
    losses, saved = 0, _latest(elasticity.checkpoints)
    origin = saved  # what lies there before belongs to another run, or is given with the command
    command = job.command
    while True:
        size, slots = _await_slots(elasticity)
        if command is not job.command or size < job.ranks:
            say(_start_message(size, job.ranks, saved if saved != origin else None))
        started = dataclasses.replace(job, ranks=size, hosts=slots, command=command)
        end = run_to_end(started, _more_than(size, elasticity))
        before, saved = saved, _latest(elasticity.checkpoints)
        if end.recalled and end.rank is None:
            say("more processes can be had: those that ran have saved, and all start again")
        elif end.status == 0 or end.told or not _is_loss(end, first=command is job.command):
            return end.status
        else:
            losses = losses + 1 if saved == before else 1
            if losses >= _MOST_LOSSES:
                say(f"{losses} losses in a row, and no checkpoint in between: giving up")
                return end.status
            _set_aside(end, slots, size, elasticity.hosts)
        if saved != origin:
            command = resumed(job.command, elasticity.checkpoints)
        else:
            command = [*job.command]  # no step is committed yet


def resumed(command: Sequence[str], checkpoints: Path) -> list[str]:
    """The command that goes on from the latest checkpoint; the last of an option's values counts.

    What it starts from otherwise is taken back, as is the digest that this must have: the
    checkpoint is one that the run itself has saved.
    """
    taken_back = ("--init_from", "none", "--trusted_digest", "none")
    return [*command, *taken_back, "--load_checkpoint_path", str(checkpoints)]


def sizes_of(least: int, most: int, micro_batches: int | None) -> list[int]:
    """Numbers of processes, from `least` to `most`, with which a run can go on.

    Raises:
      UserError: if there is but one.
    """
    divisor = micro_batches or 0
    sizes = [size for size in range(least, most + 1) if divisor % size == 0 or not divisor]
    if most not in sizes or len(sizes) < 2:
        raise UserError(
            f"--min_np: expected fewer than the {most} processes of --np"
            + (f", both dividing the {divisor} of --micro_batches" if divisor else "")
            + f", received {least}. Lower it, start more, or leave it out."
        )
    return sizes


def _latest(directory: Path) -> Path | None:
    saved = checkpoints_in(directory)
    return saved[-1] if saved else None


def _start_message(size: int, most: int, saved: Path | None) -> str:
    begin = f"from {saved}" if saved else "as it was started, as no checkpoint has been saved since"
    return f"going on with {size} of {most} processes, {begin}"


def _await_slots(elasticity: Elasticity) -> tuple[int, str | None]:
    """Waits until there are enough machines: the number of processes, and `Job.hosts`."""
    deadline, waits = time.monotonic() + elasticity.patience, False
    while True:
        slots = elasticity.hosts.now()
        size = elasticity.size_for(sum(slots.values()))
        if size is not None:
            return size, listed(slots)
        least = min(elasticity.sizes)
        if time.monotonic() > deadline:
            raise UserError(
                f"--min_np: expected at least {least} processes, and there has been room for "
                f"{sum(slots.values())} for {elasticity.patience:.0f} s. "
                "Bring machines back, and start again with --load_checkpoint_path "
                f"{elasticity.checkpoints}."
            )
        if not waits:
            say(f"waiting for room for {least} processes; there is for {sum(slots.values())}")
            waits = True
        time.sleep(1.0)


def _more_than(size: int, elasticity: Elasticity) -> Callable[[], bool]:
    """What says, now and then, whether more processes than `size` could run."""
    looked = time.monotonic()

    def more() -> bool:
        nonlocal looked
        if size == max(elasticity.sizes) or time.monotonic() < looked + _SECONDS_BETWEEN_LOOKS:
            return False
        looked = time.monotonic()
        return (elasticity.size_for(sum(elasticity.hosts.now().values())) or 0) > size

    return more


def _is_loss(end: JobEnd, *, first: bool) -> bool:
    """Whether a job ended as a process or its machine was lost, not by a fault in what it does.

    Args:
      end: of the job.
      first: whether it was the first start. Later ones may find that a machine has just gone.
    """
    if end.rank is None:
        return not first
    killed = end.status > 128 and end.status not in _ENDED_BY_US  # 255 is ssh's, of a lost machine
    return killed or end.status == LOST_CONNECTION


def _set_aside(end: JobEnd, slots: str | None, size: int, hosts: Hosts) -> None:
    """Does not use the place of a process that was killed, for a while."""
    if end.rank is None or end.status == LOST_CONNECTION:
        return  # who reports it is not the lost one; that machines are gone, `Hosts` sees
    place = hosts_of_ranks(slots, size)[end.rank]
    seconds = hosts.set_aside(place)
    where = "" if place is None else f" on {place}"
    say(f"the place of rank {end.rank}{where} is left empty for {seconds:.0f} s")
