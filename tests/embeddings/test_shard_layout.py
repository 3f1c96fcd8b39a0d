"""Every row has its place on the wire and in memory, and no other row has the same."""

from __future__ import annotations

import numpy as np
import pytest

from lookback.embeddings.shard_layout import ShardLayout
from lookback.embeddings.sharding import STRATEGIES, shards_of
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

TABLES = (
    TableSpec("words", rows=23, dim=4),
    TableSpec("site", rows=11, dim=6),
    TableSpec("tiny", rows=3, dim=4),  # fewer rows than ranks
    TableSpec("own", rows=9, dim=4, optimizer="sgd"),
    TableSpec("tags", rows=17, dim=6),
)
EACH = pytest.mark.parametrize("mix", [*STRATEGIES, "mixed"])
WORLDS = pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])


def rows_of(layout, rank):
    """Rows of each group on a rank."""
    return [
        sum(len(shard.rows) for of, shard, _ in layout.held(rank) if of == group)
        for group in layout.groups
    ]


@EACH
@WORLDS
def test_ranks_hold_every_weight_once_in_rows_of_their_own(make_plan, mix, ranks):
    plan = make_plan(TABLES, mix, ranks)
    layout = ShardLayout(plan)
    count = {table.name: np.zeros([table.rows, table.dim], int) for table in TABLES}
    for rank in range(ranks):
        taken = {group.name: np.zeros(rows, int) for group, rows in zip_rows(layout, rank)}
        for group, shard, start in layout.held(rank):
            assert shard.rank == rank
            assert len(shard.columns) == group.width
            assert group in layout.groups
            taken[group.name][start : start + len(shard.rows)] += 1
            count[shard.table][np.ix_(list(shard.rows), list(shard.columns))] += 1
        assert all((places == 1).all() for places in taken.values())
    for placement in plan.placements:
        copies = 1 if STRATEGIES[placement.strategy].exchanged else ranks
        assert (count[placement.table] == copies).all(), placement
    held = [shard for rank in range(ranks) for _, shard, _ in layout.held(rank)]
    assert sorted(held, key=str) == sorted(shards_of(plan), key=str)


def zip_rows(layout, rank):
    return zip(layout.groups, rows_of(layout, rank), strict=True)


@EACH
@WORLDS
def test_a_number_on_the_wire_names_one_row_of_its_owner(make_plan, mix, ranks):
    plan = make_plan(TABLES, mix, ranks)
    layout = ShardLayout(plan)
    owned: list[set[int]] = [set() for _ in range(ranks)]
    for table, placement in zip(plan.tables, plan.placements, strict=True):
        strategy = STRATEGIES[placement.strategy]
        if not strategy.exchanged:
            continue
        ids = np.arange(table.rows)
        legs = strategy.input_dist(placement, ids, ranks)
        assert len(legs) == len(layout.pieces[table.name])
        for piece, leg in zip(layout.pieces[table.name], legs, strict=True):
            assert piece.table == table.name
            numbers = leg.row + np.array(piece.starts)[leg.owner]
            for row, owner, number in zip(ids, leg.owner, numbers, strict=True):
                assert number not in owned[owner]
                owned[owner].add(int(number))
                # The number leads to the group, and there to the row of the shard that has it.
                base = layout.bases[owner][piece.group]
                (found,) = (
                    (shard, start)
                    for group, shard, start in layout.held(owner)
                    if group == layout.groups[piece.group]
                    and shard.table == table.name
                    and start <= number - base < start + len(shard.rows)
                )
                assert found[0].rows[number - base - found[1]] == row
    for rank in range(ranks):  # and no number is left over
        exchanged = sum(rows for group, rows in zip_rows(layout, rank) if group.exchanged)
        assert owned[rank] == set(range(exchanged))


@WORLDS
def test_rows_of_replicated_tables_are_where_every_rank_has_them(make_plan, ranks):
    layout = ShardLayout(make_plan(TABLES, "data_parallel", ranks))
    assert layout.exchanged_groups == ()
    for table in TABLES:
        (piece,) = layout.pieces[table.name]
        for rank in range(ranks):
            (start,) = (s for _, shard, s in layout.held(rank) if shard.table == table.name)
            assert piece.starts[rank] == start


def test_groups_join_what_has_one_width_optimizer_and_way(make_plan):
    layout = ShardLayout(make_plan(TABLES, "row_wise", 3))
    assert [(g.name, g.width, g.optimizer) for g in layout.groups] == [
        ("rows_4", 4, None),
        ("rows_6", 6, None),
        ("rows_4_sgd", 4, "sgd"),
    ]
    together = [shard.table for group, shard, _ in layout.held(0) if group.name == "rows_4"]
    assert together == ["words", "tiny"]
    placements = (
        Placement("words", "data_parallel"),
        Placement("site", "row_wise"),
        Placement("tiny", "row_wise"),
        Placement("own", "data_parallel"),
        Placement("tags", "column_wise", (2, 0)),
    )
    layout = ShardLayout(ShardingPlan(3, TABLES, placements))
    names = [group.name for group in layout.groups]
    # Those that travel come first: their places are also the numbers of the wire's groups.
    assert names == ["rows_6", "rows_4", "rows_3", "replicated_4", "replicated_4_sgd"]
    assert [group.name for group in layout.exchanged_groups] == names[:3]


def test_pieces_of_columns_are_in_the_columns_order():
    table = TableSpec("tags", rows=5, dim=7)
    layout = ShardLayout(ShardingPlan(4, (table,), (Placement("tags", "column_wise", (2, 0, 3)),)))
    widths = [layout.groups[piece.group].width for piece in layout.pieces["tags"]]
    assert widths == [2, 2, 3]
    for piece, owner in zip(layout.pieces["tags"], (2, 0, 3), strict=True):
        ((_, shard, _),) = layout.held(owner)
        assert len(shard.columns) == layout.groups[piece.group].width
    assert layout.held(1) == []


@pytest.mark.parametrize(("rows", "needed"), [((1 << 31) - 1, False), (1 << 31, True)])
def test_numbers_need_64_bits_where_one_rank_has_more_rows_than_int32_can_count(rows, needed):
    tables = (TableSpec("large", rows - 10, 1), TableSpec("small", 10, 1))

    def layout(strategy, ranks, *owners):
        placements = [
            Placement(t.name, strategy, owner) for t, owner in zip(tables, owners, strict=True)
        ]
        return ShardLayout(ShardingPlan(ranks, tables, tuple(placements)))

    assert layout("table_wise", 2, (1,), (1,)).needs_int64 == needed
    assert not layout("table_wise", 2, (0,), (1,)).needs_int64
    assert layout("data_parallel", 2, (), ()).needs_int64 == needed
    assert not layout("row_wise", 2, (), ()).needs_int64


def test_every_rank_lays_all_ranks_out_alike(make_plan):
    one, other = (ShardLayout(make_plan(TABLES, "mixed", 4)) for _ in range(2))
    assert one.groups == other.groups
    assert one.pieces == other.pieces
    assert one.bases == other.bases
    assert [one.held(r) for r in range(4)] == [other.held(r) for r in range(4)]
