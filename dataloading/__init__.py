"""From parquet and schema to batches: sources, by layout."""

from __future__ import annotations

from pathlib import Path

from lookback.core.errors import UserError
from lookback.dataloading.histories.layout import HistoriesLayout
from lookback.dataloading.interactions.layout import InteractionsLayout
from lookback.dataloading.layout import Layout
from lookback.dataloading.tabular.layout import TabularLayout
from lookback.formats.dataset_info import read_info
from lookback.formats.description import is_split_binary

LAYOUTS: dict[str, Layout] = {
    "histories": HistoriesLayout(),
    "interactions": InteractionsLayout(),
    "tabular": TabularLayout(),
}


def require_data(layout: str, directory: Path, model_type: str) -> None:
    """Refuses a directory without data of a layout, before libraries are imported to read it.

    Args:
      layout: a key of `LAYOUTS`.
      directory: of the dataset.
      model_type: the model that reads it, for the error.

    Raises:
      UserError: saying what is there instead.
    """
    if LAYOUTS[layout].found_in(directory) is not None:
        return
    if is_split_binary(directory):  # or TFRecord files, and so on: the specification may say either
        raise UserError(
            f"model_type: {model_type} reads {LAYOUTS[layout].reads}, and {directory} holds files "
            "of NVIDIA's recipes (feature_spec.yaml). If they are samples of histories, `python -m "
            f"workflows import-feature-spec {directory} --output DATASET` makes a dataset of them. "
            "Or: Choose another model or dataset."
        )
    for found in filter(None, (other.found_in(directory) for other in LAYOUTS.values())):
        raise UserError(
            f"model_type: {model_type} reads {LAYOUTS[layout].reads}, and {directory} holds "
            f"{found}. Choose another model or dataset."
        )
    read_info(directory)  # which says what is wrong with it
