"""What `slurm.py` and `kubernetes.py` share: how their command lines are read, and handing over."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import TypeVar

from lookback.core.errors import UserError
from lookback.core.options import CommandLine, help_text, parse_known

SECONDS_TO_SAVE = 120
"""From the scheduler's SIGTERM until it kills the processes, in which they save a checkpoint."""

_RENAMED = {"--cpus": "--cpus_per_node", "--gpus": "--gpus_per_node"}
"""Options that `kubernetes.py` had under names of its own -> those that both scripts have."""

Options = TypeVar("Options")


def read_scheduling(
    arguments: Sequence[str], options: type[Options], prog: str, description: str | None
) -> tuple[Options, list[str]] | None:
    """Reads what the scheduler is asked for, and after ``--`` the options of run_model.sh.

    Args:
      arguments: without the program's name.
      options: dataclass of what the scheduler is asked for.
      prog: name of the script.
      description: above the options in `--help`.

    Returns:
      None once `--help` is answered.

    Raises:
      UserError: for what is mistyped or makes no sense.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--help" in arguments[:end] or "-h" in arguments[:end]:
        print(help_text(CommandLine((options,)), None, prog, description), end="")
        return None
    asked, unknown = parse_known(arguments[:end], options)
    if unknown:
        name = unknown[0].partition("=")[0]
        if name in _RENAMED:
            raise UserError(f"{name}: it is {_RENAMED[name]} now. Write that instead.")
        raise UserError(f"{unknown[0]}: no option of {prog}. Those of the run follow after --.")
    return asked, list(arguments[end + 1 :])


def hand_over(command: Sequence[str], text: str, machine: str) -> int:
    """Gives a scheduler's program what it is to run; gives its exit status.

    Args:
      command: the program and its words.
      text: its standard input, which `--dry_run` prints.
      machine: where the program is found, in words.

    Raises:
      UserError: if it is not here.
    """
    try:
        return subprocess.run(command, input=text, text=True, check=False).returncode
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is not here: expected {machine}. --dry_run prints what it would be "
            "given, for another one."
        ) from error
