"""What scoring does differently for models that read different things, by layout.

A layout is what `type(model.body).config_class.layout` names and a bundle's manifest repeats.
"""

from __future__ import annotations

from collections.abc import Mapping

from lookback.serving.layouts.base import Layout
from lookback.serving.layouts.histories.layout import HistoriesLayout
from lookback.serving.layouts.interactions.layout import InteractionsLayout
from lookback.serving.layouts.tabular.layout import TabularLayout

LAYOUTS: Mapping[str, Layout] = {
    "histories": HistoriesLayout(),
    "tabular": TabularLayout(),
    "interactions": InteractionsLayout(),
}
