"""Opens the dataset of a run as a source of batches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Protocol

from dataloading.features import table_rows
from dataloading.histories import Histories, ItemCounts, read_dataset_info
from dataloading.materialised import MaterialisedDataset
from dataloading.parts import WHOLE, Part
from dataloading.sources import BatchSource, MaterialisedSource, ResidentSource, is_materialised
from dataloading.windows import WindowConfig
from errors import UserError
from training.config import RunConfig
from training.world import SOLO, World

CONTINUED = (
    *("seed", "global_batch_size", "drop_remainder", "repeat_count"),
    *("negatives", "repeatable", "optimizer", "lr", "weight_decay", "amp", "xla"),
    *("shard_histories", "micro_batches", "wire_dtype", "gradient_wire_dtype"),
)
"""Options that a continued run must share with its beginning to end where it would have."""


class WindowOptions(Protocol):
    """What a model's options say about its batches."""

    @property
    def max_seq_length(self) -> int:
        """History slots (T)."""

    @property
    def long_seq_length(self) -> int:
        """Slots of the long history."""

    @property
    def time_features(self) -> bool:
        """Whether the model reads time gaps."""

    @property
    def auxiliary_negatives(self) -> bool:
        """Whether training needs a negative for each short slot."""


def open_source(run: RunConfig, options: WindowOptions, world: World = SOLO) -> BatchSource:
    """Opens `run.dataset_dir`, of either kind.

    Args:
      run: its seed chosen.
      options: of the model.
      world: the processes that train together; each opens its part.

    Raises:
      UserError: if the directory is no dataset, or does not suit the options.
    """
    if run.seed is None:
        raise ValueError("The run's seed must be chosen before its data is opened.")
    repeats, part = run.repeat_count or 1, Part(world.rank, world.size)
    cuts, left = divmod(run.micro_batches or world.size, world.size)
    if left:
        raise UserError(
            f"micro_batches: expected a multiple of the {world.size} processes, received "
            f"{run.micro_batches}."
        )
    if is_materialised(run.dataset_dir):
        _check_materialised(run, options)
        dataset = MaterialisedDataset(
            run.dataset_dir,
            user_features=run.number_of_user_features,
            max_seq_length=options.max_seq_length,
            long_seq_length=options.long_seq_length,
        )
        return MaterialisedSource(
            dataset,
            seed=run.seed,
            batch_size=run.global_batch_size,
            drop_remainder=run.drop_remainder,
            repeat_count=repeats,
            auxiliary_negatives=options.auxiliary_negatives,
            prefetch_train=run.prefetch_train_size,
            prefetch_test=run.prefetch_test_size,
            part=part,
            micro_batches=cuts,
        )
    windows = WindowConfig(
        max_seq_length=options.max_seq_length,
        long_seq_length=options.long_seq_length,
        negatives=run.negatives,
        auxiliary_negatives=options.auxiliary_negatives,
        time_features=options.time_features,
        repeatable=run.repeatable,
    )
    own_users = run.shard_histories and world.size > 1
    histories = Histories.load(run.dataset_dir, part if own_users else WHOLE)
    return ResidentSource(
        histories,
        windows,
        seed=run.seed,
        batch_size=run.global_batch_size,
        drop_remainder=run.drop_remainder,
        repeat_count=repeats,
        test_negatives=run.test_negatives,
        part=part,
        micro_batches=cuts,
        counts=_counts_of_all(histories, world) if own_users else None,
        most=functools.partial(_largest, world),
    )


def _largest(world: World, number: int) -> int:
    largest: int = max(world.gather(number))
    return largest


def _counts_of_all(histories: Histories, world: World) -> ItemCounts:
    """How often items occur among all processes' events."""
    import tensorflow as tf

    own = histories.item_counts()
    training, every = world.sum([tf.constant(own.training), tf.constant(own.all)])
    return ItemCounts(training.numpy(), every.numpy())


def _check_materialised(run: RunConfig, options: WindowOptions) -> None:
    """Refuses options that only histories can serve, rather than to ignore them."""
    if options.time_features:
        raise UserError(
            "time_features: materialised samples have no timestamps. Leave --time_features out."
        )
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    for name in ("negatives", "test_negatives", "repeatable"):
        if getattr(run, name) != defaults[name]:
            raise UserError(
                f"{name}: materialised samples bring their negatives along. Leave --{name} out."
            )
    if run.shard_histories:
        raise UserError(
            "shard_histories: materialised samples hold no histories. Leave --shard_histories out."
        )
    if run.eval_split != "test":
        raise UserError(
            f"eval_split: materialised samples have train and test, received {run.eval_split}."
        )


def model_identity(run: RunConfig, options: dict[str, Any], source: BatchSource) -> dict[str, Any]:
    """What a checkpoint must agree on to be used: the model, its options, its tables."""
    return {"model_type": run.model_type, **options, "tables": table_rows(source.schema)}


def run_identity(run: RunConfig, ranks: int = 1) -> dict[str, Any]:
    """What a checkpoint must agree on to be continued: the order of the data, and the update.

    Args:
      run: its seed chosen.
      ranks: how many processes train together; it counts where they divide the users.
    """
    content: Any
    if is_materialised(run.dataset_dir):
        files = sorted(run.dataset_dir.glob("*/*.parquet"))
        content = {str(f.relative_to(run.dataset_dir)): f.stat().st_size for f in files}
    else:
        content = read_dataset_info(run.dataset_dir)["content_hash"]
    shared = {"ranks": ranks} if run.shard_histories else {}
    return {"dataset": content, **shared, **{name: getattr(run, name) for name in CONTINUED}}
