"""train.py, and something goes wrong on one rank at one step.

usage: faulty.py REPOSITORY FAULT RANK STEP [argument of train.py...]
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time

REPOSITORY, FAULT, RANK, STEP = sys.argv[1:5]
sys.argv = [f"{REPOSITORY}/train.py", *sys.argv[5:]]
sys.path.insert(0, REPOSITORY)
HERE = os.environ["HOROVOD_RANK"] == RANK


def at_step() -> None:
    """What goes wrong in training."""
    from lookback.core.errors import UserError

    if FAULT == "memory":
        raise MemoryError("no memory for a batch of 3 TB")
    if FAULT == "mistake":
        raise UserError("this machine's clock stands still. Wind it.")
    if FAULT == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if FAULT == "hang":
        time.sleep(3600)


def break_training() -> None:
    """Makes the trainer of this process fail."""
    from lookback.training.step_monitor import StepMonitor

    add = StepMonitor.add

    def faulty(self, at, *arguments, **options):
        if at.total_steps == int(STEP):
            at_step()
        return add(self, at, *arguments, **options)

    StepMonitor.add = faulty


def main() -> None:
    """Prepares the fault and trains."""
    from lookback.training import run

    start_world = run.start_world

    def started(**options):
        # First: importing Merlin, as the trainer does, connects the ranks.
        world = start_world(**options)
        break_training()
        return world

    if HERE and FAULT == "no_dataset":
        os.chdir("/")  # a relative --dataset_dir is not there
    elif HERE:
        run.start_world = started
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
