"""Submits a run on several machines to Slurm; with --dry_run, prints what it would submit.

usage: scripts/slurm.py --nodes N [--dry_run] [options] -- [options of scripts/run_model.sh]

Slurm starts a launcher on each machine, and these find each other: no ssh is needed. Machines see
this checkout, the dataset and the directories for results under the same paths. Uses this
checkout's .venv (.venv/bin/python scripts/slurm.py ...).
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lookback.core.errors import UserError
from lookback.core.faults import guarded
from lookback.core.limits import MOST_PARTS, MOST_THREADS
from lookback.core.options import option
from lookback.scripts.scheduling import SECONDS_TO_SAVE, hand_over, read_scheduling
from lookback.training.parallel.run_model import checked

RUN_MODEL = Path(__file__).resolve().parent / "run_model.sh"

BATCH = """#!/usr/bin/env bash
{settings}
set -euo pipefail
# Whoever knows it can write to the job's store: of this job alone, and on no command line.
LOOKBACK_SECRET=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')
export LOOKBACK_SECRET
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun --nodes={nodes} --ntasks-per-node=1 {cores}--kill-on-bad-exit=1 \\
  bash -c 'exec "$1" --node "$SLURM_NODEID" "${{@:2}}"' launcher \\
  {run_model} --np {processes} --nodes {nodes} --store "$first:{port}" \\
  {run}
"""


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """What Slurm is asked for."""

    nodes: int = option(help="machines", at_least=1, limit=MOST_PARTS)
    processes_per_node: int = option(
        1, help="processes on each: one for each GPU", at_least=1, limit=MOST_PARTS
    )
    cpus_per_node: int | None = option(
        None, help="cores on each; none: Slurm's default", at_least=1, limit=MOST_THREADS
    )
    gpus_per_node: int | None = option(None, help="GPUs on each", at_least=1, limit=MOST_PARTS)
    time: str | None = option(None, help="limit, as Slurm reads it, such as 12:00:00")
    partition: str | None = option(None, help="partition")
    account: str | None = option(None, help="account")
    job_name: str = option("lookback", help="name of the job", nonempty=True)
    port: int = option(
        29400, help="on the first machine, where all meet", at_least=1024, below=1 << 16
    )
    dry_run: bool = option(False, help="print the batch script and the processes, submit nothing")

    def __post_init__(self) -> None:
        for name in ("time", "partition", "account", "job_name"):
            value = getattr(self, name)
            if value is not None and value.split() != [value]:  # it stands in a line of #SBATCH
                raise UserError(
                    f"--{name}: expected a word without spaces and line breaks, received {value!r}."
                )

    @property
    def processes(self) -> int:
        """All of them."""
        return self.nodes * self.processes_per_node

    def settings(self) -> list[str]:
        """The #SBATCH lines."""
        asked = {
            "job-name": self.job_name,
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": self.cpus_per_node,
            "gpus-per-node": self.gpus_per_node,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            # To the launchers, which have the processes save and end before the time is over.
            "signal": f"TERM@{SECONDS_TO_SAVE}",
        }
        return [f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None]


def batch_script(slurm: SlurmOptions, run: Sequence[str]) -> str:
    """The script that is submitted.

    Args:
      slurm: what is asked for.
      run: options of run_model.sh.
    """
    cpus = slurm.cpus_per_node
    return BATCH.format(
        settings="\n".join(slurm.settings()),
        nodes=slurm.nodes,
        cores="" if cpus is None else f"--cpus-per-task={cpus} ",  # srun does not take sbatch's
        run_model=shlex.quote(str(RUN_MODEL)),
        processes=slurm.processes,
        port=slurm.port,
        run=shlex.join(run),
    )


def main(arguments: Sequence[str]) -> int:
    """Submits, or shows.

    Raises:
      UserError: for what the user can put right.
    """
    given = read_scheduling(arguments, SlurmOptions, "scripts/slurm.py", __doc__)
    if given is None:
        return 0
    slurm, run = given
    one = ["--np", str(slurm.processes), "--nodes", str(slurm.nodes), "--node", "0"]
    lines = checked([*one, "--store", f"FIRST_MACHINE:{slurm.port}", *run])
    script = batch_script(slurm, run)
    if slurm.dry_run:
        print(script)
        print("\n".join(f"# {line}" for line in lines))
        return 0
    return hand_over(["sbatch"], script, "a machine that submits to Slurm")


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
