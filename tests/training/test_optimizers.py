"""Dense and table optimizers together: every variable once, under stable names."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from lookback.checkpoints.store import CheckpointStore, open_checkpoint
from lookback.core.errors import UserError
from lookback.embeddings.collection import EmbeddingCollection
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec
from lookback.training.optimizers import DENSE_OPTIMIZERS, FusedAdam, Optimizer, PlainSGD
from lookback.training.state import MODEL_PREFIXES, model_states, unique_names

ROWS, D, LR = 6, 3, 0.05
RNG = np.random.default_rng(0)
KERAS = {
    "adam": tf.keras.optimizers.Adam,
    "lazy_adam": tf.keras.optimizers.Adam,
    "adagrad": tf.keras.optimizers.Adagrad,
    "rowwise_adagrad": tf.keras.optimizers.Adagrad,
    "sgd": tf.keras.optimizers.SGD,
    "momentum": functools.partial(tf.keras.optimizers.SGD, momentum=0.9),
    "ftrl": tf.keras.optimizers.Ftrl,
}


class Scorer(tf.keras.Model):
    """One table, two dense layers and a counter that is not trained."""

    def __init__(self, optimizer=None, strategy=None):
        super().__init__()
        tables = (TableSpec("item", ROWS, D, optimizer=optimizer), TableSpec("item_unused", 2, D))
        sharding = LOCAL
        if strategy is not None:
            owners = (0,) if strategy in ("table_wise", "column_wise") else ()
            placements = tuple(Placement(table.name, strategy, owners) for table in tables)
            sharding = Sharding("horovod", ShardingPlan(1, tables, placements))
        self.embeddings = EmbeddingCollection(tables, {"id": "item"}, sharding=sharding)
        self.hidden = tf.keras.layers.Dense(4, activation="tanh")
        self.logit = tf.keras.layers.Dense(1)
        self.calls = tf.Variable(0, trainable=False, dtype=tf.int64, name="calls")

    def call(self, ids):
        return self.logit(self.hidden(self.embeddings({"id": ids})["id"]))


def make(**options):
    model = Scorer(**options)
    model(tf.range(ROWS))
    return model


def step_of(model, optimizer, ids, targets):
    variables = optimizer.variables_to_differentiate
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(ids) - targets))
    optimizer.apply(tape.gradient(loss, variables))
    return loss


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", KERAS)
def test_with_every_row_in_every_step_it_is_keras(name, decay):
    """Dense variables always; tables when each row is used, as then lazy is not lazy."""
    ours, theirs = make(), make()
    theirs.set_weights(ours.get_weights())
    optimizer = Optimizer(name, LR, decay, ours)
    keras = KERAS[name](LR, weight_decay=decay or None)
    accumulator = np.full([ROWS, 1], 0.1)
    for _ in range(4):
        order = RNG.permutation(ROWS)
        ids, targets = tf.constant(order), tf.constant(RNG.normal(size=(ROWS, 1)), tf.float32)
        step_of(ours, optimizer, ids, targets)
        variables = [v for v in theirs.trainable_variables if "unused" not in v.name]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(theirs(ids) - targets))
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]
        if name == "rowwise_adagrad":  # Keras has none, so its tables are NumPy's
            table = theirs.embeddings.table_variables["item"]
            (place,) = (i for i, v in enumerate(variables) if v is table)
            gradient = gradients.pop(place).numpy()
            accumulator += np.square(gradient).mean(1, keepdims=True)
            rows = table.numpy() * (1 - LR * decay)
            table.assign(rows - LR * gradient / (np.sqrt(accumulator) + 1e-7))
            variables.pop(place)
        keras.apply_gradients(zip(gradients, variables, strict=True))
    assert optimizer.iterations == 4
    # Keras' Adam takes 1 - beta_2 and 1 - beta_2**t with unlike rounding: 6e-6 of each update.
    atol = 1e-4 * LR if "adam" in name else 1e-6
    for found, expected in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=atol, err_msg=found.name)


@pytest.mark.parametrize("name", DENSE_OPTIMIZERS)
def test_training_in_a_graph_touches_only_the_rows_it_should(name):
    tf.keras.utils.set_random_seed(1)
    model = make()
    optimizer = Optimizer(name, LR, 0.1, model)
    before = model.embeddings.table_variables["item"].numpy()
    step = tf.function(
        lambda ids, targets: step_of(model, optimizer, ids, targets), autograph=False
    )
    ids, targets = tf.constant([1, 4, 1]), tf.constant([[1.0], [-1.0], [1.0]])
    losses = [float(step(ids, targets)) for _ in range(30)]
    assert losses[-1] < losses[1]  # not [0]: FTRL's first step discards the initial weights
    after = model.embeddings.table_variables["item"].numpy()
    changed = (after != before).any(1)
    if name == "full_adam":
        assert changed.all()
    else:
        np.testing.assert_array_equal(changed, np.isin(np.arange(ROWS), [1, 4]))
    assert optimizer.iterations == 30


def test_every_trainable_variable_is_covered_once():
    model = make()
    optimizer = Optimizer("adam", LR, 0.0, model)
    covered = [id(v) for v in optimizer.variables_to_differentiate]
    assert sorted(covered) == sorted(id(v) for v in model.trainable_variables)
    tables = model.embeddings.table_variables
    assert set(tables) == {"item", "item_unused"}
    assert covered == [*map(id, optimizer.dense), *map(id, tables.values())]
    assert len(optimizer.dense) == 4


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


@pytest.mark.parametrize("decay", [0.0, 0.2], ids=["", "decay"])
@pytest.mark.parametrize("options", [{}, {"beta1": 0.25, "beta2": 0.5, "eps": 1e-8}], ids=str)
def test_full_adam_is_the_papers_of_all_variables(options, decay):
    """Rows that repeat, rows that are missing, a table never looked up, a step without ids."""
    model = make()
    optimizer = Optimizer("full_adam", LR, decay, model, **options)
    variables = optimizer.variables_to_differentiate
    expected = [v.numpy().astype(np.float64) for v in variables]
    m, v = ([np.zeros_like(w) for w in expected] for _ in range(2))
    b1, b2, epsilon = options.values() or (0.9, 0.999, 1e-7)
    (unused,) = (i for i, variable in enumerate(variables) if "unused" in variable.name)

    @tf.function(reduce_retracing=True, autograph=False)
    def step(ids, targets):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(ids) - targets))
        gradients = tape.gradient(loss, variables)
        optimizer.apply(gradients)
        return [None if g is None else tf.convert_to_tensor(g) for g in gradients]

    for t, ids in enumerate([[1, 4, 1], [4], [], [0, 1, 2, 2], [5, 5]], start=1):
        targets = tf.constant(RNG.normal(size=(len(ids), 1)), tf.float32)
        gradients = step(tf.constant(ids, tf.int32), targets)
        assert [i for i, g in enumerate(gradients) if g is None] == [unused]
        for i, gradient in enumerate(gradients):
            g = np.float64(0 if gradient is None else gradient.numpy())
            expected[i] -= LR * decay * expected[i]
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            m_hat, v_hat = m[i] / (1 - b1**t), v[i] / (1 - b2**t)
            expected[i] -= LR * m_hat / (np.sqrt(v_hat) + epsilon)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=2e-5, atol=2e-6, err_msg=variable.name)


def test_full_adam_is_adam_when_each_row_is_used_in_each_step():
    models = []
    for name in ("adam", "full_adam"):
        tf.keras.utils.set_random_seed(3)
        model = make()
        optimizer = Optimizer(name, LR, 0.1, model, beta1=0.7, eps=1e-30)  # epsilons differ
        for number in range(5):
            ids = np.random.default_rng(number).permutation(np.repeat(np.arange(ROWS), 2))
            step_of(model, optimizer, tf.constant(ids), tf.cast(ids[:, np.newaxis], tf.float32))
        models.append([v.numpy() for v in optimizer.variables_to_differentiate[:-1]])
    for found, expected in zip(*models, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-6)


def test_options_are_those_of_the_named_optimizer_alone():
    """A first step of Adam without momentum: lr * g / (|g| + epsilon)."""
    model = make(optimizer="sgd")
    optimizer = Optimizer("adam", LR, 0.0, model, beta1=0.0, beta2=0.0, eps=0.5)
    before = [v.numpy() for v in optimizer.variables_to_differentiate]
    ids = tf.range(ROWS)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(ids) - 3.0))
    gradients = tape.gradient(loss, optimizer.variables_to_differentiate)
    optimizer.apply(gradients)
    for variable, value, gradient in zip(
        optimizer.variables_to_differentiate, before, gradients, strict=True
    ):
        if gradient is None:
            continue
        g = tf.convert_to_tensor(gradient).numpy()
        rate = LR if "item" in variable.name else LR / (np.abs(g) + 0.5)
        np.testing.assert_allclose(variable, value - rate * g, rtol=1e-5, atol=1e-6)
    table = make()
    optimizer = Optimizer("adagrad", LR, 0.0, table, eps=2.0)
    before = table.embeddings.table_variables["item"].numpy()
    gradient = tf.IndexedSlices(tf.ones([1, D]), tf.constant([3]), tf.constant([ROWS, D]))
    optimizer.apply([*[None] * len(optimizer.dense), gradient, None])
    moved = before - table.embeddings.table_variables["item"].numpy()
    np.testing.assert_allclose(moved[3], np.full(D, LR / (np.sqrt(1.1) + 2)), rtol=1e-4)


def test_a_table_may_have_an_optimizer_of_its_own():
    """Its table takes plain steps of gradient descent, the rest of the model Adam's."""
    model = make(optimizer="sgd")
    optimizer = Optimizer("adam", LR, 0.0, model)
    ids, targets = tf.constant([1, 4]), tf.constant([[1.0], [-1.0]])
    rows = model.embeddings.table_variables["item"]
    dense = [v.numpy() for v in optimizer.dense]
    for _ in range(2):
        before = rows.numpy()
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(ids) - targets))
        gradients = tape.gradient(loss, optimizer.variables_to_differentiate)
        slices = tf.convert_to_tensor(gradients[len(optimizer.dense)]).numpy()
        optimizer.apply(gradients)
        np.testing.assert_allclose(rows, before - LR * slices, rtol=1e-6, atol=1e-7)
        if optimizer.iterations == 1:  # Adam's first step is the learning rate, whatever the slope
            moved = [np.abs(v - b).max() for v, b in zip(optimizer.dense, dense, strict=True)]
            np.testing.assert_allclose(moved, LR, rtol=1e-3)
    names = set(optimizer.states())
    assert not any(name.startswith("optimizer/item/") for name in names)
    assert {"optimizer/item_unused/m", "optimizer/item_unused/v"} <= names


class TwoRanks:
    """A world whose other rank has the same gradients, which counts what it is asked."""

    rank, size, local_rank, local_size = 0, 2, 0, 2

    def __init__(self):
        self.calls = []

    def sum(self, tensors, wire_dtype="float32"):
        self.calls.append((len(tensors), wire_dtype))
        return [2 * tensor for tensor in tensors]


def test_dense_gradients_are_summed_once_and_all_together():
    model, world = make(), TwoRanks()
    optimizer = Optimizer("sgd", LR, 0.0, model, world=world, wire_dtype="bfloat16")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(tf.range(ROWS))))
    given = tape.gradient(loss, optimizer.variables_to_differentiate)
    given[1] = None  # of a variable that the loss does not depend on
    reduced, _ = optimizer.reduced(given)
    assert world.calls == [(3, "bfloat16")]
    assert len(reduced) == len(given)
    for number, (found, gradient) in enumerate(zip(reduced, given, strict=True)):
        if gradient is None:
            assert found is None
        elif number < len(optimizer.dense):
            np.testing.assert_array_equal(found, 2 * gradient)
        else:
            assert found is gradient  # a table's: what the backend said, here nothing


# Pieces of columns are what an optimizer might not bear; the rest differs in the exchange alone.
@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *((name, "column_wise") for name in DENSE_OPTIMIZERS),
        *(("adam", strategy) for strategy in ("data_parallel", "table_wise", "row_wise")),
    ],
)
def test_one_process_of_horovod_trains_as_the_local_backend(name, strategy):
    pytest.importorskip("horovod.tensorflow")
    steps = [tf.constant(RNG.integers(0, ROWS, 5)) for _ in range(3)]
    tensors = []
    for sharded in (None, strategy):
        tf.keras.utils.set_random_seed(2)
        model = make(strategy=sharded)
        optimizer = Optimizer(name, LR, 0.01, model)
        for ids in steps:
            step_of(model, optimizer, ids, tf.cast(ids[:, tf.newaxis], tf.float32))
        tensors.append(values_of(model_states(model) | optimizer.states()))
    assert set(tensors[0]) == set(tensors[1])
    for tensor, expected in tensors[0].items():
        np.testing.assert_allclose(
            tensors[1][tensor], expected, rtol=1e-5, atol=1e-6, err_msg=tensor
        )


@pytest.mark.parametrize(
    ("name", "decay", "says"),
    [
        ("ftrl", 0.0, "ftrl needs their weights"),
        ("full_adam", 0.0, "full_adam needs all rows"),
        ("lazy_adam", 0.01, "weight_decay 0.01 needs their weights"),
        *((name, 0.0, None) for name in ("sgd", "momentum", "adagrad", "rowwise_adagrad", "adam")),
    ],
)
def test_tables_that_grow_take_optimizers_that_add(name, decay, says):
    model = make()
    collection = model.embeddings
    collection.tables = tuple(dataclasses.replace(t, capacity=5) for t in collection.tables)
    if says is None:
        Optimizer(name, LR, decay, model)
        return
    with pytest.raises(UserError, match=says):
        Optimizer(name, LR, decay, model)


def test_an_optimizer_that_needs_whole_rows_refuses_pieces_of_them():
    model = make()
    (part, *_) = model.embeddings.backend.held
    half = dataclasses.replace(part, shard=dataclasses.replace(part.shard, columns=range(2)))

    class Halves(type(model.embeddings.backend)):
        held = (half,)

    model.embeddings.backend.__class__ = Halves
    with pytest.raises(
        UserError, match=r"rowwise_adagrad keeps one value a row .* table 'item' is sharded column"
    ):
        Optimizer("rowwise_adagrad", LR, 0.0, model)
    Optimizer("adagrad", LR, 0.0, model)


def values_of(states):
    """Whole tensors by name; one process holds all of their parts."""
    tensors = {}
    for name, state in states.items():
        tensors[name] = np.full(state.shape, -99, state.dtype)
        for part in state.parts:
            block = np.concatenate([np.atleast_1d(b) for b in part.blocks()])
            if not state.shape:
                tensors[name] = block[0]
            elif part.columns is None:
                tensors[name][list(part.rows)] = block
            else:
                tensors[name][np.ix_(list(part.rows), list(part.columns))] = block
    return tensors


def names(model, optimizer):
    return sorted(model_states(model)), sorted(optimizer.states())


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
    states = model_states(model)
    held = [id(part.variable) for state in states.values() for part in state.parts]
    assert sorted(held) == sorted(id(w) for w in model.weights)
    for state in states.values():
        (part,) = state.parts
        assert state.shape == tuple(part.variable.shape)
    # Adam: m and v of 4 dense variables and 2 tables, and the counter.
    of_optimizer = optimizer.states()
    assert len(of_optimizer) == 2 * 6 + 1
    assert len({id(p.variable) for s in of_optimizer.values() for p in s.parts}) == 2 * 6 + 1


@pytest.mark.parametrize("name", ["adam", "full_adam"])
def test_restored_state_continues_exactly(name, tmp_path):
    ids, targets = tf.constant([1, 4, 1]), tf.constant([[1.0], [-1.0], [1.0]])
    first = make()
    optimizer = Optimizer(name, LR, 0.01, first)
    for _ in range(3):
        step_of(first, optimizer, ids, targets)
    second = make()
    resumed = Optimizer(name, LR, 0.01, second)
    pieces = {n: s.pieces() for n, s in (model_states(first) | optimizer.states()).items()}
    saved = open_checkpoint(CheckpointStore(tmp_path).save(3, pieces, {}))
    states = model_states(second) | resumed.states()
    assert set(saved) == set(states)
    for name, state in states.items():
        state.restore(name, saved)
    for model, opt in ((first, optimizer), (second, resumed)):
        for _ in range(2):
            step_of(model, opt, ids, targets)
    for found, expected in zip(second.weights, first.weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_adam_in_full_and_lazily_have_the_same_state():
    model = make()
    specs = [
        {n: s.spec for n, s in Optimizer(name, LR, 0.0, model).states().items()}
        for name in ("adam", "full_adam")
    ]
    assert specs[0] == specs[1]


@pytest.mark.parametrize("paper_epsilon", [False, True])
def test_fused_adam_has_kerass_state_and_a_config(paper_epsilon):
    variables = [tf.Variable(tf.zeros(shape), name=f"w{len(shape)}") for shape in ([2, 3], [4])]
    ours, keras = FusedAdam(LR, paper_epsilon=paper_epsilon), tf.keras.optimizers.Adam(LR)
    for optimizer in (ours, keras):
        optimizer.build(variables)
    described = [[(v.name, v.shape, v.dtype) for v in o.variables] for o in (ours, keras)]
    assert described[0] == described[1]
    config = FusedAdam(0.5, 0.25, 0.1, 0.2, 0.3, paper_epsilon).get_config()
    assert FusedAdam.from_config(config).get_config() == config
    assert list(config.values()) == [0.5, 0.25, 0.1, 0.2, 0.3, paper_epsilon]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", ["sgd", "adam", "full_adam"])
def test_fused_updates_take_variables_of_mixed_precision(name, policy, compiled):
    """Keras wraps them (AutoCastVariable); what is updated is the float32 variable within."""
    layer = tf.keras.layers.Dense(2, dtype=policy)
    layer.build([None, 3])
    optimizer = DENSE_OPTIMIZERS[name](LR, weight_decay=0.5)
    optimizer.build(layer.trainable_variables)
    before = [v.numpy() for v in layer.trainable_variables]
    gradients = [tf.constant(1.0, shape=v.shape) for v in layer.trainable_variables]
    apply = tf.function(lambda: optimizer.apply_gradients(zip(gradients, layer.weights)))  # noqa: B905
    (apply if compiled else apply.python_function)()
    for variable, value in zip(layer.trainable_variables, before, strict=True):
        assert variable.dtype == tf.float32
        np.testing.assert_allclose(variable, value * (1 - 0.5 * LR) - LR, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [PlainSGD, FusedAdam])
def test_fused_updates_of_a_dense_variable_take_sparse_gradients(kind):
    variables = [tf.Variable(tf.ones([3, 2])) for _ in range(2)]
    gradient = tf.IndexedSlices(tf.ones([3, 2]), tf.constant([2, 0, 2]), tf.constant([3, 2]))
    for variable, given in zip(variables, (gradient, tf.convert_to_tensor(gradient)), strict=True):
        optimizer = kind(LR)
        for _ in range(2):
            optimizer.apply_gradients([(given, variable)])
    np.testing.assert_array_equal(variables[0], variables[1])
    assert (variables[0].numpy()[[0, 2]] < 1).all()
    np.testing.assert_array_equal(variables[0][1], [1, 1])


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
