"""Row-wise: row r on rank r mod R (Sparse Operation Kit's `distributed`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lookback.embeddings.sharding.base import Leg, Strategy
from lookback.embeddings.types import Placement, Shard, TableSpec


class RowWise(Strategy):
    """For tables larger than one rank's memory.

    Row r lies on rank ``r mod R`` as local row ``r div R``. Vocabularies are ordered by falling
    frequency, so neighbours in id are neighbours in traffic, and taking turns spreads them.
    """

    name = "row_wise"

    def placements(
        self, table: TableSpec, ranks: int, order: Sequence[int] | None = None
    ) -> Sequence[Placement]:
        """The only one: over all ranks."""
        del ranks, order
        return [Placement(table.name, self.name)]

    def shards(self, table: TableSpec, placement: Placement, ranks: int) -> tuple[Shard, ...]:
        """Every R-th row on each rank; ranks beyond the last row hold none."""
        self._require(table, placement, not placement.ranks, "no ranks")
        return tuple(
            Shard(table.name, rank, range(rank, max(rank, table.rows), ranks), range(table.dim))
            for rank in range(ranks)
        )

    def input_dist(self, placement: Placement, ids: Any, ranks: int) -> tuple[Leg, ...]:
        """Rank and local row are remainder and quotient."""
        del placement
        return (Leg(ids % ranks, ids // ranks),)

    def sok_mode(self, placement: Placement) -> str | None:
        """SOK's name for it."""
        del placement
        return "distributed"
