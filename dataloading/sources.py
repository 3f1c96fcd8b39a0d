"""Where a trainer's batches come from: resident histories, or materialised samples.

Both hand the trainer *feeds*, which its graph turns into batches with `train_batch` and
`eval_batch`. For resident histories a feed is two numbers, and the batch is built in the graph, on
the device that trains.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from merlin.schema import Schema

from dataloading.features import HistoryFeatures
from dataloading.histories import Histories
from dataloading.materialised import MaterialisedDataset
from dataloading.windows import WindowBuilder, WindowConfig
from errors import UserError

Batch = tuple[dict[str, tf.Tensor], tf.Tensor]


class BatchSource(abc.ABC):
    """Batches of one dataset at one batch size.

    A batch is features (see `dataloading.features.sample_schema`) and labels ``[B, C]``.
    """

    schema: Schema

    @property
    def group_feature(self) -> str | None:
        """The feature by which GAUC groups rows: the first user feature, None without any."""
        users = HistoryFeatures.from_schema(self.schema).user
        return users[0] if users else None

    @abc.abstractmethod
    def train_steps(self) -> int:
        """Steps of one epoch."""

    @abc.abstractmethod
    def train_feeds(self, epoch: int, first_step: int) -> Iterator[Any]:
        """Feeds of an epoch's steps from `first_step` on, the same for every process start."""

    @abc.abstractmethod
    def eval_steps(self, split: str) -> int:
        """Steps that cover a split once."""

    @abc.abstractmethod
    def eval_feeds(self, split: str) -> Iterator[Any]:
        """Feeds of a split's steps, in order."""

    @abc.abstractmethod
    def train_batch(self, feed: Any) -> Batch:
        """Turns a feed into a batch, inside the graph."""

    @abc.abstractmethod
    def eval_batch(self, split: str, feed: Any) -> Batch:
        """Turns a feed of `split` into a batch, inside the graph."""

    @abc.abstractmethod
    def describe(self, feed: Any) -> dict[str, list[Any]]:
        """Says which samples a training feed holds: columns of equal length, by name."""


class ResidentSource(BatchSource):
    """Windows over resident histories."""

    def __init__(
        self,
        histories: Histories,
        config: WindowConfig,
        *,
        seed: int,
        batch_size: int,
        eval_seed: int = 0,
        test_negatives: int = 1,
        drop_remainder: bool = False,
        repeat_count: int = 1,
    ) -> None:
        """Makes batches of `histories`.

        Args:
          histories: the dataset.
          config: what a window holds.
          seed: of shuffling and training negatives.
          batch_size: rows.
          eval_seed: of evaluation's negatives; not the run's, so that runs compare on the same.
          test_negatives: for each positive of evaluation.
          drop_remainder: leave out a last training batch that is not full.
          repeat_count: passes over the training set in one epoch, each with its own order.
        """
        self.schema = histories.schema
        self._windows = WindowBuilder(histories, config)
        self._seed, self._eval_seed = seed, eval_seed
        self._batch_size = batch_size
        self._test_negatives = test_negatives
        self._steps = self._windows.train_steps(batch_size, drop_remainder)
        self._repeat_count = repeat_count

    def train_steps(self) -> int:
        """Steps of one epoch, all passes together."""
        return self._steps * self._repeat_count

    def train_feeds(self, epoch: int, first_step: int) -> Iterator[tf.Tensor]:
        """Feeds ``[2]``: the number of the pass over the data, and of the step in it."""
        for step in range(first_step, self.train_steps()):
            passes, index = divmod(step, self._steps)
            yield tf.constant([epoch * self._repeat_count + passes, index], tf.int64)

    def eval_steps(self, split: str) -> int:
        """Steps that cover a split once."""
        return self._windows.eval_steps(split, self._batch_size, self._test_negatives)

    def eval_feeds(self, split: str) -> Iterator[tf.Tensor]:
        """Feeds []: the number of the step."""
        for step in range(self.eval_steps(split)):
            yield tf.constant(step, tf.int64)

    def train_batch(self, feed: tf.Tensor) -> Batch:
        """The batch of (pass, step)."""
        return self._windows.train_batch(self._seed, feed[0], feed[1], self._batch_size)

    def eval_batch(self, split: str, feed: tf.Tensor) -> Batch:
        """The batch of a step."""
        return self._windows.eval_batch(
            split, self._eval_seed, feed, self._batch_size, self._test_negatives
        )

    def describe(self, feed: tf.Tensor) -> dict[str, list[Any]]:
        """Names the batch's samples by number, user and position."""
        numbers = self._windows.train_numbers(self._seed, feed[0], feed[1], self._batch_size)
        return self._windows.describe(numbers)


class MaterialisedSource(BatchSource):
    """Samples that somebody else materialised, one label a row, read with Arrow."""

    def __init__(
        self,
        dataset: MaterialisedDataset,
        *,
        seed: int,
        batch_size: int,
        drop_remainder: bool = False,
        repeat_count: int = 1,
        auxiliary_negatives: bool = True,
        prefetch_train: int | None = 10,
        prefetch_test: int | None = 2,
    ) -> None:
        """Makes batches of `dataset`.

        Args:
          dataset: to read.
          seed: of shuffling.
          batch_size: rows.
          drop_remainder: leave out a last training batch that is not full.
          repeat_count: passes over the training set in one epoch, each with its own order.
          auxiliary_negatives: read the negative histories in training.
          prefetch_train: batches to read ahead in training (default: seed 000's); None leaves it
            to the reader.
          prefetch_test: the same in evaluation.
        """
        self.schema = dataset.schema
        self._dataset = dataset
        self._seed = seed
        self._batch_size = batch_size
        self._drop_remainder = drop_remainder
        self._repeat_count = repeat_count
        self._auxiliary_negatives = auxiliary_negatives
        self._train_reader = _reader_options(prefetch_train)
        self._test_reader = _reader_options(prefetch_test)
        rows = dataset.num_rows("train")
        self._steps = rows // batch_size if drop_remainder else -(-rows // batch_size)
        if not self._steps:
            raise UserError(
                f"The training set has {rows} rows, fewer than one batch of {batch_size}. Reduce "
                "--global_batch_size."
            )

    def train_steps(self) -> int:
        """Steps of one epoch, all passes together."""
        return self._steps * self._repeat_count

    def train_feeds(self, epoch: int, first_step: int) -> Iterator[Any]:
        """Feeds: arrays of features, and labels."""
        first_pass, skipped = divmod(first_step, self._steps)
        for passes in range(first_pass, self._repeat_count):
            yield from self._dataset.batches(
                "train",
                self._batch_size,
                seed=self._seed,
                epoch=epoch * self._repeat_count + passes,
                shuffle=True,
                drop_remainder=self._drop_remainder,
                start_step=skipped if passes == first_pass else 0,
                negatives=self._auxiliary_negatives,
                **self._train_reader,
            )

    def eval_steps(self, split: str) -> int:
        """Steps that cover a split once."""
        return -(-self._dataset.num_rows(split) // self._batch_size)

    def eval_feeds(self, split: str) -> Iterator[Any]:
        """Feeds: arrays of features, and labels."""
        yield from self._dataset.batches(
            split, self._batch_size, negatives=False, **self._test_reader
        )

    def train_batch(self, feed: Any) -> Batch:
        """The feed is the batch."""
        return feed

    def describe(self, feed: Any) -> dict[str, list[Any]]:
        """Names the batch's samples by user features and target."""
        features, labels = feed
        roles = HistoryFeatures.from_schema(self.schema)
        columns = {name: features[name].reshape(-1) for name in (*roles.user, *roles.item)}
        columns["label"] = labels.reshape(-1)
        return {name: column.tolist() for name, column in columns.items()}

    def eval_batch(self, split: str, feed: Any) -> Batch:
        """The feed is the batch."""
        del split
        return feed


def _reader_options(prefetch: int | None) -> dict[str, Any]:
    return {} if prefetch is None else {"prefetch": prefetch}


def is_materialised(dataset_dir: Path) -> bool:
    """Whether the directory holds materialised samples rather than histories."""
    return (dataset_dir / "metadata.json").is_file()
