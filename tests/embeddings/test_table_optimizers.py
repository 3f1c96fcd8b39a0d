"""Sparse updates against NumPy over several steps, duplicates and untouched rows included."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.embeddings.optimizers import (
    FTRL,
    SGD,
    TABLE_OPTIMIZERS,
    Adagrad,
    FullAdam,
    LazyAdam,
    Momentum,
    bias_corrected,
    without_rows,
)
from lookback.embeddings.types import OPTIMIZER_STATE
from lookback.kernels import loader

ROWS, D, LR = 7, 3, 0.1
STEPS = [[1, 4, 1, 1, 6], [4], [], [0, 1, 2, 2, 0], [6, 6]]
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True, params=["tensorflow", "kernels"])
def _way(request):
    """Each test by TensorFlow's operations, and by ours where they have been built."""
    if request.param == "kernels" and loader.cpu_kernels() is None:
        pytest.skip("a GPU, or an environment that setup.sh did not make")
    with contextlib.nullcontext() if request.param == "kernels" else loader.portable():
        yield


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


def full_adam(w, g, state, t, lr=LR, b1=0.9, b2=0.999, epsilon=1e-7):
    """Algorithm 1 of the paper, to the letter."""
    state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
    m_hat, v_hat = state["m"] / (1 - b1**t), state["v"] / (1 - b2**t)
    return w - lr * m_hat / (np.sqrt(v_hat) + epsilon)


def momentum(w, g, state, t):
    state["v"] = 0.9 * state.get("v", 0) - LR * g
    return w + state["v"]


def rowwise_adagrad(w, g, state, t):
    state["a"] = state.get("a", 0.1) + (g**2).mean()
    return w - LR * g / (np.sqrt(state["a"]) + 1e-7)


def ftrl(w, g, state, t):
    """Algorithm 1 of the paper, where sqrt(n) starts above 0 and l1 = l2 = beta = 0."""
    n = state.get("n", 0.1)
    sigma = (np.sqrt(n + g**2) - np.sqrt(n)) / LR
    state["z"] = state.get("z", 0) + g - sigma * w
    state["n"] = n + g**2
    return -LR / np.sqrt(state["n"]) * state["z"]


FORMULAS = {
    "sgd": sgd,
    "momentum": momentum,
    "adagrad": adagrad,
    "rowwise_adagrad": rowwise_adagrad,
    "adam": lazy_adam,
    "lazy_adam": lazy_adam,
    "full_adam": full_adam,
    "ftrl": ftrl,
}
LAZY = [name for name, optimizer in TABLE_OPTIMIZERS.items() if not optimizer.every_row]


def run(optimizer, tables, gradients_by_step, compiled):
    rate = tf.constant(1.0)

    def apply(gradients, step):
        optimizer.apply(gradients, tables, step * rate)

    apply = tf.function(apply, reduce_retracing=True, autograph=False) if compiled else apply
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
            for row in range(ROWS) if name == "full_adam" else set(ids):
                total = values[np.array(ids) == row].sum(0)
                decayed = expected[n][row] * (1 - LR * decay)
                expected[n][row] = FORMULAS[name](decayed, total, states[n][row], t)
    for n, table in tables.items():
        np.testing.assert_allclose(table, expected[n], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAZY)
def test_rows_that_no_gradient_names_keep_weights_and_state(name):
    table = tf.Variable(tf.random.normal([ROWS, D]))
    optimizer = TABLE_OPTIMIZERS[name](tf.Variable(LR), 0.5)
    optimizer.build({"item": table})
    run(optimizer, {"item": table}, [{"item": slices([3, 5], np.ones((2, D)))}], False)
    before = table.numpy()
    slots = {n: v.numpy() for n, v in optimizer.slots["item"].items()}
    assert set(slots) == set(optimizer.slot_kinds)
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


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("rows", [0, ROWS], ids=["no rows held", "rows held"])
@pytest.mark.parametrize("name", LAZY)
def test_a_gradient_without_rows_changes_nothing(name, rows, compiled):
    table = tf.Variable(RNG.normal(size=(rows, D)), dtype=tf.float32)
    optimizer = TABLE_OPTIMIZERS[name](tf.Variable(LR), 0.5)
    optimizer.build({"item": table})
    before = [v.numpy() for v in (table, *optimizer.slots["item"].values())]
    run(optimizer, {"item": table}, [{"item": slices([], np.zeros((0, D)))}] * 2, compiled)
    after = [v.numpy() for v in (table, *optimizer.slots["item"].values())]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", TABLE_OPTIMIZERS)
def test_state_is_as_large_as_planning_takes_it_to_be(name):
    assert set(TABLE_OPTIMIZERS) == set(OPTIMIZER_STATE)
    optimizer = TABLE_OPTIMIZERS[name](tf.Variable(LR))
    optimizer.build({"item": tf.Variable(tf.zeros([ROWS, D]))})
    held = sum(slot.shape.num_elements() for slot in optimizer.slots["item"].values())
    a_weight, a_row = OPTIMIZER_STATE[name]
    assert held == ROWS * D * a_weight + ROWS * a_row
    for slot, kind in optimizer.slot_kinds.items():
        width = {"weight": D, "row": 1}[kind]
        assert optimizer.slots["item"][slot].shape == [ROWS, width]


@pytest.mark.parametrize(
    ("name", "keras"),
    [
        ("sgd", tf.keras.optimizers.SGD(LR)),
        ("momentum", tf.keras.optimizers.SGD(LR, momentum=0.9)),
        ("adagrad", tf.keras.optimizers.Adagrad(LR)),
        ("adam", tf.keras.optimizers.Adam(LR)),
        ("ftrl", tf.keras.optimizers.Ftrl(LR)),
    ],
)
@pytest.mark.parametrize("decay", [0.0, 0.3], ids=["", "decay"])
def test_with_every_row_in_every_step_it_is_keras_dense_optimizer(name, keras, decay):
    table = tf.Variable(RNG.normal(size=(ROWS, D)), dtype=tf.float32)
    other = tf.Variable(table)
    keras = type(keras).from_config({**keras.get_config(), "weight_decay": decay or None})
    optimizer = TABLE_OPTIMIZERS[name](tf.Variable(LR), decay)
    optimizer.build({"item": table})
    gradients = [RNG.normal(size=(ROWS, D)).astype(np.float32) for _ in range(4)]
    order = RNG.permutation(ROWS)
    run(optimizer, {"item": table}, [{"item": slices(order, g[order])} for g in gradients], False)
    for gradient in gradients:
        keras.apply_gradients([(tf.constant(gradient), other)])
    # Keras' Adam takes 1 - beta_2 and 1 - beta_2**t with unlike rounding: 6e-6 of each update.
    np.testing.assert_allclose(table, other, rtol=1e-5, atol=1e-4 * LR if name == "adam" else 1e-6)


def test_the_learning_rate_is_read_in_each_step():
    rate = tf.Variable(1.0)
    table = tf.Variable(tf.zeros([ROWS, D]))
    optimizer = SGD(rate)
    optimizer.build({"item": table})
    step = tf.function(
        lambda g: optimizer.apply({"item": g}, {"item": table}, tf.constant(1.0)), autograph=False
    )
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


@pytest.mark.parametrize(
    ("ours", "keras"),
    [
        (
            {"l1": 0.05, "l2": 0.4, "beta": 1.0},
            {
                "l1_regularization_strength": 0.05,
                "l2_regularization_strength": 0.4,
                "beta": 1.0,
            },
        ),
        (
            {"learning_rate_power": -0.7, "initial_accumulator": 0.3},
            {"learning_rate_power": -0.7, "initial_accumulator_value": 0.3},
        ),
    ],
)
def test_options_of_ftrl_are_keras(ours, keras):
    rng = np.random.default_rng(0)
    table = tf.Variable(rng.normal(size=(ROWS, D)), dtype=tf.float32)
    other = tf.Variable(table)
    optimizer, reference = FTRL(tf.Variable(LR), **ours), tf.keras.optimizers.Ftrl(LR, **keras)
    optimizer.build({"item": table})
    for t in range(1, 5):
        gradient = rng.normal(size=(ROWS, D)).astype(np.float32) / 10
        step = {"item": slices(range(ROWS), gradient)}
        optimizer.apply(step, {"item": table}, tf.constant(float(t)))
        reference.apply_gradients([(tf.constant(gradient), other)])
    np.testing.assert_allclose(table, other, rtol=1e-5, atol=1e-6)
    if "l1" in ours:  # it makes weights exactly 0, some but not all
        assert 0 < (table.numpy() == 0).sum() < ROWS * D


@pytest.mark.parametrize(
    "options", [{"learning_rate_power": 0.5}, {"l1": -1.0}, {"beta": -1.0}], ids=str
)
def test_ftrl_refuses_options_out_of_range(options):
    with pytest.raises(ValueError, match="received"):
        FTRL(tf.constant(LR), **options)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("scale", [1.0, 1e-6], ids=["", "small gradients"])
@pytest.mark.parametrize(
    "options", [(0.25, 0.5, 1e-8), (0.9, 0.999, 1e-7), (0.0, 0.999, 1e-3), (0.9, 0.3, 1e-7)]
)
def test_full_adam_is_the_papers_whatever_its_options(options, scale, compiled):
    """Gradients of 1e-6 tell the paper's epsilon from Keras': updates differ by a factor of 4."""
    table = tf.Variable(RNG.normal(size=(ROWS, D)), dtype=tf.float32)
    expected, state = table.numpy().astype(np.float64), {}
    beta_1, beta_2, epsilon = options
    optimizer = FullAdam(tf.Variable(LR), 0.0, beta_1, beta_2, epsilon)
    optimizer.build({"item": table})
    steps = [(ids, scale * RNG.normal(size=(len(ids), D))) for ids in STEPS]
    run(optimizer, {"item": table}, [{"item": slices(*step)} for step in steps], compiled)
    for t, (ids, values) in enumerate(steps, start=1):
        gradient = np.zeros([ROWS, D])
        np.add.at(gradient, ids, values)
        expected = full_adam(expected, gradient, state, t, LR, *options)
    np.testing.assert_allclose(table, expected, rtol=2e-5, atol=2e-6)
    m, v = optimizer.slots["item"]["m"], optimizer.slots["item"]["v"]
    np.testing.assert_allclose(m, state["m"], rtol=1e-5, atol=1e-6 * scale)
    # 1 - 0.999 is 0.99999 of 0.001 in float32; so is what v is divided by.
    np.testing.assert_allclose(v, state["v"], rtol=2e-5, atol=1e-6 * scale**2)


def test_full_adam_equals_lazy_adam_when_each_row_is_used():
    table = tf.Variable(RNG.normal(size=(ROWS, D)), dtype=tf.float32)
    other = tf.Variable(table)
    gradients = [RNG.normal(size=(2 * ROWS, D)) for _ in range(5)]
    ids = [RNG.permutation(np.repeat(np.arange(ROWS), 2)) for _ in gradients]
    for variable, kind in ((table, FullAdam), (other, LazyAdam)):
        optimizer = kind(tf.Variable(LR), 0.1, 0.8, 0.9, 1e-30)  # no epsilon, of either kind
        optimizer.build({"item": variable})
        steps = [{"item": slices(i, g)} for i, g in zip(ids, gradients, strict=True)]
        run(optimizer, {"item": variable}, steps, False)
    np.testing.assert_allclose(table, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_full_adam_moves_rows_in_a_step_without_ids(compiled):
    table = tf.Variable(np.ones((ROWS, D)), dtype=tf.float32)
    optimizer = FullAdam(tf.Variable(LR), 0.5, 0.5, 0.5, 1e-8)
    optimizer.build({"item": table})
    first = {"item": slices([2, 2], np.ones((2, D)))}
    run(optimizer, {"item": table}, [first, {"item": without_rows(table)}], compiled)
    # Of row 2, m and v are 1 and 2 after the first step, then 0.5 and 1; the others decay alone.
    row = (1 - LR * 0.5) * ((1 - LR * 0.5) - LR) - LR * (0.5 / 0.75) / np.sqrt(1 / 0.75)
    np.testing.assert_allclose(table[2], np.full(D, row), rtol=1e-6)
    np.testing.assert_allclose(table[3], np.full(D, (1 - LR * 0.5) ** 2), rtol=1e-6)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_full_adam_takes_a_table_of_which_nothing_is_here(compiled):
    table = tf.Variable(np.zeros((0, D)), dtype=tf.float32)
    optimizer = FullAdam(tf.Variable(LR), 0.5)
    optimizer.build({"item": table})
    run(optimizer, {"item": table}, [{"item": without_rows(table)}], compiled)
    assert table.shape == (0, D)


def test_full_adam_refuses_more_weights_than_its_kernel_can_number():
    class Huge:
        shape = tf.TensorShape([1 << 24, 128])

    with pytest.raises(
        UserError,
        match=r"full_adam updates at most 2,147,483,647 .* 'rows_128' has 2,147,483,648 on this",
    ):
        FullAdam(tf.Variable(LR)).build({"rows_128": Huge()})


def test_epsilon_of_the_paper_in_kerass_form():
    """m_hat / (sqrt(v_hat) + epsilon), both parts times sqrt(1 - b2**t)."""
    for t in (1, 2, 50):
        hat = bias_corrected(1e-3, 0.9, tf.constant(float(t)))
        v, correction = 0.04, 1 - 0.9**t
        paper = 1 / (np.sqrt(v / correction) + 1e-3)
        np.testing.assert_allclose(np.sqrt(correction) / (np.sqrt(v) + hat), paper, rtol=1e-6)


def test_momentum_is_lazy():
    """Two steps on a row with others between are two steps in a row."""
    tables = [tf.Variable(tf.ones([ROWS, D])) for _ in range(2)]
    for table, between in zip(tables, ([], [[4]] * 3), strict=True):
        optimizer = Momentum(tf.constant(LR), momentum=0.5)
        optimizer.build({"item": table})
        steps = [slices(ids, np.ones((len(ids), D))) for ids in ([2], *between, [2])]
        run(optimizer, {"item": table}, [{"item": step} for step in steps], False)
        np.testing.assert_allclose(table[2], np.full(D, 1 - LR - 1.5 * LR), rtol=1e-6)
