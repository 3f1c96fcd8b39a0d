"""Which machines a job's processes can run on now, and how many on each."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from lookback.core.errors import UserError, shown

_SECONDS_FOR_AN_ANSWER = 10
_MOST_ASKED_AT_ONCE = 32

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SECONDS_FOR_AN_ANSWER // 2}")


class Hosts:
    """Machines that come and go.

    Where a program says which there are, they are those; else those of a list that ssh reaches.
    """

    def __init__(
        self,
        most: int,
        hosts: Mapping[str, int] | None = None,
        *,
        script: Path | None = None,
        rest: float = 60.0,
    ) -> None:
        """Knows where to look.

        Args:
          most: processes in all.
          hosts: slots by machine; None: this one alone.
          script: program that prints the machines that are there, a line HOST:SLOTS each.
          rest: seconds for which a place is left empty in which a process was killed.
        """
        self._most = most
        self._hosts = hosts
        self._script = script
        self._rest = rest
        self._empty: list[tuple[float, str | None]] = []
        self._answer: Mapping[str | None, int] | None = None

    def now(self) -> dict[str | None, int]:
        """Slots by machine, at most as many as there may be processes; None: this machine.

        Raises:
          UserError: if the script has never given an answer, or gives a wrong one.
        """
        self._empty = [entry for entry in self._empty if entry[0] > time.monotonic()]
        found: dict[str | None, int] = {}
        left = self._most
        for host, slots in self._present().items():
            free = slots - sum(host == place for _, place in self._empty)
            taken = min(max(free, 0), left)
            if taken:
                found[host] = taken
                left -= taken
        return found

    def set_aside(self, host: str | None) -> float:
        """Leaves a slot of a machine empty for a while; returns for how many seconds."""
        self._empty.append((time.monotonic() + self._rest, host))
        return self._rest

    def _present(self) -> Mapping[str | None, int]:
        if self._script is not None:
            return self._from_script(self._script)
        if self._hosts is None:
            return {None: self._most}
        reached = reachable(list(self._hosts))
        return {host: slots for host, slots in self._hosts.items() if host in reached}

    def _from_script(self, script: Path) -> Mapping[str | None, int]:
        """What the script says; what it said last, where it fails now."""
        try:
            output = subprocess.run(
                [str(script.absolute())],
                capture_output=True,
                text=True,
                check=True,
                timeout=_SECONDS_FOR_AN_ANSWER,
                stdin=subprocess.DEVNULL,
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            if self._answer is not None:
                return self._answer
            raise UserError(
                f"--hosts_script: expected a program that prints HOST:SLOTS lines within "
                f"{_SECONDS_FOR_AN_ANSWER} s, and {script} failed: {error}."
            ) from error
        entries = map(slot_of, output.split())
        self._answer = {host: slots for host, slots in entries}  # noqa: C416 (None is a key, too)
        return self._answer


def slot_of(entry: str) -> tuple[str, int]:
    """A machine and its slots, from ``node1:4``.

    Raises:
      UserError: if it is none.
    """
    match = re.fullmatch(r"([^\s:/]+):([1-9]\d{0,5})", entry)
    if match is None:
        raise UserError(f"expected HOST:SLOTS, such as node1:4, received {shown(entry)}.")
    return match[1], int(match[2])


def reachable(hosts: list[str]) -> set[str]:
    """The machines among `hosts` that ssh reaches, and this one."""
    from horovod.runner.util.network import filter_local_addresses

    remote = filter_local_addresses(hosts)

    def answers(host: str) -> bool:
        try:
            done = subprocess.run(
                [*_SSH, host, "true"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS_FOR_AN_ANSWER,
            )
        except (OSError, subprocess.SubprocessError):
            return False
        return done.returncode == 0

    with ThreadPoolExecutor(_MOST_ASKED_AT_ONCE) as pool:
        answered = dict(zip(remote, pool.map(answers, remote), strict=True))
    return {host for host in hosts if answered.get(host, True)}


def listed(slots: Mapping[str | None, int]) -> str | None:
    """Machines as horovodrun reads them: "h1:4,h2:4"; None: this one alone."""
    named = [f"{host}:{count}" for host, count in slots.items() if host is not None]
    return ",".join(named) if named else None


def hosts_of_ranks(slots: str | None, ranks: int) -> list[str | None]:
    """The machine of each rank: horovodrun fills one after another."""
    if slots is None:
        return [None] * ranks
    places: list[str | None] = []
    for entry in slots.split(","):
        host, count = slot_of(entry)
        places += [host] * count
    return places[:ranks]


def address_of(name: str, seconds: float) -> str:
    """The IPv4 address of a machine, whose name may not be known yet: a pod that is about to start.

    Raises:
      UserError: if it is not known after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.gethostbyname(name)
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--store: {name} has no address after {seconds:.0f} s: {error}. Expected the "
                    "name or address of the first machine, as the others know it."
                ) from error
        time.sleep(1.0)


def interface_to(address: str) -> str:
    """The network interface through which an address is reached from here.

    Raises:
      UserError: if none is.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing: it chooses a route
        except OSError as error:
            raise UserError(
                f"{address} cannot be reached from here: {error}. Correct --store, or the network."
            ) from error
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        found = [entry.address for entry in addresses if entry.family == socket.AF_INET]
        if own in found:
            return name
    raise UserError(
        f"No network interface here has the address {own}, from which {address} is reached. Give "
        "--network_interface."
    )
