"""From parquet and schema to batches: sources, by layout."""

from __future__ import annotations

from lookback.dataloading.histories.layout import HistoriesLayout
from lookback.dataloading.interactions.layout import InteractionsLayout
from lookback.dataloading.layout import Layout
from lookback.dataloading.tabular.layout import TabularLayout

LAYOUTS: dict[str, Layout] = {
    "histories": HistoriesLayout(),
    "interactions": InteractionsLayout(),
    "tabular": TabularLayout(),
}
