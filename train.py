"""Trains, evaluates or runs a recommender: see `training.run`, or `python train.py --help`."""

from __future__ import annotations

import sys

from lookback.cli import train
from lookback.core.errors import UserError

if __name__ == "__main__":
    try:
        train(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
