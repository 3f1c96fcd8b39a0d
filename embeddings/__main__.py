"""``python -m embeddings {plan,reshard,inspect,export-table}``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lookback.checkpoints import commands as commands_checkpoint
from lookback.core.errors import UserError
from lookback.embeddings import commands_plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status: 2 for what the user can put right.

    Args:
      arguments: without the program's name; None: those of the process.
    """
    args = _parser().parse_args(arguments)
    try:
        args.func(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m embeddings",
        description="Plans where embedding tables lie, and works on checkpoints of them.",
        epilog="Each command has its own --help.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands_plan.add_parsers(commands)
    commands_checkpoint.add_parsers(commands)
    return parser


if __name__ == "__main__":
    # merlin-core imports TensorFlow when it can (merlin/core/compat/tensorflow.py:26), which takes
    # seconds, and nothing here needs it. Not in `main`: others' processes may need it later.
    sys.modules.setdefault("tensorflow", None)  # type: ignore[arg-type]
    sys.exit(main())
