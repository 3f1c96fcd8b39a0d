"""How fast DLRM trains, against plain Keras and PyTorch DLRMs on batches of the same size."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lookback.benchmarks import dlrm_options

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport

QUESTION = "How many samples a second does DLRM train, against plain Keras and PyTorch?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    dlrm_options.add_arguments(parser)
    parser.add_argument(
        "--new_sgd",
        action="store_true",
        help="time the plain model with Keras' new SGD, too, whose step passes over whole tables",
    )


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Times training steps (forward, backward, update with SGD) on batches made beforehand.

    The plain model has Keras' legacy SGD: that of Keras 2.12 keeps a dense momentum for each table
    even if momentum is 0 (keras/optimizers/sgd.py, `update_step`), which is many times slower.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    import tensorflow as tf

    from lookback.benchmarks.dlrm_contenders import LEARNING_RATE, compare

    optimizers = tf.keras.optimizers
    return compare(
        args,
        title="DLRM training",
        mode="train",
        choose=lambda contenders: {
            "ours": contenders.train_ours(),
            "ours_amp": contenders.train_ours(amp=True),
            "plain": contenders.train_plain(optimizers.legacy.SGD(LEARNING_RATE)),
            **(
                {"plain_new_sgd": contenders.train_plain(optimizers.SGD(LEARNING_RATE))}
                if args.new_sgd
                else {}
            ),
        },
    )
