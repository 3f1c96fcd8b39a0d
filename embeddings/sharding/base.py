"""What a sharding strategy is: which rank holds which part of a table, and who answers for an id.

Pure arithmetic: `input_dist` works on integers, NumPy arrays and TensorFlow tensors alike, so
planning needs no TensorFlow and a test of the routing no processes.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from lookback.core.errors import shown
from lookback.embeddings.cost import Costs, Workload, exchanged_costs
from lookback.embeddings.types import Placement, Shard, TableSpec


class Leg(NamedTuple):
    """One answer to the question where ids lie.

    Attributes:
      owner: rank of each id, of the ids' shape and type.
      row: row of each id within the owner's shard.
    """

    owner: Any
    row: Any


class Strategy(abc.ABC):
    """How one table is spread over R ranks.

    A strategy is two maps that must agree: `shards` says which rows and columns each rank holds,
    and `input_dist` where an id's columns are to be asked for. The legs of an id, joined along the
    last axis in their order, are its row.
    """

    name: ClassVar[str]
    exchanged: ClassVar[bool] = True
    """Whether ranks must ask each other for rows; if not, every rank holds them all."""
    splits_rows: ClassVar[bool] = False
    """Whether an owner may hold part of a row only: none for optimizers with state a row."""

    @abc.abstractmethod
    def placements(
        self, table: TableSpec, ranks: int, order: Sequence[int] | None = None
    ) -> Sequence[Placement]:
        """All ways to place the table that are worth a planner's look.

        Args:
          table: to place.
          ranks: R.
          order: the ranks, those first that can best take a table. None: as they are numbered.
        """

    @abc.abstractmethod
    def shards(self, table: TableSpec, placement: Placement, ranks: int) -> tuple[Shard, ...]:
        """The parts of the table, by rank and then column.

        Args:
          table: to shard.
          placement: of that table, with this strategy.
          ranks: R.

        Raises:
          ValueError: if the placement is not one for this table and number of ranks.
        """

    @abc.abstractmethod
    def input_dist(self, placement: Placement, ids: Any, ranks: int) -> tuple[Leg, ...]:
        """Where to ask for ids.

        Args:
          placement: of the table.
          ids: integers of any shape.
          ranks: R.

        Returns:
          One leg, or one for each piece of columns.
        """

    def cost(self, table: TableSpec, placement: Placement, workload: Workload) -> Costs:
        """What the table costs each rank.

        Args:
          table: the table.
          placement: of that table, with this strategy.
          workload: of the step.

        Returns:
          ``[R, len(RESOURCES)]``
        """
        shards = self.shards(table, placement, workload.topology.ranks)
        return exchanged_costs(table, shards, workload)

    def sok_mode(self, placement: Placement) -> str | None:
        """The `mode` of a Sparse Operation Kit variable with the same rows on the same ranks.

        None if there is none.
        """
        del placement
        return None

    def _require(self, table: TableSpec, placement: Placement, ok: bool, expected: str) -> None:
        if not ok:
            raise ValueError(
                f"Table {table.name!r}, {self.name}: expected {expected}, received ranks "
                f"{shown(list(placement.ranks))}."
            )


def split_evenly(total: int, parts: int) -> list[range]:
    """Cuts ``[0, total)`` into contiguous ranges whose lengths differ by 1 at most."""
    bounds = [total * part // parts for part in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]
