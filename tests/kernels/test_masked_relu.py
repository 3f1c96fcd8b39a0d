"""ReLU with drawn masks, by our kernel and by TensorFlow's operations: against NumPy."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from lookback.core import splitmix
from lookback.kernels import loader
from lookback.kernels.masked_relu import DropoutMask, kept_fraction, masked_relu

needs_kernels = pytest.mark.skipif(
    loader.cpu_kernels() is None, reason="a GPU, or an environment that setup.sh did not make"
)
WAYS = [
    pytest.param(loader.portable, id="tensorflow"),
    pytest.param(contextlib.nullcontext, id="kernel", marks=needs_kernels),
]


def drawn(keys, width, rate, first):
    """Units by the bits of random words, or by their bytes."""
    keep = kept_fraction(rate)
    bits = 64 if keep == 0.5 else 8
    numbers = np.arange(first, first + -(-width // bits))
    with np.errstate(over="ignore"):
        counters = np.int64(splitmix.WEYL) * numbers
        words = splitmix.mix(tf.constant(keys[:, np.newaxis] + counters)).numpy()
    octets = words.astype("<i8").view(np.uint8).reshape(len(keys), 8 * len(numbers))
    if keep == 0.5:
        return np.unpackbits(octets, axis=1, bitorder="little")[:, :width]
    return (octets < 256 * keep)[:, :width]


@pytest.mark.parametrize("rate", [0.5, 0.25, 0.1, 0.999])
@pytest.mark.parametrize(
    ("biases", "together", "width"),
    [(1, 5, 1), (1, 7, 8), (3, 4, 77), (2, 300, 256), (5, 1, 64), (4, 3, 130), (0, 3, 16)],
)
@pytest.mark.parametrize("way", WAYS)
def test_it_is_relu_of_the_sum_where_a_unit_stays(way, biases, together, width, rate):
    random = np.random.default_rng(width)
    samples = biases * together
    x = random.normal(size=(samples, width)).astype(np.float32)
    bias = random.normal(size=(biases, width)).astype(np.float32)
    keys = random.integers(-(1 << 63), 1 << 63, samples)
    mask = DropoutMask(tf.constant(keys), width, rate, first=3)
    with way():
        found = masked_relu(tf.constant(x), tf.constant(bias), mask)
    stay = drawn(keys, width, rate, 3)
    expected = np.maximum(x + np.repeat(bias, together, 0), 0) * stay
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(mask.drawn(), stay)


@needs_kernels
def test_what_is_no_number_stays_so_and_infinity_below_is_0():
    x = np.tile(np.float32([np.nan, -np.inf, np.inf, -1.0]), (3, 9))
    mask = DropoutMask(tf.constant([1, 2, 3], tf.int64), 36, 0.5)
    bias = tf.zeros([1, 36])
    found = masked_relu(tf.constant(x), bias, mask).numpy()
    with loader.portable():
        expected = masked_relu(tf.constant(x), bias, mask).numpy()
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(found[:, ::4]).all() and not found[:, 1::4].any()


@needs_kernels
@pytest.mark.parametrize("rate", [0.5, 0.25])
@pytest.mark.parametrize("width", [16, 77])
def test_half_precision_is_tensorflow_s(width, rate):
    """Sums are rounded to bfloat16."""
    x = tf.cast(tf.random.stateless_normal([6, width], [0, 1]), tf.bfloat16)
    bias = tf.cast(tf.random.stateless_normal([2, width], [0, 2]), tf.bfloat16)
    mask = DropoutMask(tf.range(6, dtype=tf.int64), width, rate)
    found = masked_relu(tf.identity(x), bias, mask)
    with loader.portable():
        expected = masked_relu(x, bias, mask)
    assert found.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.cast(found, tf.float32), tf.cast(expected, tf.float32))


@needs_kernels
def test_what_does_not_fit_is_refused():
    keys = tf.range(6, dtype=tf.int64)
    for x, bias in (([6, 8], [1, 7]), ([6, 8], [4, 8]), ([5, 8], [1, 8]), ([6, 8], [0, 8])):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"N a multiple of M"):
            masked_relu(tf.ones(x), tf.ones(bias), DropoutMask(keys, 8, 0.5))
