"""What scoring does differently for models that read different things, by layout.

A layout is what `type(model.body).config_class.layout` names and a bundle's manifest repeats.
"""

from __future__ import annotations

from collections.abc import Mapping

from lookback.serving.layouts.base import RequestLayout
from lookback.serving.layouts.histories.layout import HistoryRequestLayout
from lookback.serving.layouts.interactions.layout import InteractionRequestLayout
from lookback.serving.layouts.tabular.layout import TabularRequestLayout

LAYOUTS: Mapping[str, RequestLayout] = {
    "histories": HistoryRequestLayout(),
    "tabular": TabularRequestLayout(),
    "interactions": InteractionRequestLayout(),
}
