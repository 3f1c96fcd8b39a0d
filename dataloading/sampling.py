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
    repeatable: bool = option(
        False,
        help="Draw the same training negatives in every epoch, not fresh ones (flag)",
        continued=True,
        unserved={MATERIALISED: "bring their negatives along"},
    )
