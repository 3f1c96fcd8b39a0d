"""What Lookback is from Python: the public names, which `lookback.__all__` lists.

Each imports what it needs when it is called: TensorFlow takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import merlin.models.tf as mm
    import tensorflow as tf
    from merlin.schema import Schema

    from lookback.serving.bundle import Bundle
    from lookback.training.run import Finished


def load_bundle(path: str | Path, trusted_digest: str | None = None) -> Bundle:
    """Verifies and loads what ``train.py --export_dir`` wrote.

    Its SavedModel is code that scoring runs: see docs/trust.md.

    Args:
      path: of the bundle.
      trusted_digest: SHA-256 that its bundle.json must have; None: any.

    Returns:
      What scores requests (`score`) and ranks items for users (`recommend`).

    Raises:
      UserError: if it is no bundle, another one than is trusted, or damaged; the text names the
        file.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    from lookback.serving.bundle import Bundle

    return Bundle.load(path, trusted_digest)


def load_dataset(path: str | Path, trusted_digest: str | None = None) -> Dataset:
    """Opens a dataset that ``lookback workflows`` wrote, and compares its files with their digests.

    Args:
      path: of the dataset.
      trusted_digest: SHA-256 that its dataset.json must have; None: any.

    Returns:
      The dataset; nothing is read into memory yet.

    Raises:
      UserError: if it is no such dataset, another one than is trusted, or damaged.
    """
    from lookback.formats.dataset_info import read_info
    from lookback.formats.verification import require_trusted, verify_dataset

    directory = Path(path)
    require_trusted(directory, trusted_digest, verified=True)
    info = read_info(directory)
    verify_dataset(directory)
    return Dataset(directory, info)


class Dataset:
    """A dataset on disk.

    Attributes:
      path: its directory.
      info: what its dataset.json says.
    """

    def __init__(self, path: Path, info: Mapping[str, Any]) -> None:
        """See `load_dataset`."""
        self.path, self.info = path, info

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {n:,}" for name, n in self.counts.items() if type(n) is int)
        return f"Dataset({str(self.path)!r}: {counts})"

    @property
    def schema(self) -> Schema:
        """Its columns, with Merlin's tags."""
        from lookback.formats.schema import read_schema

        return read_schema(self.path)

    @property
    def counts(self) -> Mapping[str, Any]:
        """What was counted when it was written: users, events, rows, ... by name."""
        counts: Mapping[str, Any] = self.info.get("counts", {})
        return counts

    @property
    def features(self) -> dict[str, int | None]:
        """The features by name, each with its number of ids; None for a numerical feature."""
        from merlin.schema import Tags

        from lookback.formats.features import table_rows

        numbers = self.schema.select_by_tag(Tags.CONTINUOUS).column_names
        return {**table_rows(self.schema), **dict.fromkeys(numbers)}

    def describe(self) -> None:
        """Prints what `lookback workflows describe` does: columns, counts, split, options."""
        from lookback.core.manifests import SIZES
        from lookback.workflows.describe import describe

        describe(self.path, verification=SIZES)

    def model(self, model_type: str, **options: Any) -> mm.Model:
        """An untrained Merlin model for these columns, for those who call `compile` and `fit`.

        Args:
          model_type: as of `lookback train`.
          **options: likewise.

        Raises:
          UserError: for what `lookback train` would refuse.
        """
        run, _, of_model = self._parsed(model_type, options)
        from lookback.models import MODELS

        return MODELS[run.model_type](self.schema, of_model)

    def to_tf(self, model_type: str, split: str = "train", **options: Any) -> tf.data.Dataset:
        """Batches of a split as `fit` and `evaluate` of a model take them: features and labels.

        What a batch holds depends on the model that reads it: windows of histories of its length,
        negatives that its losses need.

        Args:
          model_type: as of `lookback train`.
          split: "train", "validation" or "test".
          **options: as of `lookback train`, such as ``global_batch_size``, ``max_seq_length``.

        Raises:
          UserError: for what `lookback train` would refuse.
        """
        run, data, of_model = self._parsed(model_type, options)
        from lookback.training.keras_data import keras_data

        return keras_data(run, data, of_model, split)

    def _parsed(self, model_type: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
        """The options of a run, before TensorFlow is imported."""
        from lookback.core.options import from_values
        from lookback.training.process import prepare_environment
        from lookback.training.run import command_line

        given = {"model_type": model_type, "dataset_dir": self.path, **options}
        parsed = from_values(command_line(), **given)
        prepare_environment()
        return parsed


def train(**options: Any) -> Finished:
    """Trains, evaluates or runs a recommender in this process: ``lookback train`` by keyword.

    Example::

        done = lookback.train(model_type="sim", dataset_dir="dataset", export_dir="export")
        done.metrics["test_auc"]

    Args:
      **options: those of ``lookback train --help``, with the same defaults and checks: numbers,
        text, paths, True and False for flags, sequences for several values. ``config`` names a file
        of options that the others take precedence over.

    Returns:
      Its metrics, and where its results, checkpoint and export are.

    Raises:
      UserError: for what can be put right.
    """
    from lookback.core.options import words_by_keyword
    from lookback.serving import export
    from lookback.training import run

    words = words_by_keyword(run.command_line(), options)
    return run.main(words, export, "lookback.train")
