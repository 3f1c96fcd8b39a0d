"""Starts the processes of one machine of a job, which each machine's launcher joins by itself.

usage: join_run.py NODE NODES RANKS ADDRESS PORT INTERFACE COMMAND [ARGUMENT...]

Started by launch.py, where a scheduler (Slurm's srun, Kubernetes) has put a launcher on every
machine, so that no ssh is needed. The first machine's has the store at ADDRESS and PORT in which
all processes find each other. What it prints is what horovodrun does.
"""

from __future__ import annotations

import copy
import os
import socket
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

from horovod.runner import gloo_run
from horovod.runner.common.util import safe_shell_exec
from horovod.runner.http import http_server

from lookback.training.parallel.horovodrun import execute, slot_info_to_command_fn

_SECONDS_TO_START = 600.0
_SECONDS_BETWEEN_TRIES = 0.5


class StoreElsewhere:
    """In place of horovodrun's server, on machines other than the first."""

    def __init__(self, address: str, port: int) -> None:
        """Knows where it is."""
        self._address = (address, port)

    def start(self) -> int:
        """Waits until it listens; returns its port.

        Raises:
          OSError: if it does not within `_SECONDS_TO_START`.
        """
        deadline = time.monotonic() + _SECONDS_TO_START
        while True:
            try:
                with socket.create_connection(self._address, timeout=5):
                    return self._address[1]
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_SECONDS_BETWEEN_TRIES)

    def init(self, plan: Sequence[Any]) -> None:
        """The first machine does it."""


def here_only(node: str, execute_slot: Callable[..., Any]) -> Callable[..., Any]:
    """What runs the processes of one machine, and leaves the others' to their own launchers."""

    def execute_here(command: str, slot: Any, events: Any) -> tuple[int, float]:
        if slot.hostname != node:
            return 0, time.time()
        local = copy.copy(slot)
        local.hostname = "localhost"
        found: tuple[int, float] = execute_slot(command, local, events)
        return found

    return execute_here


def main(words: Sequence[str]) -> None:
    """Runs the processes of this machine."""
    node, nodes, ranks = map(int, words[:3])
    address, port, interface, *command = words[3:]
    names = [f"node-{number}" for number in range(nodes)]
    settings = types.SimpleNamespace(
        hosts=",".join(f"{name}:{ranks // nodes}" for name in names),
        num_proc=ranks,
        elastic=False,
        verbose=0,
        output_filename=None,
        prefix_output_with_timestamp=False,
    )
    safe_shell_exec.execute = execute
    gloo_run._slot_info_to_command_fn = slot_info_to_command_fn
    if node == 0:
        http_server.find_port = lambda server: (server((address, int(port))), int(port))
    else:
        gloo_run.RendezvousServer = lambda verbose: StoreElsewhere(address, int(port))
    execute_here = here_only(names[node], gloo_run._exec_command_fn(settings))
    gloo_run.launch_gloo(command, execute_here, settings, [interface], dict(os.environ), address)


if __name__ == "__main__":
    main(sys.argv[1:])
