"""Column-wise: each of several ranks holds some columns of every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embeddings.sharding.base import Leg, Strategy, split_evenly
from embeddings.types import Placement, Shard, TableSpec


class ColumnWise(Strategy):
    """For few wide tables with very hot rows: every id is asked for once on each owner.

    The ids travel as often as there are pieces, the vectors once; element-wise optimizers only,
    since no owner sees a whole row.
    """

    name = "column_wise"

    def placements(self, table: TableSpec, ranks: int) -> Sequence[Placement]:
        """Over all ranks, or as many as there are columns."""
        owners = tuple(range(min(ranks, table.dim)))
        return [Placement(table.name, self.name, owners)]

    def shards(self, table: TableSpec, placement: Placement, ranks: int) -> tuple[Shard, ...]:
        """As many columns on each owner, or one more."""
        owners = placement.ranks
        valid = all(0 <= rank < ranks for rank in owners) and len(set(owners)) == len(owners)
        self._require(
            table,
            placement,
            valid and 1 <= len(owners) <= table.dim,
            f"1 to {min(ranks, table.dim)} different ranks in [0, {ranks})",
        )
        pieces = split_evenly(table.dim, len(owners))
        return tuple(
            Shard(table.name, rank, range(table.rows), columns)
            for rank, columns in zip(owners, pieces)
        )

    def input_dist(self, placement: Placement, ids: Any, ranks: int) -> tuple[Leg, ...]:
        """All ids go to every owner."""
        del ranks
        return tuple(Leg(ids * 0 + owner, ids) for owner in placement.ranks)
