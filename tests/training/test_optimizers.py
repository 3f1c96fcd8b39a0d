"""Dense and table optimizers together: every variable once, under stable names."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from embeddings.collection import EmbeddingCollection
from embeddings.types import TableSpec
from training.optimizers import (
    DENSE_OPTIMIZERS,
    MODEL_PREFIXES,
    Optimizer,
    model_state,
    unique_names,
)

ROWS, D, LR = 6, 3, 0.05
RNG = np.random.default_rng(0)


class Scorer(tf.keras.Model):
    """One table, two dense layers and a counter that is not trained."""

    def __init__(self, table="item"):
        super().__init__()
        tables = [TableSpec(table, ROWS, D), TableSpec(f"{table}_unused", 2, D)]
        self.embeddings = EmbeddingCollection(tables, {"id": table})
        self.hidden = tf.keras.layers.Dense(4, activation="tanh")
        self.logit = tf.keras.layers.Dense(1)
        self.calls = tf.Variable(0, trainable=False, dtype=tf.int64, name="calls")

    def call(self, ids):
        return self.logit(self.hidden(self.embeddings({"id": ids})["id"]))


def make(ids=range(ROWS)):
    model = Scorer()
    model(tf.constant(list(ids)))
    return model


def step_of(model, optimizer, ids, targets):
    variables = optimizer.variables_to_differentiate
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(ids) - targets))
    optimizer.apply(tape.gradient(loss, variables))
    return loss


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", DENSE_OPTIMIZERS)
def test_with_every_row_in_every_step_it_is_keras(name, decay):
    """Dense variables always; tables when each row is used, as then lazy is not lazy."""
    ours, theirs = make(), make()
    theirs.set_weights(ours.get_weights())
    optimizer = Optimizer(name, LR, decay, ours)
    keras = DENSE_OPTIMIZERS[name](LR, weight_decay=decay or None)
    for _ in range(4):
        order = RNG.permutation(ROWS)
        ids, targets = tf.constant(order), tf.constant(RNG.normal(size=(ROWS, 1)), tf.float32)
        step_of(ours, optimizer, ids, targets)
        variables = [v for v in theirs.trainable_variables if "unused" not in v.name]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(theirs(ids) - targets))
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
        keras.apply_gradients(zip(gradients, variables, strict=True))
    assert optimizer.iterations == 4
    for found, expected in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=found.name)


@pytest.mark.parametrize("name", DENSE_OPTIMIZERS)
def test_training_in_a_graph_touches_only_the_rows_of_the_step(name):
    model = make()
    optimizer = Optimizer(name, LR, 0.1, model)
    before = model.embeddings.table_variables["item"].numpy()
    step = tf.function(lambda ids, targets: step_of(model, optimizer, ids, targets))
    ids, targets = tf.constant([1, 4, 1]), tf.constant([[1.0], [-1.0], [1.0]])
    losses = [float(step(ids, targets)) for _ in range(30)]
    assert losses[-1] < losses[0]
    after = model.embeddings.table_variables["item"].numpy()
    changed = (after != before).any(1)
    np.testing.assert_array_equal(changed, np.isin(np.arange(ROWS), [1, 4]))
    assert optimizer.iterations == 30


def test_every_trainable_variable_is_covered_once():
    model = make()
    optimizer = Optimizer("adam", LR, 0.0, model)
    covered = [id(v) for v in optimizer.variables_to_differentiate]
    assert sorted(covered) == sorted(id(v) for v in model.trainable_variables)
    assert set(optimizer.tables) == {"item", "item_unused"}
    assert not {id(v) for v in optimizer.dense} & {id(v) for v in optimizer.tables.values()}


def test_a_variable_that_would_not_be_updated_is_refused():
    model = make()
    optimizer = Optimizer("adam", LR, 0.0, model)
    optimizer.check_covers(model)
    model.late = tf.keras.layers.Dense(2)
    model.late.build([None, 3])
    with pytest.raises(
        ValueError, match=r"must cover each of 8 .* misses \['kernel:0', 'bias:0'\]"
    ):
        optimizer.check_covers(model)


def test_a_table_that_is_frozen_is_refused():
    model = make()
    model.embeddings.trainable = False
    with pytest.raises(ValueError, match="must cover each of 4 trainable variables once; it has 6"):
        Optimizer("adam", LR, 0.0, model)


def test_two_collections_with_a_table_of_one_name_are_refused():
    model = make()
    model.more = EmbeddingCollection([TableSpec("item", 3, D)], {"id": "item"})
    model.more({"id": tf.constant([1])})
    with pytest.raises(ValueError, match="Two embedding collections hold a table named 'item'"):
        Optimizer("adam", LR, 0.0, model)


def test_variables_without_gradient_are_left_alone():
    model = make()
    optimizer = Optimizer("adam", LR, 0.1, model)
    before = [w.numpy() for w in model.weights]
    optimizer.apply([None] * (len(optimizer.variables_to_differentiate) - 1) + [None])
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def names(model, optimizer):
    return sorted(model_state(model)), sorted(optimizer.state())


def test_names_do_not_depend_on_what_the_process_built_before():
    first = make()
    first_names = names(first, Optimizer("adam", LR, 0.0, first))
    _ = [tf.keras.layers.Dense(1) for _ in range(3)]
    second = make()
    assert names(second, Optimizer("adam", LR, 0.0, second)) == first_names
    model_names, optimizer_names = first_names
    assert all(name.startswith(MODEL_PREFIXES) for name in model_names)
    assert {"table/item", "table/item_unused"} <= set(model_names)
    assert {f"optimizer/{t}/{s}" for t in ("item", "item_unused") for s in "mv"} <= set(
        optimizer_names
    )
    assert not any("learning_rate" in name for name in optimizer_names)
    assert any("iteration" in name for name in optimizer_names)


def test_state_holds_every_variable_once():
    model = make()
    optimizer = Optimizer("adam", LR, 0.0, model)
    state = model_state(model)
    assert sorted(id(v) for v in state.values()) == sorted(id(w) for w in model.weights)
    # Adam: m and v of 4 dense variables and 2 tables, and the counter.
    assert len(optimizer.state()) == 2 * 6 + 1
    assert len({id(v) for v in optimizer.state().values()}) == 2 * 6 + 1


def test_restored_state_continues_exactly():
    ids, targets = tf.constant([1, 4, 1]), tf.constant([[1.0], [-1.0], [1.0]])
    first = make()
    optimizer = Optimizer("adam", LR, 0.01, first)
    for _ in range(3):
        step_of(first, optimizer, ids, targets)
    second = make()
    resumed = Optimizer("adam", LR, 0.01, second)
    saved = {n: v.numpy() for n, v in {**model_state(first), **optimizer.state()}.items()}
    for name, variable in {**model_state(second), **resumed.state()}.items():
        variable.assign(saved[name])
    for model, opt in ((first, optimizer), (second, resumed)):
        for _ in range(2):
            step_of(model, opt, ids, targets)
    for found, expected in zip(second.weights, first.weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_unique_names_number_equal_ones_in_order():
    variables = [
        tf.Variable(float(number), name=name)
        for number, name in enumerate(["dense/kernel", "dense_1/kernel", "dense_12/kernel", "x_2"])
    ]
    named = unique_names("model", variables)
    assert {name: float(v) for name, v in named.items()} == {
        "model/dense/kernel": 0.0,
        "model/dense/kernel.2": 1.0,
        "model/dense/kernel.3": 2.0,
        "model/x": 3.0,
    }
