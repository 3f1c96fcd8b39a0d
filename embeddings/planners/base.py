"""What a planner is asked, and what it may choose from."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from lookback.embeddings.cost import MEMORY, Costs, Workload
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.types import (
    OPTIMIZER_STATE,
    WEIGHT_BYTES,
    Placement,
    ShardingPlan,
    TableSpec,
)

_MOST_CHOICES = 16  # of one strategy for one table; ranks alike but for their load come in order


@dataclasses.dataclass(frozen=True)
class Problem:
    """Tables to be placed.

    Attributes:
      tables: the tables, names unique.
      workload: the ranks and what a step asks of them.
      strategies: names of the strategies that may be chosen.
      overrides: by table name, the strategy or the placement that somebody asked for.
      reserve_first_rank: whether "largest_first" leaves rank 0 without tables.
    """

    tables: tuple[TableSpec, ...]
    workload: Workload
    strategies: tuple[str, ...]
    overrides: Mapping[str, str | Placement] = dataclasses.field(default_factory=dict)
    reserve_first_rank: bool = True

    @property
    def ranks(self) -> int:
        """R."""
        return self.workload.topology.ranks

    @property
    def memory(self) -> float:
        """Bytes that each rank has for tables; infinite if it is not limited."""
        memory = self.workload.topology.memory
        return math.inf if memory is None else memory

    def bytes(self, table: TableSpec) -> int:
        """Bytes of one copy of a table, optimizer state included."""
        a_weight, a_row = OPTIMIZER_STATE[self.workload.optimizer_of(table)]
        return WEIGHT_BYTES * table.rows * (table.dim * (1 + a_weight) + a_row)

    def strategies_of(self, table: TableSpec) -> tuple[str, ...]:
        """The strategies that a table may have, in the order of the registry."""
        override = self.overrides.get(table.name)
        if isinstance(override, Placement):
            return (override.strategy,)
        names = self.strategies if override is None else (override,)
        whole_rows = needs_whole_rows(self.workload.optimizer_of(table))
        return tuple(
            name
            for name, strategy in STRATEGIES.items()
            if name in names and not (whole_rows and strategy.splits_rows)
        )

    def choices(self, table: TableSpec, order: Sequence[int]) -> list[Placement]:
        """The placements that a planner may choose from.

        Args:
          table: to be placed.
          order: the ranks, those first that can best take it.
        """
        override = self.overrides.get(table.name)
        if isinstance(override, Placement):
            return [override]
        return [
            placement
            for name in self.strategies_of(table)
            for placement in STRATEGIES[name].placements(table, self.ranks, order)[:_MOST_CHOICES]
        ]

    def cost(self, table: TableSpec, placement: Placement) -> Costs:
        """What a placement costs each rank: ``[R, len(RESOURCES)]``."""
        return STRATEGIES[placement.strategy].cost(table, placement, self.workload)

    def plan(self, placements: Mapping[str, Placement]) -> ShardingPlan:
        """The plan with these placements, by table name."""
        chosen = tuple(placements[table.name] for table in self.tables)
        return ShardingPlan(self.ranks, self.tables, chosen)

    def with_topology(self, **changes: float | None) -> Problem:
        """The same tables on other ranks.

        Args:
          **changes: fields of the topology.
        """
        topology = dataclasses.replace(self.workload.topology, **changes)  # type: ignore[arg-type]
        return self.with_workload(topology=topology)

    def with_workload(self, **changes: object) -> Problem:
        """The same tables under another workload.

        Args:
          **changes: fields of the workload.
        """
        workload = dataclasses.replace(self.workload, **changes)  # type: ignore[arg-type]
        return dataclasses.replace(self, workload=workload)


class Planner(abc.ABC):
    """A way to choose placements."""

    strategies: ClassVar[tuple[str, ...]]
    """Names of the strategies that it can choose."""

    @abc.abstractmethod
    def plan(self, problem: Problem) -> ShardingPlan | None:
        """A plan in which no rank holds more than its memory; None if none was found."""

    def pack(self, problem: Problem) -> ShardingPlan | None:
        """Like `plan`, but quick: with an eye on memory alone."""
        return self.plan(problem)


def plan_costs(plan: ShardingPlan, workload: Workload) -> Costs:
    """What each table of a plan costs each rank.

    Args:
      plan: the plan.
      workload: of the step, on as many ranks.

    Returns:
      ``[number of tables, R, len(RESOURCES)]``
    """
    costs = [
        STRATEGIES[placement.strategy].cost(table, placement, workload)
        for table, placement in zip(plan.tables, plan.placements, strict=True)
    ]
    return np.stack(costs)


def fullest_rank(plan: ShardingPlan, workload: Workload) -> tuple[int, float]:
    """The rank that holds most, and how many bytes.

    Args:
      plan: the plan.
      workload: on as many ranks.
    """
    held = plan_costs(plan, workload)[:, :, MEMORY].sum(axis=0)
    rank = int(held.argmax())
    return rank, float(held[rank])


def needs_whole_rows(optimizer: str) -> bool:
    """Whether an optimizer's state belongs to rows, so that an owner must see all of a row."""
    return OPTIMIZER_STATE[optimizer][1] > 0
