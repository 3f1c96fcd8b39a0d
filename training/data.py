"""Opens the dataset of a run as a source of batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lookback.core.errors import UserError
from lookback.core.world import SOLO, World
from lookback.dataloading.histories.materialised import MaterialisedDataset
from lookback.dataloading.histories.resident import Histories, ItemCounts, read_dataset_info
from lookback.dataloading.histories.windows import WindowConfig
from lookback.dataloading.interactions.source import InteractionSource
from lookback.dataloading.parts import WHOLE, Part
from lookback.dataloading.sources import (
    BatchSource,
    MaterialisedSource,
    ResidentSource,
    is_materialised,
)
from lookback.dataloading.tabular.source import TabularSource, is_tabular_data, open_tabular
from lookback.formats.features import table_rows
from lookback.formats.split_binary import is_split_binary
from lookback.formats.tabular_parquet import read_description
from lookback.formats.tabular_schema import is_tabular
from lookback.training.config import RunConfig

CONTINUED = (
    *("seed", "global_batch_size", "drop_remainder", "repeat_count"),
    *("negatives", "repeatable", "optimizer", "lr", "weight_decay", "amp", "xla"),
    *("shard_histories", "micro_batches", "wire_dtype", "gradient_wire_dtype"),
    *("warmup_steps", "warmup_factor", "decay_start_step", "decay_steps", "decay_power"),
    *("decay_end_lr", "loss_scale", "dataset_subset", "shuffle_batch_order"),
    *("negative_samples", "exact_negatives", "grads_accumulated"),
    *("beta1", "beta2", "eps"),
)
"""Options that a continued run must share with its beginning to end where it would have."""

_HISTORIES_ONLY = (
    *("negatives", "test_negatives", "repeatable", "shard_histories", "number_of_user_features"),
)
_TABULAR_ONLY = ("dataset_subset", "shuffle_batch_order")

_INTERACTIONS_ONLY = (
    *("negative_samples", "exact_negatives", "full_catalogue", "topk", "threshold"),
)

_STORAGE = ("embedding_type",)
"""Options of models that say how weights lie in memory; a checkpoint does not know it."""

_CONTENT = {"histories": "histories", "tabular": "rows of numbers and ids (tabular data)"}
"""What directories hold, in words."""

_READ_BY = {"histories": "histories", "interactions": "histories", "tabular": "tabular"}
"""What each layout reads."""


class Options(Protocol):
    """What a model's options say about its batches; all but `layout` for histories only."""

    @property
    def layout(self) -> str:
        """What it makes of its data: "histories", "interactions" or "tabular"."""

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


def open_source(run: RunConfig, options: Options, world: World = SOLO) -> BatchSource:
    """Opens `run.dataset_dir`, in the layout that the model reads.

    Args:
      run: its seed chosen.
      options: of the model.
      world: the processes that train together; each opens its part.

    Raises:
      UserError: if the directory is no dataset, or does not suit the model or the options.
    """
    if run.seed is None:
        raise ValueError("The run's seed must be chosen before its data is opened.")
    found = "tabular" if is_tabular_data(run.dataset_dir) else "histories"
    wanted = _READ_BY[options.layout]
    if found != wanted:
        raise UserError(
            f"model_type: {run.model_type} reads {_CONTENT[wanted]}, and "
            f"{run.dataset_dir} holds {_CONTENT[found]}. Choose another model or dataset."
        )
    cuts, left = divmod(run.parts(world.size) or world.size, world.size)
    if left:
        raise UserError(
            f"micro_batches: expected a multiple of the {world.size} processes, received "
            f"{run.micro_batches}."
        )
    shared: dict[str, Any] = {
        "seed": run.seed,
        "batch_size": run.update_batch_size,
        "eval_batch_size": run.valid_batch_size or run.global_batch_size,
        "drop_remainder": run.drop_remainder,
        "repeat_count": run.repeat_count or 1,
        "part": Part(world.rank, world.size),
        "micro_batches": cuts,
    }
    if options.layout == "interactions":
        return _open_interactions(run, shared)
    _check_defaults(run, _INTERACTIONS_ONLY, f"{run.model_type} does not rank users' items")
    if options.layout == "tabular":
        return _open_tabular(run, shared)
    _check_defaults(run, _TABULAR_ONLY, "histories are always shuffled, and used whole")
    if is_materialised(run.dataset_dir):
        return _open_materialised(run, options, shared)
    return _open_histories(run, options, world, shared)


def open_benchmark_sources(
    run: RunConfig, options: Options, world: World = SOLO
) -> dict[int, BatchSource]:
    """The dataset in batches of each size that `--mode inference_benchmark` measures.

    Args:
      run: its seed chosen.
      options: of the model.
      world: the processes that run together.
    """
    # Batches of training, which nobody asks for, keep the size that can be had of them.
    return {
        size: open_source(dataclasses.replace(run, valid_batch_size=size), options, world)
        for size in run.inference_benchmark_batch_sizes
    }


def _open_interactions(run: RunConfig, shared: Mapping[str, Any]) -> BatchSource:
    """Pairs of user and item, of everybody's histories."""
    _check_defaults(run, _TABULAR_ONLY, "positives are always shuffled, and used whole")
    names = ("negatives", "shard_histories", "number_of_user_features")
    _check_defaults(run, names, f"{run.model_type} knows no histories, and draws items uniformly")
    _check_defaults(run, ("auc_threshold",), "rankings have no AUC; --threshold is that of HR@K")
    if is_materialised(run.dataset_dir):
        raise UserError(
            f"model_type: {run.model_type} draws its own negatives, and {run.dataset_dir} holds "
            "materialised samples. Use a dataset that `python -m workflows run` wrote."
        )
    return InteractionSource(
        Histories.load(run.dataset_dir),
        **shared,
        negative_samples=run.negative_samples,
        exact_negatives=run.exact_negatives,
        repeatable=run.repeatable,
        test_negatives=run.test_negatives,
        full_catalogue=run.full_catalogue,
    )


def _open_tabular(run: RunConfig, shared: Mapping[str, Any]) -> BatchSource:
    """Rows of numbers and ids, in our layout or in seed 002's."""
    _check_defaults(run, _HISTORIES_ONLY, "tabular data has one label a row and no histories")
    return TabularSource(
        open_tabular(run.dataset_dir),
        **shared,
        prefetch_train=run.prefetch_train_size,
        prefetch_test=run.prefetch_test_size,
        shuffle=run.shuffle_batch_order,
        subset=run.dataset_subset,
    )


def _open_materialised(run: RunConfig, options: Options, shared: Mapping[str, Any]) -> BatchSource:
    """Samples with their histories, one label a row."""
    _check_materialised(run, options)
    dataset = MaterialisedDataset(
        run.dataset_dir,
        user_features=run.number_of_user_features,
        max_seq_length=options.max_seq_length,
        long_seq_length=options.long_seq_length,
    )
    return MaterialisedSource(
        dataset,
        **shared,
        auxiliary_negatives=options.auxiliary_negatives,
        prefetch_train=run.prefetch_train_size,
        prefetch_test=run.prefetch_test_size,
    )


def _open_histories(
    run: RunConfig, options: Options, world: World, shared: Mapping[str, Any]
) -> BatchSource:
    """Everybody's histories, or with `--shard_histories` those of this process's users."""
    if run.global_batch_size % 2:
        raise UserError(
            "global_batch_size: expected an even number of at least 2 (each training sample is a "
            f"positive row and a negative one), received {run.global_batch_size}."
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
    histories = Histories.load(run.dataset_dir, shared["part"] if own_users else WHOLE)
    return ResidentSource(
        histories,
        windows,
        **shared,
        test_negatives=run.test_negatives,
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


def _check_materialised(run: RunConfig, options: Options) -> None:
    """Refuses options that only histories can serve, rather than to ignore them."""
    if options.time_features:
        raise UserError(
            "time_features: materialised samples have no timestamps. Leave --time_features out."
        )
    names = ("negatives", "test_negatives", "repeatable")
    _check_defaults(run, names, "materialised samples bring their negatives along")
    if run.shard_histories:
        raise UserError(
            "shard_histories: materialised samples hold no histories. Leave --shard_histories out."
        )
    if run.eval_split != "test":
        raise UserError(
            f"eval_split: materialised samples have train and test, received {run.eval_split}."
        )


def _check_defaults(run: RunConfig, names: Sequence[str], reason: str) -> None:
    """Refuses options that would have no effect."""
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    for name in names:
        if getattr(run, name) != defaults[name]:
            raise UserError(f"{name}: {reason}. Leave --{name} out.")


def model_identity(run: RunConfig, options: dict[str, Any], source: BatchSource) -> dict[str, Any]:
    """What a checkpoint must agree on to be used: the model, its options, its tables."""
    told = {name: value for name, value in options.items() if name not in _STORAGE}
    return {"model_type": run.model_type, **told, "tables": table_rows(source.schema)}


def run_identity(run: RunConfig, ranks: int = 1) -> dict[str, Any]:
    """What a checkpoint must agree on to be continued: the order of the data, and the update.

    Args:
      run: its seed chosen.
      ranks: how many processes train together; it counts where they divide the users.
    """
    content: Any
    if is_materialised(run.dataset_dir):
        content = _sizes(run.dataset_dir, "*/*.parquet")
    elif is_tabular(run.dataset_dir):
        content = read_description(run.dataset_dir)["content_hash"]
    elif is_split_binary(run.dataset_dir):
        content = _sizes(run.dataset_dir, "*/*.bin")
    else:
        content = read_dataset_info(run.dataset_dir)["content_hash"]
    shared = {"ranks": ranks} if run.shard_histories else {}
    return {"dataset": content, **shared, **{name: getattr(run, name) for name in CONTINUED}}


def _sizes(directory: Path, pattern: str) -> dict[str, int]:
    """Sizes of files by name: what there is to tell data without a hash of its content apart."""
    return {
        str(f.relative_to(directory)): f.stat().st_size for f in sorted(directory.glob(pattern))
    }
