"""Windows of events out of resident histories."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from lookback.kernels.loader import cpu_kernels


def windows(
    begins: tf.Tensor, positions: tf.Tensor, columns: Mapping[str, tf.Tensor], length: int
) -> dict[str, tf.Tensor]:
    """The newest events before a position in each of some histories, by our kernel where it is.

    Args:
      begins: int64 ``[B]``, the number of each history's first event.
      positions: int64 ``[B]``, how many of its events come before; none of them is negative.
      columns: values ``[E]`` of all events by name, numbers of any type.
      length: slots of a window (T).

    Returns:
      Values ``[B, T]`` by name, the newest last. Slots before a history's first event are 0.
    """
    kernels = cpu_kernels()
    if kernels is not None and columns:
        found = kernels.lookback_windows(
            begins=begins, positions=positions, columns=list(columns.values()), length=length
        )
        return dict(zip(columns, found))
    ends = tf.expand_dims(begins + positions, 1)
    slots = tf.maximum(ends + tf.range(-length, 0, dtype=tf.int64), 0)  # [B, T]
    valid = occupied(positions, length)
    return {
        name: tf.where(valid, tf.gather(values, slots), tf.zeros([], values.dtype))
        for name, values in columns.items()
    }


def occupied(positions: tf.Tensor, length: int) -> tf.Tensor:
    """Which of the last `length` slots of windows have an event, bool ``[B, length]``."""
    return tf.expand_dims(positions, 1) + tf.range(-length, 0, dtype=tf.int64) >= 0
