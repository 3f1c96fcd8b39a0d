"""How fast SIM scores, against the plain Keras SIM on the same rows."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lookback.benchmarks import history_options

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How many samples a second does SIM score, against a plain Keras SIM?"

LABELS = {
    "ours": "SIM, a positive and its negative share a history",
    "ours_amp": "the same, --amp",
    "ours_alone": "SIM, a history for every row",
    "plain": "plain Keras SIM",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    history_options.add_arguments(parser, peers=False)


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Times forward passes over rows made beforehand.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.costs import history_cost
    from lookback.benchmarks.history_contenders import compare
    from lookback.models import SIMConfig

    config = SIMConfig()
    shared = history_cost(config, training=False)
    alone = history_cost(config, training=False, candidates=1)
    return compare(
        args,
        title="SIM inference",
        labels=LABELS,
        costs={"ours": shared, "ours_amp": shared, "ours_alone": alone},
        choose=lambda of, stack: {
            "ours": of(config).infer_ours(),
            **({"ours_amp": of(config).infer_ours(amp=True)} if args.amp else {}),
            "ours_alone": of(config).infer_ours(candidates=1),
            "plain": of(config).infer_plain(),
        },
        notes=["Targets: 5 x plain Keras in fp32, 8 x with --amp."],
    )
