"""Where a plan's shards lie in each rank's memory, and how an id on the wire names a row.

Every rank joins its shards of one width into one variable, a *group*, so that all of them are
gathered at once; if tables are to stay separate, only its shards of one table. A row on the wire is
one integer, its number within its owner: groups follow one another, in each group the shards, in
each shard the rows. Every rank knows every other's layout, as all of it follows from the plan. Pure
Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lookback.embeddings.sharding import STRATEGIES, shards_of
from lookback.embeddings.types import Shard, ShardingPlan

_INT32_MAX = (1 << 31) - 1


@dataclasses.dataclass(frozen=True)
class Group:
    """Shards that share a variable.

    Attributes:
      name: of the variable.
      width: columns (d).
      optimizer: of all its tables; None means the run's.
      exchanged: whether its rows are asked for; if not, every rank holds them all.
    """

    name: str
    width: int
    optimizer: str | None
    exchanged: bool


@dataclasses.dataclass(frozen=True)
class TableSlice:
    """The columns of a table that lie in one group: what one leg of an id asks for.

    Attributes:
      table: its name.
      group: number of its group among `ShardLayout.groups`.
      starts: for each rank, the number on the wire of the piece's first row there (for groups
        without exchange: the row in the group's variable). 0 where the rank holds none.
    """

    table: str
    group: int
    starts: tuple[int, ...]


class ShardLayout:
    """The layout of a plan on all ranks.

    Attributes:
      ranks: number of processes (R).
      groups: those whose rows are exchanged first.
      pieces: of each table by name, in the order of its legs.
      bases: for each rank, the number on the wire at which each exchanged group begins.
    """

    def __init__(self, plan: ShardingPlan, *, joint: bool = True) -> None:
        """Lays a plan out.

        Args:
          plan: valid.
          joint: whether tables share groups.

        Raises:
          ValueError: if it is not.
        """
        self.ranks = plan.ranks
        self._largest_table = max((table.rows for table in plan.tables), default=0)
        shards = shards_of(plan)
        optimizers = {table.name: table.optimizer for table in plan.tables}
        exchanged = {p.table: STRATEGIES[p.strategy].exchanged for p in plan.placements}

        def group_of(shard: Shard) -> Group:
            optimizer, travels = optimizers[shard.table], exchanged[shard.table]
            kind = "rows" if travels else "replicated"
            suffix = f"_{optimizer}" if optimizer else ""
            own = "" if joint else f"_{shard.table}"
            name = f"{kind}_{len(shard.columns)}{suffix}{own}"
            return Group(name, len(shard.columns), optimizer, travels)

        groups = dict.fromkeys(group_of(shard) for shard in shards)
        self.groups = tuple(sorted(groups, key=lambda group: not group.exchanged))
        self._held: list[list[tuple[Group, Shard, int]]] = [[] for _ in range(plan.ranks)]
        self._rows = [[0] * len(self.groups) for _ in range(plan.ranks)]
        for shard in shards:
            number = self.groups.index(group_of(shard))
            rows = self._rows[shard.rank]
            self._held[shard.rank].append((self.groups[number], shard, rows[number]))
            rows[number] += len(shard.rows)
        count = sum(group.exchanged for group in self.groups)
        self.bases = tuple(
            tuple(sum(rows[:number]) for number in range(count)) for rows in self._rows
        )
        self.pieces = {table.name: self._pieces(table.name) for table in plan.tables}

    @property
    def exchanged_groups(self) -> tuple[Group, ...]:
        """The groups whose rows travel (G)."""
        return tuple(group for group in self.groups if group.exchanged)

    @property
    def needs_int64(self) -> bool:
        """Whether int32 cannot number a table's rows, or those of a rank."""
        return self._largest_table > _INT32_MAX or any(sum(r) > _INT32_MAX for r in self._rows)

    def held(self, rank: int) -> Sequence[tuple[Group, Shard, int]]:
        """The parts that a rank holds: group, shard, and first row in the group's variable."""
        return self._held[rank]

    def _pieces(self, table: str) -> tuple[TableSlice, ...]:
        """The table's pieces, by their columns: the order of `Strategy.input_dist`'s legs."""
        found: dict[range, tuple[int, list[int]]] = {}
        for rank, parts in enumerate(self._held):
            for group, shard, start in parts:
                if shard.table != table:
                    continue
                number = self.groups.index(group)
                base = self.bases[rank][number] if group.exchanged else 0
                starts = found.setdefault(shard.columns, (number, [0] * self.ranks))[1]
                starts[rank] = base + start
        ordered = sorted(found.items(), key=lambda entry: entry[0].start)
        return tuple(TableSlice(table, number, tuple(starts)) for _, (number, starts) in ordered)
