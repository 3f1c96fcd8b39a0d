"""The classification MLP of NVIDIA's SIM: dense layers with PReLU, dropout before the head."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import merlin.models.tf as mm
import tensorflow as tf

from lookback.models.blocks.dropout import ResumableDropout

PRELU_SLOPE = 0.1
"""Initial slope of PReLU for negative inputs, one per unit (NVIDIA's code)."""


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


def mlp_weights(mlp: mm.SequentialBlock) -> list[tf.Variable]:
    """Kernel, bias and slopes of each layer in turn; dropout's counter is no weight of these."""
    return [weight for weight in mlp.weights if weight.dtype.is_floating]


def dropout_masks(mlps: Sequence[mm.SequentialBlock], rows: tf.Tensor) -> list[tf.Tensor]:
    """What the next call in training multiplies the outputs of MLPs by, and moves their counters.

    Args:
      mlps: of `prelu_mlp`, built, with dropout all or none.
      rows: int [], N of the outputs ``[N, dims[-1]]``.

    Returns:
      float32 ``[N, dims[-1]]``: 0 where a value is dropped; nothing for MLPs without dropout.
    """
    masks = []
    for mlp in mlps:
        dropout, width = mlp.layers[-1], mlp_weights(mlp)[-1].shape[0]
        if isinstance(dropout, ResumableDropout):
            # Ones in the layers' type: the draw depends on it.
            ones = tf.ones([rows, width], dropout.compute_dtype)
            masks.append(tf.cast(dropout(ones, training=True), tf.float32))
    return masks
