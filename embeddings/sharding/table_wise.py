"""Table-wise: the whole table on one rank (Sparse Operation Kit's `localized`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lookback.embeddings.sharding.base import Leg, Strategy
from lookback.embeddings.types import Placement, Shard, TableSpec


class TableWise(Strategy):
    """For many tables of middling size: rank k answers for all ids of its tables."""

    name = "table_wise"

    def placements(
        self, table: TableSpec, ranks: int, order: Sequence[int] | None = None
    ) -> Sequence[Placement]:
        """On each rank alone."""
        owners = range(ranks) if order is None else order
        return [Placement(table.name, self.name, (rank,)) for rank in owners]

    def shards(self, table: TableSpec, placement: Placement, ranks: int) -> tuple[Shard, ...]:
        """The whole table, on its one rank."""
        one = len(placement.ranks) == 1 and 0 <= placement.ranks[0] < ranks
        self._require(table, placement, one, f"one rank in [0, {ranks})")
        return (Shard(table.name, placement.ranks[0], range(table.rows), range(table.dim)),)

    def input_dist(self, placement: Placement, ids: Any, ranks: int) -> tuple[Leg, ...]:
        """All ids go to the owner."""
        del ranks
        return (Leg(ids * 0 + placement.ranks[0], ids),)

    def sok_mode(self, placement: Placement) -> str | None:
        """SOK's name for it."""
        return f"localized:{placement.ranks[0]}"
