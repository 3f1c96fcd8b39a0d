"""The learning rate of each step: warm-up, plateau, polynomial decay."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from lookback.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up to a base rate, and polynomial decay from it, as in NVIDIA's DLRM for PyTorch.

    With t the number of the update, from 1, W `warmup_steps`, S `decay_start_step` and D
    `decay_steps`:

      t <= W:           base * (1 - (W - t) / (W * 2**warmup_factor))
      S < t <= S + D:   max(base * ((S + D - t) / D)**decay_power, decay_end_lr)
      t > S + D:        decay_end_lr, if D > 0
      else:             base

    Attributes:
      base: rate of the plateau.
      warmup_steps: updates of the warm-up; 0 has none.
      warmup_factor: the warm-up begins near ``base * (1 - 2**-warmup_factor)``: 0 from nothing.
      decay_start_step: the last update before the decay; None: the last of the warm-up.
      decay_steps: updates of the decay; 0 has none.
      decay_power: exponent.
      decay_end_lr: rate below which the decay does not go.
    """

    base: float
    warmup_steps: int = 0
    warmup_factor: int = 0
    decay_start_step: int | None = None
    decay_steps: int = 0
    decay_power: float = 2.0
    decay_end_lr: float = 0.0

    @classmethod
    def of(cls, config: RunConfig) -> Schedule:
        """The one that a run's options describe."""
        return cls(
            config.lr,
            config.warmup_steps,
            config.warmup_factor,
            config.decay_start_step,
            config.decay_steps,
            config.decay_power,
            config.decay_end_lr,
        )

    @property
    def constant(self) -> bool:
        """Whether every update has the base rate."""
        return not self.warmup_steps and not self.decay_steps

    def at(self, step: tf.Tensor) -> tf.Tensor:
        """The rate, float32 [], of update `step` (float [], from 1)."""
        step = tf.cast(step, tf.float32)
        rate = tf.constant(self.base, tf.float32)
        if self.decay_steps:
            start = self.warmup_steps if self.decay_start_step is None else self.decay_start_step
            left = tf.clip_by_value((start + self.decay_steps - step) / self.decay_steps, 0.0, 1.0)
            decayed = tf.maximum(self.base * left**self.decay_power, self.decay_end_lr)
            rate = tf.where(step > start, decayed, rate)
        if self.warmup_steps:
            missing = (self.warmup_steps - step) / (self.warmup_steps * 2.0**self.warmup_factor)
            rate = tf.where(step <= self.warmup_steps, self.base * (1.0 - missing), rate)
        return rate
