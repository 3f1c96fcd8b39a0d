"""How placements are chosen: PLANNERS maps a planner's name to it."""

from __future__ import annotations

from collections.abc import Mapping

from lookback.embeddings.planners.base import Planner
from lookback.embeddings.planners.cost_search import CostSearch
from lookback.embeddings.planners.largest_first import LargestFirst

PLANNERS: Mapping[str, Planner] = {
    "cost": CostSearch(),
    "largest_first": LargestFirst(),
}
