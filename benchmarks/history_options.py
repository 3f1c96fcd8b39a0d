"""Options of the benchmarks of models over histories, apart from what needs TensorFlow."""

from __future__ import annotations

import argparse
from pathlib import Path

from lookback.benchmarks.options import add_timing


def add_arguments(parser: argparse.ArgumentParser, *, peers: bool = True) -> None:
    """Adds the options of `sim_train`, `sim_inference`, `dien_train` and `din_train`.

    Args:
      parser: of the benchmark.
      peers: whether others' software takes part.
    """
    add_data(parser)
    add_timing(parser, sizes=(4096, 16384), quick=(4096,))
    parser.add_argument("--amp", action="store_true", help="ours in mixed precision as well")
    if peers:
        parser.add_argument(
            "--no_peers", action="store_true", help="leave out others' software, which is slow"
        )
    else:
        parser.set_defaults(no_peers=True)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds which histories to generate."""
    parser.add_argument(
        "--users", type=int, help="users to generate (default: Amazon Books' 105925; quick 20000)"
    )
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")
