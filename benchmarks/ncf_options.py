"""Options of the benchmarks of NeuMF, apart from what needs TensorFlow."""

from __future__ import annotations

import argparse

from lookback.benchmarks.options import add_timing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ncf_train` and `ncf_inference`; the defaults are MovieLens-20M's."""
    add_timing(parser, sizes=(65_536, 1_048_576), quick=(65_536,))
    parser.add_argument("--users", type=int, default=138_493, help="users to generate")
    parser.add_argument("--items", type=int, default=26_744, help="items of the catalogue")
    parser.add_argument(
        "--events",
        type=int,
        help="interactions to generate, about (default 20000000; quick 5000000)",
    )
    parser.add_argument(
        "--torch_default_adam",
        action="store_true",
        help="PyTorch's Adam as it is by default, rather than its fused form",
    )
