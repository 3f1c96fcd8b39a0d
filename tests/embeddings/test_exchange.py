"""The exchange between simulated ranks, each a thread, against indexing and adding in NumPy."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from lookback.embeddings.exchange import KINDS, Exchange, from_wire, to_wire
from lookback.embeddings.shard_layout import ShardLayout
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.types import TableSpec

TABLES = (
    TableSpec("words", rows=23, dim=4),
    TableSpec("site", rows=11, dim=6),
    TableSpec("tiny", rows=3, dim=4),  # fewer rows than ranks
    TableSpec("own", rows=9, dim=4, optimizer="sgd"),  # a group of its own
    TableSpec("tags", rows=17, dim=6),
)
BY_NAME = {table.name: table for table in TABLES}
MIXES = (*STRATEGIES, "mixed")
WORLDS = (1, 2, 3, 4, 5)
WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}


class Network:
    """Ranks in threads, and what travels between them."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.travelled = [[] for _ in range(ranks)]  # bytes to others, by rank and message
        self._barrier = threading.Barrier(ranks, timeout=60)
        self._sent = [None] * ranks

    def connect(self, rank):
        def all_to_all(values, splits):
            rows, counts = values.numpy(), splits.numpy()
            assert counts.shape == (self.ranks,)
            assert counts.sum() == len(rows), "splits must cover what is sent"
            ends = np.cumsum(counts)
            parts = [rows[e - n : e] for n, e in zip(counts, ends, strict=True)]
            self.travelled[rank].append(
                sum(part.nbytes for to, part in enumerate(parts) if to != rank)
            )
            self._sent[rank] = parts
            self._barrier.wait()
            received = [parts[rank] for parts in self._sent]
            self._barrier.wait()
            arrived = [len(part) for part in received]
            return tf.constant(np.concatenate(received)), tf.constant(arrived, tf.int32)

        return all_to_all

    def run(self, work):
        """What `work(rank)` returns, by rank; all of them at once."""

        def guarded(rank):
            try:
                return work(rank)
            except BaseException:
                self._barrier.abort()  # nobody waits for a rank that has failed
                raise

        with ThreadPoolExecutor(self.ranks) as pool:
            futures = [pool.submit(guarded, rank) for rank in range(self.ranks)]
        errors = [f.exception() for f in futures if f.exception() is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]


class Ranks:
    """The exchanges of all ranks, over tables of known rows."""

    def __init__(self, plan, wire_dtype="float32"):
        rng = np.random.default_rng(1)
        self.plan, self.layout = plan, ShardLayout(plan)
        self.network = Network(plan.ranks)
        self.tables = {
            t.name: rng.normal(size=(t.rows, t.dim)).astype(np.float32) for t in plan.tables
        }
        self.variables = [self._variables_of(rank) for rank in range(plan.ranks)]
        self.exchanges = [
            Exchange(plan, self.layout, r, self.network.connect(r), tf.as_dtype(wire_dtype))
            for r in range(plan.ranks)
        ]

    def _variables_of(self, rank):
        held = self.layout.held(rank)
        values = {
            g.name: np.zeros(
                [sum(len(s.rows) for group, s, _ in held if group == g), g.width], np.float32
            )
            for g in self.layout.groups
        }
        for group, shard, start in held:
            cut = self.tables[shard.table][np.ix_(list(shard.rows), list(shard.columns))]
            values[group.name][start : start + len(shard.rows)] = cut
        return {name: tf.Variable(value) for name, value in values.items()}

    def step(self, ids, upstream=None):
        """Vectors by table of each rank; with `upstream`, also the gradients of its variables."""

        def work(rank):
            exchange, variables = self.exchanges[rank], self.variables[rank]
            with tf.GradientTape() as tape:
                route = exchange.route({t: tf.constant(i) for t, i in ids[rank].items()})
                vectors = exchange.fetch(route, variables)
                if upstream is not None:
                    loss = tf.add_n(
                        [tf.reduce_sum(v * upstream[rank][t]) for t, v in vectors.items()]
                    )
            gradients = None if upstream is None else tape.gradient(loss, variables)
            return {t: v.numpy() for t, v in vectors.items()}, gradients

        return self.network.run(work)

    def sent(self):
        return [{k: int(v) for k, v in e.sent_bytes.items()} for e in self.exchanges]


def make_ids(ranks, seed=0, dtype=np.int32):
    """Ids by rank and table: repeated ones, every row, none; the last of several ranks has none."""
    rng = np.random.default_rng(seed)

    def of(rank, table):
        if ranks > 2 and rank == ranks - 1:
            return np.zeros(0, dtype)
        if table.name == "own" and rank == 0:
            return np.zeros(0, dtype)
        if table.name == "site" and rank == 0:
            return rng.permutation(table.rows).astype(dtype)
        if table.name == "tags":
            return np.full(4, rank % table.rows, dtype)
        return (rng.random(13 + rank) ** 2 * table.rows).astype(dtype)

    return [{table.name: of(rank, table) for table in TABLES} for rank in range(ranks)]


def make_upstream(ids, seed=2):
    """Gradients that float32 adds up without rounding."""
    rng = np.random.default_rng(seed)
    return [
        {
            t: rng.integers(-40, 40, (len(i), BY_NAME[t].dim)).astype(np.float32)
            for t, i in by_table.items()
        }
        for by_table in ids
    ]


def rounded(values, wire_dtype):
    return tf.cast(tf.cast(values, tf.as_dtype(wire_dtype)), tf.float32).numpy()


def pieces_of(plan, table):
    """(owner of an id, columns) of each leg: the definition of the strategies, not their code."""
    placement, dim = plan.placement(table), BY_NAME[table].dim
    if placement.strategy == "data_parallel":
        return []
    if placement.strategy == "row_wise":
        return [(lambda ids: ids % plan.ranks, dim)]
    owners = placement.ranks
    bounds = [dim * piece // len(owners) for piece in range(len(owners) + 1)]
    return [
        (lambda ids, owner=owner: np.full(len(ids), owner), bounds[n + 1] - bounds[n])
        for n, owner in enumerate(owners)
    ]


def least_bytes(plan, ids, wire_dtype, id_bytes=4):
    """What each rank cannot help sending to others, by kind."""
    sent = [dict.fromkeys(KINDS, 0) for _ in range(plan.ranks)]
    for rank, by_table in enumerate(ids):
        for table, index in by_table.items():
            distinct = np.unique(index)
            for owner_of, columns in pieces_of(plan, table):
                owners = owner_of(distinct)
                for owner in range(plan.ranks):
                    if owner == rank:
                        continue
                    asked = int((owners == owner).sum())
                    sent[rank]["ids"] += asked * id_bytes
                    sent[rank]["gradients"] += asked * columns * WIDTH[wire_dtype]
                    sent[owner]["vectors"] += asked * columns * WIDTH[wire_dtype]
    return sent


def whole_gradients(ranks, gradients):
    """The gradient of each table, joined from the ranks; of replicated tables by rank."""
    joined, copies = {}, {}
    for table in ranks.plan.tables:
        joined[table.name] = np.full([table.rows, table.dim], np.nan)
    for rank, by_variable in enumerate(gradients):
        for group, shard, start in ranks.layout.held(rank):
            gradient = by_variable[group.name]
            assert isinstance(gradient, tf.IndexedSlices)
            dense = tf.convert_to_tensor(gradient).numpy()[start : start + len(shard.rows)]
            if group.exchanged:
                joined[shard.table][np.ix_(list(shard.rows), list(shard.columns))] = dense
            else:
                copies.setdefault(shard.table, []).append(dense)
    return joined | copies


@pytest.mark.parametrize(
    ("mix", "ranks", "wire_dtype"),
    [
        *((mix, ranks, "float32") for mix in MIXES for ranks in WORLDS),
        *((mix, 3, "bfloat16") for mix in MIXES),
        ("mixed", 4, "float16"),
    ],
)
def test_vectors_gradients_and_bytes(make_plan, mix, ranks, wire_dtype):
    plan = make_plan(TABLES, mix, ranks)
    world = Ranks(plan, wire_dtype)
    ids = make_ids(ranks)
    upstream = make_upstream(ids)
    found = world.step(ids, upstream)
    exchanged = {p.table: STRATEGIES[p.strategy].exchanged for p in plan.placements}
    for rank, (vectors, _) in enumerate(found):
        assert list(vectors) == list(ids[rank])
        for table, values in vectors.items():
            expected = world.tables[table][ids[rank][table]]
            expected = rounded(expected, wire_dtype) if exchanged[table] else expected
            np.testing.assert_array_equal(values, expected, err_msg=f"{table} on rank {rank}")

    gradients = whole_gradients(world, [gradients for _, gradients in found])
    for table in TABLES:
        by_rank = np.zeros([ranks, table.rows, table.dim], np.float32)
        for rank in range(ranks):
            np.add.at(by_rank[rank], ids[rank][table.name], upstream[rank][table.name])
        # What travels is rounded as it leaves; copies the backend adds up, see `reduce_gradients`.
        travels = exchanged[table.name]
        expected = rounded(by_rank, wire_dtype).sum(0) if travels else by_rank
        np.testing.assert_array_equal(gradients[table.name], expected, err_msg=table.name)

    expected = least_bytes(plan, ids, wire_dtype)
    assert world.sent() == expected
    travelled = [sum(messages) for messages in world.network.travelled]
    assert travelled == [sum(by_kind.values()) for by_kind in expected]
    # Three messages for all tables together, on every rank: ids, vectors, gradients.
    messages = 3 if any(exchanged.values()) else 0
    assert [len(m) for m in world.network.travelled] == [messages] * ranks


@pytest.mark.parametrize("mix", ["row_wise", "mixed"])
def test_gradients_of_one_row_arrive_once_from_each_rank(make_plan, mix):
    world = Ranks(make_plan(TABLES, mix, 3))
    ids = [{"words": np.array([7, 7, 7, 2], np.int32)}, {"words": np.array([7], np.int32)}]
    ids.append({"words": np.zeros(0, np.int32)})
    found = world.step(ids, make_upstream(ids))
    slices = [len(g.indices) for _, by_name in found for g in by_name.values() if g is not None]
    assert sum(slices) == 2 + 1  # distinct ids of the ranks


def test_nobody_has_ids(make_plan):
    world = Ranks(make_plan(TABLES, "mixed", 3))
    ids = [{t.name: np.zeros(0, np.int32) for t in TABLES} for _ in range(3)]
    for vectors, gradients in world.step(ids, make_upstream(ids)):
        assert {t: v.shape for t, v in vectors.items()} == {t.name: (0, t.dim) for t in TABLES}
        assert all(g is None or not len(g.indices) for g in gradients.values())
    assert world.sent() == [dict.fromkeys(KINDS, 0)] * 3


def test_a_part_of_the_tables_in_another_order(make_plan):
    world = Ranks(make_plan(TABLES, "mixed", 4))
    ids = [{t: by_table[t] for t in ("tags", "words", "site")} for by_table in make_ids(4)]
    for (vectors, _), by_table in zip(world.step(ids), ids, strict=True):
        assert list(vectors) == ["tags", "words", "site"]
        for table, values in vectors.items():
            np.testing.assert_array_equal(values, world.tables[table][by_table[table]])
    least = least_bytes(world.plan, ids, "float32")
    assert world.sent() == [{**by_kind, "gradients": 0} for by_kind in least]


def test_bytes_add_up_over_steps(make_plan):
    world = Ranks(make_plan(TABLES, "mixed", 3))
    expected = [dict.fromkeys(KINDS, 0) for _ in range(3)]
    for seed in range(3):
        ids = make_ids(3, seed)
        world.step(ids, make_upstream(ids))
        for total, more in zip(expected, least_bytes(world.plan, ids, "float32"), strict=True):
            for kind in KINDS:
                total[kind] += more[kind]
    assert world.sent() == expected


def test_a_route_fetches_the_rows_as_they_are_then(make_plan):
    """So ids may travel a step ahead, while rows are still being updated."""
    world = Ranks(make_plan(TABLES, "mixed", 3))
    ids = make_ids(3)

    def work(rank):
        exchange, variables = world.exchanges[rank], world.variables[rank]
        route = exchange.route({t: tf.constant(i) for t, i in ids[rank].items()})
        for variable in variables.values():
            variable.assign(10 * variable)
        return {t: v.numpy() for t, v in exchange.fetch(route, variables).items()}

    for vectors, by_table in zip(world.network.run(work), ids, strict=True):
        for table, values in vectors.items():
            np.testing.assert_array_equal(values, 10 * world.tables[table][by_table[table]])


@pytest.mark.parametrize("needs_int64", [False, True])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_numbers_travel_in_the_layouts_type(make_plan, monkeypatch, dtype, needs_int64):
    monkeypatch.setattr(ShardLayout, "needs_int64", needs_int64)
    world = Ranks(make_plan(TABLES, "mixed", 3))
    ids = make_ids(3, dtype=dtype)
    upstream = make_upstream(ids)
    for (vectors, _), by_table in zip(world.step(ids, upstream), ids, strict=True):
        for table, values in vectors.items():
            np.testing.assert_array_equal(values, world.tables[table][by_table[table]])
    assert world.sent() == least_bytes(world.plan, ids, "float32", 8 if needs_int64 else 4)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("bad", [23, 24, 10**6, -1])
def test_an_id_beyond_its_table_is_an_error_not_another_tables_row(make_plan, mix, bad):
    world = Ranks(make_plan(TABLES, mix, 2))
    ids = make_ids(2)
    ids[1]["words"][3] = bad
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"words.*\[0, 23\)"):
        world.step(ids)


def test_an_id_too_large_for_the_wire_is_not_cut_to_a_row(make_plan):
    world = Ranks(make_plan(TABLES, "row_wise", 2))
    ids = make_ids(2, dtype=np.int64)
    ids[1]["words"][3] = 1 << 32  # 0 in int32
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"words.*\[0, 23\)"):
        world.step(ids)


@pytest.mark.parametrize("wire_dtype", WIDTH)
def test_the_wire_rounds_once(wire_dtype):
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    sent = to_wire(tf.constant(values), tf.as_dtype(wire_dtype))
    assert sent.dtype.size == WIDTH[wire_dtype]
    assert sent.dtype in (tf.float32, tf.float16)  # what Horovod's transports know
    found = from_wire(sent, tf.as_dtype(wire_dtype)).numpy()
    if wire_dtype == "bfloat16":  # the upper half of a float32, rounded to nearest, ties to even
        bits = values.view(np.uint32).astype(np.uint64)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        expected = bits.astype(np.uint32).view(np.float32)
    else:
        expected = values.astype(np.dtype(wire_dtype)).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
