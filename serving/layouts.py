"""What scoring does differently for models that read different things, by layout.

A layout is what `type(model.body).config_class.layout` names and a bundle's manifest repeats.
"""

from __future__ import annotations

from collections.abc import Mapping

from serving.history_layout import HistoriesLayout
from serving.interactions_layout import InteractionsLayout
from serving.layout import Layout
from serving.tabular_layout import TabularLayout

LAYOUTS: Mapping[str, Layout] = {
    "histories": HistoriesLayout(),
    "tabular": TabularLayout(),
    "interactions": InteractionsLayout(),
}
