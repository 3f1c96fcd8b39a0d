"""The dot interaction and the ReLU layers against NumPy, gradients included."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from lookback.kernels import loader as kernels
from lookback.models.blocks.interaction import DotInteraction
from lookback.models.blocks.mlp_relu import ReluMLP

needs_kernels = pytest.mark.skipif(
    kernels.cpu_kernels() is None, reason="a GPU, or an environment that setup.sh did not make"
)
WAYS = [
    pytest.param(kernels.portable, id="tensorflow"),
    pytest.param(contextlib.nullcontext, id="kernel", marks=needs_kernels),
]


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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("batch", "features", "width"),
    [(1, 2, 3), (3, 4, 3), (5, 7, 3), (1, 1, 16), (3, 2, 16), (5, 4, 32), (2, 5, 48), (2, 27, 128)],
)
def test_dot_interaction_equals_numpy(formulas, way, batch, features, width):
    rng = np.random.default_rng(features)
    vectors = [rng.normal(size=(batch, width)) for _ in range(features)]
    layer = DotInteraction()
    with way():
        formulas.assert_equals_formula(lambda *v: layer(list(v)), pairs, vectors)
    shapes = [tf.TensorShape([batch, width])] * features
    assert layer.compute_output_shape(shapes) == pairs(*vectors).shape


@needs_kernels
def test_the_kernel_multiplies_in_float32_whatever_comes():
    vectors = [tf.random.stateless_normal([6, 16], [0, n]) for n in range(4)]
    policy = tf.keras.mixed_precision.Policy("mixed_bfloat16")
    half = DotInteraction(dtype=policy)([tf.cast(vectors[0], tf.bfloat16), *vectors[1:]])
    assert half.dtype == tf.bfloat16
    exact = DotInteraction()([tf.cast(tf.cast(vectors[0], tf.bfloat16), tf.float32), *vectors[1:]])
    np.testing.assert_array_equal(half, tf.cast(exact, tf.bfloat16))


@needs_kernels
def test_the_kernel_refuses_what_it_would_read_beyond():
    operations = kernels.cpu_kernels()
    for others in (tf.ones([2, 32]), tf.ones([3, 16])):
        with pytest.raises(tf.errors.InvalidArgumentError, match="of one shape"):
            operations.lookback_dot_interaction(inputs=[tf.ones([2, 16]), others])
    with pytest.raises(tf.errors.InvalidArgumentError, match="a multiple of 16"):
        operations.lookback_dot_interaction(inputs=[tf.ones([2, 17])] * 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"upstream gradient \[2, 17\]"):
        operations.lookback_dot_interaction_grad(
            upstream=tf.ones([2, 16]), inputs=[tf.ones([2, 16])] * 2
        )


@needs_kernels
def test_portable_graphs_have_operations_of_tensorflow_alone():
    layer, inputs = DotInteraction(), [tf.TensorSpec([None, 16])] * 3

    def operations():
        graph = (
            tf.function(lambda *v: layer(list(v)), autograph=False)
            .get_concrete_function(*inputs)
            .graph
        )
        return {operation.type for operation in graph.get_operations()}

    assert "LookbackDotInteraction" in operations()
    with kernels.portable():
        assert "LookbackDotInteraction" not in operations()


def test_relu_mlp_equals_numpy(formulas):
    layer = ReluMLP((6, 4))
    inputs = np.random.default_rng(1).normal(size=(5, 3))
    layer(tf.constant(inputs, tf.float32))
    formulas.randomise(layer.trainable_weights)
    weights = layer.weights
    formulas.assert_equals_formula(layer, mlp, [inputs], weights)


@pytest.mark.parametrize("make", [DotInteraction, lambda: ReluMLP((6, 4))])
def test_any_batch_under_tf_function_even_none(make):
    layer = make()
    listed = isinstance(layer, DotInteraction)
    layer([tf.ones([2, 3])] * 4 if listed else tf.ones([2, 3]))

    @tf.function(input_signature=[tf.TensorSpec([None, 3])], autograph=False)
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
    weights = layer.weights
    for kernel, bias, (n_in, n_out) in zip(
        weights[::2], weights[1::2], [(500, 400), (400, 300)], strict=True
    ):
        assert np.std(kernel) == pytest.approx((2 / (n_in + n_out)) ** 0.5, rel=0.03)
        assert np.std(bias) == pytest.approx(n_out**-0.5, rel=0.2)


def test_config_round_trip():
    layer = ReluMLP((6, 4), name="mlp")
    copy = ReluMLP.from_config(layer.get_config())
    copy.build([None, 3])
    assert [w.shape for w in copy.weights] == [(3, 6), (6,), (6, 4), (4,)]
