"""The program `lookback`, and the doors of a checkout: each readies its process, then goes in.

What a door needs is imported when it is opened: `--help` and mistakes answer at once.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Literal

from lookback import __version__
from lookback.core.caches import provide_caches
from lookback.core.doctor import Check, DoctorOptions, examine
from lookback.core.imports import collect_rarely, deferred, expect_no_pytorch
from lookback.core.options import (
    Command,
    CommandLine,
    Door,
    Program,
    bash_completion,
    option,
)
from lookback.kernels.build import KernelOptions, set_up


def train(arguments: Sequence[str], prog: str = "train.py") -> None:
    """Trains, evaluates or runs a recommender: see `training.run`.

    Args:
      arguments: without the program's name.
      prog: how it was called.

    Raises:
      UserError: for what the user can put right.
    """
    collect_rarely()
    from lookback.training import run

    # What runs leave for serving brings pandas along, which mistakes need not wait for.
    run.main(arguments, deferred("lookback.serving.export"), prog)


def tune(arguments: Sequence[str], prog: str) -> None:
    """Searches options of training: see `training.tuning`."""
    collect_rarely()
    from lookback.training.tuning import command

    command.main(arguments, prog)


def run_model(arguments: Sequence[str], prog: str) -> int:
    """Trains in one process or in several: see `training.parallel.run_model`."""
    from lookback.training.parallel import run_model as launcher

    return launcher.main(arguments, prog)


def workflows(arguments: Sequence[str], prog: str) -> int:
    """Turns raw data into datasets: see `workflows.commands`."""
    collect_rarely()
    from lookback.workflows.cluster import forgo_tensorflow

    forgo_tensorflow()
    provide_caches()
    expect_no_pytorch()
    return _inside_workflows().main(arguments, prog)


def embeddings(arguments: Sequence[str], prog: str) -> int:
    """Plans where tables lie, and works on checkpoints of them: see `checkpoints.commands`."""
    # merlin-core imports TensorFlow when it can (merlin/core/compat/tensorflow.py:26), which takes
    # seconds, and nothing here needs it.
    sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]
    return _inside_embeddings().main(arguments, prog)


def serving(arguments: Sequence[str], prog: str) -> int:
    """Scores requests with an exported model: see `serving.commands`."""
    collect_rarely()
    expect_no_pytorch()
    return _inside_serving().main(arguments, prog)


@dataclasses.dataclass(frozen=True)
class CompletionOptions:
    """Whose completion is printed."""

    shell: Literal["bash"] = option(help="of which shell", positional=True)


def _inside_train() -> CommandLine:
    from lookback.training.run import command_line

    return command_line()


def _inside_run() -> CommandLine:
    from lookback.training.parallel.run_model import LaunchOptions

    # What is not its own goes to train.
    passed_on = _inside_train()
    return dataclasses.replace(passed_on, configs=(LaunchOptions, *passed_on.configs))


def _inside_tune() -> CommandLine:
    from lookback.training.tuning.command import command_line

    return command_line()


def _inside_workflows() -> Program:
    from lookback.workflows.commands import PROGRAM

    return PROGRAM


def _inside_embeddings() -> Program:
    from lookback.checkpoints.commands import PROGRAM

    return PROGRAM


def _inside_serving() -> Program:
    from lookback.serving.commands import PROGRAM

    return PROGRAM


_TRIES = "lookback.training.parallel.checks"
CHECKS = (
    Check("tensorflow", _TRIES, "tensorflow"),
    Check("kernels", _TRIES, "kernels"),
    Check("horovod", _TRIES, "horovod", "horovod"),
    Check("sok", _TRIES, "sok", "sparse_operation_kit"),
    Check("gpu frames", _TRIES, "gpu_frames", "cudf"),
)
"""What the doctor tries."""


LOOKBACK: Program = Program(
    "lookback",
    "Recommenders that look back over long user histories: trained, evaluated and served.",
    {
        "workflows": Door("raw data to datasets; generated data", workflows, _inside_workflows),
        "train": Door("train, evaluate or run a model, in this process", train, _inside_train),
        "tune": Door("search the options of training with Optuna", tune, _inside_tune),
        "run": Door(
            "the same in several processes, or with NVIDIA's script's options",
            run_model,
            _inside_run,
        ),
        "embeddings": Door(
            "plans of tables, and checkpoints of them", embeddings, _inside_embeddings
        ),
        "serving": Door("score requests with an exported model", serving, _inside_serving),
        "setup-kernels": Command(
            "build our operations for this environment's TensorFlow",
            CommandLine((KernelOptions,)),
            set_up,
        ),
        "doctor": Command(
            "what is installed here, what works, and why the rest does not",
            CommandLine((DoctorOptions,)),
            lambda options: examine(options, CHECKS, required="tensorflow"),
        ),
        "completion": Command(
            "print what completes all this: source <(lookback completion bash)",
            CommandLine((CompletionOptions,)),
            lambda options: print(bash_completion(LOOKBACK), end=""),
        ),
    },
    version=__version__,
)


def main() -> int:
    """Runs the command line of this process; gives its exit status."""
    return LOOKBACK.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
