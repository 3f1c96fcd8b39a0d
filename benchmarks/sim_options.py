"""Options of the benchmarks of SIM, apart from what needs TensorFlow."""

from __future__ import annotations

import argparse
from pathlib import Path

from lookback.benchmarks.options import add_timing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sim_train` and `sim_inference`."""
    parser.add_argument(
        "--users", type=int, help="users to generate (default: Amazon Books' 105925; quick 20000)"
    )
    add_timing(parser, sizes=(4096, 16384), quick=(4096,))
    parser.add_argument("--amp", action="store_true", help="mixed precision, for both models")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")
