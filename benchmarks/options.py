"""Options that benchmarks share, apart from what needs TensorFlow."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError

PROTOCOL: dict[str, Any] = {"validation": False, "ties": "item"}
"""How histories are prepared for figures that are compared with NVIDIA's recipe and with our own of
earlier: each user's last event is for test, of events of one time that of the largest item id."""


def add_timing(parser: argparse.ArgumentParser, sizes: Sequence[int], quick: Sequence[int]) -> None:
    """Adds which batches to time, and how often; `batch_sizes` and `turns` read it.

    Args:
      parser: of the benchmark.
      sizes: of batches, unless told otherwise.
      quick: the same with --quick.
    """
    default, fewer = (" ".join(map(str, numbers)) for numbers in (sizes, quick))
    parser.add_argument(
        "--global_batch_size",
        type=int,
        nargs="+",
        help=f"rows of a batch (default {default}; quick {fewer})",
    )
    parser.add_argument("--rounds", type=int, help="measurements of each (default 5; quick 3)")
    parser.set_defaults(sizes=tuple(sizes), quick_sizes=tuple(quick))


def add_movielens(parser: argparse.ArgumentParser) -> None:
    """Adds where MovieLens-100k lies; `require_movielens` checks it."""
    parser.add_argument(
        "--input",
        type=Path,
        default=Path("data/ml-100k"),
        help="MovieLens-100k as scripts/download_movielens.sh leaves it",
    )


def require_movielens(directory: Path) -> None:
    """Refuses a directory without MovieLens-100k.

    Raises:
      UserError: if it is not there.
    """
    if not (directory / "u.data").is_file():
        raise UserError(
            f"{directory} holds no MovieLens-100k (u.data). Run `scripts/download_movielens.sh "
            "100k`, or name its directory with --input."
        )


def batch_sizes(args: argparse.Namespace) -> Sequence[int]:
    """Rows of the batches to time."""
    sizes: Sequence[int] = args.quick_sizes if args.quick else args.sizes
    return args.global_batch_size or sizes


def turns(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `benchmarks.harness.interleave`."""
    return {
        "rounds": args.rounds or (3 if args.quick else 5),
        "warmup": 2,
        "min_seconds": 1.0 if args.quick else 3.0,
    }
