"""The two maps of each strategy agree: who holds a row, and where its columns are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from lookback.embeddings.sharding import STRATEGIES, shards_of
from lookback.embeddings.sharding.base import split_evenly
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

WORLDS = (1, 2, 3, 4, 7)
TABLES = (
    TableSpec("uneven", rows=23, dim=5),
    TableSpec("smaller_than_the_world", rows=3, dim=2),
    TableSpec("one_row", rows=1, dim=1),
)


def cases():
    for name, strategy in STRATEGIES.items():
        for table in TABLES:
            for ranks in WORLDS:
                for order in (None, list(range(ranks))[::-1]):
                    for placement in strategy.placements(table, ranks, order):
                        yield pytest.param(
                            table, placement, ranks, id=f"{name}-{table.name}-{ranks}"
                        )


def covered(shards, table):
    """How many shards hold each weight."""
    count = np.zeros([table.rows, table.dim], int)
    for shard in shards:
        count[np.ix_(list(shard.rows), list(shard.columns))] += 1
    return count


@pytest.mark.parametrize(("table", "placement", "ranks"), cases())
def test_every_weight_has_one_owner_or_all(table, placement, ranks):
    shards = shards_of(ShardingPlan(ranks, (table,), (placement,)))
    copies = 1 if STRATEGIES[placement.strategy].exchanged else ranks
    assert (covered(shards, table) == copies).all()
    assert {shard.table for shard in shards} == {table.name}
    assert [shard.rank for shard in shards] == list(dict.fromkeys(shard.rank for shard in shards))


@pytest.mark.parametrize(("table", "placement", "ranks"), cases())
def test_ids_are_asked_for_where_they_lie(table, placement, ranks):
    strategy = STRATEGIES[placement.strategy]
    by_rank = {s.rank: s for s in strategy.shards(table, placement, ranks)}
    ids = np.arange(table.rows).reshape(-1, 1)
    legs = strategy.input_dist(placement, ids, ranks)
    for row in range(table.rows):
        columns = []
        for leg, one in zip(legs, strategy.input_dist(placement, row, ranks), strict=True):
            assert leg.owner.shape == leg.row.shape == ids.shape
            assert (leg.owner[row, 0], leg.row[row, 0]) == (one.owner, one.row)
            shard = by_rank[one.owner]
            assert shard.rows[one.row] == row
            columns += shard.columns
        assert columns == list(range(table.dim))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("name", STRATEGIES)
def test_legs_keep_the_type_of_ids(name, dtype):
    strategy = STRATEGIES[name]
    placement = strategy.placements(TABLES[0], 3)[0]
    for leg in strategy.input_dist(placement, np.array([4, 0], dtype), 3):
        assert leg.owner.dtype == leg.row.dtype == dtype


def test_row_wise_takes_turns():
    shards = STRATEGIES["row_wise"].shards(
        TABLES[1], Placement("smaller_than_the_world", "row_wise"), 4
    )
    assert [list(shard.rows) for shard in shards] == [[0], [1], [2], []]


def test_column_wise_cuts_into_halves_down_to_two():
    wide = TableSpec("wide", rows=4, dim=128)
    placements = STRATEGIES["column_wise"].placements(wide, 12, [*range(11, -1, -1)])
    assert [len(p.ranks) for p in placements] == [12, 6, 3]
    assert placements[2].ranks == (11, 10, 9)
    narrow = STRATEGIES["column_wise"].placements(TABLES[0], 12)
    assert [p.ranks for p in narrow] == [(0, 1, 2, 3, 4), (0, 1)]


def test_split_evenly():
    assert split_evenly(5, 3) == [range(0, 1), range(1, 3), range(3, 5)]
    assert split_evenly(4, 2) == [range(0, 2), range(2, 4)]


@pytest.mark.parametrize(
    ("placement", "text"),
    [
        (Placement("uneven", "row_wise", (0,)), "row_wise: expected no ranks, received ranks .0."),
        (Placement("uneven", "data_parallel", (0,)), "expected no ranks"),
        (Placement("uneven", "table_wise"), r"expected one rank in \[0, 2\), received ranks \[\]"),
        (Placement("uneven", "table_wise", (2,)), r"received ranks \[2\]"),
        (Placement("uneven", "column_wise", (1, 1)), "1 to 2 different ranks"),
        (Placement("uneven", "column_wise", ()), "1 to 2 different ranks"),
        (Placement("uneven", "diagonal"), "unknown strategy 'diagonal'; choose one of .'data_par"),
    ],
)
def test_impossible_placements_are_refused(placement, text):
    with pytest.raises(ValueError, match=text):
        shards_of(ShardingPlan(2, (TABLES[0],), (placement,)))
