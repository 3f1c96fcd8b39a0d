"""Runs train.py in one process or in several, on this machine or on several."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from lookback.core.errors import UserError, shown
from lookback.core.limits import MOST_PARTS
from lookback.core.options import CommandLine, help_text, option, parse, parse_known
from lookback.training.parallel.launch import Job, run_job
from lookback.training.run import command_line

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
SWITCHES = ("amp", "xla", "benchmark", "drop_remainder")
"""Flags of train.py that NVIDIA's script writes with 0 or 1 after them."""
RENAMED = {"data_path": "dataset_dir", "batch_size": "global_batch_size"}
"""Options of NVIDIA's script -> their names in train.py."""

DESCRIPTION = """
Runs train.py in one process or in several, on this machine or on several. Options that are not
listed here, and all that follows `--`, go to train.py as they are (train.py --help).
"""
NOTES = """
Of NVIDIA's script there are besides: --amp 0|1, --xla 0|1, --benchmark 0|1,
--drop_remainder 0|1, --mode, --epochs, --benchmark_steps, --results_dir, --log_filename,
--save_checkpoint_path, --load_checkpoint_path; each has train.py's default. That script always
dropped the last, smaller batch; here it counts like the others, unless --drop_remainder is given.

The exit status is that of the process that failed first: 2 if it was a mistake in options or data,
a full disk or memory that ran out, 70 if it was a fault of Lookback's (its traceback is in a file),
143 after SIGTERM and 130 after Ctrl-C, on which the processes save a checkpoint and end. A second
one ends them at once. HOROVOD_* in the environment tunes Horovod: HOROVOD_GLOO_TIMEOUT_SECONDS (30)
is how long a frozen process or a dead network is waited for.
"""


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """Where the processes run, and what NVIDIA's script calls differently from train.py."""

    scope: ClassVar[str] = "processes"
    np: int | None = option(
        None, help="processes; none: the slots of --hosts, else 1", at_least=1, limit=MOST_PARTS
    )
    gpus: int | None = option(None, help="the same as --np", at_least=1, limit=MOST_PARTS)
    hosts: str | None = option(
        None,
        help="H1:N1,H2:N2: machines and how many processes each may have; ssh must reach them "
        "without a password, and they see this package, its environment, the dataset and the "
        "directories for results under the same paths; none: this machine",
    )
    network_interface: str | None = option(
        None,
        help="the one by which the machines reach each other; it has the same name on all of "
        "them; none: one is looked for, which docs/network.md advises against where others have "
        "accounts",
    )
    env: tuple[str, ...] = option(
        (),
        help="NAME,NAME: environment variables that the processes get besides those that they read "
        "(training/parallel/environment.py)",
        repeatable=True,
    )
    bind: Literal["cores", "none"] = option(
        "cores", help="cores: each process runs on its share of its machine's cores"
    )
    data_path: str | None = option(None, help="dataset: --dataset_dir of train.py")
    batch_size: str | None = option(
        None, help="over all processes: --global_batch_size of train.py"
    )

    def __post_init__(self) -> None:
        """Validates."""
        if None not in (self.np, self.gpus) and self.np != self.gpus:
            raise UserError(
                f"--np is {self.np} and --gpus is {self.gpus}, which mean the same. Remove one."
            )
        slots = None if self.hosts is None else sum(slots_of(self.hosts))
        if slots is not None and (self.asked or 0) > slots:
            raise UserError(
                f"--np: expected at most the {slots} slots of --hosts {self.hosts}, received "
                f"{self.asked}. Give the hosts more slots, or start fewer processes."
            )

    @property
    def asked(self) -> int | None:
        """How many processes were asked for."""
        return self.gpus if self.np is None else self.np

    @property
    def ranks(self) -> int:
        """How many processes to start."""
        return self.asked or (1 if self.hosts is None else sum(slots_of(self.hosts)))

    @property
    def variables(self) -> list[str]:
        """Names of environment variables that the processes get, too."""
        return [name for names in self.env for name in names.split(",")]

    def to_train(self) -> list[str]:
        """What train.py gets of these."""
        given = {"data_path": self.data_path, "batch_size": self.batch_size}
        named = {f"--{RENAMED[name]}": value for name, value in given.items() if value is not None}
        return [word for pair in named.items() for word in pair]


def read(arguments: Sequence[str]) -> tuple[LaunchOptions, list[str]]:
    """Reads a command line: the launch, and the arguments of train.py.

    Raises:
      UserError: if a value is missing or makes no sense.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    launch, rest = parse_known(arguments[:end], LaunchOptions)
    _refuse_twice(launch, [*rest, *arguments[end:]])
    words = [*launch.to_train(), *rest]
    train: list[str] = []
    while words:
        word = words.pop(0)
        flag, _, value = word.partition("=")
        name = flag.removeprefix("--")
        if name not in SWITCHES:
            train.append(word)
            continue
        if word == flag and words and not words[0].startswith("--"):
            value = words.pop(0)
        train += switch(name, value or "1")
    return launch, [*train, *arguments[end + 1 :]]


def _refuse_twice(launch: LaunchOptions, words: Sequence[str]) -> None:
    """Refuses an option that is given under both of its names."""
    given = {"data_path": launch.data_path, "batch_size": launch.batch_size}
    for name, renamed in RENAMED.items():
        twice = any(word.partition("=")[0] == f"--{renamed}" for word in words)
        if twice and given[name] is not None:
            raise UserError(f"--{name} and --{renamed} mean the same. Remove one of them.")


def switch(name: str, value: str) -> list[str]:
    """A flag of train.py, from NVIDIA's 0 or 1 (or from true and false, as train.py reads it)."""
    meant = {"1": True, "true": True, "0": False, "false": False}.get(value.lower())
    if meant is None:
        raise UserError(f"--{name}: expected 0 or 1, received {value}.")
    return [f"--{name}" if meant else f"--no_{name}"]  # a file of --config may say otherwise


def slots_of(hosts: str) -> list[int]:
    """How many processes each host may have."""
    slots = []
    for entry in hosts.split(","):
        match = re.fullmatch(r"[^\s:/]+:([1-9]\d*)", entry)
        if match is None:
            raise UserError(
                f"--hosts: expected HOST:SLOTS,HOST:SLOTS, such as node1:4,node2:4, received "
                f"{shown(entry)} in {shown(hosts)}."
            )
        slots.append(int(match[1]))
    return slots


def main(arguments: Sequence[str], prog: str) -> int:
    """Runs a command line; returns the exit status.

    Args:
      arguments: without the program's name.
      prog: how it was called.

    Raises:
      UserError: for what the user can put right.
    """
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--help" in ours or "-h" in ours:
        print(help_text(CommandLine((LaunchOptions,)), None, prog, DESCRIPTION) + NOTES, end="")
        return 0
    launch, train = read(list(arguments))
    # Mistakes are said once, and at once, not by every process.
    parse(train, command_line())
    command = [sys.executable, str(TRAIN), *train]
    if launch.ranks == 1 and launch.hosts is None:
        sys.stdout.flush()
        os.execv(command[0], command)
    return run_job(
        Job(
            command,
            launch.ranks,
            launch.hosts,
            launch.bind,
            launch.network_interface,
            launch.variables,
        )
    )
