"""The last layer of a head: a representation becomes a logit."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from lookback.models.blocks.linear import Dense
from lookback.models.stored_names import stored_as


@stored_as("LogitHead", "RowLogit")
class LogitHead(tf.keras.layers.Layer):
    """One logit for each candidate, or for each row, in float32 under every policy."""

    def __init__(
        self,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        """Creates the head.

        Args:
          kernel_initializer: of the weights, as Keras takes it.
          bias_initializer: of the bias, likewise.
          **kwargs: of `tf.keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self._dense = Dense(
            1,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            dtype="float32",
            name="logit",
        )

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        self._dense.build(input_shape)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps ``[B, C, D]`` to ``[B, C]``, or rows ``[B, D]`` to ``[B, 1]``."""
        logits = self._dense(tf.cast(inputs, tf.float32))
        return logits if inputs.shape.rank == 2 else tf.squeeze(logits, -1)

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """``[B, C]``, or ``[B, 1]``."""
        shape = tf.TensorShape(input_shape)
        return tf.TensorShape([shape[0], 1]) if shape.rank == 2 else shape[:-1]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "kernel_initializer": tf.keras.initializers.serialize(self._dense.kernel_initializer),
            "bias_initializer": tf.keras.initializers.serialize(self._dense.bias_initializer),
        }
