"""The dot interaction of DLRM: the products of all pairs of a sample's vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from lookback.kernels.loader import cpu_kernels

_KERNEL_LANES = 16  # of kernels/dot_interaction.cc: it takes vectors of a multiple of these


@tf.keras.utils.register_keras_serializable(package="lookback")
class DotInteraction(tf.keras.layers.Layer):
    """``[v_0, <v_1, v_0>, <v_2, v_0>, <v_2, v_1>, ...]``: Naumov et al. 2019, section 2.

    The first vector (of the numerical features) is handed on; the products are the lower triangle
    of ``V V^T``, row by row, without its diagonal. Not padded to a multiple of 8, as NVIDIA's is:
    on CPU that gained nothing.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Creates the layer; it casts its inputs itself, to the precision it multiplies in."""
        super().__init__(autocast=False, **kwargs)

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Multiplies all pairs.

        Args:
          inputs: F vectors ``[B, D]`` of each sample, in any float types.

        Returns:
          ``[B, D + F (F - 1) / 2]`` in the compute dtype.
        """
        kernels = cpu_kernels()
        if kernels is None or inputs[0].shape[1] % _KERNEL_LANES:
            vectors = [tf.cast(vector, self.compute_dtype) for vector in inputs]
            return first_and_products(vectors[0], tf.stack(vectors, 1))
        # In float32 under every policy: tables are, and casting all vectors would cost more.
        result = fused(kernels, [tf.cast(vector, tf.float32) for vector in inputs])
        return tf.cast(result, self.compute_dtype)

    def compute_output_shape(self, input_shape: list[tf.TensorShape]) -> tf.TensorShape:
        """``[B, D + F (F - 1) / 2]``."""
        features = len(input_shape)
        batch, width = tf.TensorShape(input_shape[0])
        return tf.TensorShape([batch, width + features * (features - 1) // 2])


@tf.custom_gradient
def first_and_products(
    first: tf.Tensor, vectors: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
    """One vector, then the products of all pairs of others.

    TensorFlow's own gradient has one batched product for each side of ``V V^T`` and scatters the
    triangle element by element. ``V V^T`` is symmetric, so one product with the symmetric gradient
    does (a product takes 9 ms of CPU time here for 26 tables, D = 128, batch 4,096).

    Args:
      first: ``[B, D]``.
      vectors: ``[B, F, D]``.

    Returns:
      ``[B, D + F (F - 1) / 2]``.
    """
    features, width = vectors.shape[1:]
    rows = range(1, features)
    products = tf.matmul(vectors, vectors, transpose_b=True)  # [B, F, F]
    flat = tf.reshape(products, [-1, features * features])
    # Slices: tf.gather of single columns took a third longer (measured, batch 4,096).
    triangle = [flat[:, row * features : row * features + row] for row in rows]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_first, *parts = tf.split(upstream, [width, *rows], axis=1)
        zeros = tf.zeros([tf.shape(upstream)[0], features], upstream.dtype)
        lower = [zeros]  # [B, F] a row
        for row, part in zip(rows, parts):
            lower += [part, zeros[:, row:]]
        square = tf.reshape(tf.concat(lower, 1), [-1, features, features])
        symmetric = square + tf.transpose(square, [0, 2, 1])
        return of_first, tf.matmul(symmetric, vectors)

    return tf.concat([first, *triangle], 1), gradient


def fused(kernels: Any, inputs: list[tf.Tensor]) -> tf.Tensor:
    """The same as `first_and_products`, without bringing the vectors together.

    Args:
      kernels: from `cpu_kernels`.
      inputs: F float32 vectors ``[B, D]`` of each sample, D a multiple of 16.

    Returns:
      ``[B, D + F (F - 1) / 2]``.
    """

    @tf.custom_gradient
    def interaction(
        *vectors: tf.Tensor,
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            return kernels.lookback_dot_interaction_grad(upstream=upstream, inputs=vectors)

        return kernels.lookback_dot_interaction(inputs=vectors), gradient

    return interaction(*inputs)
