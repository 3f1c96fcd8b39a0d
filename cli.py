"""What the doors open: each command with what it is given from the packages above it."""

from __future__ import annotations

from collections.abc import Sequence

from lookback.serving import export
from lookback.training import run


def train(arguments: Sequence[str]) -> None:
    """`train.py`: see `training.run`.

    Args:
      arguments: without the program's name.

    Raises:
      UserError: for what the user can put right.
    """
    run.main(arguments, export)
