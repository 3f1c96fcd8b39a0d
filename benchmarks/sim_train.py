"""How fast SIM trains, against the plain Keras SIM on the same data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lookback.benchmarks import sim_options

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How many samples a second does SIM train, against a plain Keras SIM?"

_TARGET = 1.3  # times the plain model (issue A, section F)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    sim_options.add_arguments(parser)


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Times training steps: forward, backward, update; ours builds its windows, too.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.sim_contenders import compare

    return compare(
        args,
        title="SIM training",
        target=_TARGET,
        training=True,
        choose=lambda contenders: {
            "ours": contenders.train_ours(),
            "plain": contenders.train_plain(lazy_tables=False),
            "plain_lazy": contenders.train_plain(lazy_tables=True),
        },
        labels={
            "ours": "SIM",
            "plain": "plain Keras SIM, Keras' Adam",
            "plain_lazy": "plain Keras SIM, our lazy Adam for its tables",
        },
    )
