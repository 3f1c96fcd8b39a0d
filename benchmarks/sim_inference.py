"""How fast SIM scores, against the plain Keras SIM on the same rows."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lookback.benchmarks import sim_options

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How many samples a second does SIM score, against a plain Keras SIM?"

_TARGET = 1.2  # times the plain model (issue A, section F)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    sim_options.add_arguments(parser)


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Times forward passes over rows made beforehand.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.sim_contenders import compare

    return compare(
        args,
        title="SIM inference",
        target=_TARGET,
        training=False,
        choose=lambda contenders: {
            "ours": contenders.infer_ours(),
            "ours_one": contenders.infer_ours(candidates=1),
            "plain": contenders.infer_plain(),
        },
        labels={
            "ours": "SIM, a positive and its negative share a history",
            "ours_one": "SIM, a history for every row",
            "plain": "plain Keras SIM",
        },
    )
