"""The placement heuristic of NVIDIA's DLRM for PyTorch."""

from __future__ import annotations

import math

import numpy as np

from lookback.embeddings.cost import MEMORY
from lookback.embeddings.planners.base import Planner, Problem
from lookback.embeddings.types import Placement, ShardingPlan


class LargestFirst(Planner):
    """Whole tables, from the largest on, each on the rank with most free memory.

    As its README tells it ("Embedding table placement and load balancing"): the bottom MLP has
    rank 0 to itself; no other rank gets more than ``ceil(tables / ranks left)`` tables, which
    balances what is exchanged. Tables that an override places otherwise are placed first.
    """

    strategies = ("table_wise",)

    def plan(self, problem: Problem) -> ShardingPlan | None:
        """Places table by table; never takes a step back."""
        used = np.zeros(problem.ranks)
        count = np.zeros(problem.ranks, int)
        first = 1 if problem.reserve_first_rank and problem.ranks > 1 else 0
        most = math.ceil(len(problem.tables) / (problem.ranks - first))
        placements: dict[str, Placement] = {}
        free = []
        for table in problem.tables:
            if problem.overrides.get(table.name, "table_wise") == "table_wise":
                free.append(table)
                continue
            placement = problem.choices(table, range(problem.ranks))[0]
            placements[table.name] = placement
            used += problem.cost(table, placement)[:, MEMORY]
            if len(placement.ranks) == 1:  # parts of tables count as memory only
                count[placement.ranks[0]] += 1
        for table in sorted(free, key=problem.bytes, reverse=True):
            open_ranks = [r for r in range(first, problem.ranks) if count[r] < most]
            rank = min(open_ranks, key=lambda r: used[r])
            placements[table.name] = Placement(table.name, "table_wise", (rank,))
            used[rank] += problem.bytes(table)
            count[rank] += 1
        return problem.plan(placements) if used.max(initial=0.0) <= problem.memory else None
