"""Dense layers with ReLU and dropout whose masks are a function of the sample alone."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from lookback.kernels.masked_relu import DropoutMask, masked_relu
from lookback.models.blocks.mlp_relu import relu_dense_gradients


def dropout_masks(keys: tf.Tensor, widths: list[int], rate: float) -> list[DropoutMask]:
    """The masks of several layers.

    Args:
      keys: int64 ``[N]``, one a sample; different steps must bring different ones.
      widths: units of each layer.
      rate: share that is dropped; rounded to a multiple of 1/256.
    """
    masks: list[DropoutMask] = []
    first = 0
    for width in widths:
        masks.append(DropoutMask(keys, width, rate, first))
        first += masks[-1].words
    return masks


def masked_relu_sum(users: tf.Tensor, items: tf.Tensor, mask: DropoutMask) -> tf.Tensor:
    """``relu(users + items) * mask``: every user with its candidates.

    What is positive in the result was positive and kept, so that the gradient needs neither mask
    nor sum, and works in place.

    Args:
      users: ``[B, D]``.
      items: ``[B * C, D]``, the first user's candidates first.
      mask: of as many samples.

    Returns:
      ``[B * C, D]``.
    """

    @tf.custom_gradient
    def layer(
        users: tf.Tensor, items: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        outputs = masked_relu(items, users, mask)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            active = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
            owners = tf.shape(users)[0]
            candidates = tf.shape(items)[0] // tf.maximum(owners, 1)
            by_user = tf.reshape(active, tf.stack([owners, candidates, mask.width]))
            return tf.reduce_sum(by_user, 1), active

        return outputs, gradient

    result: tf.Tensor = layer(users, items)
    return result


def masked_relu_dense(
    inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, mask: DropoutMask
) -> tf.Tensor:
    """``relu(x W + b) * mask``; compare `models.blocks.mlp_relu.relu_dense`.

    Args:
      inputs: ``[N, D]``.
      kernel: ``[D, E]``.
      bias: ``[E]``.
      mask: of N samples and E units.

    Returns:
      ``[N, E]``.
    """

    @tf.custom_gradient
    def layer(
        inputs: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
        # What is positive was positive and kept.
        outputs = masked_relu(tf.matmul(inputs, kernel), tf.expand_dims(bias, 0), mask)
        return outputs, lambda upstream: relu_dense_gradients(inputs, kernel, outputs, upstream)

    result: tf.Tensor = layer(inputs, kernel, bias)
    return result
