"""How fast SIM trains, against the plain Keras SIM and FuxiCTR's on the same data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lookback.benchmarks import history_options

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How many samples a second does SIM train, against plain Keras and FuxiCTR?"

LABELS = {
    "ours": "SIM",
    "ours_amp": "SIM, --amp",
    "ours_alone": "SIM, a history a candidate",
    "plain": "plain Keras SIM, Keras' Adam",
    "plain_lazy": "plain Keras SIM, our lazy Adam for its tables",
    "fuxictr": "FuxiCTR's SIM",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    history_options.add_arguments(parser)


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Times training steps: forward, backward, update; ours builds its windows, too.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.costs import history_cost
    from lookback.benchmarks.history_contenders import compare, peers_of
    from lookback.models import SIMConfig

    config = SIMConfig()
    shared = history_cost(config, training=True)
    alone = history_cost(config, training=True, candidates=1)
    return compare(
        args,
        title="SIM training",
        labels=LABELS,
        costs={"ours": shared, "ours_amp": shared, "ours_alone": alone},
        choose=lambda of, stack: {
            "ours": of(config).train_ours(),
            **({"ours_amp": of(config).train_ours(amp=True)} if args.amp else {}),
            **({} if args.quick else {"ours_alone": of(config).train_ours(alone=True)}),
            "plain": of(config).train_plain(),
            "plain_lazy": of(config).train_plain(lazy_tables=True),
            **peers_of(args, of(config), ["fuxictr"], stack),
        },
        rivals=dict.fromkeys(("ours", "ours_amp", "ours_alone"), ("fuxictr",)),
        notes=[
            "Targets: 5 x plain Keras with its Adam, in fp32, and 5 x FuxiCTR; --amp on AMX 8 x.",
            "FuxiCTR's SIM has attention over ten events where ours has DIEN, no auxiliary loss, "
            "and Adam of every row.",
        ],
    )
