"""Dropout whose randomness is part of the model's state, so that a resumed run draws the same."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


@tf.keras.utils.register_keras_serializable(package="lookback")
class ResumableDropout(tf.keras.layers.Layer):
    """Dropout from a counter-based generator; the counter is a weight and so in the checkpoint.

    Keras' own layer draws from a stateful generator that no checkpoint holds.

    Attributes:
      stream: processes that share a batch must have different ones, or row i of each would lose
        the same values. Set it before the first call.
    """

    stream: int = 0

    def __init__(self, rate: float, seed: int = 0, **kwargs: Any) -> None:
        """Creates the layer.

        Args:
          rate: fraction of values that training sets to zero; the others grow by 1 / (1 - rate).
          seed: two layers with different seeds drop differently.
          **kwargs: of `tf.keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self._rate = rate
        self._seed = seed

    def build(self, input_shape: Any) -> None:
        """Creates the counter of training steps."""
        self._counter = self.add_weight(
            "counter", shape=[], dtype=tf.int64, initializer="zeros", trainable=False
        )
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Drops in training; returns ``[...]`` as it came otherwise."""
        if not training:
            return inputs
        seed = tf.constant(self._seed + (self.stream << 32), tf.int64)
        key = tf.stack([seed, self._counter.assign_add(1)])
        return tf.nn.experimental.stateless_dropout(inputs, rate=self._rate, seed=key)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "rate": self._rate, "seed": self._seed}
