"""horovodrun, but heard by the job's machines only, and without anybody's environment on show.

usage: horovodrun.py [argument of horovodrun...]

Started by launch.py. As it comes, horovodrun 0.28.1 listens on every address of its machine, and
writes the whole environment onto the command lines of shells, ssh and env, which every user of a
machine can list. The functions below replace those of its own that do so.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from horovod.runner import gloo_run, launch
from horovod.runner.common.util import hosts, safe_shell_exec
from horovod.runner.http import http_server
from horovod.runner.util import network, remote

LOOPBACK = "127.0.0.1"
# Both shells get what they run where nobody else can read it: from the environment, or from ssh.
EVALUATE = 'command=$LOOKBACK_COMMAND; unset LOOKBACK_COMMAND; eval "$command"'
EVALUATE_INPUT = (
    "command=$(cat); "
    'eval "${command:?expected from ssh, which passed no input on (StdinNull, -n?)}"'
)

_execute = safe_shell_exec.execute
_get_ssh_command = remote.get_ssh_command
_slot_info_to_command_fn = gloo_run._slot_info_to_command_fn


def execute(command: str, env: Mapping[str, str] | None = None, **options: Any) -> int:
    """Runs a command, which safe_shell_exec.py:189 would write onto a shell's command line."""
    environment = {**(os.environ if env is None else env), "LOOKBACK_COMMAND": command}
    return int(_execute(EVALUATE, env=environment, **options))


def get_ssh_command(local_command: str, *where: Any, **how: Any) -> str:
    """What runs a command elsewhere, which remote.py:25 would write onto ssh's command line.

    `printf` is part of the shell, no process, and joins words as ssh does.
    """
    read = shlex.quote(f"exec sh -c {shlex.quote(EVALUATE_INPUT)}")
    return f"printf '%s ' {local_command} | {_get_ssh_command(read, *where, **how)}"


def slot_info_to_command_fn(run_command: str, env: Mapping[str, str]) -> Callable[[Any], str]:
    """What makes a rank's command, for which gloo_run.py:96 would start env with all variables.

    The shell sets them itself. The agent's socket was for ssh.
    """
    command_of = _slot_info_to_command_fn(run_command, env)
    return lambda slot: "unset SSH_AUTH_SOCK; " + command_of(slot).removeprefix("env ")


def run(
    settings: Any, nics: Sequence[str], env: dict[str, str], server_ip: str, command: Sequence[str]
) -> None:
    """Starts the ranks; their store listens where they look for it, and not everywhere.

    util/network.py:84 (find_port) binds to all addresses.
    """
    names, _ = hosts.parse_hosts_and_slots(settings.hosts)
    address = server_ip if network.filter_local_addresses(names) else LOOPBACK
    http_server.find_port = lambda server: network.find_port(
        lambda anywhere: server((address, anywhere[1]))
    )
    env = {name: value for name, value in env.items() if name != "SSH_AUTH_SOCK"}
    gloo_run.gloo_run(settings, nics, env, address, command)


def main() -> None:
    """Replaces and runs."""
    # It would import TensorFlow in a process of its own, for 5 seconds, to learn that Horovod was
    # built with Gloo (horovod/common/util.py, gloo_built). If not, each process says so.
    launch.gloo_built = lambda verbose: True
    launch.gloo_run = run
    safe_shell_exec.execute = execute
    remote.get_ssh_command = get_ssh_command
    gloo_run._slot_info_to_command_fn = slot_info_to_command_fn
    launch.run_commandline()


if __name__ == "__main__":
    main()
