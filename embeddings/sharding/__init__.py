"""How tables are cut: STRATEGIES maps a strategy's name to it."""

from __future__ import annotations

from collections.abc import Mapping

from lookback.core.errors import shown
from lookback.embeddings.sharding.base import Strategy
from lookback.embeddings.sharding.column_wise import ColumnWise
from lookback.embeddings.sharding.data_parallel import DataParallel
from lookback.embeddings.sharding.row_wise import RowWise
from lookback.embeddings.sharding.table_wise import TableWise
from lookback.embeddings.types import Shard, ShardingPlan

STRATEGIES: Mapping[str, Strategy] = {
    "data_parallel": DataParallel(),
    "table_wise": TableWise(),
    "row_wise": RowWise(),
    "column_wise": ColumnWise(),
}


def shards_of(plan: ShardingPlan) -> tuple[Shard, ...]:
    """All shards of a plan, table by table.

    Raises:
      ValueError: if a placement is not valid, or names an unknown strategy.
    """
    shards: list[Shard] = []
    for table, placement in zip(plan.tables, plan.placements, strict=True):
        if placement.strategy not in STRATEGIES:
            raise ValueError(
                f"Table {shown(table.name)}: unknown strategy {shown(placement.strategy)}; "
                f"choose one of {list(STRATEGIES)}."
            )
        strategy = STRATEGIES[placement.strategy]
        shards += strategy.shards(table, placement, plan.ranks)
    return tuple(shards)
