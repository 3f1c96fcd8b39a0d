"""ReLU and dropout, whose masks are a function of a sample's key alone."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from lookback.core import splitmix
from lookback.kernels.loader import cpu_kernels

_WORD_BYTES = 8  # of an int64
_LEVELS = 256  # values of a byte


def kept_fraction(rate: float) -> float:
    """The share of units that a mask keeps: ``1 - rate``, to the next multiple of 1/256.

    At least 1/256, so that what is kept can be scaled up.
    """
    return max(1, round((1 - rate) * _LEVELS)) / _LEVELS


@dataclasses.dataclass(frozen=True)
class DropoutMask:
    """Which units of a layer stay, drawn by a counter-based generator.

    A sample's mask depends on its key alone: not on its place in a batch, on how a batch is cut,
    or on which process has it, so that any number of processes trains alike.

    Attributes:
      keys: int64 ``[N]``, one a sample; different steps must bring different ones.
      width: units of the layer.
      rate: share that is dropped; rounded to a multiple of 1/256.
      first: number of the first of a sample's random words that are this layer's.
    """

    keys: tf.Tensor
    width: int
    rate: float
    first: int = 0

    @property
    def _units_a_word(self) -> int:
        # A bit a unit, where it is half of them: an eighth of the random numbers.
        return (8 if kept_fraction(self.rate) == 0.5 else 1) * _WORD_BYTES

    @property
    def words(self) -> int:
        """How many words are this layer's."""
        return -(-self.width // self._units_a_word)

    def drawn(self) -> tf.Tensor:
        """Float32 ``[N, width]``, 1 for what stays and 0 for what does not."""
        keep = kept_fraction(self.rate)
        if keep == 0.5:
            table = tf.constant([[byte >> bit & 1 for bit in range(8)] for byte in range(_LEVELS)])
        else:
            table = tf.constant([[int(byte < keep * _LEVELS)] for byte in range(_LEVELS)])
        numbers = tf.range(self.first, self.first + self.words, dtype=tf.int64)
        counter = tf.constant(splitmix.WEYL, tf.int64) * numbers
        words = splitmix.mix(tf.expand_dims(self.keys, 1) + counter)  # [N, words]
        octets = tf.cast(tf.bitcast(words, tf.uint8), tf.int32)  # [N, words, 8]
        units = tf.gather(tf.cast(table, tf.float32), octets)
        units = tf.reshape(units, [tf.shape(self.keys)[0], self.words * self._units_a_word])
        return tf.ensure_shape(units[:, : self.width], [None, self.width])


def masked_relu(inputs: tf.Tensor, bias: tf.Tensor, mask: DropoutMask) -> tf.Tensor:
    """``relu(x + b) * mask``, by our kernel where it can be used; not differentiable.

    Args:
      inputs: ``[N, D]``, of any float type; the kernel takes float32 and bfloat16.
      bias: ``[M, D]``, N a multiple of M: the first N / M samples have the first, and so on.
      mask: of N samples and D units.

    Returns:
      ``[N, D]``.
    """
    kernels = cpu_kernels() if inputs.dtype in (tf.float32, tf.bfloat16) else None
    if kernels is not None:
        keep = kept_fraction(mask.rate)
        return kernels.lookback_masked_relu(
            x=inputs,
            bias=bias,
            keys=mask.keys,
            first_word=mask.first,
            keep=0 if keep == 0.5 else int(keep * _LEVELS),
        )
    owners = tf.shape(bias)[0]
    shape = tf.stack([owners, tf.shape(inputs)[0] // tf.maximum(owners, 1), mask.width])
    sums = tf.reshape(inputs, shape) + tf.expand_dims(bias, 1)
    return tf.nn.relu(tf.reshape(sums, [-1, mask.width])) * tf.cast(mask.drawn(), inputs.dtype)
