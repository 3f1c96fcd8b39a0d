"""Data-parallel: every rank holds the whole table, and gradients travel instead of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lookback.embeddings.cost import Costs, Workload, replicated_costs
from lookback.embeddings.sharding.base import Leg, Strategy
from lookback.embeddings.types import Placement, Shard, TableSpec


class DataParallel(Strategy):
    """For tables so small that copies cost less than asking for rows."""

    name = "data_parallel"
    exchanged = False

    def placements(
        self, table: TableSpec, ranks: int, order: Sequence[int] | None = None
    ) -> Sequence[Placement]:
        """The only one: on every rank."""
        del ranks, order
        return [Placement(table.name, self.name)]

    def shards(self, table: TableSpec, placement: Placement, ranks: int) -> tuple[Shard, ...]:
        """The whole table, on every rank."""
        self._require(table, placement, not placement.ranks, "no ranks")
        return tuple(
            Shard(table.name, rank, range(table.rows), range(table.dim)) for rank in range(ranks)
        )

    def input_dist(self, placement: Placement, ids: Any, ranks: int) -> tuple[Leg, ...]:
        """Rows are where they are asked for; the owner means nothing."""
        del placement, ranks
        return (Leg(ids * 0, ids),)

    def cost(self, table: TableSpec, placement: Placement, workload: Workload) -> Costs:
        """Memory on every rank, and gradients to every other."""
        del placement
        return replicated_costs(table, workload)
