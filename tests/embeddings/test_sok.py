"""The SOK backend: against SOK where it can run, else against a stand-in of what we call.

The stand-in does what SOK's sources do (checks included), several processes in one: lookups of all
of them go into one gradient tape. It shows that modes, ids, padding and gradients are handed over
rightly; that SOK's kernels do what its sources say, only a GPU can show.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.embeddings.backends.local import LocalBackend
from lookback.embeddings.backends.sok import SOKBackend
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.optimizers import SGD, Adagrad, FullAdam, LazyAdam
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec
from lookback.training.state import TensorShard

TABLES = (TableSpec("item", 23, 4), TableSpec("user", 7, 6), TableSpec("tiny", 2, 4))
SEED = 5


def plan_of(ranks, *placements):
    placed = zip(TABLES, placements, strict=True)
    return ShardingPlan(ranks, TABLES, tuple(Placement(table.name, *p) for table, p in placed))


ROW, TABLE = ("row_wise",), ("table_wise", (0,))
PLANS = {
    "row-wise, 1": plan_of(1, ROW, ROW, ROW),
    "mixed, 1": plan_of(1, ROW, TABLE, TABLE),
    "row-wise, 3": plan_of(3, ROW, ROW, ROW),
    "mixed, 2": plan_of(2, ROW, ("table_wise", (1,)), TABLE),
    "table-wise, 3": plan_of(3, ("table_wise", (2,)), ("table_wise", (1,)), TABLE),
}


class Variable:
    """What SOK's variables have: the local rows, and where the others are."""

    def __new__(cls, *, shape, initializer, dtype, name, mode):
        world = World.current
        rows = shape[0]
        if mode == "distributed":
            target, local = -1, rows // world.ranks + (world.rank < rows % world.ranks)
        else:
            target = int(mode.split(":")[1])
            local = rows if target == world.rank else 0
        variable = tf.Variable(initializer(shape=(local, shape[1]), dtype=dtype), name=name)
        variable.target_gpu = target
        world.variables[world.rank][name] = variable
        world.names[id(variable)] = name
        return variable


class DynamicVariable(tf.Module):
    """What of SOK's hash tables we call, as dynamic_variable.py has it, over a dictionary.

    Gathering and looking up insert; beyond `max_capacity`, what was touched longest ago goes.
    """

    def __init__(self, *, dimension, initializer, mode, trainable, name, **options):
        super().__init__(name=None)
        assert options.pop("var_type") == "hybrid" and options.pop("key_type") == tf.int64
        capacity = options["max_capacity"]
        assert capacity == options["init_capacity"] and capacity & (capacity - 1) == 0
        assert isinstance(options["max_hbm_for_vectors"], int)
        world = World.current
        self.dimension, self.capacity = dimension, options["max_capacity"]
        self.first, self.trainable, self.dtype = float(initializer), trainable, tf.float32
        self.shape = tf.TensorShape([None, dimension])
        self.target_gpu = -1 if mode == "distributed" else int(mode.split(":")[1])
        self.held = {}
        # What the tape sees: rows are read through it, and its gradient says which.
        self.handle = tf.Variable(tf.zeros([1 << 12, dimension]), name="handle")
        world.names[id(self)] = name
        world.variables[world.rank][name] = self

    def sparse_read(self, indices, name=None):
        assert indices.dtype == tf.int64
        rows = [self._touch(int(key)) for key in indices]
        return tf.constant(np.reshape(rows, [-1, self.dimension]), tf.float32)

    def _touch(self, key):
        value = self.held.pop(key, np.full(self.dimension, self.first, np.float32))
        self.held[key] = value
        if len(self.held) > self.capacity:
            del self.held[next(iter(self.held))]
        return value

    def scatter_update(self, slices):
        assert isinstance(slices, tf.IndexedSlices) and slices.indices.dtype == tf.int64
        for key, value in zip(slices.indices.numpy(), slices.values.numpy(), strict=True):
            self._touch(int(key))
            self.held[int(key)] = value


def export(variable):
    keys = list(variable.held)[::-1]  # in no order that one could rely on
    values = [variable.held[key] for key in keys]
    shape = [-1, variable.dimension]
    return tf.constant(keys, tf.int64), tf.constant(np.reshape(values, shape), tf.float32)


class World:
    """Several processes in one; `rank` says which one runs."""

    current: World

    def __init__(self, ranks):
        self.ranks, self.rank = ranks, 0
        self.variables = [{} for _ in range(ranks)]
        self.names = {}
        self.inits, self.largest, self.calls = [], 0, []
        World.current = self

    def lookup_sparse(self, params, sp_ids, combiners):
        assert len(params) == len(sp_ids) == len(combiners)
        assert set(combiners) == {"sum"}
        targets = {param.target_gpu for param in params}
        if -1 in targets:
            assert targets == {-1}, "Distributed/Localized Variable cannot be used in one lookup"
        else:
            assert targets == set(range(self.ranks)), "every gpu must have table!"
        assert len({int(ids.nrows()) for ids in sp_ids}) == 1, "shape[0] of row_lengths differ"
        self.calls.append([self.names[id(param)] for param in params])
        return [self._look_up(param, ids) for param, ids in zip(params, sp_ids, strict=True)]

    def _look_up(self, param, ids):
        assert ids.values.dtype == tf.int64 and int(tf.reduce_max(ids.row_lengths())) <= 1
        name = self.names[id(param)]
        holders = range(self.ranks) if param.target_gpu < 0 else [param.target_gpu]
        found, places = [], []
        for rank in holders:
            mine = tf.where(ids.values % len(holders) == (rank if len(holders) > 1 else 0))[:, 0]
            keys, variable = tf.gather(ids.values, mine), self.variables[rank][name]
            if isinstance(variable, DynamicVariable):  # whose keys are ids
                found.append(variable.sparse_read(keys) + tf.gather(variable.handle, keys))
            else:
                found.append(tf.gather(variable, keys // len(holders)))
            places.append(tf.gather(ids.value_rowids(), mine))
        total = tf.math.unsorted_segment_sum(tf.concat(found, 0), tf.concat(places, 0), ids.nrows())
        return total

    def reduced(self, value, op):
        assert op == "max"
        return tf.maximum(value, tf.cast(self.largest, value.dtype))

    def start(self, **options):
        assert not self.inits, "Communication tool cannot be set more than once"
        self.inits.append(options)

    def rank_of_sok(self):
        if not self.inits:
            raise RuntimeError("Communication tool is not set. Did you forget to call sok.init()?")
        return self.rank

    def modules(self):
        hvd = types.SimpleNamespace(
            Max="max",
            rank=lambda: self.rank,
            size=lambda: self.ranks,
            is_initialized=lambda: True,
            allreduce=self.reduced,
            broadcast=lambda value, root, name: value,
        )
        sok = types.SimpleNamespace(
            Variable=Variable,
            DynamicVariable=DynamicVariable,
            export=export,
            init=self.start,
            lookup_sparse=self.lookup_sparse,
            communication=types.SimpleNamespace(rank=self.rank_of_sok),
        )
        return {
            "sparse_operation_kit": sok,
            "horovod": types.SimpleNamespace(tensorflow=hvd),
            "horovod.tensorflow": hvd,
        }


@pytest.fixture
def world_of(monkeypatch):
    def make(ranks):
        world = World(ranks)
        for name, module in world.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["a GPU"])
        return world

    return make


def layers_and_backends(world, plan):
    pairs = []
    for rank in range(plan.ranks):
        world.rank = rank
        layer = tf.keras.layers.Layer()
        backend = SOKBackend(TABLES, Sharding("sok", plan), SEED)
        backend.build(layer)
        pairs.append((layer, backend))
    return pairs


def local_backend():
    backend = LocalBackend(TABLES, LOCAL, SEED)
    backend.build(tf.keras.layers.Layer())
    return backend


def ids_of(rank, ranks):
    """Uneven, with repeats; the last of several ranks has none."""
    if ranks > 1 and rank == ranks - 1:
        return {table.name: tf.zeros([0], tf.int32) for table in TABLES}
    rng = np.random.default_rng(rank)
    return {
        t.name: tf.constant(rng.integers(0, t.rows, 5 + 4 * n + 3 * rank), tf.int32)
        for n, t in enumerate(TABLES)
    }


def fetch_all(pairs, batches, world=None):
    found = []
    for rank, ((_, backend), ids) in enumerate(zip(pairs, batches, strict=True)):
        if world is not None:
            world.rank = rank
        found.append(backend.fetch(backend.route(ids)))
    return found


def loss_of(vectors):
    """Differs from vector to vector, so that a gradient that goes astray shows."""
    return tf.add_n(
        [
            tf.reduce_sum(
                tf.sin(3 * v) * tf.range(1.0, 1 + tf.cast(tf.shape(v)[0], v.dtype))[:, None]
            )
            for found in vectors
            for v in found.values()
        ]
    )


def lazy_adam():
    return LazyAdam(tf.constant(0.1), weight_decay=0.2)


def step(backends, gradients, new_optimizer=lazy_adam):
    """One update by each process of its rows."""
    for backend, gradient in zip(backends, gradients, strict=True):
        optimizer = new_optimizer()
        optimizer.build(backend.variables)
        gradient = {name: g for name, g in gradient.items() if g is not None}
        optimizer.apply(backend.reduce_gradients(gradient), backend.variables, tf.constant(1.0))


def whole(backends):
    """The tables, put together from what processes hold."""
    tables = {t.name: np.full((t.rows, t.dim), np.nan, np.float32) for t in TABLES}
    for backend in backends:
        for part in backend.held:
            rows = backend.variables[part.variable].numpy()[part.start : part.stop]
            tables[part.shard.table][np.ix_(part.shard.rows, part.shard.columns)] = rows
    return tables


def check_against_local(pairs, batches, world=None, new_optimizer=lazy_adam):
    """Initial rows, vectors, and rows after an update equal the local backend's."""
    backends, local = [backend for _, backend in pairs], local_backend()
    for name, table in whole(backends).items():
        np.testing.assert_array_equal(table, local.variables[name])
    with tf.GradientTape(persistent=True) as tape:
        found = fetch_all(pairs, batches, world)
        loss = loss_of(found)
    gradients = [tape.gradient(loss, dict(backend.variables)) for backend in backends]
    with tf.GradientTape() as tape:
        expected = [local.fetch(local.route(ids)) for ids in batches]
        loss = loss_of(expected)
    of_local = tape.gradient(loss, dict(local.variables))
    for ours, theirs in zip(found, expected, strict=True):
        for name, vectors in theirs.items():
            np.testing.assert_allclose(ours[name], vectors, rtol=1e-6, atol=1e-7)
    step(backends, gradients, new_optimizer)
    step([local], [of_local], new_optimizer)
    for name, table in whole(backends).items():
        np.testing.assert_allclose(table, local.variables[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_stand_in_equals_local(plan, world_of):
    world = world_of(plan.ranks)
    pairs = layers_and_backends(world, plan)
    world.largest = 40  # what another process may want of a table
    check_against_local(pairs, [ids_of(r, plan.ranks) for r in range(plan.ranks)], world)


@pytest.mark.parametrize("plan", [PLANS["row-wise, 3"], PLANS["mixed, 2"]])
def test_full_adam_takes_its_pass_over_each_processs_rows(plan, world_of):
    world = world_of(plan.ranks)
    pairs = layers_and_backends(world, plan)
    world.largest = 40
    batches = [ids_of(rank, plan.ranks) for rank in range(plan.ranks)]
    check_against_local(pairs, batches, world, lambda: FullAdam(tf.constant(1e-3), epsilon=1e-3))


def test_modes_calls_and_tracking(world_of):
    plan = PLANS["mixed, 2"]
    world = world_of(2)
    pairs = layers_and_backends(world, plan)
    assert world.inits == [{"use_legacy_optimizer": False}]  # once, for both
    targets = [{n: v.target_gpu for n, v in b.variables.items()} for _, b in pairs]
    assert targets == [{"item": -1, "user": 1, "tiny": 0}] * 2
    fetch_all(pairs, [ids_of(r, 2) for r in range(2)], world)
    assert world.calls == [["item"], ["user", "tiny"]] * 2
    for layer, backend in pairs:
        assert {id(v) for v in layer.trainable_weights} == {
            id(v) for v in backend.variables.values()
        }
        assert backend.optimizer_of("item") is None
    shapes = [{n: v.shape[0] for n, v in b.variables.items()} for _, b in pairs]
    assert shapes == [{"item": 12, "user": 0, "tiny": 2}, {"item": 11, "user": 7, "tiny": 0}]
    assert [h.shard.table for h in pairs[1][1].held] == ["item", "user"]


def test_only_the_tables_asked_for_come_back(world_of):
    world = world_of(2)
    pairs = layers_and_backends(world, PLANS["mixed, 2"])
    batches = [{"user": tf.constant([3, 3, 1])}, {"user": tf.constant([6])}]
    check_against_local(pairs, batches, world)
    assert world.calls == [["user", "tiny"]] * 2  # SOK wants a table on every process
    world.calls.clear()
    fetch_all(pairs, [{"item": tf.constant([2])}] * 2, world)
    assert world.calls == [["item"]] * 2


def test_missing_sok_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sparse_operation_kit", None)
    with pytest.raises(UserError, match=r"merlin-sok.*--backend horovod"):
        SOKBackend(TABLES, Sharding("sok", PLANS["row-wise, 1"]), SEED)


def test_missing_gpu_is_named(world_of, monkeypatch):
    world_of(1)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    with pytest.raises(UserError, match=r"no GPU here.*--backend horovod"):
        SOKBackend(TABLES, Sharding("sok", PLANS["row-wise, 1"]), SEED)


@pytest.mark.parametrize(
    ("sharding", "error", "message"),
    [
        (Sharding("sok"), ValueError, "needs a plan for its tables"),
        (Sharding("sok", PLANS["row-wise, 3"]), ValueError, "for 3 processes; 2 are running"),
        (
            Sharding("sok", plan_of(2, ROW, ("data_parallel",), ROW)),
            UserError,
            r"'user' data_parallel; it can do \['table_wise', 'row_wise'\].*--backend horovod",
        ),
        (
            Sharding("sok", plan_of(2, ROW, ROW, ("column_wise", (0, 1)))),
            UserError,
            "'tiny' column_wise",
        ),
        (
            Sharding("sok", plan_of(2, ROW, TABLE, TABLE)),
            UserError,
            r"processes \[1\] have none.*row_wise",
        ),
        (Sharding("sok", plan_of(2, ROW, ROW, ROW), "float16"), UserError, "float32 vectors only"),
    ],
    ids=["no plan", "ranks", "data_parallel", "column_wise", "empty rank", "wire"],
)
def test_what_sok_cannot_do_is_refused(sharding, error, message, world_of):
    world_of(2)
    with pytest.raises(error, match=message):
        SOKBackend(TABLES, sharding, SEED)


def test_another_row_layout_is_an_error(world_of, monkeypatch):
    world = world_of(1)
    other = types.SimpleNamespace(**vars(sys.modules["sparse_operation_kit"]))
    other.Variable = lambda **options: tf.Variable(tf.zeros([5, options["shape"][1]]))
    monkeypatch.setitem(sys.modules, "sparse_operation_kit", other)
    with pytest.raises(RuntimeError, match="SOK holds 5 rows here, the plan 23"):
        layers_and_backends(world, PLANS["row-wise, 1"])


HAS_SOK = importlib.util.find_spec("sparse_operation_kit") is not None


@pytest.mark.skipif(
    not (HAS_SOK and tf.config.list_physical_devices("GPU")),
    reason="needs sparse_operation_kit and a GPU",
)
@pytest.mark.parametrize("plan", ["row-wise, 1", "mixed, 1"])
@pytest.mark.parametrize("empty", [None, "item", "user"])
def test_sok_equals_local(plan, empty):
    layer, backend = tf.keras.layers.Layer(), SOKBackend(TABLES, Sharding("sok", PLANS[plan]), SEED)
    backend.build(layer)
    ids = ids_of(0, 1)
    if empty:
        ids[empty] = ids[empty][:0]
    check_against_local([(layer, backend)], [ids])


# --- tables that grow ---

RATE = 1e-3  # `loss_of` is steep: larger steps would make rounding large


def growing(plan, capacity=None):
    tables = tuple(
        dataclasses.replace(table, capacity=capacity or table.rows) for table in plan.tables
    )
    return ShardingPlan(plan.ranks, tables, plan.placements)


def growing_backends(world, plan, optimizer):
    """For each process a backend, and an optimizer of its tables."""
    made = []
    for rank in range(plan.ranks):
        world.rank = rank
        backend = SOKBackend(plan.tables, Sharding("sok", plan), SEED)
        backend.build(tf.keras.layers.Layer())
        of_tables = optimizer(tf.constant(RATE))
        for name, variable in backend.variables.items():
            of_tables.build({name: variable}, backend.new_slot(name))
        made.append((backend, of_tables))
    return made


def grown(made, slot=None):
    """The whole tables, or the optimizer's state of them, as a checkpoint would have them."""
    tables = {}
    for backend, optimizer in made:
        for part in backend.held:
            name = part.shard.table
            variable, value = backend.variables[name], None
            if slot is not None:
                variable, value = optimizer.slots[name][slot], optimizer.initial_value(slot)
            shard = TensorShard(
                variable, part.shard.rows, growing=backend.growing(part, variable, value)
            )
            rows = np.concatenate([*shard.blocks()]) if len(part.shard.rows) else None
            if rows is not None:
                whole = (backend._tables[name].rows, rows.shape[1])
                tables.setdefault(name, np.full(whole, np.nan, np.float32))[part.shard.rows] = rows
    return tables


def grow(world, made, batches, step):
    """One step of all processes on their batches."""
    with tf.GradientTape() as tape:
        found = []
        for rank, ((backend, _), ids) in enumerate(zip(made, batches, strict=True)):
            world.rank = rank
            found.append(backend.fetch(backend.route(ids)))
        loss = loss_of(found)
    handles = [{n: v.handle for n, v in backend.variables.items()} for backend, _ in made]
    gradients = tape.gradient(loss, handles)
    for (backend, optimizer), of_rank in zip(made, gradients, strict=True):
        of_rank = {
            name: tf.IndexedSlices(g.values, tf.cast(g.indices, tf.int64), g.dense_shape)
            for name, g in of_rank.items()
            if g is not None
        }
        optimizer.apply(backend.reduce_gradients(of_rank), backend.variables, tf.constant(step))


@pytest.mark.parametrize("optimizer", [LazyAdam, Adagrad, SGD], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("plan", [PLANS["mixed, 1"], PLANS["row-wise, 3"], PLANS["mixed, 2"]])
def test_growing_tables_are_the_local_ones(plan, optimizer, world_of):
    world = world_of(plan.ranks)
    plan = growing(plan)
    world.largest = 40
    made, local = growing_backends(world, plan, optimizer), local_backend()
    of_local = optimizer(tf.constant(RATE))
    of_local.build(local.variables)
    for step in (1.0, 2.0):
        batches = [ids_of(rank, plan.ranks) for rank in range(plan.ranks)]
        grow(world, made, batches, step)
        with tf.GradientTape() as tape:
            loss = loss_of([local.fetch(local.route(ids)) for ids in batches])
        gradients = tape.gradient(loss, dict(local.variables))
        of_local.apply(gradients, local.variables, tf.constant(step))
    for name, table in grown(made).items():
        np.testing.assert_allclose(table, local.variables[name], rtol=1e-5, atol=1e-6)
    for slot in optimizer.slot_kinds:
        for name, state in grown(made, slot).items():
            np.testing.assert_allclose(state, of_local.slots[name][slot], rtol=1e-5, atol=1e-6)
    # Only what was used takes room.
    used = {int(i) for rank in range(plan.ranks) for i in ids_of(rank, plan.ranks)["item"]}
    held = [set(backend.variables["item"].held) for backend, _ in made]
    assert set().union(*held) == used and sum(map(len, held)) == len(used)


def test_what_was_forgotten_begins_anew(world_of, monkeypatch):
    monkeypatch.setattr("lookback.embeddings.backends.sok.LEAST_CAPACITY", 4)
    world = world_of(1)
    made = growing_backends(world, growing(PLANS["row-wise, 1"], capacity=3), SGD)
    first, then = tf.constant([3, 5], tf.int32), tf.constant([7, 8, 9], tf.int32)
    world.largest = 8
    grow(world, made, [{"item": first}], 1.0)
    begun = local_backend().variables["item"].numpy()
    assert (np.flatnonzero((grown(made)["item"] != begun).any(1)) == [3, 5]).all()
    grow(world, made, [{"item": then}], 2.0)  # four have room: one is forgotten
    assert (np.flatnonzero((grown(made)["item"] != begun).any(1)) == [5, 7, 8, 9]).all()


def test_growing_tables_take_what_others_wrote(world_of):
    """One rank's rows to three ranks; rows that are as they began take no room."""
    written = local_backend().variables["item"].numpy().copy()
    written[[2, 20]] += 0.5
    world = world_of(3)
    made = growing_backends(world, growing(PLANS["row-wise, 3"]), LazyAdam)
    for backend, _ in made:
        (part,) = (p for p in backend.held if p.shard.table == "item")
        variable = backend.variables["item"]
        rows = part.shard.rows
        backend.growing(part, variable).write(rows, written[rows.start :: rows.step])
    np.testing.assert_allclose(grown(made)["item"], written, rtol=1e-6)
    assert [sorted(backend.variables["item"].held) for backend, _ in made] == [[], [], [2, 20]]
