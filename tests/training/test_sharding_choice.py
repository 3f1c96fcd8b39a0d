"""Where a run's tables go: which backend, which plan, and what is refused before training."""

from __future__ import annotations

import dataclasses

import pytest

from lookback.core.errors import UserError
from lookback.core.world import SOLO, Solo
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.plans import save_plan
from lookback.embeddings.sharding import shards_of
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec
from lookback.training.config import RunConfig
from lookback.training.parallel.sharding import choose_sharding

MB = 10**6
TABLES = (
    TableSpec("item_id", rows=100_000, dim=16, hotness=(1.0, 50.0)),
    TableSpec("user_id", rows=9_000, dim=16),
    TableSpec("country", rows=10, dim=16),
)


def world_of(ranks, a_node=None):
    return Solo(rank=0, size=ranks, local_rank=0, local_size=a_node or ranks)


@pytest.fixture
def run(tmp_path):
    def make(**options):
        given = {"global_batch_size": 131_072, **options}
        return RunConfig(model_type="sim", dataset_dir=tmp_path, **given)

    return make


@pytest.fixture
def a_plan(tmp_path):
    """Writes a plan in a file."""

    def write(tables=TABLES, ranks=2, strategy="row_wise", owners=()):
        placements = tuple(Placement(table.name, strategy, owners) for table in tables)
        plan = ShardingPlan(ranks, tuple(tables), placements)
        save_plan(plan, tmp_path / "plan.yaml")
        return tmp_path / "plan.yaml"

    return write


# --- what is chosen ---


def test_one_process_keeps_its_tables_whole_and_says_nothing(run):
    assert choose_sharding(run(), TABLES, SOLO) == (LOCAL, "")
    assert choose_sharding(run(backend="local"), TABLES, SOLO) == (LOCAL, "")
    # 109,010 rows of 16 weights and two moments each take 20.9 MB.
    assert choose_sharding(run(memory=21 * MB), TABLES, SOLO) == (LOCAL, "")


def test_on_gpus_their_memory_is_the_limit(run, monkeypatch):
    """20.9 MB of tables: a GPU of 27 MB has 21.6 for them, one of 26 has 20.8."""
    sharding = "lookback.training.parallel.sharding"
    monkeypatch.setattr(f"{sharding}.has_gpu", lambda: True)
    monkeypatch.setattr(f"{sharding}.least_memory", lambda: 27.0 * MB)
    assert choose_sharding(run(), TABLES, SOLO) == (LOCAL, "")
    monkeypatch.setattr(f"{sharding}.least_memory", lambda: 26.0 * MB)
    with pytest.raises(UserError, match=r"do not fit on 1 rank of 20\.8 MB[^$]*More ranks: 2"):
        choose_sharding(run(), TABLES, SOLO)
    assert choose_sharding(run(memory=21 * MB), TABLES, SOLO) == (LOCAL, "")
    # TensorFlow for CPUs does not care for a driver.
    monkeypatch.setattr(f"{sharding}.has_gpu", lambda: False)
    assert choose_sharding(run(), TABLES, SOLO) == (LOCAL, "")


def test_tables_that_grow_want_sok(run, monkeypatch):
    grows = (dataclasses.replace(TABLES[0], capacity=1000), *TABLES[1:])
    for options in ({}, {"backend": "local"}, {"backend": "horovod"}):
        with pytest.raises(UserError, match=r"dynamic with --backend sok.*received it with"):
            choose_sharding(run(**options), grows, SOLO)
    # No table has a size that a GPU's memory could be too little for.
    sharding = "lookback.training.parallel.sharding"
    monkeypatch.setattr(f"{sharding}.has_gpu", lambda: True)
    monkeypatch.setattr(f"{sharding}.least_memory", lambda: 1.0 * MB)
    chosen, _ = choose_sharding(run(backend="sok"), grows, SOLO)
    assert chosen.backend == "sok"
    assert chosen.plan.tables == grows


def test_several_processes_get_horovod_and_a_plan_for_them(run):
    sharding, description = choose_sharding(run(), TABLES, world_of(4))
    assert sharding.backend == "horovod"
    assert sharding.plan.ranks == 4
    assert sharding.plan.tables == TABLES
    assert sharding.wire_dtype == "float32"
    for table in TABLES:
        assert table.name in description
    assert f"{run().global_batch_size:,} rows a step, optimizer adam, 4 bytes" in description


def test_one_process_may_ask_for_a_backend_of_several(run):
    sharding, description = choose_sharding(run(backend="horovod"), TABLES, SOLO)
    assert (sharding.backend, sharding.plan.ranks) == ("horovod", 1)
    assert description


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16", "float16"])
def test_the_type_on_the_wire_reaches_backend_and_costs(run, wire_dtype):
    sharding, description = choose_sharding(run(wire_dtype=wire_dtype), TABLES, world_of(2))
    assert sharding.wire_dtype == wire_dtype
    assert f"{2 if '16' in wire_dtype else 4} bytes a number on the wire" in description


def test_only_allowed_strategies_are_chosen(run):
    for strategy in ("row_wise", "table_wise", "data_parallel"):
        sharding, _ = choose_sharding(run(strategies=(strategy,)), TABLES, world_of(3))
        assert {p.strategy for p in sharding.plan.placements} == {strategy}


def test_tables_may_be_placed_by_hand(run):
    wanted = ("user_id=table_wise:2", "country=column_wise:0,3", "item_id=row_wise")
    sharding, _ = choose_sharding(run(placements=wanted), TABLES, world_of(4))
    assert sharding.plan.placements == (
        Placement("item_id", "row_wise"),
        Placement("user_id", "table_wise", (2,)),
        Placement("country", "column_wise", (0, 3)),
    )


def test_the_planner_is_the_one_asked_for(run):
    """By NVIDIA's heuristic whole tables go to ranks in turn, rank 0 among them."""
    options = {"planner": "largest_first", "strategies": ("table_wise",)}
    tables = tuple(TableSpec(f"t{n}", rows=1000 - n, dim=16) for n in range(4))
    sharding, _ = choose_sharding(run(**options), tables, world_of(4))
    assert sorted(p.ranks for p in sharding.plan.placements) == [(0,), (1,), (2,), (3,)]


def test_memory_decides(run):
    """The items' 19.2 MB fit on no rank of 9 MB, cut into rows they do."""
    sharding, description = choose_sharding(run(memory=9 * MB), TABLES, world_of(4))
    assert sharding.plan.placement("item_id").strategy in ("row_wise", "column_wise")
    held = [0] * 4
    for shard in shards_of(sharding.plan):
        held[shard.rank] += shard.bytes("adam")
    assert max(held) <= 9e6
    assert "memory a rank: 9.00 MB" in description


def test_nodes_are_those_of_the_world(run, monkeypatch):
    seen = []

    def plan_tables(tables, topology, **options):
        seen.append((topology, options))
        return ShardingPlan(4, tables, tuple(Placement(t.name, "row_wise") for t in tables))

    monkeypatch.setattr("lookback.training.parallel.sharding.plan_tables", plan_tables)
    choose_sharding(run(global_batch_size=4096, memory=1000 * MB), TABLES, world_of(4, a_node=2))
    ((topology, options),) = seen
    assert (topology.ranks, topology.ranks_per_node, topology.memory) == (4, 2, 1e9)
    assert (options["batch_rows"], options["optimizer"]) == (4096, "adam")


# --- a plan from a file ---


def test_a_plan_is_taken_as_it_is_but_for_what_the_run_knows_of_its_tables(run, a_plan):
    known = [TableSpec(t.name, t.rows, t.dim) for t in TABLES]  # without hotness
    sharding, _ = choose_sharding(run(plan=a_plan(known)), TABLES, world_of(2))
    assert sharding == Sharding(
        "horovod", ShardingPlan(2, TABLES, tuple(Placement(t.name, "row_wise") for t in TABLES))
    )


def test_a_plans_tables_may_come_in_another_order(run, a_plan):
    path = a_plan(TABLES[::-1], strategy="table_wise", owners=(1,))
    sharding, _ = choose_sharding(run(plan=path), TABLES, world_of(2))
    assert sharding.plan.tables == TABLES
    assert [p.table for p in sharding.plan.placements] == [t.name for t in TABLES]


@pytest.mark.parametrize(
    ("tables", "ranks", "text"),
    [
        (TABLES, 3, "ranks"),
        (TABLES[:2], 2, "country"),
        ((*TABLES, TableSpec("shop", 5, 16)), 2, "shop"),
        ((TableSpec("item_id", 99_999, 16), *TABLES[1:]), 2, "item_id"),
    ],
)
def test_a_plan_for_something_else_is_refused(run, a_plan, tables, ranks, text):
    with pytest.raises(UserError, match=f"does not belong to this run: .*{text}"):
        choose_sharding(run(plan=a_plan(tables, ranks)), TABLES, world_of(2))


def test_a_plan_that_needs_more_than_the_memory_is_refused_with_the_rank(run, a_plan):
    path = a_plan(strategy="table_wise", owners=(1,))
    with pytest.raises(
        UserError, match=r"plan: rank 1 would hold 21\.0 MB .*--memory allows 9\.00 MB"
    ):
        choose_sharding(run(plan=path, memory=9 * MB), TABLES, world_of(2))
    choose_sharding(run(plan=path, memory=21 * MB), TABLES, world_of(2))
    # Plain gradient descent keeps no state: a third of it.
    choose_sharding(run(plan=path, memory=9 * MB, optimizer="sgd"), TABLES, world_of(2))


# --- what is refused ---


def test_tables_that_fit_nowhere_are_refused_with_numbers_and_fixes(run):
    with pytest.raises(UserError, match=r"do not fit on 1 rank of 9\.00 MB[\s\S]*1\. "):
        choose_sharding(run(memory=9 * MB), TABLES, SOLO)
    options = {"memory": 9 * MB, "strategies": ("table_wise",)}
    with pytest.raises(UserError, match=r"do not fit on 4 ranks of 9\.00 MB[\s\S]*row_wise"):
        choose_sharding(run(**options), TABLES, world_of(4))


def test_the_local_backend_is_for_one_process(run):
    with pytest.raises(UserError, match=r"backend: local keeps .* one process, and 3 were started"):
        choose_sharding(run(backend="local"), TABLES, world_of(3))


@pytest.mark.parametrize(
    "options",
    [
        {"strategies": ("row_wise",)},
        {"placements": ("item_id=row_wise",)},
        {"wire_dtype": "bfloat16"},
        {"gradient_wire_dtype": "float16"},
        {"prefetch_ids": True},
    ],
)
def test_options_that_one_process_would_ignore_are_refused(run, options):
    (name,) = options
    text = rf"{name}: expected with several processes, received with one\..*leave --{name} out"
    with pytest.raises(UserError, match=text):
        choose_sharding(run(**options), TABLES, SOLO)
    choose_sharding(run(**options), TABLES, world_of(2))


def test_a_plan_that_one_process_would_ignore_is_refused(run, a_plan):
    with pytest.raises(UserError, match="plan: expected with several processes"):
        choose_sharding(run(plan=a_plan()), TABLES, SOLO)


@pytest.mark.parametrize("memory", ["lots", 0, -(10**9)])
def test_a_memory_that_is_no_size_is_refused(run, memory):
    with pytest.raises(UserError, match=f"memory: expected a size .*received {memory}"):
        run(memory=memory)


@pytest.mark.parametrize(
    ("placements", "text"),
    [
        (("items=row_wise",), "items"),
        (("item_id=diagonal",), "diagonal"),
        (("item_id=table_wise:7",), "7"),
    ],
)
def test_placements_that_cannot_be_are_refused(run, placements, text):
    with pytest.raises(UserError, match=text):
        choose_sharding(run(placements=placements), TABLES, world_of(2))
