"""Opens the dataset of a run as a source of batches, in the layout that its model reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lookback.checkpoints.store import Checkpoint
from lookback.core.errors import UserError
from lookback.core.manifests import SIZES, Verification
from lookback.core.options import continued, options_of
from lookback.core.world import SOLO, World, agree
from lookback.dataloading import LAYOUTS, require_data
from lookback.dataloading.layout import BatchOptions, LayoutOptions
from lookback.dataloading.parts import Part
from lookback.dataloading.sources import BatchSource
from lookback.formats.dataset_info import SPLITS, VOCABULARIES
from lookback.formats.features import table_rows
from lookback.formats.verification import unverified, verify_dataset
from lookback.models import MODELS
from lookback.training.config import RunConfig
from lookback.training.evaluation.splits import reads


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
      UserError: if the directory is no dataset, is damaged, or does not suit the model or the
        options.
    """
    layout = LAYOUTS[options.layout]
    require_data(options.layout, run.dataset_dir, run.model_type)
    if not run.no_verify and layout.found_in(run.dataset_dir) is not None:
        # Of the splits that the run does not read, names and sizes are compared when it is opened.
        share, unread = Verification(rank=world.rank, ranks=world.size), set(SPLITS) - reads(run)
        agree(world, lambda: verify_dataset(run.dataset_dir, share, unread=unread))
    return layout.open(run.dataset_dir, _batches(run, world), data, options, world)


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
    # Batches of training, which nobody asks for, keep the size that can be had of them. The run
    # has verified the data already.
    run = dataclasses.replace(run, no_verify=True)
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
        verification=SIZES,  # the digests are compared above, shared among the processes
    )


def model_identity(run: RunConfig, options: dict[str, Any], source: BatchSource) -> dict[str, Any]:
    """What a checkpoint must agree on to be used: the model, its options, its tables."""
    told = dict(options)
    for name, found in options_of(MODELS[run.model_type].config_class).items():
        if found.storage or (found.younger and options.get(name) == found.default):
            told.pop(name, None)
    return {"model_type": run.model_type, **told, "tables": table_rows(source.schema)}


def notes_on_data(
    run: RunConfig,
    options: Any,
    source: BatchSource,
    vocabularies: Mapping[str, str],
    checkpoint: Checkpoint | None,
) -> list[str]:
    """What a run cannot know of its data, and what its batches lack, in a line each.

    Args:
      run: its options.
      options: of the model.
      source: of its batches.
      vocabularies: what the ids of its data stand for.
      checkpoint: that is loaded, if one is.

    Raises:
      UserError: if it is not the data of the checkpoint; see `compare_vocabularies`.
    """
    notes = [unverified(run.dataset_dir, no_verify=run.no_verify)]
    if unread := LAYOUTS[options.layout].unread(run.dataset_dir, options):
        notes.append(f"features: {', '.join(unread)} of the dataset are not read")
    if checkpoint is not None:
        notes.append(compare_vocabularies(run.dataset_dir, vocabularies, checkpoint))
    if run.mode == "train":
        notes += source.notes
    return [note for note in notes if note is not None]


def compare_vocabularies(
    dataset_dir: Path, own: Mapping[str, str], checkpoint: Checkpoint
) -> str | None:
    """Compares what ids stand for in a dataset and in that of a checkpoint.

    Args:
      dataset_dir: of the dataset.
      own: its vocabularies.
      checkpoint: that is continued, or whose model is used.

    Returns:
      That they cannot be compared, in a line; None if they were, or neither has a vocabulary.

    Raises:
      UserError: naming the columns whose ids stand for other values.
    """
    trained: Mapping[str, str] = checkpoint.meta.get(VOCABULARIES, {})
    differing = [name for name in own if name in trained and own[name] != trained[name]]
    if differing:
        raise UserError(
            f"The ids of {', '.join(differing)} in {dataset_dir} stand for other values than in "
            f"the dataset that the checkpoint {checkpoint.path} was trained on: another fit "
            "numbered them. Give that dataset, or write this one anew with its workflow: "
            "`python -m workflows transform --workflow DATASET`."
        )
    without = [name for name in {**own, **trained} if name not in own or name not in trained]
    if not without:
        return None
    who = f"the checkpoint {checkpoint.path}" if without[0] in own else str(dataset_dir)
    return (
        f"warning: {who} does not say which values the ids of {', '.join(without)} stand for (an "
        "earlier version wrote it, or it has no vocabularies), so whether they are those of the "
        "training cannot be compared."
    )


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
