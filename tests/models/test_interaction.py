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


def looked_up(layer, first, tables, ids, upstream):
    """The layer's output, and gradients of the first vectors and of each table."""
    variables = list({id(table): table for table in tables}.values())
    with tf.GradientTape() as tape:
        tape.watch(first)
        output = layer([first], list(zip(tables, ids, strict=True)))
        total = tf.reduce_sum(tf.cast(output, tf.float32) * upstream)
    gradients = tape.gradient(total, [first, *variables])
    return [tf.cast(tf.convert_to_tensor(x), tf.float32).numpy() for x in (output, *gradients)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
@pytest.mark.parametrize("width", [3, 16, 48])
def test_rows_that_are_looked_up_are_those_of_numpy(way, dtype, width):
    """Two tables, the first of which has two features; rows that repeat."""
    random = np.random.default_rng(width)
    tables = [tf.Variable(random.normal(size=(rows, width)).astype(np.float32)) for rows in (5, 9)]
    tables.append(tables[0])
    ids = [random.integers(0, table.shape[0], 7) for table in tables]
    first = random.normal(size=(7, width)).astype(np.float32)
    upstream = random.normal(size=(7, width + 6)).astype(np.float32)
    with way():
        given = [tf.constant(index, dtype) for index in ids]
        found = looked_up(DotInteraction(), tf.constant(first), tables, given, upstream)
    vectors = [first, *(table.numpy()[index] for table, index in zip(tables, ids, strict=True))]
    np.testing.assert_allclose(found[0], pairs(*vectors), rtol=1e-4, atol=1e-4)
    of_vectors = [np.zeros([7, width]) for _ in vectors]
    of_vectors[0] += upstream[:, :width]
    numbers = [(i, j) for i in range(4) for j in range(i)]
    for (i, j), of_pair in zip(numbers, upstream[:, width:].T, strict=True):
        of_vectors[i] += of_pair[:, np.newaxis] * vectors[j]
        of_vectors[j] += of_pair[:, np.newaxis] * vectors[i]
    expected = [of_vectors[0], *(np.zeros(table.shape) for table in tables[:2])]
    for place, index, of_rows in zip((1, 2, 1), ids, of_vectors[1:], strict=True):
        np.add.at(expected[place], index, of_rows)
    for gradient, of_numpy in zip(found[1:], expected, strict=True):
        np.testing.assert_allclose(gradient, of_numpy, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_in_half_precision_rows_are_multiplied_in_float32():
    layer = DotInteraction(dtype=tf.keras.mixed_precision.Policy("mixed_bfloat16"))
    tables = [tf.Variable(tf.random.stateless_normal([5, 16], [0, n])) for n in range(2)]
    ids = [tf.constant([0, 4, 4]), tf.constant([3, 1, 0])]
    first = tf.cast(tf.random.stateless_normal([3, 16], [0, 9]), tf.bfloat16)
    # Of numbers that bfloat16 has, so that it does not round them on the way.
    upstream = tf.round(tf.random.stateless_normal([3, 19], [0, 8]) * 8) / 8
    found = looked_up(layer, first, tables, ids, upstream)
    exact = looked_up(DotInteraction(), tf.cast(first, tf.float32), tables, ids, upstream)
    for half, of_float, rounded in zip(found, exact, (True, True, False, False), strict=True):
        expected = tf.cast(tf.cast(of_float, tf.bfloat16), tf.float32) if rounded else of_float
        np.testing.assert_array_equal(half, expected)


@needs_kernels
def test_the_kernel_refuses_lookups_that_do_not_fit():
    layer, table = DotInteraction(), tf.Variable(tf.ones([5, 16]))
    for ids, text in (([0, 5], r"indices\[1\] = 5 is not in \[0, 5\)"), ([0], r"ids \[2\]")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=text):
            layer([tf.ones([2, 16])], [(table, tf.constant(ids))])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"tables \[rows, 32\]"):
        layer([tf.ones([2, 32])], [(table, tf.constant([0, 1]))])
    empty = layer([tf.ones([0, 16])], [(table, tf.zeros([0], tf.int32))])
    assert empty.shape == [0, 17]


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
