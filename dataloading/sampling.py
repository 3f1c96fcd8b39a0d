"""Options of layouts that draw negatives for what users did."""

from __future__ import annotations

import dataclasses
from typing import Any

from lookback.core.limits import MOST_NEGATIVES, MOST_ROWS
from lookback.core.options import option
from lookback.core.options.needs import Needs
from lookback.dataloading.layout import LayoutOptions
from lookback.dataloading.modes import EVALUATES, INFERS, TRAINS
from lookback.formats.description import IMPRESSIONS, MATERIALISED, WITHOUT_AUXILIARY_LOSS


def topk_option(needs: Needs) -> Any:
    """The field `topk` of a layout, which has an effect where `needs` hold."""
    return option(
        10,
        scope="training",
        help="K of HR@K and NDCG@K where --metrics names none",
        at_least=1,
        unserved={IMPRESSIONS: "have labels of their own, so that nothing is ranked"},
        limit=MOST_ROWS,
        needs=needs,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions(LayoutOptions):
    """What every such layout can be told."""

    test_negatives: int = option(
        1,
        help="Negatives for each positive in evaluation",
        at_least=1,
        unserved={
            MATERIALISED: "bring their negatives along",
            IMPRESSIONS: "have labels of their own, so that no candidates are drawn",
        },
        needs=(*EVALUATES, INFERS),
        limit=MOST_NEGATIVES,
    )
    full_catalogue: bool = option(
        False,
        help="Rank the held-out item among all items that the user has not met, too (flag)",
        unserved={
            MATERIALISED: "hold no catalogue",
            IMPRESSIONS: "have labels of their own, so that nothing is ranked",
        },
        needs=EVALUATES,
    )
    repeatable: bool = option(
        False,
        help="Draw the same training negatives in every epoch, not fresh ones (flag)",
        continued=True,
        unserved={
            MATERIALISED: "bring their negatives along",
            WITHOUT_AUXILIARY_LOSS: "need no negatives",
        },
        suits=TRAINS,
    )
