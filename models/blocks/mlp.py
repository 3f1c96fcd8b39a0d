"""The classification MLP of seed 000: dense layers with PReLU, optional dropout before the head."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import merlin.models.tf as mm
import tensorflow as tf

from lookback.models.blocks.dropout import ResumableDropout

PRELU_SLOPE = 0.1
"""Initial slope of PReLU for negative inputs, one per unit (seed 000's code)."""


def prelu_mlp(dims: Sequence[int], dropout_rate: float | None, name: str) -> mm.SequentialBlock:
    """Dense + PReLU for each of `dims`, then dropout.

    Args:
      dims: widths of the layers.
      dropout_rate: of the dropout between the last representation and the head; None for none.
      name: of the block.

    Returns:
      A block from ``[N, D]`` to ``[N, dims[-1]]``.
    """
    layers: list[tf.keras.layers.Layer] = []
    for width in dims:
        # mm.MLPBlock cannot hold PReLU itself: it serialises an activation by name, and a layer
        # passed as one is lost in get_config (merlin/models/tf/blocks/mlp.py, _Dense).
        layers += mm.MLPBlock([width], activation="linear").layers
        layers.append(
            tf.keras.layers.PReLU(alpha_initializer=tf.keras.initializers.Constant(PRELU_SLOPE))
        )
    if dropout_rate:
        layers.append(ResumableDropout(dropout_rate, seed=zlib.crc32(name.encode())))
    return mm.SequentialBlock(layers, block_name=name)
