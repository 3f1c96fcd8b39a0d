"""A matrix product over the last axis that stays one GEMM in both directions."""

from __future__ import annotations

import tensorflow as tf


def linear(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Multiplies the last axis of `inputs` by `kernel`.

    `tf.matmul` of more than two dimensions by a matrix is a batched product, whose gradient first
    makes one ``[D, E]`` matrix for each batch entry and then sums them (measured here: the GRU
    layers' backward pass took 13 times the forward pass). On a flat view both are one GEMM.

    Args:
      inputs: ``[..., D]``.
      kernel: ``[D, E]``.

    Returns:
      ``[..., E]``.
    """
    if inputs.shape.rank == 2:
        return tf.matmul(inputs, kernel)
    flat = tf.matmul(tf.reshape(inputs, [-1, inputs.shape[-1]]), kernel)
    outputs = tf.reshape(flat, tf.concat([tf.shape(inputs)[:-1], [kernel.shape[-1]]], 0))
    outputs.set_shape(inputs.shape[:-1].concatenate(kernel.shape[-1]))
    return outputs
