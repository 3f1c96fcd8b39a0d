"""DIEN's auxiliary loss: each state of the first GRU must tell the next click from a negative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from lookback.models.blocks.linear import Dense, linear


@tf.keras.utils.register_keras_serializable(package="lookback")
class AuxiliaryNet(tf.keras.layers.Layer):
    """Auxiliary loss of the interest extractor (Zhou et al. 2019, equation 6).

    ``L = mean over valid t of -log p(h_t, e_{t+1}) - log(1 - p(h_t, n_{t+1}))`` with h the GRU's
    states, e the clicked and n the sampled items, and p an MLP with sigmoids on ``[h, e]`` (the
    authors' and NVIDIA's code; the paper writes an inner product).

    Different from NVIDIA's recipe: the mean is over valid steps only, not over padding, and it
    works on logits, so nothing needs nudging away from 0. The half of the first layer that
    belongs to the state is computed once for both branches.
    """

    def __init__(self, dims: Sequence[int] = (100, 50), **kwargs: Any) -> None:
        """Creates the net.

        Args:
          dims: widths of the hidden layers (NVIDIA's `aux_mlp_dims`).
          **kwargs: of `tf.keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self._dims = tuple(dims)
        self._hidden = [Dense(width, "sigmoid") for width in self._dims[1:]]
        self._logit = Dense(1, name="logit")

    def build(self, input_shape: Any) -> None:
        """Creates the first layer, split into the state's and the item's part."""
        states, clicks = input_shape[:2]
        # One kernel, so that its initial scale is that of the layer on the concatenation.
        self._kernel = self.add_weight(
            "kernel", shape=[int(states[-1]) + int(clicks[-1]), self._dims[0]]
        )
        self._bias = self.add_weight("bias", shape=[self._dims[0]], initializer="zeros")
        self._state_width = int(states[-1])
        width = self._dims[0]
        for layer in (*self._hidden, self._logit):
            layer.build([None, width])
            width = layer.units
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Computes the loss.

        Args:
          inputs: states ``[S, B, H]``, clicked items ``[S, B, E]``, negatives ``[S, B, E]``, all
            time-major, and the bool mask of valid steps ``[S, B]``.

        Returns:
          float32 scalar; 0 if no step has a valid successor.
        """
        states, clicks, negatives, mask = inputs
        w_state, w_item = tf.split(self._kernel, [self._state_width, -1])
        by_state = linear(_without_last(states), w_state) + self._bias  # [S - 1, B, 100]
        items = tf.stack([_without_first(clicks), _without_first(negatives)])  # [2, S - 1, B, E]
        hidden = tf.sigmoid(linear(items, w_item) + by_state)  # [2, S - 1, B, 100]
        for layer in self._hidden:
            hidden = layer(hidden)
        logits = tf.squeeze(tf.cast(self._logit(hidden), tf.float32), -1)  # [2, S - 1, B]
        loss = tf.nn.softplus(-logits[0]) + tf.nn.softplus(logits[1])  # [S - 1, B]
        valid = _valid_steps(mask)
        return tf.math.divide_no_nan(tf.reduce_sum(loss * valid), tf.reduce_sum(valid))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "dims": self._dims}


def count_steps(mask: tf.Tensor) -> tf.Tensor:
    """How many steps the loss is the mean of: float32 [], from the bool mask ``[S, B]``."""
    return tf.reduce_sum(_valid_steps(mask))


def _valid_steps(mask: tf.Tensor) -> tf.Tensor:
    """1 where a step and its successor exist, else 0: float32 ``[S - 1, B]``."""
    return tf.cast(mask[:-1] & mask[1:], tf.float32)


def _without_first(sequence: tf.Tensor) -> tf.Tensor:
    """Steps 1 to S - 1. By a split, whose gradient joins where a slice's fills and adds."""
    return tf.split(sequence, [1, -1])[1]


def _without_last(sequence: tf.Tensor) -> tf.Tensor:
    """Steps 0 to S - 2."""
    return tf.split(sequence, [-1, 1])[0]
