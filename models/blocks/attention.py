"""Attention of a candidate over a history: masked softmax, and DIN's activation unit."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from lookback.models.blocks.linear import Dense, linear


def masked_softmax(scores: tf.Tensor, mask: tf.Tensor, axis: int = -1) -> tf.Tensor:
    """Softmax over the entries that `mask` allows; zero elsewhere, and all zero if none is.

    Args:
      scores: ``[...]``; computed in float32 whatever comes.
      mask: bool, broadcastable to `scores`.
      axis: the softmax runs along it.

    Returns:
      float32 weights ``[...]``.
    """
    scores = tf.cast(scores, tf.float32)
    # The largest allowed score is subtracted, so that exp cannot overflow; it cancels out.
    lowest = tf.constant(scores.dtype.min, scores.dtype)
    peak = tf.reduce_max(tf.where(mask, scores, lowest), axis, keepdims=True)
    shifted = tf.where(mask, scores - tf.stop_gradient(peak), lowest)
    exp = tf.exp(shifted)  # exp of the lowest float is 0, and so is its gradient
    return tf.math.divide_no_nan(exp, tf.reduce_sum(exp, axis, keepdims=True))


@tf.keras.utils.register_keras_serializable(package="lookback")
class ActivationUnit(tf.keras.layers.Layer):
    """DIN's activation unit: an MLP scores each step of a sequence against each candidate.

    ``score = w . f2(W2 f1(W1 [i, s, i - s, i * s]))`` with i the candidate, s the step and f the
    sigmoid (Zhou et al. 2018, "Deep Interest Network", figure 2; difference and product in place
    of the outer product as in its authors' code and NVIDIA's).

    The first layer is never applied to the concatenation. Split by rows into W_i, W_s, W_d, W_p it
    is ``i (W_i + W_d) + s (W_s - W_d) + (i * s) W_p``: the candidate's part is computed once a
    candidate and the step's part once a step, and only the product's part once for each pair.
    """

    def __init__(self, hidden_units: tuple[int, int] = (80, 40), **kwargs: Any) -> None:
        """Creates the unit.

        Args:
          hidden_units: widths of the two hidden layers; 80 and 40 are those of DIN's
            code and of NVIDIA's SIM.
          **kwargs: of `tf.keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self._hidden_units = tuple(hidden_units)
        self._second = Dense(self._hidden_units[1], "sigmoid", name="second")
        self._score = Dense(1, name="score")

    def build(self, input_shape: Any) -> None:
        """Creates the first layer's weights ``[4H, hidden]`` and bias."""
        width = int(input_shape[0][-1])
        self._kernel = self.add_weight("kernel", shape=[4 * width, self._hidden_units[0]])
        self._bias = self.add_weight("bias", shape=[self._hidden_units[0]], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Scores every pair.

        Args:
          inputs: candidates ``[C, B, H]`` and steps, time-major, ``[S, B, H]``.

        Returns:
          Unnormalised scores ``[S, C, B]``. Candidates lead because a step is then broadcast over
          whole rows of the batch, whose gradient is a cheap sum.
        """
        items, steps = inputs
        w_item, w_step, w_difference, w_product = tf.split(self._kernel, 4)
        by_item = linear(items, w_item + w_difference) + self._bias  # [C, B, 80]
        by_step = linear(steps, w_step - w_difference)  # [S, B, 80]
        product = tf.expand_dims(steps, 1) * items  # [S, C, B, H]
        by_pair = linear(product, w_product)  # [S, C, B, 80]
        hidden = tf.sigmoid(by_pair + tf.expand_dims(by_step, 1) + by_item)
        return tf.squeeze(self._score(self._second(hidden)), -1)  # [S, C, B]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "hidden_units": self._hidden_units}
