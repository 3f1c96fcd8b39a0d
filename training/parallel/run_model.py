"""Runs train.py in one process or in several, on this machine or on several."""

from __future__ import annotations

import collections
import dataclasses
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from lookback.core.errors import UserError, shown
from lookback.core.limits import MOST_PARTS, MOST_SECONDS
from lookback.core.options import (
    SET,
    UNSET,
    CommandLine,
    check_options,
    help_text,
    option,
    parse,
    parse_known,
)
from lookback.dataloading.layout import LayoutOptions
from lookback.training.config import RunConfig
from lookback.training.parallel.elastic import Elasticity, run_elastic, sizes_of
from lookback.training.parallel.hosts import Hosts, address_of, hosts_of_ranks, slot_of
from lookback.training.parallel.job_store import SECRET
from lookback.training.parallel.launch import Job, Node, run_job
from lookback.training.run import command_line

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
SWITCHES = ("amp", "xla", "benchmark", "drop_remainder")
"""Flags of train.py that NVIDIA's script writes with 0 or 1 after them."""
RENAMED = {"data_path": "dataset_dir", "batch_size": "global_batch_size"}
"""Options of NVIDIA's script -> their names in train.py."""

_LEAST_SECRET = 32
_SECONDS_FOR_A_NAME = 600.0  # pods of a job do not start at once

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
75 if it lost the connection to another, 143 after SIGTERM and 130 after Ctrl-C, on which the
processes save a checkpoint and end. A second one ends them at once. HOROVOD_* in the environment
tunes Horovod: HOROVOD_GLOO_TIMEOUT_SECONDS (30) is how long a frozen process or a dead network is
waited for.
"""


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """Where the processes run, and what NVIDIA's script calls differently from train.py."""

    scope: ClassVar[str] = "processes"
    np: int | None = option(
        None,
        help="processes; none: the slots of --hosts, one for each of --nodes, else 1",
        at_least=1,
        limit=MOST_PARTS,
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
    nodes: int | None = option(
        None,
        help="machines on each of which a scheduler starts this command, with its number as "
        "--node: no ssh is needed (scripts/slurm.py, scripts/kubernetes.py); none: this one starts "
        "all",
        at_least=1,
        limit=MOST_PARTS,
        needs={"hosts": UNSET, "min_np": UNSET},
    )
    node: int | None = option(
        None,
        help="the number of this machine among --nodes, from 0",
        at_least=0,
        limit=MOST_PARTS,
        needs={"nodes": SET},
    )
    store: str | None = option(
        None,
        help="HOST:PORT of machine 0, where the processes of all --nodes meet; all have the same "
        "LOOKBACK_SECRET in their environment, 32 characters or more",
        needs={"nodes": SET},
    )
    show: bool = option(
        False, help="print what would be started on which machine, and start nothing (flag)"
    )
    min_np: int | None = option(
        None,
        help="go on with as few processes as this when others are lost, from the last checkpoint, "
        "and with all again once they are back (docs/how-to/several-processes.md); none: all end",
        at_least=1,
        limit=MOST_PARTS,
    )
    hosts_script: Path | None = option(
        None,
        help="program that prints the machines that there are now, a line HOST:SLOTS each; none: "
        "those of --hosts that ssh reaches",
        needs={"min_np": SET, "hosts": UNSET},
    )
    return_after: int = option(
        60,
        help="seconds for which the place of a process that was killed is left empty",
        at_least=0,
        needs={"min_np": SET},
        limit=MOST_SECONDS,
    )
    wait_for_hosts: int = option(
        600,
        help="seconds to wait for the machines of --min_np processes before giving up",
        at_least=0,
        needs={"min_np": SET},
        limit=MOST_SECONDS,
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
        check_options(self)
        if self.hosts_script is not None and self.asked is None:
            raise UserError("--hosts_script: expected with --np, the most processes. Add it.")
        self._check_nodes()
        slots = None if self.hosts is None else sum(slots_of(self.hosts))
        if slots is not None and (self.asked or 0) > slots:
            raise UserError(
                f"--np: expected at most the {slots} slots of --hosts {self.hosts}, received "
                f"{self.asked}. Give the hosts more slots, or start fewer processes."
            )

    def _check_nodes(self) -> None:
        if self.nodes is None:
            return
        if self.node is None or self.store is None:
            raise UserError("--nodes: expected with --node and --store. Add them.")
        if self.node >= self.nodes or self.ranks % self.nodes:
            raise UserError(
                f"--nodes: expected more than --node ({self.node}), and a divisor of the "
                f"{self.ranks} processes of --np, received {self.nodes}."
            )
        port = slot_of(self.store)[1]
        if port >= 1 << 16:
            raise UserError(f"--store: expected a port below {1 << 16}, received {port}.")

    @property
    def asked(self) -> int | None:
        """How many processes were asked for."""
        return self.gpus if self.np is None else self.np

    @property
    def ranks(self) -> int:
        """How many processes to start."""
        if self.asked is not None:
            return self.asked
        return self.nodes or (1 if self.hosts is None else sum(slots_of(self.hosts)))

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
    try:
        return [slot_of(entry)[1] for entry in hosts.split(",")]
    except UserError as error:
        raise UserError(f"--hosts: {shown(hosts)}: {error}") from error


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
    run, data, _ = parse(train, command_line())
    elasticity = elasticity_of(launch, run, data)
    command = [sys.executable, str(TRAIN), *train]
    if launch.show:
        print("\n".join(shown_start(launch, command)))
        return 0
    if launch.ranks == 1 and launch.hosts is None and launch.nodes is None:
        sys.stdout.flush()
        os.execv(command[0], command)
    job = Job(
        command,
        launch.ranks,
        launch.hosts,
        launch.bind,
        launch.network_interface,
        launch.variables,
        node_of(launch, os.environ),
    )
    return run_job(job) if elasticity is None else run_elastic(job, elasticity)


def node_of(launch: LaunchOptions, environment: Mapping[str, str]) -> Node | None:
    """The part of this machine, where each has a launcher of its own.

    Raises:
      UserError: if there is no secret, or the first machine is not found.
    """
    if launch.nodes is None or launch.node is None or launch.store is None:
        return None
    secret = environment.get(SECRET, "")
    if len(secret) < _LEAST_SECRET:
        raise UserError(
            f"{SECRET}: expected {_LEAST_SECRET} characters or more in the environment, the same "
            f"on all {launch.nodes} machines, received {len(secret)}. Draw them anew for each job: "
            "openssl rand -hex 32."
        )
    host, port = slot_of(launch.store)
    return Node(launch.node, launch.nodes, address_of(host, _SECONDS_FOR_A_NAME), port, secret)


def checked(arguments: Sequence[str]) -> list[str]:
    """What a command line would start, found out before it waits in somebody's queue.

    Args:
      arguments: of `main`, with those of a machine.

    Returns:
      As `shown_start`.

    Raises:
      UserError: for what is mistyped or makes no sense.
    """
    launch, train = read(list(arguments))
    parse(train, command_line())
    return shown_start(launch, ["train.py", *train])


def shown_start(launch: LaunchOptions, command: Sequence[str]) -> list[str]:
    """What would be started where, in lines: for each process its machine, and the command."""
    words = shlex.join(command)
    if launch.nodes is not None:
        each = launch.ranks // launch.nodes
        places = [f"node {number}" for number in range(launch.nodes) for _ in range(each)]
        meeting = f"they meet at {launch.store}"
    else:
        hosts = hosts_of_ranks(launch.hosts, launch.ranks)
        places = [host or "this machine" for host in hosts]
        meeting = "started from here" + (" by ssh" if launch.hosts else "")
    lines = [f"{launch.ranks} processes, {meeting}; cores: {launch.bind}"]
    if launch.min_np is not None:
        lines[0] += f"; goes on with {launch.min_np} or more"
    counts: collections.Counter[str] = collections.Counter()
    for rank, place in enumerate(places):
        local, size = counts[place], places.count(place)
        counts[place] += 1
        lines.append(f"rank {rank}: {place}, {local + 1} of {size} there: {words}")
    return lines


def elasticity_of(launch: LaunchOptions, run: RunConfig, data: LayoutOptions) -> Elasticity | None:
    """How a run goes on without processes that are lost; None: it does not.

    Raises:
      UserError: if it could not, as nothing is saved, or something holds for one number of
        processes only.
    """
    if launch.min_np is None:
        return None
    bound = {
        "plan": run.plan is not None,
        "placements": any(":" in entry for entry in run.placements or ()),
    }
    for name in (*(name for name, given in bound.items() if given), *data.bound_to_ranks):
        raise UserError(
            f"--min_np: expected a run that can go on with any number of processes, received "
            f"--{name}, which holds for one. Leave one of them out."
        )
    if run.mode != "train" or run.save_checkpoint_path is None or run.results_dir is None:
        raise UserError(
            "--min_np: expected a run that trains with --save_checkpoint_path, from which it goes "
            "on, and --results_dir, where its log goes on. Add them (and --checkpoint_every, as "
            "steps after the last checkpoint are lost)."
        )
    slots: dict[str, int] | None = None
    for entry in () if launch.hosts is None else launch.hosts.split(","):
        host, count = slot_of(entry)
        slots = slots or {}
        slots[host] = slots.get(host, 0) + count
    hosts = Hosts(launch.ranks, slots, script=launch.hosts_script, rest=launch.return_after)
    sizes = sizes_of(launch.min_np, launch.ranks, run.micro_batches)
    return Elasticity(sizes, run.save_checkpoint_path, hosts, launch.wait_for_hosts)
