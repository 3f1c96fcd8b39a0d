"""Column-wise: each of several ranks holds some columns of every row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lookback.embeddings.sharding.base import Leg, Strategy, split_evenly
from lookback.embeddings.types import Placement, Shard, TableSpec

_FEWEST_PIECES = 2  # one piece would be table-wise


class ColumnWise(Strategy):
    """For few wide tables with very hot rows: every id is asked for once on each owner.

    The ids travel as often as there are pieces, the vectors once; element-wise optimizers only,
    since no owner sees a whole row.
    """

    name = "column_wise"
    splits_rows = True

    def placements(
        self, table: TableSpec, ranks: int, order: Sequence[int] | None = None
    ) -> Sequence[Placement]:
        """Over as many ranks as can have a column, and over half of them and so on down to 2."""
        owners = tuple(range(ranks) if order is None else order)
        pieces = [min(ranks, table.dim)]
        while pieces[-1] // 2 >= _FEWEST_PIECES:
            pieces.append(pieces[-1] // 2)
        return [Placement(table.name, self.name, owners[:count]) for count in pieces]

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
            for rank, columns in zip(owners, pieces, strict=True)
        )

    def input_dist(self, placement: Placement, ids: Any, ranks: int) -> tuple[Leg, ...]:
        """All ids go to every owner."""
        del ranks
        return tuple(Leg(ids * 0 + owner, ids) for owner in placement.ranks)
