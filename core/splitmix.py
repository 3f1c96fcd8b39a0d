"""SplitMix64 on int64 tensors: random numbers as a pure function of a counter.

The generator of Steele, Lea & Flood 2014 ("Fast splittable pseudorandom number generators"): number
n of the stream with key k is ``mix(k + WEYL * n)``. Unlike TensorFlow's stateless ops, which give a
whole tensor, it gives any number of a stream by itself, so results do not depend on batches,
shards or ranks. Integers only: CPU and GPU agree bit for bit.
"""

from __future__ import annotations

import tensorflow as tf

# int64 twins of SplitMix64's unsigned constants: GPUs have no kernels for uint64 products.
WEYL = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_LARGEST_PRIME_32 = 4294967291


def mix(state: tf.Tensor) -> tf.Tensor:
    """SplitMix64's step: add the Weyl constant, then mix.

    Args:
      state: int64 of any shape.

    Returns:
      int64 of the same shape, all 64 bits random.
    """
    z = state + WEYL
    z = tf.bitwise.bitwise_xor(z, shift_right(z, 30)) * _MIX_1
    z = tf.bitwise.bitwise_xor(z, shift_right(z, 27)) * _MIX_2
    return tf.bitwise.bitwise_xor(z, shift_right(z, 31))


def shift_right(value: tf.Tensor, bits: int) -> tf.Tensor:
    """Logical right shift of int64: zeros come in, whatever the sign.

    Args:
      value: int64 of any shape.
      bits: 1 to 63.
    """
    mask = tf.constant((1 << (64 - bits)) - 1, tf.int64)
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(value, tf.constant(bits, tf.int64)), mask)


def stream(name: str) -> int:
    """A fixed number for the name of a random stream, below 2**32."""
    return int.from_bytes(name.encode(), "big") % _LARGEST_PRIME_32
