"""The dot interaction and the ReLU layers against NumPy, gradients included."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from models.blocks.interaction import DotInteraction
from models.blocks.mlp_relu import ReluMLP


def pairs(*vectors):
    """Naumov et al. 2019, section 2, sample by sample."""
    rows = []
    for sample in zip(*vectors, strict=True):
        products = [sample[i] @ sample[j] for i in range(len(sample)) for j in range(i)]
        rows.append(np.concatenate([sample[0], products]))
    return np.stack(rows)


def mlp(x, *weights):
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        x = np.maximum(x @ kernel + bias, 0)
    return x


@pytest.mark.parametrize(("batch", "features"), [(1, 2), (3, 4), (5, 7)])
def test_dot_interaction_equals_numpy(formulas, batch, features):
    rng = np.random.default_rng(features)
    vectors = [rng.normal(size=(batch, 3)) for _ in range(features)]
    layer = DotInteraction()
    formulas.assert_equals_formula(lambda *v: layer(list(v)), pairs, vectors)
    shapes = [tf.TensorShape([batch, 3])] * features
    assert layer.compute_output_shape(shapes) == pairs(*vectors).shape


def test_relu_mlp_equals_numpy(formulas):
    layer = ReluMLP((6, 4))
    inputs = np.random.default_rng(1).normal(size=(5, 3))
    layer(tf.constant(inputs, tf.float32))
    formulas.randomise(layer.trainable_weights)
    weights = [w for pair in zip(layer._kernels, layer._biases, strict=True) for w in pair]
    formulas.assert_equals_formula(layer, mlp, [inputs], weights)


@pytest.mark.parametrize("make", [DotInteraction, lambda: ReluMLP((6, 4))])
def test_any_batch_under_tf_function_even_none(make):
    layer = make()
    listed = isinstance(layer, DotInteraction)
    layer([tf.ones([2, 3])] * 4 if listed else tf.ones([2, 3]))

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(layer([x, 2 * x, x, x] if listed else x))
        return tape.gradient(total, x)

    for batch in (0, 1, 4):
        assert gradient(tf.ones([batch, 3])).shape == [batch, 3]


def test_relu_mlp_starts_as_in_the_seeds():
    """Glorot normal: variance 2 / (in + out); biases: 1 / out."""
    layer = ReluMLP((400, 300))
    layer.build([None, 500])
    for kernel, bias, (n_in, n_out) in zip(
        layer._kernels, layer._biases, [(500, 400), (400, 300)], strict=True
    ):
        assert np.std(kernel) == pytest.approx((2 / (n_in + n_out)) ** 0.5, rel=0.03)
        assert np.std(bias) == pytest.approx(n_out**-0.5, rel=0.2)


def test_config_round_trip():
    layer = ReluMLP((6, 4), name="mlp")
    copy = ReluMLP.from_config(layer.get_config())
    copy.build([None, 3])
    assert [w.shape for w in copy.weights] == [(3, 6), (6,), (6, 4), (4,)]
