"""How fast DIEN trains, against the plain Keras DIEN, FuxiCTR's and DeepCTR's on the same data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lookback.benchmarks import history_options

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How many samples a second does DIEN train, against plain Keras, FuxiCTR and DeepCTR?"

LABELS = {
    "ours": "DIEN, the last 10 events (its default)",
    "ours_amp": "DIEN, the last 10 events, --amp",
    "ours_alone": "DIEN, the last 10, a history a candidate",
    "ours_whole": "DIEN, all 100 events",
    "ours_whole_alone": "DIEN, all 100, a history a candidate",
    "plain": "plain Keras DIEN, the last 10 events",
    "fuxictr": "FuxiCTR's DIEN, the last 10 events",
    "deepctr": "DeepCTR's DIEN, the last 10 events",
    "fuxictr_whole": "FuxiCTR's DIEN, all 100 events",
    "deepctr_whole": "DeepCTR's DIEN, all 100 events",
}
_RIVALS = ("fuxictr", "deepctr")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    history_options.add_arguments(parser)


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Times training steps: forward, backward, update; ours builds its windows, too.

    Args:
      args: as from `add_arguments`, with `quick` (the last 10 events alone).
    """
    from lookback.benchmarks.costs import history_cost
    from lookback.benchmarks.history_contenders import compare, peers_of
    from lookback.models import DIENConfig

    last, whole = DIENConfig(), DIENConfig(long_seq_length=0)
    costs = {
        **dict.fromkeys(("ours", "ours_amp"), history_cost(last, training=True)),
        "ours_alone": history_cost(last, training=True, candidates=1),
        "ours_whole": history_cost(whole, training=True),
        "ours_whole_alone": history_cost(whole, training=True, candidates=1),
    }
    rivals = {
        name: [f"{rival}_whole" if "whole" in name else rival for rival in _RIVALS]
        for name in costs
    }
    return compare(
        args,
        title="DIEN training",
        labels=LABELS,
        costs=costs,
        choose=lambda of, stack: {
            "ours": of(last).train_ours(),
            **({"ours_amp": of(last).train_ours(amp=True)} if args.amp else {}),
            "plain": of(last).train_plain(),
            **peers_of(args, of(last), _RIVALS, stack),
            **(
                {}
                if args.quick
                else {
                    "ours_alone": of(last).train_ours(alone=True),
                    "ours_whole": of(whole).train_ours(),
                    "ours_whole_alone": of(whole).train_ours(alone=True),
                    **peers_of(args, of(whole), _RIVALS, stack, "_whole"),
                }
            ),
        },
        rivals=rivals,
        notes=[
            "Target: 40 x the best of FuxiCTR and DeepCTR with all events, which they read by "
            "default (ratios ours_over_*_whole); the column compares the same number of events.",
            "Both have GRUs as wide as an item (32; ours 96), no auxiliary loss and Adam of every "
            "row; DeepCTR's second GRU is a plain one.",
        ],
    )
