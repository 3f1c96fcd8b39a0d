"""How fast DIN trains, against the plain Keras DIN, FuxiCTR's and DeepCTR's on the same data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lookback.benchmarks import history_options

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How many samples a second does DIN train, against plain Keras, FuxiCTR and DeepCTR?"

LABELS = {
    "ours": "DIN, inner products (its default)",
    "ours_amp": "DIN, inner products, --amp",
    "ours_unit": "DIN, activation unit",
    "ours_unit_amp": "DIN, activation unit, --amp",
    "ours_unit_alone": "DIN, activation unit, a history a candidate",
    "plain": "plain Keras DIN, inner products",
    "fuxictr": "FuxiCTR's DIN, activation unit",
    "deepctr": "DeepCTR's DIN, activation unit",
}
_RIVALS = ("fuxictr", "deepctr")


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
    from lookback.models import DINConfig

    dot, unit = DINConfig(), DINConfig(interaction="activation_unit")
    shared = {"ours": dot, "ours_amp": dot, "ours_unit": unit, "ours_unit_amp": unit}
    costs = {name: history_cost(config, training=True) for name, config in shared.items()}
    costs["ours_unit_alone"] = history_cost(unit, training=True, candidates=1)
    return compare(
        args,
        title="DIN training",
        labels=LABELS,
        costs=costs,
        choose=lambda of, stack: {
            "ours": of(dot).train_ours(),
            "ours_unit": of(unit).train_ours(),
            **(
                {
                    "ours_amp": of(dot).train_ours(amp=True),
                    "ours_unit_amp": of(unit).train_ours(amp=True),
                }
                if args.amp
                else {}
            ),
            **({} if args.quick else {"ours_unit_alone": of(unit).train_ours(alone=True)}),
            "plain": of(dot).train_plain(),
            **peers_of(args, of(dot), _RIVALS, stack),
        },
        rivals=dict.fromkeys(costs, _RIVALS),
        notes=[
            "Target: 20 x the best of FuxiCTR and DeepCTR. What does their work is the activation "
            "unit with a history for every candidate; a shared history is ours alone.",
            "Both have Adam of every row; FuxiCTR an attention of 64 units, DeepCTR of 64 and 16 "
            "(ours 80 and 40), each with Dice and without softmax.",
        ],
    )
