"""How placements are chosen: PLANNERS maps a planner's name to it."""

from __future__ import annotations

from collections.abc import Mapping

from embeddings.planners.base import Planner
from embeddings.planners.cost_search import CostSearch
from embeddings.planners.largest_first import LargestFirst

PLANNERS: Mapping[str, Planner] = {
    "cost": CostSearch(),
    "largest_first": LargestFirst(),
}
