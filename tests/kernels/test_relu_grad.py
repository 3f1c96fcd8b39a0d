"""The backward pass of ReLU and bias, by our kernel and by TensorFlow, against NumPy."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from lookback.kernels import loader
from lookback.kernels.relu_grad import relu_bias_gradient

needs_kernels = pytest.mark.skipif(
    loader.cpu_kernels() is None, reason="a GPU, or an environment that setup.sh did not make"
)
WAYS = [
    pytest.param(loader.portable, id="tensorflow"),
    pytest.param(contextlib.nullcontext, id="kernel", marks=needs_kernels),
]
SHAPES = [(1, 1), (3, 8), (5, 77), (128, 16), (129, 40), (700, 33), (0, 8), (4, 0)]


def draw(shape, dtype):
    random = np.random.default_rng(shape[1])
    return [tf.cast(random.normal(size=shape), dtype) for _ in range(2)]


def exact(tensor):
    return tf.cast(tensor, tf.float32).numpy()


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS)
def test_what_passes_and_its_sum(way, shape, dtype):
    upstream, outputs = draw(shape, dtype)
    expected = np.where(exact(outputs) > 0, exact(upstream), 0)
    with way():
        active, of_bias = relu_bias_gradient(upstream, outputs)
    assert (active.dtype, of_bias.dtype) == (dtype, dtype)
    np.testing.assert_array_equal(exact(active), expected)
    tolerance = 1e-5 if dtype == tf.float32 else 2**-8
    np.testing.assert_allclose(exact(of_bias), expected.sum(0), rtol=tolerance, atol=tolerance)


@needs_kernels
@pytest.mark.parametrize("samples", [128, 129, 1000, 20_000])
def test_sums_have_an_order_that_threads_do_not_change(samples):
    """Chunks of 128 samples and more, 64 at most, each in order, then added in order."""
    upstream, outputs = draw((samples, 12), tf.float32)
    chunks = min(64, -(-samples // 128))
    passed = np.where(exact(outputs) > 0, exact(upstream), np.float32(0))
    expected = np.zeros(12, np.float32)
    for chunk in range(chunks):
        total = np.zeros(12, np.float32)
        for row in passed[samples * chunk // chunks : samples * (chunk + 1) // chunks]:
            total += row
        expected += total
    np.testing.assert_array_equal(relu_bias_gradient(upstream, outputs)[1], expected)


@needs_kernels
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_what_is_no_number_is_not_lost(dtype):
    """NaN times 0 is NaN, as in TensorFlow, so that a diverging step is seen."""
    upstream = tf.constant([[np.nan, np.inf, -np.inf, 1.0]] * 3, dtype)
    outputs = tf.constant([[0.0, 0.0, 1.0, np.nan]] * 3, dtype)
    active, of_bias = relu_bias_gradient(tf.identity(upstream), outputs)
    expected = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
    np.testing.assert_array_equal(exact(active), exact(expected))
    np.testing.assert_array_equal(np.isnan(exact(of_bias)), [True, True, False, False])


@needs_kernels
def test_what_does_not_fit_is_refused():
    for upstream, outputs in (([3, 8], [3, 7]), ([8], [8])):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"outputs of its shape"):
            relu_bias_gradient(tf.ones(upstream), tf.ones(outputs))
