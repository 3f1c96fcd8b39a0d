"""How processes share data: each takes its part of every batch, or of the users."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from lookback.core.devices import HOST


@dataclasses.dataclass(frozen=True)
class Part:
    """The share of one of several processes.

    Attributes:
      rank: which process.
      ranks: how many there are (R).
    """

    rank: int = 0
    ranks: int = 1

    def bounds(self, size: Any) -> tuple[Any, Any]:
        """Begin and end of a contiguous share of `size` things (an integer or a tensor)."""
        return size * self.rank // self.ranks, size * (self.rank + 1) // self.ranks

    def of_batch(self, step: tf.Tensor | int, batch: int, total: int) -> tf.Tensor:
        """Indices (int64) of this share of batch number `step`; the last may be short or empty.

        Args:
          step: from 0.
          batch: size of a batch.
          total: number of samples; batches beyond them are empty.
        """
        with tf.device(HOST):  # which knows the step, and would wait for the sizes
            start = tf.minimum(tf.cast(step, tf.int64) * batch, total)
            begin, end = self.bounds(tf.minimum(tf.constant(batch, tf.int64), total - start))
            return tf.range(start + begin, start + end)

    def cut(self, number: Any, cuts: int) -> Part:
        """Part `number` (an integer or a tensor) of `cuts` of this one."""
        return Part(self.rank * cuts + number, self.ranks * cuts)

    @property
    def every(self) -> slice:
        """Things rank, rank + R, rank + 2 R, ...: a fair share of things sorted by size."""
        return slice(self.rank, None, self.ranks)

    def global_numbers(self, numbers: tf.Tensor) -> tf.Tensor:
        """Numbers among all processes' things, from numbers ``[N]`` among those of `every`."""
        return numbers * self.ranks + self.rank


WHOLE = Part()
