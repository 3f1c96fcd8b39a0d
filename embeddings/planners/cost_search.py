"""Greedy placement by cost, then local improvement."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from lookback.embeddings.cost import MEMORY, RESOURCES, Costs, busy_seconds
from lookback.embeddings.planners.base import Planner, Problem
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

_MOST_SWEEPS = 20  # over all tables; in practice two or three find nothing more to improve
_MOST_SWAPS = 4096  # that are looked at in one sweep; 26 tables have 325
_SAME = 9  # decimals to which two scores are compared: what lies below is rounding

Score = Callable[[Costs], npt.NDArray[np.float64]]
"""Total costs ``[C, R, len(RESOURCES)]`` of C plans to ``[C, keys]``, the weightiest key first."""


class CostSearch(Planner):
    """The plan whose step is estimated to take least.

    Tables are placed one by one, those first that weigh most in memory or exchange, each where the
    step gets least longer. Then tables are placed anew, or change ranks with each other, as long as
    that makes the step shorter or, if it does not, spreads the work more evenly. Only placements
    that fit count. If the first order leads to where a table fits nowhere, the tables are placed
    by size, and at last for memory alone. The same input gives the same plan.
    """

    strategies = tuple(STRATEGIES)

    def plan(self, problem: Problem) -> ShardingPlan | None:
        """Greedy, then better; see the class."""
        search = _Search(problem)
        by_size = sorted(problem.tables, key=problem.bytes, reverse=True)
        for order, score in (
            (search.by_weight(), search.by_time),
            (by_size, search.by_time),
            (by_size, search.by_memory),
        ):
            if search.place(order, score):
                search.improve()
                return problem.plan(search.placements)
        return None

    def pack(self, problem: Problem) -> ShardingPlan | None:
        """Largest first, each where the fullest rank stays emptiest."""
        search = _Search(problem)
        by_size = sorted(problem.tables, key=problem.bytes, reverse=True)
        return problem.plan(search.placements) if search.place(by_size, search.by_memory) else None


class _Search:
    """Placements so far, and what they cost."""

    def __init__(self, problem: Problem) -> None:
        self.placements: dict[str, Placement] = {}
        self._problem = problem
        self._total = self._nothing()
        self._costs: dict[Placement, Costs] = {}

    def by_weight(self) -> list[TableSpec]:
        """The tables, by falling share of memory or of exchange, whichever is larger."""
        tables = self._problem.tables
        rows = self._problem.workload.batch_rows / self._problem.ranks
        sizes = np.array([self._problem.bytes(table) for table in tables], float)
        sent = np.array([table.expected_distinct(rows) * table.dim for table in tables])
        weights = np.maximum(sizes / sizes.sum(), sent / max(sent.sum(), 1.0))
        return [tables[i] for i in np.argsort(-weights, kind="stable")]

    def by_time(self, totals: Costs) -> npt.NDArray[np.float64]:
        """Seconds of a step; then how unevenly ranks are busy; then the fullest rank."""
        busy = busy_seconds(totals, self._problem.workload.topology)  # (C, R, parts)
        seconds = busy.max(axis=1).sum(axis=-1)
        uneven = np.square(busy.sum(axis=-1)).sum(axis=-1)
        return np.stack([seconds, uneven, totals[:, :, MEMORY].max(axis=1)], axis=-1)

    def by_memory(self, totals: Costs) -> npt.NDArray[np.float64]:
        """The fullest rank; then how unevenly memory is held; then the time of a step."""
        held = totals[:, :, MEMORY]
        uneven = np.square(held).sum(axis=1)
        return np.stack([held.max(axis=1), uneven, self.by_time(totals)[:, 0]], axis=-1)

    def place(self, order: Sequence[TableSpec], score: Score) -> bool:
        """Places all tables anew, in this order; False if one of them fits nowhere."""
        self.placements = {}
        self._total = self._nothing()
        for table in order:
            choices = self._problem.choices(table, self._ranks_for(table))
            best = self._best([self._cost(table, choice) for choice in choices], score)
            if best is None:
                return False
            self._put(table, choices[best])
        return True

    def improve(self) -> None:
        """Moves and swaps tables until none makes the plan better."""
        for _ in range(_MOST_SWEEPS):
            moved = [self._move(table) for table in self.by_weight()]
            if not any(moved) and not self._swap_one():
                return

    def _move(self, table: TableSpec) -> bool:
        """Places one table anew; False if it is best where it is."""
        old = self.placements[table.name]
        self._total = self._total - self._cost(table, old)
        choices = [old, *self._problem.choices(table, self._ranks_for(table))]
        best = self._best([self._cost(table, choice) for choice in choices], self.by_time) or 0
        self._put(table, choices[best])
        return best > 0

    def _swap_one(self) -> bool:
        """Lets the best pair of tables with one owner each change places, if that helps."""
        busy = busy_seconds(self._total, self._problem.workload.topology)  # (R, parts)
        critical = set(busy.argmax(axis=0).tolist())
        owned = [
            (table, self.placements[table.name])
            for table in self._problem.tables
            if len(self.placements[table.name].ranks) == 1
            and not isinstance(self._problem.overrides.get(table.name), Placement)
        ]
        pairs = (
            ((one, _at(one, p, q.ranks)), (other, _at(other, q, p.ranks)))
            for one, p in owned
            if p.ranks[0] in critical
            for other, q in owned
            if q.ranks != p.ranks
        )
        swaps = list(itertools.islice(pairs, _MOST_SWAPS))
        changes = [self._nothing()]
        for pair in swaps:
            changes.append(
                sum(
                    (
                        self._cost(t, new) - self._cost(t, self.placements[t.name])
                        for t, new in pair
                    ),
                    self._nothing(),
                )
            )
        best = self._best(changes, self.by_time) or 0
        if best == 0:
            return False
        for table, placement in swaps[best - 1]:
            self.placements[table.name] = placement
        self._total = self._total + changes[best]
        return True

    def _best(self, costs: Sequence[Costs], score: Score) -> int | None:
        """Which of several costs is best added to the total; None if none of them fits.

        Earlier ones win draws.
        """
        if not costs:
            return None
        totals = self._total + np.stack(costs)
        fits = np.flatnonzero(totals[:, :, MEMORY].max(axis=1) <= self._problem.memory)
        if not len(fits):
            return None
        keys = score(totals[fits])
        least = keys.min(axis=0)
        keys = np.round(keys / np.where(least > 0, least, 1.0), _SAME)
        return int(fits[np.lexsort(keys.T[::-1])[0]])

    def _ranks_for(self, table: TableSpec) -> list[int]:
        """The ranks: those first that have room for the whole table; of these the least busy."""
        held = self._total[:, MEMORY]
        full = held + self._problem.bytes(table) > self._problem.memory
        busy = busy_seconds(self._total, self._problem.workload.topology).sum(axis=-1)
        return [int(rank) for rank in np.lexsort((held, busy, full))]

    def _put(self, table: TableSpec, placement: Placement) -> None:
        self.placements[table.name] = placement
        self._total = self._total + self._cost(table, placement)

    def _cost(self, table: TableSpec, placement: Placement) -> Costs:
        if placement not in self._costs:
            self._costs[placement] = self._problem.cost(table, placement)
        return self._costs[placement]

    def _nothing(self) -> Costs:
        return np.zeros([self._problem.ranks, len(RESOURCES)])


def _at(table: TableSpec, placement: Placement, ranks: tuple[int, ...]) -> Placement:
    return Placement(table.name, placement.strategy, ranks)
