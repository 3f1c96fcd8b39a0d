"""Options of the benchmarks of DLRM, apart from what needs TensorFlow."""

from __future__ import annotations

import argparse

from lookback.benchmarks.options import add_timing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `dlrm_train` and `dlrm_inference`."""
    add_timing(parser, sizes=(4096, 32768), quick=(4096,))
    parser.add_argument("--tables", type=int, default=26, help="categorical features")
    parser.add_argument("--table_rows", type=int, default=100_000, help="of each table")
    parser.add_argument("--numerical", type=int, default=13, help="numerical features")
