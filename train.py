"""Trains, evaluates or runs a recommender: `lookback train`, out of a checkout."""

from __future__ import annotations

import sys

from lookback.cli import train
from lookback.core.faults import guarded

if __name__ == "__main__":
    sys.exit(guarded(lambda: train(sys.argv[1:])))
