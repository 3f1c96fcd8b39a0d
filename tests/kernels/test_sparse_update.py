"""Tables updated in place by our kernels: NumPy's float32 to the last bit, TensorFlow's graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from lookback.embeddings.optimizers import (
    TABLE_OPTIMIZERS,
    Adagrad,
    FullAdam,
    TableOptimizer,
    bias_corrected,
)
from lookback.kernels import loader

Array = npt.NDArray[Any]

pytestmark = pytest.mark.skipif(
    loader.cpu_kernels() is None, reason="a GPU, or an environment that setup.sh did not make"
)
LAZY = [name for name, kind in TABLE_OPTIMIZERS.items() if not kind.every_row]
RATE = np.float32(0.1)


def sgd(w: Array, g: Array, rate: Array) -> list[Array]:
    return [w - rate * g]


def momentum(w: Array, g: Array, rate: Array, velocity: Array) -> list[Array]:
    velocity = np.float32(0.9) * velocity - rate * g
    return [w + velocity, velocity]


def adagrad(w: Array, g: Array, rate: Array, a: Array) -> list[Array]:
    a = a + g * g
    return [w - rate * g / (np.sqrt(a) + np.float32(1e-7)), a]


def rowwise_adagrad(w: Array, g: Array, rate: Array, a: Array) -> list[Array]:
    squares = np.zeros([len(w), 16], np.float32)
    for column in range(g.shape[1]):
        squares[:, column % 16] += g[:, column] * g[:, column]
    total = np.zeros([len(w), 1], np.float32)
    for lane in range(16):
        total += squares[:, lane : lane + 1]
    a = a + total / np.float32(g.shape[1])
    return [w - rate * g / (np.sqrt(a) + np.float32(1e-7)), a]


def adam(w: Array, g: Array, rate: Array, m: Array, v: Array) -> list[Array]:
    beta_1, beta_2, one = np.float32(0.9), np.float32(0.999), np.float32(1)
    m = beta_1 * m + (one - beta_1) * g
    v = beta_2 * v + (one - beta_2) * (g * g)
    return [w - rate * m / (np.sqrt(v) + np.float32(1e-7)), m, v]


def ftrl(w: Array, g: Array, rate: Array, n: Array, z: Array) -> list[Array]:
    later = n + g * g
    z = z + g - (np.sqrt(later) - np.sqrt(n)) / rate * w
    return [(np.float32(0) - z) / (np.sqrt(later) / rate), later, z]


FORMULAS = {
    "sgd": sgd,
    "momentum": momentum,
    "adagrad": adagrad,
    "rowwise_adagrad": rowwise_adagrad,
    "adam": adam,
    "lazy_adam": adam,
    "ftrl": ftrl,
}


def summed(ids: Array, values: Array) -> tuple[Array, Array]:
    """The distinct ids, and what belongs to each, added in the order of occurrence."""
    rows, number = np.unique(ids, return_inverse=True)
    sums = np.zeros([len(rows), values.shape[1]], np.float32)
    np.add.at(sums, number, values)
    return rows, sums


def made(name: str, rows: int, width: int, decay: float) -> tuple[TableOptimizer, tf.Variable]:
    """An optimizer, and a table that it has updated once, of all rows: slots have values."""
    random = np.random.default_rng(rows)
    table = tf.Variable(random.normal(size=(rows, width)), dtype=tf.float32)
    optimizer = TABLE_OPTIMIZERS[name](tf.Variable(RATE), decay)
    optimizer.build({"item": table})
    apply(optimizer, table, np.arange(rows), random.normal(size=(rows, width)))
    return optimizer, table


def apply(optimizer: TableOptimizer, table: tf.Variable, ids: Array, values: Array) -> None:
    gradient = tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(ids), tf.shape(table))
    optimizer.apply({"item": gradient}, {"item": table}, tf.constant(3.0))


@pytest.mark.parametrize("decay", [0.0, 0.3], ids=["", "decay"])
@pytest.mark.parametrize(
    ("rows", "width", "count", "dtype"),
    [
        (5, 1, 40, np.int32),
        (40, 3, 7, np.int64),
        (3000, 16, 5000, np.int32),  # shared among threads; ids counted
        (60_000, 16, 5000, np.int64),  # and hashed
        (60_000, 37, 2500, np.int32),
        (300, 128, 900, np.int64),
    ],
)
@pytest.mark.parametrize("name", LAZY)
def test_its_bits_are_those_of_float32(name, rows, width, count, dtype, decay):
    optimizer, table = made(name, rows, width, decay)
    slots = [optimizer.slots["item"][slot] for slot in optimizer.slot_kinds]
    random = np.random.default_rng(count)
    ids = (random.random(count) ** 3 * rows).astype(dtype)  # small ones often
    values = random.normal(size=(count, width)).astype(np.float32)
    expected = [variable.numpy() for variable in (table, *slots)]
    found, sums = summed(ids, values)
    before = [of[found] for of in expected]
    if decay:
        before[0] -= RATE * np.float32(decay) * before[0]
    rate = optimizer._rate(tf.constant(3.0)).numpy()
    for of, after in zip(expected, FORMULAS[name](before[0], sums, rate, *before[1:]), strict=True):
        of[found] = after
    apply(optimizer, table, ids, values)
    for of, exact in zip((table, *slots), expected, strict=True):
        np.testing.assert_array_equal(of.numpy(), exact)


@pytest.mark.parametrize("count", [0, 5, 5000])
@pytest.mark.parametrize(("rows", "width"), [(40, 3), (3000, 16)])
def test_full_adam_s_bits_are_those_of_float32_in_every_row(rows, width, count):
    optimizer, table = made("full_adam", rows, width, 0.3)
    assert isinstance(optimizer, FullAdam)
    m, v = optimizer.slots["item"].values()
    random = np.random.default_rng(count)
    ids = (random.random(count) ** 3 * rows).astype(np.int64)
    values = random.normal(size=(count, width)).astype(np.float32)
    gradient = np.zeros([rows, width], np.float32)
    np.add.at(gradient, ids, values)
    expected = [variable.numpy() for variable in (table, m, v)]
    step, one = tf.constant(3.0), np.float32(1)
    expected[0] -= RATE * np.float32(0.3) * expected[0]
    expected[1] += (gradient - expected[1]) * (one - np.float32(0.9))
    expected[2] += (gradient * gradient - expected[2]) * (one - np.float32(0.999))
    divisor = np.sqrt(expected[2]) + bias_corrected(1e-7, 0.999, step).numpy()
    expected[0] -= expected[1] * optimizer._rate(step).numpy() / divisor
    apply(optimizer, table, ids, values)
    for variable, exact in zip((table, m, v), expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), exact)


@pytest.mark.parametrize("name", TABLE_OPTIMIZERS)
def test_it_equals_tensorflow_s_operations(name):
    random = np.random.default_rng(0)
    ids = random.integers(0, 500, 3000)
    values = random.normal(size=(3000, 24))
    results = []
    for way in (loader.portable(), None):
        optimizer, table = made(name, 500, 24, 0.2)
        if way is None:
            apply(optimizer, table, ids, values)
        else:
            with way:
                apply(optimizer, table, ids, values)
        results.append([table, *optimizer.slots["item"].values()])
    for expected, found in zip(*results, strict=True):
        scale = np.abs(expected.numpy()).max()
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("wrong", [-1, 7, 1 << 30])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("name", TABLE_OPTIMIZERS)
def test_a_row_that_is_not_there_is_refused_before_any_changes(name, dtype, wrong):
    optimizer, table = made(name, 7, 4, 0.3)
    held = [table, *optimizer.slots["item"].values()]
    before = [variable.numpy() for variable in held]
    message = rf"indices\[2\] = {wrong} is not in \[0, 7\)"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        apply(optimizer, table, np.array([0, 6, wrong, 3], dtype), np.ones((4, 4)))
    for variable, values in zip(held, before, strict=True):
        np.testing.assert_array_equal(variable, values)


def test_what_was_read_before_does_not_change():
    optimizer, table = made("adam", 7, 4, 0.0)
    read, values = table.read_value(), table.numpy()
    apply(optimizer, table, np.arange(7), np.ones((7, 4)))
    np.testing.assert_array_equal(read, values)
    assert (table.numpy() != values).all()


def test_updates_in_a_graph_run_in_their_order():
    """Nothing but the table connects them."""
    optimizer, table = made("sgd", 3, 2, 0.0)
    before = table.numpy()

    @tf.function(autograph=False)
    def twice() -> tf.Tensor:
        ids = np.array([1, 1])
        apply(optimizer, table, ids, np.ones((2, 2)))
        between = tf.gather(table, [1])
        apply(optimizer, table, ids, np.ones((2, 2)))
        return between

    between = twice()
    np.testing.assert_allclose(between[0], before[1] - 0.2, rtol=1e-6)
    np.testing.assert_allclose(table[1], before[1] - 0.4, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    optimizer, table = made("adagrad", 7, 4, 0.0)
    assert isinstance(optimizer, Adagrad)
    for ids, shape in (([1], (1, 3)), ([1, 2], (1, 4)), ([[1]], (1, 1, 4))):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"indices \[N\] and values"):
            apply(optimizer, table, np.array(ids), np.ones(shape))
    optimizer.slots["item"]["accumulator"] = tf.Variable(tf.ones([7, 1]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="slots of its shape"):
        apply(optimizer, table, np.array([1]), np.ones((1, 4)))
    before = table.numpy()
    operations = loader.cpu_kernels()
    with pytest.raises(tf.errors.InvalidArgumentError, match="one number each"):
        operations.lookback_sparse_sgd(
            table=table.handle, indices=[1], values=[[1.0] * 4], rate=[0.1, 0.2], decay=0.0
        )
    np.testing.assert_array_equal(table, before)
