"""Runs train.py in one process or in several, on this machine or on several.

  --np R, --gpus R      processes (default: the slots of --hosts, else 1)
  --hosts H1:N1,H2:N2   machines and how many processes each may have; ssh must reach them without
                        a password, and they see this checkout, its .venv, the dataset and the
                        directories for results under the same paths
  --network_interface I the one by which the machines reach each other; it has the same name on all
                        of them (default: one is looked for, which docs/network.md advises against
                        where others have accounts)
  --env NAME,NAME       environment variables that the processes get besides those that they read
                        (training/parallel/environment.py)
  --bind cores|none     cores (default): each process runs on its share of its machine's cores

Options of NVIDIA's SIM script; each has train.py's default:

  --data_path DIR       dataset (train.py: --dataset_dir)
  --batch_size N        over all processes (train.py: --global_batch_size)
  --amp 0|1, --xla 0|1, --benchmark 0|1, --drop_remainder 0|1
  --mode, --epochs, --benchmark_steps, --results_dir, --log_filename, --save_checkpoint_path,
  --load_checkpoint_path

Any other option, and all that follows `--`, goes to train.py as it is (train.py --help). NVIDIA's
script always dropped the last, smaller batch; here it counts like the others, unless
--drop_remainder is given.

The exit status is that of the process that failed first: 2 if it was a mistake in options or data,
143 after SIGTERM or SIGINT, on which the processes save a checkpoint and end. A second one ends
them at once. HOROVOD_* in the environment tunes Horovod: HOROVOD_GLOO_TIMEOUT_SECONDS (30) is how
long a frozen process or a dead network is waited for.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lookback.core.errors import UserError  # noqa: E402
from lookback.core.options import parse  # noqa: E402
from lookback.training.parallel.launch import Job, run_job  # noqa: E402
from lookback.training.run import command_line  # noqa: E402

RENAMED = {"data_path": "dataset_dir", "batch_size": "global_batch_size"}
SWITCHES = ("amp", "xla", "benchmark", "drop_remainder")
USAGE = "usage: scripts/run_model.sh --data_path DIR [--np R] [--hosts HOST:SLOTS,...] [options]"


@dataclasses.dataclass
class Request:
    """What a command line asks for.

    Attributes:
      np: processes; None: not said.
      hosts: as horovodrun reads it; None: this machine.
      bind: see `training.parallel.launch.Job`.
      interface: see `training.parallel.launch.Job`.
      variables: see `training.parallel.launch.Job`.
      train: arguments of train.py.
    """

    np: int | None = None
    hosts: str | None = None
    bind: Literal["cores", "none"] = "cores"
    interface: str | None = None
    variables: list[str] = dataclasses.field(default_factory=list)
    train: list[str] = dataclasses.field(default_factory=list)

    @property
    def ranks(self) -> int:
        """How many processes to start."""
        slots = None if self.hosts is None else sum(slots_of(self.hosts))
        if self.np is None:
            return slots or 1
        if slots is not None and self.np > slots:
            raise UserError(
                f"--np: expected at most the {slots} slots of --hosts {self.hosts}, received "
                f"{self.np}. Give the hosts more slots, or start fewer processes."
            )
        return self.np


def read(arguments: Sequence[str]) -> Request:
    """Reads a command line.

    Raises:
      UserError: if a value is missing or makes no sense.
    """
    request, rest = Request(), list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            request.train += rest
            break
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--") if flag.startswith("--") else ""
        if name in SWITCHES:
            if not equals and rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            request.train += switch(name, value or "1")
            continue
        if name not in ("np", "gpus", "hosts", "bind", "network_interface", "env", *RENAMED):
            request.train.append(argument)
            continue
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else ""
        if not value:
            raise UserError(f"{flag}: expected a value, received none. {USAGE}")
        if name in RENAMED:
            request.train += [f"--{RENAMED[name]}", value]
        elif name in ("np", "gpus"):
            request.np = processes(flag, value, request.np)
        elif name == "hosts":
            slots_of(value)
            request.hosts = value
        elif name == "network_interface":
            request.interface = value
        elif name == "env":
            request.variables += value.split(",")
        elif value in ("cores", "none"):
            request.bind = cast(Literal["cores", "none"], value)
        else:
            raise UserError(f"--bind: expected cores or none, received {value}.")
    return request


def switch(name: str, value: str) -> list[str]:
    """A flag of train.py, from NVIDIA's 0 or 1 (or from true and false, as train.py reads it)."""
    meant = {"1": True, "true": True, "0": False, "false": False}.get(value.lower())
    if meant is None:
        raise UserError(f"--{name}: expected 0 or 1, received {value}.")
    return [f"--{name}"] if meant else []


def processes(flag: str, value: str, before: int | None) -> int:
    """The number of processes."""
    if not re.fullmatch(r"[1-9]\d*", value):
        raise UserError(f"{flag}: expected a number of processes of 1 or more, received {value}.")
    if before is not None and before != int(value):
        raise UserError(f"{flag}: received {before} processes, then {value}. Remove one of them.")
    return int(value)


def slots_of(hosts: str) -> list[int]:
    """How many processes each host may have."""
    slots = []
    for entry in hosts.split(","):
        match = re.fullmatch(r"[^\s:/]+:([1-9]\d*)", entry)
        if match is None:
            raise UserError(
                f"--hosts: expected HOST:SLOTS,HOST:SLOTS, such as node1:4,node2:4, received "
                f"{entry!r} in {hosts!r}."
            )
        slots.append(int(match[1]))
    return slots


def main(arguments: Sequence[str]) -> int:
    """Runs a command line; returns the exit status."""
    if "--help" in arguments or "-h" in arguments:
        print(f"{USAGE}\n\n{__doc__}", end="")
        return 0
    request = read(arguments)
    ranks = request.ranks
    # Mistakes are said once, and at once, not by every process.
    parse(request.train, command_line())
    command = [sys.executable, str(ROOT / "train.py"), *request.train]
    if ranks == 1 and request.hosts is None:
        sys.stdout.flush()
        os.execv(command[0], command)
    return run_job(
        Job(command, ranks, request.hosts, request.bind, request.interface, request.variables)
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
