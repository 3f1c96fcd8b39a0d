"""Plans, with no device: costs by hand, small cases, NVIDIA's Criteo tables on 1 to 128 ranks."""

from __future__ import annotations

import dataclasses
import math
import re
import time

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.embeddings.cost import (
    GRADIENTS,
    IDS,
    LEG_SECONDS,
    MEMORY,
    RESOURCES,
    TOUCHED,
    VECTORS,
    RankCost,
    StepSeconds,
    Traffic,
    Workload,
    imbalance,
    nodes_of,
    rank_costs,
    step_seconds,
)
from lookback.embeddings.planner import plan_tables
from lookback.embeddings.planners import PLANNERS
from lookback.embeddings.planners.base import fullest_rank, plan_costs
from lookback.embeddings.sharding import STRATEGIES, shards_of
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec, Topology
from tests.embeddings.criteo_tables import BATCH_ROWS, DIM, MEMORY_A_RANK, ROWS, criteo_tables

WORLDS = (1, 2, 4, 8, 16, 32, 64, 128)

# 40 rows of the batch on each of 4 ranks look up 1 id each, of which half are distinct: 20.
TABLE = TableSpec("item", rows=1000, dim=8, distinct=0.5)
WORKLOAD = Workload(Topology(4), batch_rows=160, optimizer="adagrad")


def placements_of(plan):
    return {p.table: (p.strategy, p.ranks) for p in plan.placements}


def make_plan(tables, ranks=2, memory=None, *, batch_rows=64, optimizer="sgd", **options):
    topology = Topology(ranks, memory)
    return plan_tables(tables, topology, batch_rows=batch_rows, optimizer=optimizer, **options)


def costs_of(strategy, ranks=(), *, table=TABLE, workload=WORKLOAD):
    placement = Placement(table.name, strategy, ranks)
    return rank_costs(STRATEGIES[strategy].cost(table, placement, workload))


# --- costs by hand ---


def test_costs_of_a_table_wise_table():
    owner = RankCost(
        memory=1000 * 8 * 4 * 2,  # weights and adagrad's sums
        # 4 ranks ask for 20 rows each; half of all 160 ids are distinct and updated.
        touched=4 * 20 * 8 * 4 + 2 * 80 * 8 * 4 * 2,
        sent=Traffic(ids=0, vectors=3 * 20 * 8 * 4, gradients=0),
        received=Traffic(ids=3 * 20 * 4, vectors=0, gradients=3 * 20 * 8 * 4),
    )
    other = RankCost(
        sent=Traffic(ids=20 * 4, gradients=20 * 8 * 4), received=Traffic(vectors=20 * 8 * 4)
    )
    assert costs_of("table_wise", (1,)) == [other, owner, other, other]


def test_costs_of_a_row_wise_table():
    each = RankCost(
        memory=250 * 8 * 4 * 2,
        touched=20 * 8 * 4 + 2 * 20 * 8 * 4 * 2,
        sent=Traffic(ids=15 * 4, vectors=15 * 8 * 4, gradients=15 * 8 * 4),  # 3/4 of 20 travel
        received=Traffic(ids=15 * 4, vectors=15 * 8 * 4, gradients=15 * 8 * 4),
    )
    assert costs_of("row_wise") == [each] * 4


def test_costs_of_a_row_wise_table_smaller_than_the_world():
    table = TableSpec("country", rows=2, dim=8, distinct=0.05)  # 2 ids of 40 are distinct
    costs = costs_of("row_wise", table=table)
    assert [cost.memory for cost in costs] == [64, 64, 0, 0]
    assert [cost.sent.ids for cost in costs] == [4, 4, 8, 8]
    assert [cost.sent.vectors for cost in costs] == [3 * 32, 3 * 32, 0, 0]
    assert [cost.received.vectors for cost in costs] == [32, 32, 64, 64]


def test_costs_of_a_column_wise_table():
    holder = RankCost(
        memory=1000 * 4 * 4 * 2,
        touched=4 * 20 * 4 * 4 + 2 * 80 * 4 * 4 * 2,
        sent=Traffic(ids=20 * 4, vectors=3 * 20 * 4 * 4, gradients=20 * 4 * 4),
        received=Traffic(ids=3 * 20 * 4, vectors=20 * 4 * 4, gradients=3 * 20 * 4 * 4),
    )
    other = RankCost(  # asks both holders for every id
        sent=Traffic(ids=2 * 20 * 4, gradients=20 * 8 * 4), received=Traffic(vectors=20 * 8 * 4)
    )
    assert costs_of("column_wise", (3, 0)) == [holder, other, other, holder]


def test_costs_of_a_data_parallel_table():
    travels = Traffic(gradients=3 * 20 * (4 + 8 * 4))  # rows with their ids, to the 3 others
    each = RankCost(
        memory=1000 * 8 * 4 * 2,
        touched=20 * 8 * 4 + 2 * 80 * 8 * 4 * 2,
        sent=travels,
        received=travels,
    )
    assert costs_of("data_parallel") == [each] * 4


def test_numbers_on_the_wire_can_be_halved_and_long_tables_have_long_ids():
    long = dataclasses.replace(TABLE, rows=2**31 + 1)
    half = dataclasses.replace(WORKLOAD, wire_bytes=2)
    assert costs_of("table_wise", (0,), workload=half)[0].sent.vectors == 3 * 20 * 8 * 2
    assert costs_of("table_wise", (0,), table=long)[1].sent.ids == 20 * 8


def test_rowwise_state_is_counted_a_row():
    workload = dataclasses.replace(WORKLOAD, optimizer="rowwise_adagrad")
    cost = costs_of("table_wise", (0,), workload=workload)[0]
    assert cost.memory == 1000 * (8 + 1) * 4
    assert cost.touched == 4 * 20 * 8 * 4 + 2 * 80 * (8 + 1) * 4


def test_an_optimizer_may_update_the_whole_table():
    workload = dataclasses.replace(WORKLOAD, optimizer="full_adam")
    cost = costs_of("table_wise", (0,), workload=workload)[0]
    assert cost.touched == 4 * 20 * 8 * 4 + 2 * 1000 * 8 * 4 * 3
    by_rows = costs_of("row_wise", workload=workload)
    assert by_rows[0].touched < cost.touched / 3


def test_a_table_s_own_optimizer_counts():
    own = dataclasses.replace(TABLE, optimizer="adam")
    assert costs_of("table_wise", (0,), table=own)[0].memory == 1000 * 8 * 4 * 3


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_what_is_sent_is_received(strategy, ranks):
    table = TableSpec("item", rows=7, dim=6, hotness=(1, 3.5))
    workload = Workload(Topology(ranks), batch_rows=11, optimizer="adam")
    for placement in STRATEGIES[strategy].placements(table, ranks):
        costs = STRATEGIES[strategy].cost(table, placement, workload)
        for kind in (IDS, VECTORS, GRADIENTS):
            assert costs[:, kind].sum() == pytest.approx(costs[:, kind + 1].sum())
            if ranks == 1:
                assert costs[:, kind].sum() == 0
        shards = shards_of(ShardingPlan(ranks, (table,), (placement,)))
        held = [sum(s.bytes("adam") for s in shards if s.rank == rank) for rank in range(ranks)]
        assert costs[:, MEMORY].tolist() == held


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_costs_are_what_a_simulated_step_exchanges(strategy):
    """Random ids, sent where `input_dist` says, counted one by one."""
    ranks, lookups, steps = 3, 30, 200
    table = TableSpec("item", rows=40, dim=5)
    placement = STRATEGIES[strategy].placements(table, ranks)[0]
    widths = {s.rank: len(s.columns) for s in STRATEGIES[strategy].shards(table, placement, ranks)}
    rng = np.random.default_rng(0)
    counted = np.zeros([ranks, 6])
    for _ in range(steps):
        for rank in range(ranks):
            ids = np.unique(rng.integers(0, table.rows, lookups))
            if strategy == "data_parallel":
                counted[rank, 4] += (ranks - 1) * len(ids) * (4 + 5 * 4)
                counted[[r for r in range(ranks) if r != rank], 5] += len(ids) * (4 + 5 * 4)
                continue
            for leg in STRATEGIES[strategy].input_dist(placement, ids, ranks):
                for owner in leg.owner[leg.owner != rank]:
                    counted[rank, [0, 3, 4]] += 4, 4 * widths[owner], 4 * widths[owner]
                    counted[owner, [1, 2, 5]] += 4, 4 * widths[owner], 4 * widths[owner]
    workload = Workload(Topology(ranks), batch_rows=ranks * lookups, optimizer="sgd")
    expected = STRATEGIES[strategy].cost(table, placement, workload)[:, IDS : GRADIENTS + 2]
    np.testing.assert_allclose(counted / steps, expected, rtol=0.03)


def test_rank_costs_add_up():
    one = RankCost(1, 2, Traffic(3, 4, 5), Traffic(6, 7, 8))
    assert one + RankCost() == one
    assert one + one == RankCost(2, 4, Traffic(6, 8, 10), Traffic(12, 14, 16))
    assert one.sent.total == 12


def test_a_step_takes_as_long_as_its_busiest_ranks():
    topology = Topology(2, intra_bandwidth=10, lookup_bandwidth=100)
    costs = np.zeros([2, len(RESOURCES)])
    costs[:, TOUCHED] = 500, 300
    costs[:, IDS : IDS + 2] = [[20, 10], [10, 20]]
    costs[:, VECTORS : VECTORS + 2] = [[40, 30], [30, 40]]
    costs[:, GRADIENTS : GRADIENTS + 2] = [[30, 0], [0, 30]]
    assert step_seconds(costs, topology) == StepSeconds(lookup=5.0, exchange=2.0 + 4.0 + 3.0)
    costs[:, RESOURCES.index("legs")] = 3
    assert step_seconds(costs, topology).lookup == 5.0 + 3 * LEG_SECONDS


def test_traffic_splits_over_the_ways_within_and_between_nodes():
    topology = Topology(5, ranks_per_node=3, intra_bandwidth=10, inter_bandwidth=2)
    assert nodes_of(topology) == [0, 0, 0, 1, 1]
    costs = np.zeros([5, len(RESOURCES)])
    costs[0, VECTORS] = 100  # half stays in the node (5 s), half leaves it (25 s)
    assert step_seconds(costs, topology).exchange == 25.0
    costs[:, VECTORS] = 0, 0, 0, 100, 0  # one peer of four in the node
    assert step_seconds(costs, topology).exchange == 37.5


def test_imbalance():
    assert imbalance([1, 1, 4]) == 2.0
    assert imbalance([0.0, 0.0]) == 1.0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"batch_rows": 0}, "batch_rows must be at least 1, received 0"),
        ({"optimizer": "lion"}, r"Unknown table optimizer 'lion'; choose one of \['adagrad'"),
        ({"wire_bytes": 3}, r"wire_bytes must be one of \(4, 2\), received 3"),
    ],
)
def test_impossible_workloads_are_refused(change, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(WORKLOAD, **change)


# --- the heuristic of NVIDIA's DLRM for PyTorch ---


def sized(*rows, dim=1):
    return [TableSpec(f"t{n}", size, dim) for n, size in enumerate(rows)]


def test_largest_first_as_seed_004_tells_it():
    # Rank 0 has the bottom MLP. 7 tables on 3 ranks: 3 each at most. By size: 50, 40, 30, 20, 10,
    # 5, 5. 50 -> 1, 40 -> 2, 30 -> 3, 20 -> 3 (50), 10 -> 2 (50), 5 -> 1 and 5 -> 2.
    plan = make_plan(sized(10, 50, 5, 40, 5, 20, 30), ranks=4, planner="largest_first")
    owners = {name: ranks for name, (_, ranks) in placements_of(plan).items()}
    assert owners == {
        "t1": (1,), "t3": (2,), "t6": (3,), "t5": (3,), "t0": (2,), "t2": (1,), "t4": (2,)
    }  # fmt: skip


def test_largest_first_closes_ranks_that_have_their_number_of_tables():
    # 4 tables on 2 ranks: 2 each, although rank 1 has most free memory to the end.
    options = {"planner": "largest_first", "reserve_first_rank": False}
    plan = make_plan(sized(100, 3, 2, 1), ranks=2, **options)
    assert placements_of(plan) == {
        "t0": ("table_wise", (0,)),
        "t1": ("table_wise", (1,)),
        "t2": ("table_wise", (1,)),
        "t3": ("table_wise", (0,)),
    }


def test_largest_first_has_nothing_to_reserve_on_one_rank():
    assert placements_of(make_plan(sized(4), ranks=1, planner="largest_first")) == {
        "t0": ("table_wise", (0,))
    }


def test_largest_first_places_overrides_before_the_others():
    tables = sized(100, 60, 50)
    overrides = {"t2": "table_wise:1", "t0": "row_wise"}
    plan = make_plan(tables, ranks=3, planner="largest_first", overrides=overrides)
    assert placements_of(plan) == {
        "t0": ("row_wise", ()),
        "t1": ("table_wise", (2,)),
        "t2": ("table_wise", (1,)),
    }


def test_largest_first_refuses_what_does_not_fit():
    make_plan(sized(100, 60), ranks=3, memory=400, planner="largest_first")
    with pytest.raises(UserError, match="do not fit"):
        make_plan(sized(101, 60), ranks=3, memory=400, planner="largest_first")


# --- the planner by cost ---


def test_one_rank_exchanges_nothing():
    plan = make_plan(sized(10, 20), ranks=1)
    assert {p.strategy for p in plan.placements} == {"data_parallel"}


def test_equal_tables_spread_over_the_ranks():
    plan = make_plan(sized(*[1000] * 6, dim=4), ranks=3, strategies=["table_wise"])
    assert sorted(p.ranks for p in plan.placements) == [(0,), (0,), (1,), (1,), (2,), (2,)]


def test_hot_tables_are_spread_by_what_they_exchange_not_by_their_size():
    tables = [
        TableSpec("large", 10**6, 4, hotness=(0.01,)),
        TableSpec("hot", 1000, 4, hotness=(50,)),
        TableSpec("warm", 1000, 4, hotness=(30,)),
        TableSpec("tepid", 1000, 4, hotness=(20,)),
    ]
    plan = make_plan(tables, 2, batch_rows=8, strategies=["table_wise"])
    owner = {name: ranks for name, (_, ranks) in placements_of(plan).items()}
    assert owner["warm"] == owner["tepid"] != owner["hot"]


def test_memory_limits_the_choice():
    # Apart, the first two would balance the exchange; only the last two fit on one rank.
    tables = [
        TableSpec("a", 100, 1, hotness=(8,)),
        TableSpec("b", 60, 1, hotness=(1,)),
        TableSpec("c", 40, 1, hotness=(1,)),
    ]
    plan = make_plan(tables, 2, memory=400, strategies=["table_wise"])
    owner = {name: ranks for name, (_, ranks) in placements_of(plan).items()}
    assert owner["b"] == owner["c"] != owner["a"]


def test_what_fits_only_by_size_is_found():
    # By exchange the small table would come first and both large ones meet on one rank.
    tables = [
        TableSpec("hot", 10, 1, hotness=(1000,)),
        TableSpec("a", 60, 1, hotness=(1,)),
        TableSpec("b", 50, 1, hotness=(1,)),
        TableSpec("c", 40, 1, hotness=(1,)),
        TableSpec("d", 40, 1, hotness=(1,)),
    ]
    plan = make_plan(tables, 2, memory=400, strategies=["table_wise"])
    assert fullest_rank(plan, Workload(Topology(2), 64, "sgd"))[1] == 400


def test_a_table_larger_than_a_rank_is_cut():
    tables = sized(1000, dim=8)
    plan = make_plan(tables, ranks=2, memory=16000)
    assert placements_of(plan) == {"t0": ("row_wise", ())}
    assert fullest_rank(plan, Workload(Topology(2), 64, "sgd")) == (0, 16000)
    with pytest.raises(UserError, match="do not fit on 2 ranks"):
        make_plan(tables, ranks=2, memory=16000, strategies=["table_wise"])


def test_columns_are_cut_when_rows_may_not_be():
    options = {"memory": 16000, "strategies": ["table_wise", "column_wise"]}
    plan = make_plan(sized(1000, dim=8), 4, **options)
    assert plan.placements[0].strategy == "column_wise"


def test_optimizers_with_state_a_row_are_never_cut_into_columns():
    tables = sized(1000, dim=8)
    options = {"memory": 18000, "optimizer": "rowwise_adagrad"}
    assert make_plan(tables, 2, **options).placements[0].strategy == "row_wise"
    with pytest.raises(UserError, match="do not fit"):
        make_plan(tables, 2, strategies=["table_wise", "column_wise"], **options)
    for asked in ({"strategies": ["column_wise"]}, {"overrides": {"t0": "column_wise:0,1"}}):
        with pytest.raises(UserError, match="'t0' cannot be column_wise with optimizer rowwise_a"):
            make_plan(tables, 2, **options, **asked)
    own = [dataclasses.replace(tables[0], optimizer="rowwise_adagrad")]
    with pytest.raises(UserError, match="cannot be column_wise"):
        make_plan(own, 2, strategies=["column_wise"])


def test_plans_do_not_depend_on_chance():
    tables = criteo_tables("t15")
    one, two = (make_plan(tables, 8, MEMORY_A_RANK, batch_rows=BATCH_ROWS) for _ in range(2))
    assert one == two


# --- arguments ---


def test_overrides_are_kept_whatever_may_be_chosen_otherwise():
    overrides = {
        "t0": "table_wise:1",
        "t1": Placement("t1", "column_wise", (1, 0)),
        "t2": "data_parallel",
    }
    plan = make_plan(sized(50, 40, 30, 20, dim=4), 2, overrides=overrides, strategies=["row_wise"])
    assert placements_of(plan) == {
        "t0": ("table_wise", (1,)),
        "t1": ("column_wise", (1, 0)),
        "t2": ("data_parallel", ()),
        "t3": ("row_wise", ()),
    }


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_planner_takes_every_strategy_as_an_override(planner, strategy):
    tables = sized(50, 40, dim=4)
    plan = make_plan(tables, 3, planner=planner, overrides={"t1": strategy})
    assert plan.placement("t1").strategy == strategy
    shards_of(plan)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"planner": "oracle"}, r"Unknown planner 'oracle'; choose one of \['cost', 'largest_f"),
        ({"strategies": ["diagonal"]}, r"Unknown strategies \['diagonal'\]; choose from \['data_"),
        ({"strategies": []}, "No strategy is allowed; choose from"),
        (
            {"strategies": ["row_wise"], "planner": "largest_first"},
            r"'largest_first' chooses from \['table_wise'\], but only \['row_wise'\]",
        ),
        ({"overrides": {"x": "row_wise"}}, r"unknown table 'x'; the tables are \['t0', 't1'\]"),
        ({"overrides": {"t0": "diagonal"}}, "'t0': unknown strategy 'diagonal'; choose one of"),
        ({"overrides": {"t0": "table_wise:b"}}, "expected ranks like 3 or 0,2 after table_wise:"),
        ({"overrides": {"t0": "table_wise:2"}}, r"expected one rank in \[0, 2\), received ranks"),
        ({"overrides": {"t0": Placement("t1", "row_wise")}}, "expected a placement of that table"),
        ({"overrides": {"t0": Placement("t0", "diagonal")}}, "by one of .'data_parallel'"),
        ({"optimizer": "lion"}, "Unknown table optimizer 'lion'"),
    ],
)
def test_bad_arguments_name_the_choices(options, text):
    with pytest.raises(UserError, match=text):
        make_plan(sized(10, 20), 2, **options)


def test_tables_must_be_there_and_have_names_of_their_own():
    with pytest.raises(UserError, match=r"names unique, received \[\]"):
        make_plan([])
    with pytest.raises(UserError, match="names unique"):
        make_plan([TABLE, TABLE])


# --- what does not fit ---


def refusal(*args, **options):
    with pytest.raises(UserError) as caught:
        make_plan(*args, **options)
    return str(caught.value)


def test_a_refusal_has_the_numbers_and_numbered_fixes():
    # 1000 x 8 x 4 bytes x 3 = 96 kB, and 9.6 kB of a second table.
    tables = sized(1000, 100, dim=8)
    text = refusal(tables, 2, memory=50e3, optimizer="adam", strategies=["table_wise"])
    assert text == "\n".join(
        [
            "The tables do not fit on 2 ranks of 50.0 kB.",
            "  needed: 106 kB for 2 tables (35.2 kB of weights, 70.4 kB of optimizer state); "
            "96.0 kB on the fullest rank, by planner 'cost' with table_wise",
            "  largest: 't0' takes 96.0 kB (1,000 rows x (8 x 3) x 4 bytes with adam), 96.0 kB of "
            "it on one rank under table_wise",
            "  available: 50.0 kB a rank, 100 kB on all",
            "Each of these is enough:",
            "  1. Allow row_wise for 't0', 't1', and have 3 ranks.",
            "  2. More memory a rank: 96.0 kB.",
            "  3. An optimizer with less state: rowwise_adagrad instead of adam saves 66.0 kB.",
            "  4. Shorter rows: dim 4 instead of 8.",
        ]
    )


def test_the_fixes_are_enough():
    tables = sized(1000, 900, 800, 10, dim=16)
    options = {"strategies": ["table_wise"], "optimizer": "adam"}
    # 192, 173, 154 and 2 kB, and 2 ranks of 300 kB: the sum fits, but no two of the large ones.
    text = refusal(tables, 2, memory=300e3, **options)
    assert "Allow row_wise for 't0': 269 kB on the fullest rank." in text
    plan = make_plan(tables, 2, 300e3, **options, overrides={"t0": "row_wise"})
    assert fullest_rank(plan, Workload(Topology(2), 64, "adam"))[1] <= 269e3
    assert "More ranks: 3 instead of 2." in text
    make_plan(tables, 3, 300e3, **options)
    (memory,) = map(int, re.findall(r"More memory a rank: (\d+) kB", text))
    make_plan(tables, 2, memory * 1e3, **options)
    refusal(tables, 2, memory=(memory - 1) * 1e3, **options)
    (optimizer,) = re.findall(r"less state: (\w+) instead of adam", text)
    make_plan(tables, 2, 300e3, strategies=["table_wise"], optimizer=optimizer)
    (dim,) = map(int, re.findall(r"Shorter rows: dim (\d+) instead of 16", text))
    make_plan(sized(1000, 900, 800, 10, dim=dim), 2, 300e3, **options)
    refusal(sized(1000, 900, 800, 10, dim=dim + 1), 2, memory=300e3, **options)


def test_more_ranks_are_no_advice_where_they_do_not_help():
    text = refusal(sized(1000), 2, memory=1000, overrides={"t0": "data_parallel"})
    assert "More ranks" not in text
    assert "Allow row_wise for 't0', and have 4 ranks" in text
    assert "optimizer with less state" not in text  # sgd has none


def test_row_wise_is_no_advice_where_it_is_allowed():
    assert "Allow row_wise" not in refusal(sized(1000), 2, memory=1000)
    assert "More ranks: 4 instead of 2." in refusal(sized(1000), 2, memory=1000)


# --- NVIDIA's tables ---


def loads_of(plan, topology, optimizer="sgd"):
    """Memory and bytes sent by rank, and seconds of a step."""
    costs = plan_costs(plan, Workload(topology, BATCH_ROWS, optimizer)).sum(axis=0)
    sent = costs[:, [IDS, VECTORS, GRADIENTS]].sum(axis=1)
    return costs[:, MEMORY], sent, step_seconds(costs, topology).total


def check_cover(plan):
    """Every weight of a plan lies on one rank, or on all if its table is replicated.

    By arithmetic, for tables too large to mark: shards of the same columns have disjoint residues
    or are alone, and their weights add up.
    """
    for table, placement in zip(plan.tables, plan.placements, strict=True):
        shards = STRATEGIES[placement.strategy].shards(table, placement, plan.ranks)
        copies = 1 if STRATEGIES[placement.strategy].exchanged else plan.ranks
        assert sum(shard.weights for shard in shards) == copies * table.parameters
        if copies > 1:
            assert all(shard.weights == table.parameters for shard in shards)
            continue
        columns = {(s.columns.start, s.columns.stop) for s in shards}
        edges = sorted(columns)
        assert [stop for _, stop in edges[:-1]] == [start for start, _ in edges[1:]]
        assert (edges[0][0], edges[-1][1]) == (0, table.dim)
        for first, last in columns:
            alike = [s for s in shards if s.rows and s.columns == range(first, last)]
            assert sorted(s.rows.start for s in alike) == list(range(len(alike)))
            steps = {s.rows.step for s in alike}
            assert len(steps) == 1 and (len(alike) == 1 or steps == {plan.ranks})
            assert all(s.rows.stop == table.rows for s in alike)


@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("name", ROWS)
def test_criteo_tables_on_many_ranks(name, ranks):
    tables = criteo_tables(name)
    topology = Topology(ranks, MEMORY_A_RANK, ranks_per_node=8)
    options = {"batch_rows": BATCH_ROWS, "optimizer": "sgd"}
    fits = sum(ROWS[name]) * DIM * 4 <= ranks * MEMORY_A_RANK
    start = time.perf_counter()
    if not fits:
        with pytest.raises(UserError, match="do not fit"):
            plan_tables(tables, topology, **options)
    else:
        plan = plan_tables(tables, topology, **options)
    assert time.perf_counter() - start < 5
    if not fits:
        return
    check_cover(plan)
    memory, sent, seconds = loads_of(plan, topology)
    assert memory.max() <= MEMORY_A_RANK
    assert imbalance(memory) < 1.001
    for reserve in (True, False):
        try:
            seed = plan_tables(
                tables, topology, planner="largest_first", reserve_first_rank=reserve, **options
            )
        except UserError:
            continue
        check_cover(seed)
        memory_of_seed, sent_of_seed, seconds_of_seed = loads_of(seed, topology)
        assert memory_of_seed.max() <= MEMORY_A_RANK
        assert imbalance(memory) <= imbalance(memory_of_seed)
        assert imbalance(sent) <= imbalance(sent_of_seed)
        assert sent.max() <= sent_of_seed.max()
        assert sent.sum() <= sent_of_seed.sum() * (1 + 1e-9)
        assert seconds <= seconds_of_seed


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 32])
def test_whole_tables_are_balanced_no_worse_than_by_the_seed(ranks):
    """The search alone, without the strategies that the seed has not."""
    topology = Topology(ranks, MEMORY_A_RANK)
    options = {"batch_rows": BATCH_ROWS, "optimizer": "sgd"}
    tables = criteo_tables("t15")
    plan = plan_tables(tables, topology, strategies=["table_wise"], **options)
    seed = plan_tables(
        tables, topology, planner="largest_first", reserve_first_rank=False, **options
    )
    assert loads_of(plan, topology)[2] <= loads_of(seed, topology)[2]


def test_which_seed_plans_exist():
    """So that the comparison above is known to compare something."""
    found = {}
    for name in ROWS:
        for ranks in WORLDS:
            try:
                make_plan(criteo_tables(name), ranks, MEMORY_A_RANK, planner="largest_first")
            except UserError:
                continue
            found.setdefault(name, []).append(ranks)
    assert found == {"t15": list(WORLDS), "t3": [4, 8, 16, 32, 64, 128]}
    largest = max(ROWS["t0"]) * DIM * 4
    assert largest > MEMORY_A_RANK  # why t0 has none
    assert math.ceil(sum(ROWS["t0"]) * DIM * 4 / MEMORY_A_RANK) == 6
