"""The dot interaction of DLRM: the products of all pairs of a sample's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from lookback.kernels.dot_interaction import dot_interaction, lookup_interaction, reads_rows


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

    def call(
        self, inputs: list[tf.Tensor], lookups: Sequence[tuple[tf.Variable, tf.Tensor]] = ()
    ) -> tf.Tensor:
        """Multiplies all pairs.

        Args:
          inputs: F vectors ``[B, D]`` of each sample, in any float types.
          lookups: of M more, which come behind them, the table ``[rows, D]`` and ids ``[B]``.

        Returns:
          ``[B, D + (F + M) (F + M - 1) / 2]`` in the compute dtype.
        """
        if len(inputs) == 1 and lookups and reads_rows(inputs[0].shape[1], self.compute_dtype):
            tables, ids = zip(*lookups)
            return lookup_interaction(inputs[0], tables, ids, self.compute_dtype)
        rows = [tf.gather(table, index) for table, index in lookups]
        return dot_interaction([*inputs, *rows], self.compute_dtype)

    def compute_output_shape(self, input_shape: list[tf.TensorShape]) -> tf.TensorShape:
        """``[B, D + F (F - 1) / 2]``."""
        features = len(input_shape)
        batch, width = tf.TensorShape(input_shape[0])
        return tf.TensorShape([batch, width + features * (features - 1) // 2])
