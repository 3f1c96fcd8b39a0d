"""linear() is a matrix product over the last axis."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.models.blocks.linear import Dense, linear

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("leading", [(5,), (2, 5), (3, 2, 4), (1, 1, 1, 1), (0, 3)], ids=str)
def test_product_and_gradients(formulas, leading):
    inputs, kernel = RNG.normal(size=(*leading, 3)), RNG.normal(size=(3, 2))
    if 0 in leading:
        assert linear(tf.constant(inputs), tf.constant(kernel)).shape == [*leading, 2]
        return
    formulas.assert_equals_formula(linear, lambda x, w: x @ w, [inputs, kernel])


def test_unknown_dimensions_keep_what_is_known():
    @tf.function(input_signature=[tf.TensorSpec([4, None, 3])])
    def call(inputs):
        outputs = linear(inputs, tf.ones([3, 2]))
        assert outputs.shape.as_list() == [4, None, 2]
        return outputs

    np.testing.assert_array_equal(call(tf.ones([4, 5, 3])), np.full((4, 5, 2), 3.0))


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("shape", [[None, 3], [None, 4, 3], [None, None, 3]], ids=str)
def test_the_layer_is_keras_own(activation, shape):
    """With NumPy's numbers, and the names under which checkpoints have its weights."""
    layer, inputs = Dense(2, activation), RNG.normal(size=(5, 4, 3)[-len(shape) :])
    call = tf.function(layer, input_signature=[tf.TensorSpec(shape, tf.float32)])
    found = call(tf.constant(inputs, tf.float32))
    kernel, bias = (weight.numpy() for weight in layer.weights)
    expected = inputs @ kernel + bias
    if activation:
        expected = 1 / (1 + np.exp(-expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    names = [weight.name.rpartition("/")[2] for weight in layer.weights]
    assert names == ["kernel:0", "bias:0"]
    assert layer.name.startswith("dense")
