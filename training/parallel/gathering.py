"""Puts a model together whose tables lie in several processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from lookback.checkpoints.store import Checkpoint, CheckpointStore, open_checkpoint
from lookback.core.world import World, agree
from lookback.dataloading.sources import BatchSource
from lookback.models.blocks.dropout import ResumableDropout
from lookback.training.state import model_states


def build_variables(model: tf.keras.Model, source: BatchSource) -> None:
    """Creates a model's variables by scoring two histories."""
    features, _ = source.train_batch(next(iter(source.train_feeds(0, 0))))
    model({name: tf.convert_to_tensor(value[:2]) for name, value in features.items()})


def use_streams_of(model: tf.keras.Model, rank: int) -> None:
    """Gives what draws random numbers in a model the streams of a rank."""
    for module in model.submodules:
        if isinstance(module, ResumableDropout):
            module.stream = rank


def with_whole_model(
    model: tf.keras.Model,
    make_local: Callable[[], tf.keras.Model],
    source: BatchSource,
    directory: Path,
    world: World,
    work: Callable[[tf.keras.Model], Any],
) -> None:
    """Does something on rank 0 with a copy of the model that has all tables in one process.

    Rank 0 needs memory for all of them beside its own part.

    Args:
      model: sharded; each rank has its part.
      make_local: builds the same model without sharding.
      source: of batches for the model.
      directory: as of `gathered`.
      world: the ranks, each of which calls this function.
      work: what to do.
    """

    def restore(checkpoint: Checkpoint) -> None:
        whole = make_local()
        build_variables(whole, source)
        checkpoint.require_tensors({n: s.spec for n, s in model_states(whole).items()})
        for name, state in model_states(whole).items():
            state.restore(name, checkpoint)
        work(whole)

    gathered(model, directory, world, restore)


def gathered(
    model: tf.keras.Model, directory: Path, world: World, work: Callable[[Checkpoint], Any]
) -> None:
    """Does something on rank 0 with all weights of a model, which lie in a file for that time.

    Args:
      model: sharded; each rank has its part, and writes it block by block.
      directory: for the file, in a place that all ranks see; created if need be.
      world: the ranks, each of which calls this function.
      work: what to do.
    """

    def prepare() -> str | None:
        if world.rank != 0:
            return None
        directory.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix=".gather-", dir=directory)

    temporary = agree(world, prepare)[0]
    try:
        pieces = {
            name: state.pieces()
            for name, state in model_states(model).items()
            if world.rank == 0 or not state.replicated
        }
        path = CheckpointStore(temporary, world=world).save(0, pieces, {})

        def finish() -> None:
            if world.rank == 0:
                work(open_checkpoint(path, verify=False))

        agree(world, finish)
    finally:
        if world.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
