"""The loss of a click, and what Keras measures beside it."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


@tf.keras.utils.register_keras_serializable(package="lookback")
class ClickLoss(tf.keras.losses.Loss):
    """Binary cross entropy on logits, mean over all candidates, times a weight."""

    def __init__(self, weight: float = 1.0, name: str = "click_loss", **kwargs: Any) -> None:
        """Creates the loss; `weight` is the head's share of the model's loss."""
        super().__init__(name=name, **kwargs)
        self._weight = weight

    @property
    def weight(self) -> float:
        """The head's share of the model's loss."""
        return self._weight

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Loss of each candidate ``[B, C]``; Keras reduces it."""
        return self._weight * click_cross_entropy(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "weight": self._weight}


def click_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Element-wise binary cross entropy in float32."""
    return tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.cast(labels, tf.float32), logits=tf.cast(logits, tf.float32)
    )


def click_metrics() -> list[tf.keras.metrics.Metric]:
    """Keras metrics of the head: an AUC that knows that predictions are logits."""
    return [tf.keras.metrics.AUC(from_logits=True, name="auc")]
