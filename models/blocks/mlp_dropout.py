"""Dense layers with ReLU and dropout whose masks are a function of the sample alone."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from lookback.core import splitmix

_WORD_BYTES = 8  # of an int64
_LEVELS = 256  # values of a byte


def kept_fraction(rate: float) -> float:
    """The share of units that `dropout_masks` keeps: ``1 - rate``, to the next multiple of 1/256.

    At least 1/256, so that what is kept can be scaled up.
    """
    return max(1, round((1 - rate) * _LEVELS)) / _LEVELS


def dropout_masks(keys: tf.Tensor, widths: list[int], rate: float) -> list[tf.Tensor]:
    """Which units of each layer stay, drawn by a counter-based generator.

    A sample's mask depends on its key alone: not on its place in a batch, on how a batch is cut,
    or on which process has it, so that any number of processes trains alike.

    Args:
      keys: int64 ``[N]``, one a sample; different steps must bring different ones.
      widths: units of each layer.
      rate: share that is dropped; rounded to a multiple of 1/256.

    Returns:
      Of each layer float32 ``[N, width]``, 1 for what stays and 0 for what does not.
    """
    keep = kept_fraction(rate)
    if keep == 0.5:  # a bit a unit: an eighth of the random numbers
        table = tf.constant([[byte >> bit & 1 for bit in range(8)] for byte in range(_LEVELS)])
    else:
        table = tf.constant([[int(byte < keep * _LEVELS)] for byte in range(_LEVELS)])
    table = tf.cast(table, tf.float32)  # [256, units a byte]
    units_a_byte = int(table.shape[1])
    padded = [-(-width // (units_a_byte * _WORD_BYTES)) for width in widths]  # words
    counter = tf.constant(splitmix.WEYL, tf.int64) * tf.range(sum(padded), dtype=tf.int64)
    words = splitmix.mix(tf.expand_dims(keys, 1) + counter)  # [N, words]
    masks = []
    for part, width in zip(tf.split(words, padded, axis=1), widths):
        octets = tf.cast(tf.bitcast(part, tf.uint8), tf.int32)  # [N, words, 8]
        units = tf.reshape(tf.gather(table, octets), [tf.shape(keys)[0], -1])
        masks.append(tf.ensure_shape(units[:, :width], [None, width]))
    return masks


@tf.custom_gradient
def masked_relu_sum(
    users: tf.Tensor, items: tf.Tensor, mask: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, None]]]:
    """``relu(users + items) * mask``: every user with its candidates.

    What is positive in the result was positive and kept, so that the gradient needs neither mask
    nor sum, and works in place.

    Args:
      users: ``[B, 1, D]``.
      items: ``[B, C, D]``.
      mask: ``[B, C, D]``.

    Returns:
      ``[B, C, D]``.
    """
    outputs = tf.nn.relu(users + items) * mask

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, None]:
        active = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
        return tf.reduce_sum(active, 1, keepdims=True), active, None

    return outputs, gradient


@tf.custom_gradient
def masked_relu_dense(
    inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, mask: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor, None]]]:
    """``relu(x W + b) * mask``; compare `models.blocks.mlp_relu.relu_dense`.

    Args:
      inputs: ``[N, D]``.
      kernel: ``[D, E]``.
      bias: ``[E]``.
      mask: ``[N, E]``.

    Returns:
      ``[N, E]``.
    """
    outputs = tf.nn.relu(tf.nn.bias_add(tf.matmul(inputs, kernel), bias)) * mask

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, None]:
        active = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)  # [N, E]
        ones = tf.ones([1, tf.shape(active)[0]], active.dtype)
        return (
            tf.matmul(active, kernel, transpose_b=True),
            tf.matmul(inputs, active, transpose_a=True),
            tf.reshape(tf.matmul(ones, active), [-1]),
            None,
        )

    return outputs, gradient
