"""Batches of models over histories: of resident histories, or of materialised samples."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from merlin.schema import Schema

from lookback.core.errors import UserError
from lookback.dataloading.evaluations import (
    CATALOGUE,
    CandidatePieces,
    EvaluationPass,
    LeftOut,
    require_samples,
)
from lookback.dataloading.histories.materialised import MaterialisedDataset
from lookback.dataloading.histories.rankings import CatalogueRankings, competing
from lookback.dataloading.histories.resident import Histories, ItemCounts
from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig
from lookback.dataloading.parts import WHOLE, Part
from lookback.dataloading.sources import Batch, BatchSource, NumberedSource, WeightedBatch
from lookback.formats.features import HistoryFeatures, history_name
from lookback.formats.materialised import SPLITS


class ResidentSource(NumberedSource):
    """Windows over resident histories, with drawn negatives or with impressions' own labels."""

    def __init__(
        self,
        histories: Histories,
        config: WindowConfig,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int | None = None,
        eval_seed: int = 0,
        test_negatives: int = 1,
        full_catalogue: bool = False,
        topk: int = 10,
        drop_remainder: bool = False,
        repeat_count: int = 1,
        part: Part = WHOLE,
        micro_batches: int = 1,
        counts: ItemCounts | None = None,
        gather: Callable[[Any], list[Any]] = lambda told: [told],
    ) -> None:
        """Makes batches of `histories`.

        Args:
          histories: the dataset: everybody's histories, of which each batch is shared among the
            processes, or those of this process's users, which then fill its share alone.
          config: what a window holds.
          seed: of shuffling and training negatives.
          batch_size: rows.
          eval_batch_size: rows in evaluation; None: as many.
          eval_seed: of evaluation's negatives; not the run's, so that runs compare on the same.
          test_negatives: for each positive of evaluation; of explicit labels there are none.
          full_catalogue: rank the positives among all items that the user has not met as well.
          topk: K of the rankings' default figures.
          drop_remainder: leave out a last training batch that is not full.
          repeat_count: passes over the training set in one epoch, each with its own order.
          part: this process's.
          micro_batches: parts into which its share of a training batch can be cut.
          counts: of everybody's items; needed if the histories are not everybody's.
          gather: what all processes say, so that they agree on the steps.
        """
        self.schema = histories.schema
        self._items = histories.features.of("item")
        self._windows = WindowBuilder(histories, config, counts)
        self._count_items = functools.partial(histories.training_counts, counts)
        self._seed, self._eval_seed = seed, eval_seed
        self._test_negatives, self._topk = test_negatives, topk
        self._part, self._gather = part, gather
        self._micro_batches = micro_batches
        self._eval_steps: dict[str, int] = {}
        self._eval_samples: dict[str, int] = {}  # this process's
        if histories.part != WHOLE:
            rows = self._windows.rows
            if batch_size // rows < part.ranks:
                raise UserError(
                    f"global_batch_size: expected at least {rows * part.ranks} rows, "
                    f"{'a positive and its negative' if rows > 1 else 'one'} for each process, "
                    f"received {batch_size}."
                )
            begin, end = part.bounds(batch_size // rows)
            batch_size, self._part = rows * (end - begin), WHOLE
            if eval_batch_size is not None:
                eval_batch_size = -(-eval_batch_size // part.ranks)
        self._batch_size = batch_size
        self._eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self._steps = self._agreed_steps(drop_remainder)
        told = gather(self._windows.left_out("train").counts)
        self._left_out = {"train": LeftOut(*map(sum, zip(*told, strict=True)))}
        self._repeat_count = repeat_count
        self._catalogue = None
        if full_catalogue:
            self._catalogue = CatalogueRankings(histories, self._windows, self._part.ranks)

    def _agreed_steps(self, drop_remainder: bool) -> int:
        """Steps of one pass: those of the process that has most.

        Raises:
          UserError: if no process has a sample, or a whole batch where less than one is dropped.
        """
        try:
            steps, problem = self._windows.train_steps(self._batch_size, drop_remainder), None
        except UserError as error:
            steps, problem = 0, error
        agreed: int = max(self._gather(steps))
        if not agreed and problem is not None:
            raise problem
        return agreed

    @property
    def id_features(self) -> tuple[str, ...]:
        """The first of users and of items."""
        return HistoryFeatures.from_schema(self.schema).ids

    def history_lengths(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """As far as the windows reach."""
        return _history_lengths(self.schema, features)

    def item_counts(self) -> npt.NDArray[np.int64]:
        """Of all items."""
        return self._count_items()

    @property
    def grouped(self) -> bool:
        """Each row of a dataset of histories is a user."""
        return True

    def groups(self, split: str, feed: tf.Tensor) -> tf.Tensor:
        """Numbers of the users in the dataset: all who are unknown have one id, and are many."""
        numbers = self._windows.eval_numbers(
            split, feed, self._eval_batch_size, self._test_negatives, self._part
        )
        return self._windows.users(split, numbers)

    def left_out(self, name: str) -> LeftOut:
        """Targets that are no item, and in the whole catalogue users who cannot be ranked."""
        if name != "train":
            self.eval_steps(name)
        return self._left_out[name]

    @property
    def held_out(self) -> Sequence[str]:
        """What the workflow held out."""
        return self._windows.held_out

    def both_classes(self, split: str) -> bool:
        """Whether impressions, where they are the targets, have labels of both."""
        return len(set(itertools.chain(*self._gather(self._windows.classes(split))))) == 2

    def evaluations(self, split: str) -> list[EvaluationPass]:
        """The split among sampled candidates, and if wanted among the whole catalogue.

        Explicit labels are of one candidate each, so that nothing is ranked.
        """
        if self._windows.explicit:
            return [EvaluationPass(split)]
        sampled = EvaluationPass(
            split, ("binary", "ranking"), self._topk, candidates=1 + self._test_negatives
        )
        if self._catalogue is None:
            return [sampled]
        size, features, items = self._catalogue.pieces, self._items, self._catalogue.items
        pieces = None if size is None else CandidatePieces(features, size)
        name = split + CATALOGUE
        return [sampled, EvaluationPass(name, ("ranking",), self._topk, pieces, items)]

    def eval_steps(self, split: str) -> int:
        """As the contract says."""
        if split not in self._eval_steps:
            if self._catalogue is not None and split.endswith(CATALOGUE):
                samples, left_out = self._catalogue.prepare(split.removesuffix(CATALOGUE))
                steps = -(-samples // self._catalogue.users)
            else:
                samples = self._windows.num_samples(split)
                left_out = self._windows.left_out(split)
                steps = self._windows.eval_steps(split, self._eval_batch_size, self._test_negatives)
            told = zip(*self._gather([steps, samples, *left_out.counts]), strict=True)
            of_rank, total, *reasons = told
            self._left_out[split] = LeftOut(*map(sum, reasons))
            require_samples(split, sum(total), self._left_out[split])
            self._eval_samples[split], self._eval_steps[split] = samples, max(of_rank)
        return self._eval_steps[split]

    def train_batch(self, feed: tf.Tensor) -> Batch:
        """The batch of (pass, step), or a part of it."""
        part, (passes, step) = self._part_of(feed), self._of_feed(feed)
        return self._windows.train_batch(self._seed, passes, step, self._batch_size, part)

    def eval_batch(self, split: str, feed: tf.Tensor) -> Batch | WeightedBatch:
        """The batch of a step, and where it is ranked, which candidates compete."""
        if self._catalogue is not None and split.endswith(CATALOGUE):
            samples = self._eval_samples[split]
            places = self._part.of_batch(feed, self._catalogue.users, samples)
            return self._catalogue.batch(split.removesuffix(CATALOGUE), places)
        features, labels = self._windows.eval_batch(
            split, self._eval_seed, feed, self._eval_batch_size, self._test_negatives, self._part
        )
        if self._windows.explicit:
            return features, labels
        return features, labels, competing(features[self._items[0]])

    def describe(self, feed: tf.Tensor) -> dict[str, list[Any]]:
        """Names the batch's samples by number, user and position."""
        numbers = self._windows.train_numbers(
            self._seed, feed[0], feed[1], self._batch_size, self._part
        )
        return self._windows.describe(numbers)


class MaterialisedSource(BatchSource):
    """Samples that somebody else materialised, one label a row, read with Arrow."""

    def __init__(
        self,
        dataset: MaterialisedDataset,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int | None = None,
        drop_remainder: bool = False,
        repeat_count: int = 1,
        auxiliary_negatives: bool = True,
        prefetch_train: int | None = 10,
        prefetch_test: int | None = 2,
        part: Part = WHOLE,
        micro_batches: int = 1,
    ) -> None:
        """Makes batches of `dataset`.

        Args:
          dataset: to read.
          seed: of shuffling.
          batch_size: rows.
          eval_batch_size: rows in evaluation; None: as many.
          drop_remainder: leave out a last training batch that is not full.
          repeat_count: passes over the training set in one epoch, each with its own order.
          auxiliary_negatives: read the negative histories in training.
          prefetch_train: batches to read ahead in training (default: NVIDIA's); None leaves it
            to the reader.
          prefetch_test: the same in evaluation.
          part: this process's, of each batch.
          micro_batches: parts into which its share of a training batch can be cut.
        """
        self.schema = dataset.schema
        self._users = HistoryFeatures.from_schema(dataset.schema).user
        self._part, self._micro_batches = part, micro_batches
        self._dataset = dataset
        self._seed = seed
        self._batch_size = batch_size
        self._eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
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

    @property
    def id_features(self) -> tuple[str, ...]:
        """The first of users and of items."""
        return HistoryFeatures.from_schema(self.schema).ids

    def history_lengths(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """As far as the windows reach."""
        return _history_lengths(self.schema, features)

    @property
    def grouped(self) -> bool:
        """Whether there is a user feature."""
        return bool(self._users)

    def groups(self, split: str, feed: Any) -> tf.Tensor:
        """The first user feature: here no id stands for several users."""
        features, _ = feed
        return features[self._users[0]]

    def both_classes(self, split: str) -> bool:
        """As the labels on disk are."""
        return self._dataset.both_classes(split)

    def train_steps(self) -> int:
        """Steps of one epoch, all passes together."""
        return self._steps * self._repeat_count

    def train_feeds(self, epoch: int, first_step: int) -> Iterator[Any]:
        """Feeds: arrays of features, and labels."""
        first_pass, skipped = divmod(first_step, self._steps)
        for passes in range(first_pass, self._repeat_count):
            batches = self._dataset.batches(
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
            # Uncut, so that the parts are cut where those of the whole batch would be.
            yield from batches if self._micro_batches > 1 else map(self._share, batches)

    def parts_of(self, feed: Any) -> Sequence[Any]:
        """Feeds as those of `train_feeds`."""
        if self._micro_batches == 1:
            return [feed]  # this process's share already
        parts = [self._part.cut(n, self._micro_batches) for n in range(self._micro_batches)]
        return [_rows_of(feed, part) for part in parts]

    def eval_steps(self, split: str) -> int:
        """Steps that cover a split once.

        Raises:
          UserError: if there is no such split.
        """
        if split not in SPLITS:
            raise UserError(
                f"eval_split: materialised samples have {' and '.join(SPLITS)}, received {split}."
            )
        return -(-self._dataset.num_rows(split) // self._eval_batch_size)

    def eval_feeds(self, split: str) -> Iterator[Any]:
        """Feeds: arrays of features, and labels."""
        batches = self._dataset.batches(
            split, self._eval_batch_size, negatives=False, **self._test_reader
        )
        yield from map(self._share, batches)

    def _share(self, batch: Any) -> Any:
        """The rows of a batch that are this process's."""
        return _rows_of(batch, self._part)

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


def _history_lengths(schema: Schema, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
    items = features[history_name(HistoryFeatures.from_schema(schema).item[0])]  # [B, T]
    return tf.math.count_nonzero(items, 1, dtype=tf.int32)


def _rows_of(batch: Any, part: Part) -> Any:
    features, labels = batch
    begin, end = part.bounds(len(labels))
    return {name: value[begin:end] for name, value in features.items()}, labels[begin:end]


def _reader_options(prefetch: int | None) -> dict[str, Any]:
    return {} if prefetch is None else {"prefetch": prefetch}
