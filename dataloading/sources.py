"""Where a trainer's batches come from: the contract of a source.

Sources hand the trainer *feeds*, which its graph turns into batches with `train_batch` and
`eval_batch`. Where data is resident a feed is a few numbers, and the batch is built in the graph,
on the device that trains.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from merlin.schema import Schema

from lookback.core.devices import HOST
from lookback.dataloading.evaluations import EvaluationPass, LeftOut
from lookback.dataloading.parts import Part

Batch = tuple[dict[str, tf.Tensor], tf.Tensor]
"""Features and labels."""

WeightedBatch = tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]
"""Features, labels, and weights of the labels' shape: 0 for candidates that a ranking leaves out.

Binary metrics count them all the same: they are of pairs, not of who competes."""


def as_tensors(feed: Any) -> Any:
    """A feed's arrays as tensors: what a graph makes of them, for steps that run eagerly."""
    return tf.nest.map_structure(
        lambda value: value if tf.is_tensor(value) else tf.convert_to_tensor(value), feed
    )  # ragged ones are tensors, which that would refuse


class BatchSource(abc.ABC):
    """Batches of one dataset at one batch size, or one process's part of them.

    Graphs call `train_batch`, `eval_batch` and `groups`; whoever makes one asks for the steps of
    what it will read first, and so has whatever they need made outside of it.

    A batch is features (see `formats.features.sample_schema`) and labels ``[B, C]``. All
    processes have the same number of steps; one that has less to do gets empty batches.
    """

    schema: Schema

    @property
    def grouped(self) -> bool:
        """Whether rows belong to users, so that there is a GAUC."""
        return False

    def groups(self, split: str, feed: Any) -> tf.Tensor:
        """Whose the rows of `eval_batch` are: integers ``[B]``, alike for rows of one user."""
        raise ValueError(f"The rows of {split!r} belong to nobody.")

    def left_out(self, name: str) -> LeftOut:
        """What training ("train"), or a pass of an evaluation, says nothing about; of everybody.

        Args:
          name: of the pass, whose steps were asked for.
        """
        del name
        return LeftOut()

    def both_classes(self, split: str) -> bool:
        """Whether a split has rows of both labels; where negatives are drawn, it does."""
        del split
        return True

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know of these batches, in a line each."""
        return ()

    @property
    def id_features(self) -> tuple[str, ...]:
        """The features that say of whom and of what a row is; none where it has no name."""
        return ()

    def history_lengths(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor | None:
        """Events that the history of each row of a batch shows, int32 ``[B]``; None: it has none.

        Args:
          features: of the batch.
        """
        del features
        return None

    def item_counts(self) -> npt.NDArray[np.int64] | None:
        """How often each item, by id, occurs in training among everybody's events; None: unknown.

        Known only where `id_features` end with the item.
        """
        return None

    @property
    def held_out(self) -> Sequence[str]:
        """The splits that are not trained on, of "validation" and "test"."""
        return ("test",)

    @abc.abstractmethod
    def train_steps(self) -> int:
        """Steps of one epoch."""

    @abc.abstractmethod
    def train_feeds(self, epoch: int, first_step: int) -> Iterator[Any]:
        """Feeds of an epoch's steps from `first_step` on, the same for every process start."""

    @abc.abstractmethod
    def parts_of(self, feed: Any) -> Sequence[Any]:
        """Feeds of the parts (micro-batches) into which this process's share of a batch is cut.

        All processes have as many, and together those of the whole batch, in its order.
        """

    def evaluations(self, split: str) -> Sequence[EvaluationPass]:
        """The passes that an evaluation of a split makes: one, over labels and scores."""
        return (EvaluationPass(split),)

    @abc.abstractmethod
    def eval_steps(self, split: str) -> int:
        """Steps that cover a split once. A collective when first asked.

        Raises:
          UserError: if there is no such split, or nothing of it can be evaluated.
        """

    @abc.abstractmethod
    def eval_feeds(self, split: str) -> Iterator[Any]:
        """Feeds of a split's steps, in order."""

    @abc.abstractmethod
    def train_batch(self, feed: Any) -> Batch:
        """Turns a feed into a batch, inside the graph."""

    @abc.abstractmethod
    def eval_batch(self, split: str, feed: Any) -> Batch | WeightedBatch:
        """Turns a feed of `split` into a batch, inside the graph."""

    @abc.abstractmethod
    def describe(self, feed: Any) -> dict[str, list[Any]]:
        """Says which samples a training feed holds: columns of equal length, by name."""


class NumberedSource(BatchSource):
    """A source whose graph builds batches from numbers alone: a feed says which batch it is.

    Subclasses set the steps of one pass, passes an epoch, this process's part of a batch, and into
    how many parts that can be cut.
    """

    _steps: int
    _repeat_count: int
    _part: Part
    _micro_batches: int

    def train_steps(self) -> int:
        """Steps of one epoch, all passes together."""
        return self._steps * self._repeat_count

    def train_feeds(self, epoch: int, first_step: int) -> Iterator[tf.Tensor]:
        """Feeds ``[2]``: the number of the pass over the data, and of the step in it."""
        for step in range(first_step, self.train_steps()):
            passes, index = divmod(step, self._steps)
            with tf.device(HOST):  # which reads it, and must not wait for a device to hand it back
                feed = tf.constant([epoch * self._repeat_count + passes, index], tf.int64)
            yield feed

    def parts_of(self, feed: tf.Tensor) -> Sequence[tf.Tensor]:
        """Feeds ``[3]``: as those of `train_feeds`, and the number of the part."""
        parts = range(self._micro_batches)
        return [tf.concat([feed, [tf.constant(part, tf.int64)]], 0) for part in parts]

    def eval_feeds(self, split: str) -> Iterator[tf.Tensor]:
        """Feeds []: the number of the step."""
        for step in range(self.eval_steps(split)):
            with tf.device(HOST):
                feed = tf.constant(step, tf.int64)
            yield feed

    def _of_feed(self, feed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The number of the pass, and of the step, of a training feed: where they are used."""
        with tf.device(HOST):
            return feed[0], feed[1]

    def _part_of(self, feed: tf.Tensor) -> Part:
        """What a training feed asks for of a batch: this process's part, or a part of that."""
        if feed.shape[0] == 3:
            return self._part.cut(feed[2], self._micro_batches)
        return self._part
