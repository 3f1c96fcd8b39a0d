"""Options of layouts that draw negatives for what users did."""

from __future__ import annotations

import dataclasses

from lookback.core.options import option
from lookback.dataloading.layout import LayoutOptions
from lookback.formats.description import MATERIALISED


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions(LayoutOptions):
    """What every such layout can be told."""

    test_negatives: int = option(
        1,
        help="Negatives for each positive in evaluation",
        at_least=1,
        unserved={MATERIALISED: "bring their negatives along"},
    )
    full_catalogue: bool = option(
        False,
        help="Rank the held-out item among all items that the user has not met, too (flag)",
        unserved={MATERIALISED: "hold no catalogue"},
    )
    topk: int = option(
        10,
        scope="training",
        help="K of HR@K and NDCG@K where --metrics names none",
        at_least=1,
        unserved={MATERIALISED: "hold no rankings"},
    )
    repeatable: bool = option(
        False,
        help="Draw the same training negatives in every epoch, not fresh ones (flag)",
        continued=True,
        unserved={MATERIALISED: "bring their negatives along"},
    )
