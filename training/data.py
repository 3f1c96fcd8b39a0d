"""Opens the dataset of a run as a source of batches, in the layout that its model reads."""

from __future__ import annotations

import dataclasses
from typing import Any

from lookback.core.errors import UserError
from lookback.core.options import continued, options_of
from lookback.core.world import SOLO, World
from lookback.dataloading import LAYOUTS, require_data
from lookback.dataloading.layout import BatchOptions, LayoutOptions
from lookback.dataloading.parts import Part
from lookback.dataloading.sources import BatchSource
from lookback.formats.features import table_rows
from lookback.models import MODELS
from lookback.training.config import RunConfig


def open_source(
    run: RunConfig, data: LayoutOptions, options: Any, world: World = SOLO
) -> BatchSource:
    """Opens `run.dataset_dir`, in the layout that the model reads.

    Args:
      run: its seed chosen.
      data: options of the layout.
      options: of the model.
      world: the processes that train together; each opens its part.

    Raises:
      UserError: if the directory is no dataset, or does not suit the model or the options.
    """
    require_data(options.layout, run.dataset_dir, run.model_type)
    return LAYOUTS[options.layout].open(run.dataset_dir, _batches(run, world), data, options, world)


def open_benchmark_sources(
    run: RunConfig, data: LayoutOptions, options: Any, world: World = SOLO
) -> dict[int, BatchSource]:
    """The dataset in batches of each size that `--mode inference_benchmark` measures.

    Args:
      run: its seed chosen.
      data: options of the layout.
      options: of the model.
      world: the processes that run together.
    """
    # Batches of training, which nobody asks for, keep the size that can be had of them.
    return {
        size: open_source(dataclasses.replace(run, valid_batch_size=size), data, options, world)
        for size in run.inference_benchmark_batch_sizes
    }


def _batches(run: RunConfig, world: World) -> BatchOptions:
    """How the run cuts its data, on one of the processes of `world`."""
    if run.seed is None:
        raise ValueError("The run's seed must be chosen before its data is opened.")
    parts = run.parts(world.size)
    if parts is not None and parts % world.size:
        raise UserError(
            f"micro_batches: expected a multiple of the {world.size} processes, received "
            f"{run.micro_batches}."
        )
    return BatchOptions(
        seed=run.seed,
        batch_size=run.update_batch_size,
        eval_batch_size=run.valid_batch_size or run.batch_rows,
        drop_remainder=run.drop_remainder,
        repeat_count=run.repeat_count or 1,
        part=Part(world.rank, world.size),
        micro_batches=None if parts is None else parts // world.size,
    )


def model_identity(run: RunConfig, options: dict[str, Any], source: BatchSource) -> dict[str, Any]:
    """What a checkpoint must agree on to be used: the model, its options, its tables."""
    fields = options_of(MODELS[run.model_type].config_class)
    told = {name: value for name, value in options.items() if not fields[name].storage}
    return {"model_type": run.model_type, **told, "tables": table_rows(source.schema)}


def run_identity(
    run: RunConfig, data: LayoutOptions, options: Any, ranks: int = 1
) -> dict[str, Any]:
    """What a checkpoint must agree on to be continued: the order of the data, and the update.

    Args:
      run: its seed chosen.
      data: options of the layout.
      options: of the model.
      ranks: how many processes train together.
    """
    content = LAYOUTS[options.layout].identity(run.dataset_dir, data, ranks)
    return {**content, **continued(run, data)}
