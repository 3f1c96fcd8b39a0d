"""Mixed precision: the policy for the device, and dynamic scaling of fp16 losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from lookback.core.devices import has_gpu
from lookback.training.config import RunConfig


def amp_policy() -> str:
    """The Keras policy of `--amp`: fp16 on GPUs, bf16 on CPUs (AVX-512 has its products)."""
    return "mixed_float16" if has_gpu() else "mixed_bfloat16"


class LossScale(tf.Module):
    """Scales a loss so that fp16 gradients do not underflow (Micikevicius et al. 2018).

    A step whose gradients are not finite is skipped. A dynamic scale halves then, and doubles
    after `growth_steps` good ones; a static one stays (as in NVIDIA's DLRM). Keras'
    LossScaleOptimizer does the same for one optimizer; here two (dense and tables) must agree on
    skipping.
    """

    def __init__(
        self, initial: float = 2.0**15, growth_steps: int = 2000, *, dynamic: bool = True
    ) -> None:
        """Creates the state; the defaults are those of Keras' LossScaleOptimizer.

        Args:
          initial: first scale.
          growth_steps: good steps after which a dynamic scale doubles.
          dynamic: whether the scale adapts.
        """
        super().__init__()
        self._growth_steps, self._dynamic = growth_steps, dynamic
        self.scale = tf.Variable(initial, trainable=False, dtype=tf.float32, name="scale")
        self.good_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="good_steps")

    @classmethod
    def of(cls, config: RunConfig) -> LossScale:
        """The one that a run's options describe."""
        if config.loss_scale is None:
            return cls()
        return cls(config.loss_scale, dynamic=False)

    @property
    def can_fall(self) -> tf.Tensor:
        """Bool []: whether the scale falls after an overflow, so that later steps can succeed."""
        return tf.logical_and(self._dynamic, self.scale > 1.0)

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss to differentiate."""
        return loss * tf.cast(self.scale, loss.dtype)

    def unscaled(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Gradients of the loss itself; they may be tensors, IndexedSlices or None."""
        inverse = 1.0 / self.scale
        return [_map_values(g, lambda values: values * inverse) for g in gradients]

    def update(self, finite: tf.Tensor) -> None:
        """Adapts the scale.

        Args:
          finite: bool [], whether all gradients of the step were, in all processes.
        """
        if not self._dynamic:
            return
        good = tf.where(finite, self.good_steps + 1, 0)
        grow = good >= self._growth_steps
        factor = tf.where(finite, tf.where(grow, 2.0, 1.0), 0.5)
        self.scale.assign(tf.maximum(self.scale * factor, 1.0))
        self.good_steps.assign(tf.where(grow, tf.constant(0, tf.int64), good))


def all_finite(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Bool []: whether every number of every gradient (tensors, IndexedSlices, None) is finite.

    A sum is not finite if one of its terms is not; looking at it takes a third of the time that
    looking at every number does. It says the same unless float32 numbers near 1e38 add up, which
    deserve the alarm as well.
    """
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    sums = [tf.reduce_sum(tf.cast(v, tf.float32)) for v in values if v is not None]
    return tf.reduce_all(tf.math.is_finite(tf.stack(sums)))


def _map_values(gradient: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(function(gradient.values), gradient.indices, gradient.dense_shape)
    return function(gradient)
