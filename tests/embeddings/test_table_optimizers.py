"""Sparse updates against NumPy over several steps, duplicates and untouched rows included."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from embeddings.optimizers import SGD, TABLE_OPTIMIZERS, Adagrad, LazyAdam, sum_duplicates

ROWS, D, LR = 7, 3, 0.1
STEPS = [[1, 4, 1, 1, 6], [4], [], [0, 1, 2, 2, 0], [6, 6]]
RNG = np.random.default_rng(0)


def slices(indices, values, dtype=tf.int64):
    return tf.IndexedSlices(
        tf.constant(values, tf.float32, [len(indices), D]),
        tf.constant(indices, dtype),
        tf.constant([ROWS, D]),
    )


# --- one row's update in NumPy, from the formulas ---


def sgd(w, g, state, t):
    return w - LR * g


def adagrad(w, g, state, t):
    state["a"] = state.get("a", 0.1) + g**2
    return w - LR * g / (np.sqrt(state["a"]) + 1e-7)


def lazy_adam(w, g, state, t):
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
    rate = LR * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    return w - rate * state["m"] / (np.sqrt(state["v"]) + 1e-7)


FORMULAS = {"sgd": sgd, "adagrad": adagrad, "lazy_adam": lazy_adam, "adam": lazy_adam}


def run(optimizer, tables, gradients_by_step, compiled):
    rate = tf.constant(1.0)

    def apply(gradients, step):
        optimizer.apply(gradients, tables, step * rate)

    apply = tf.function(apply, reduce_retracing=True) if compiled else apply
    for number, gradients in enumerate(gradients_by_step, start=1):
        apply(gradients, tf.constant(float(number)))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("decay", [0.0, 0.3], ids=["", "decay"])
@pytest.mark.parametrize("name", TABLE_OPTIMIZERS)
def test_update_equals_numpy(name, decay, compiled):
    tables = {n: tf.Variable(RNG.normal(size=(ROWS, D)), dtype=tf.float32) for n in ("a", "b")}
    expected = {n: table.numpy().astype(np.float64) for n, table in tables.items()}
    states = {n: [{} for _ in range(ROWS)] for n in tables}
    optimizer = TABLE_OPTIMIZERS[name](tf.Variable(LR), decay)
    optimizer.build(tables)
    gradients = [
        {
            n: (ids[shift:], RNG.normal(size=(len(ids[shift:]), D)))
            for n, shift in (("a", 0), ("b", 1))
        }
        for ids in STEPS
    ]
    run(
        optimizer,
        tables,
        [{n: slices(*g) for n, g in step.items()} for step in gradients],
        compiled,
    )
    for t, step in enumerate(gradients, start=1):
        for n, (ids, values) in step.items():
            for row in set(ids):
                total = values[np.array(ids) == row].sum(0)
                decayed = expected[n][row] * (1 - LR * decay)
                expected[n][row] = FORMULAS[name](decayed, total, states[n][row], t)
    for n, table in tables.items():
        np.testing.assert_allclose(table, expected[n], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", TABLE_OPTIMIZERS)
def test_rows_that_no_gradient_names_keep_weights_and_state(name):
    table = tf.Variable(tf.random.normal([ROWS, D]))
    optimizer = TABLE_OPTIMIZERS[name](tf.Variable(LR), 0.5)
    optimizer.build({"item": table})
    run(optimizer, {"item": table}, [{"item": slices([3, 5], np.ones((2, D)))}], False)
    before = table.numpy()
    slots = {n: v.numpy() for n, v in optimizer.slots["item"].items()}
    assert set(slots) == set(optimizer.slot_names)
    run(optimizer, {"item": table}, [{"item": slices([5, 5], np.ones((2, D)))}], False)
    others = np.arange(ROWS) != 5
    np.testing.assert_array_equal(table.numpy()[others], before[others])
    assert (table.numpy()[5] != before[5]).all()
    for n, values in slots.items():
        found = optimizer.slots["item"][n].numpy()
        np.testing.assert_array_equal(found[others], values[others])
        assert (found[5] != values[5]).all()


@pytest.mark.parametrize("name", TABLE_OPTIMIZERS)
def test_a_table_without_gradient_is_left_alone(name):
    tables = {n: tf.Variable(tf.random.normal([ROWS, D])) for n in ("a", "b")}
    before = tables["b"].numpy()
    optimizer = TABLE_OPTIMIZERS[name](tf.Variable(LR))
    optimizer.build(tables)
    run(optimizer, tables, [{"a": slices([1], np.ones((1, D)))}], False)
    np.testing.assert_array_equal(tables["b"], before)


@pytest.mark.parametrize(
    ("name", "keras"),
    [
        ("sgd", tf.keras.optimizers.SGD(LR)),
        ("adagrad", tf.keras.optimizers.Adagrad(LR)),
        ("adam", tf.keras.optimizers.Adam(LR)),
    ],
)
def test_with_every_row_in_every_step_it_is_keras_dense_optimizer(name, keras):
    table = tf.Variable(RNG.normal(size=(ROWS, D)), dtype=tf.float32)
    other = tf.Variable(table)
    optimizer = TABLE_OPTIMIZERS[name](tf.Variable(LR))
    optimizer.build({"item": table})
    gradients = [RNG.normal(size=(ROWS, D)).astype(np.float32) for _ in range(4)]
    order = RNG.permutation(ROWS)
    run(optimizer, {"item": table}, [{"item": slices(order, g[order])} for g in gradients], False)
    for gradient in gradients:
        keras.apply_gradients([(tf.constant(gradient), other)])
    np.testing.assert_allclose(table, other, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_is_read_in_each_step():
    rate = tf.Variable(1.0)
    table = tf.Variable(tf.zeros([ROWS, D]))
    optimizer = SGD(rate)
    optimizer.build({"item": table})
    step = tf.function(lambda g: optimizer.apply({"item": g}, {"item": table}, tf.constant(1.0)))
    for value in (1.0, 0.25):
        rate.assign(value)
        step(slices([2], np.ones((1, D))))
    np.testing.assert_allclose(table[2], np.full(D, -1.25))


def test_options_of_adagrad_and_adam():
    table = tf.Variable(tf.ones([ROWS, D]))
    adagrad = Adagrad(tf.constant(LR), initial_accumulator=3.0, epsilon=1.0)
    adagrad.build({"item": table})
    np.testing.assert_array_equal(adagrad.slots["item"]["accumulator"], np.full((ROWS, D), 3.0))
    run(adagrad, {"item": table}, [{"item": slices([0], np.ones((1, D)))}], False)
    np.testing.assert_allclose(table[0], np.full(D, 1 - LR / (2 + 1)), rtol=1e-6)
    adam = LazyAdam(tf.constant(LR), beta_1=0.0, beta_2=0.0, epsilon=1.0)
    adam.build({"item": table})
    run(adam, {"item": table}, [{"item": slices([1], 3 * np.ones((1, D)))}], False)
    np.testing.assert_allclose(table[1], np.full(D, 1 - LR * 3 / (3 + 1)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
@pytest.mark.parametrize("indices", [[], [3], [5, 1, 5, 5, 0, 1]], ids=str)
def test_sum_duplicates(indices, dtype):
    values = RNG.normal(size=(len(indices), D)).astype(np.float32)
    rows, sums = sum_duplicates(slices(indices, values, dtype))
    assert rows.numpy().tolist() == list(dict.fromkeys(indices))
    for row, total in zip(rows.numpy(), sums.numpy(), strict=True):
        np.testing.assert_allclose(total, values[np.array(indices) == row].sum(0), rtol=1e-5)
