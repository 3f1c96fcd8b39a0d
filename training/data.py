"""Opens the dataset of a run as a source of batches."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from dataloading.features import table_rows
from dataloading.histories import Histories, read_dataset_info
from dataloading.materialised import MaterialisedDataset
from dataloading.sources import BatchSource, MaterialisedSource, ResidentSource, is_materialised
from dataloading.windows import WindowConfig
from errors import UserError
from training.config import RunConfig

CONTINUED = (
    *("seed", "global_batch_size", "drop_remainder", "repeat_count"),
    *("negatives", "repeatable", "optimizer", "lr", "weight_decay", "amp", "xla"),
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


def open_source(run: RunConfig, options: WindowOptions) -> BatchSource:
    """Opens `run.dataset_dir`, of either kind.

    Args:
      run: its seed chosen.
      options: of the model.

    Raises:
      UserError: if the directory is no dataset, or does not suit the options.
    """
    if run.seed is None:
        raise ValueError("The run's seed must be chosen before its data is opened.")
    repeats = run.repeat_count or 1
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
        )
    windows = WindowConfig(
        max_seq_length=options.max_seq_length,
        long_seq_length=options.long_seq_length,
        negatives=run.negatives,
        auxiliary_negatives=options.auxiliary_negatives,
        time_features=options.time_features,
        repeatable=run.repeatable,
    )
    return ResidentSource(
        Histories.load(run.dataset_dir),
        windows,
        seed=run.seed,
        batch_size=run.global_batch_size,
        drop_remainder=run.drop_remainder,
        repeat_count=repeats,
        test_negatives=run.test_negatives,
    )


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
    if run.eval_split != "test":
        raise UserError(
            f"eval_split: materialised samples have train and test, received {run.eval_split}."
        )


def model_identity(run: RunConfig, options: dict[str, Any], source: BatchSource) -> dict[str, Any]:
    """What a checkpoint must agree on to be used: the model, its options, its tables."""
    return {"model_type": run.model_type, **options, "tables": table_rows(source.schema)}


def run_identity(run: RunConfig, source: BatchSource) -> dict[str, Any]:
    """What a checkpoint must agree on to be continued: the order of the data, and the update."""
    content: Any
    if is_materialised(run.dataset_dir):
        files = sorted(run.dataset_dir.glob("*/*.parquet"))
        content = {str(f.relative_to(run.dataset_dir)): f.stat().st_size for f in files}
    else:
        content = read_dataset_info(run.dataset_dir)["content_hash"]
    return {"dataset": content, **{name: getattr(run, name) for name in CONTINUED}}
