"""The batch size of a run that names none: it follows from the data, or from the run to go on."""

from __future__ import annotations

from lookback.checkpoints.store import Checkpoint
from lookback.dataloading import LAYOUTS, require_data
from lookback.dataloading.layout import LayoutOptions
from lookback.models.model_config import ModelConfig
from lookback.training.config import RunConfig

STEPS_AN_EPOCH = 200
"""That a model learns in: with fewer, Adam's defaults leave it near where it began."""
LEAST_ROWS = 64
"""Of a batch, below which a step costs more than its rows."""
RECIPE = "nvidia"
"""Whose batch size is the largest that is chosen for a model."""
MOST_ROWS = 1 << 17
"""For a model that is from no recipe: SIM's."""


def choose_batch_size(
    run: RunConfig, data: LayoutOptions, options: ModelConfig, checkpoint: Checkpoint | None
) -> tuple[int, str]:
    """The batch size of a run, and a line about the choice ("": it was given).

    Args:
      run: its options.
      data: options of the layout.
      options: of the model.
      checkpoint: that is loaded, if one is.

    Raises:
      UserError: if the dataset does not suit the model, or is none.
    """
    if run.global_batch_size is not None:
        return run.global_batch_size, ""
    of_checkpoint = {} if checkpoint is None else checkpoint.meta.get("run", {})
    size = of_checkpoint.get("global_batch_size")
    if size is not None:
        return int(size), f"global_batch_size {size:,} as in the checkpoint; --global_batch_size N"
    require_data(options.layout, run.dataset_dir, run.model_type)
    rows = LAYOUTS[options.layout].training_rows(run.dataset_dir, data, options)
    size = batch_size_for(rows // run.grads_accumulated, most_rows(options))
    return size, f"global_batch_size {size:,} chosen from {rows:,} rows; --global_batch_size N"


def batch_size_for(rows: int, most: int) -> int:
    """The largest power of two with `STEPS_AN_EPOCH` batches or more, from `LEAST_ROWS` to `most`.

    Args:
      rows: of an epoch.
      most: a power of two.
    """
    fits = max(rows // STEPS_AN_EPOCH, LEAST_ROWS)
    return min(1 << (fits.bit_length() - 1), most)


def most_rows(options: ModelConfig) -> int:
    """The largest batch that is chosen for a model: that of its recipe, if it is from one."""
    rows: int = options.recipes.get(RECIPE, {}).get("global_batch_size", MOST_ROWS)
    return rows
