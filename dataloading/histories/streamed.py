"""Batches of histories that memory does not hold: windows over blocks of users, one after another.

What the graph is given are the events of a batch, ``[B, T]``: `WindowBuilder` gathers them on the
host, in a thread that is a batch ahead, from the blocks that are held (docs/decisions/0025).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lookback.core.devices import HOST
from lookback.dataloading.draws import shuffled
from lookback.dataloading.evaluations import EvaluationPass, LeftOut, require_samples
from lookback.dataloading.histories.blocks import Blocks, BlockTable
from lookback.dataloading.histories.rankings import competing
from lookback.dataloading.histories.splits import Int64
from lookback.dataloading.histories.streams import (
    NOBODY,
    HeldStretches,
    Stream,
    StretchSamples,
    owners_of,
    room_of,
    stretches_of,
)
from lookback.dataloading.histories.windows import Trained, WindowBuilder, WindowConfig
from lookback.dataloading.parts import WHOLE, Part
from lookback.dataloading.sources import Batch, BatchSource, WeightedBatch

_TRAINING = "training"
"""A purpose; the others are splits."""
_TOGETHER = 8192
"""Samples that are gathered at a time, those of several small batches: for each stretch that they
are in, a call costs about 1 ms of CPU, whatever it gathers (benchmarks streamed_histories)."""
_FEWEST_USERS = 0.2
"""Users of a window for each target of a batch, below which it is said that they are few: with 0.07
of MovieLens-100k AUC fell, with 0.21 it did not (docs/decisions/0025)."""


class Filled(NamedTuple):
    """A batch in tensors of one size, so that no shape is new to a graph; others may share them.

    Attributes:
      features: ``[M, ...]`` by name; of a training batch M is its targets, all processes' together,
        times the batches that are gathered at a time.
      labels: ``[M, C]``.
      numbers: of the samples, int64 ``[M]``.
      users: numbers of their users, int64 ``[M]``.
      rows: int64 ``[2]``: the first of the M that count, and that behind the last.
    """

    features: dict[str, tf.Tensor]
    labels: tf.Tensor
    numbers: tf.Tensor
    users: tf.Tensor
    rows: tf.Tensor

    def cut(self) -> Batch:
        """Features and labels of the rows that count."""
        with tf.device(HOST):  # a device that is not the host gets these rows alone
            begin, end = tf.unstack(self.rows)
            return {n: v[begin:end] for n, v in self.features.items()}, self.labels[begin:end]


class StreamedSource(BatchSource):
    """Windows over histories that stream, with drawn negatives or with impressions' own labels."""

    def __init__(
        self,
        blocks: Blocks,
        table: BlockTable,
        config: WindowConfig,
        memory: int,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int | None = None,
        eval_seed: int = 0,
        test_negatives: int = 1,
        topk: int = 10,
        drop_remainder: bool = False,
        repeat_count: int = 1,
        part: Part = WHOLE,
        micro_batches: int = 1,
    ) -> None:
        """Makes batches of a dataset.

        Args:
          blocks: of the dataset.
          table: what they have.
          config: what a window holds.
          memory: bytes of the histories that all processes hold together.
          seed: as of `ResidentSource`, like all that follows.
          batch_size: likewise.
          eval_batch_size: likewise.
          eval_seed: likewise.
          test_negatives: likewise.
          topk: likewise.
          drop_remainder: likewise.
          repeat_count: likewise.
          part: likewise.
          micro_batches: likewise; more than 1 for one process alone.

        Raises:
          UserError: if memory is too little, or there is nothing to train on.
        """
        self.schema = blocks.nobody.schema
        self._features = blocks.nobody.features
        with tf.device(HOST):
            self._windows = WindowBuilder(blocks.nobody, config, table.counts)
        self._blocks, self._table = blocks, table
        self._seed, self._eval_seed = seed, eval_seed
        self._test_negatives, self._topk = test_negatives, topk
        self._part, self._micro_batches = part, micro_batches
        self._repeat_count = repeat_count
        trained = Trained(
            int(table.samples["train"].sum()),
            table.left_out["train"].unknown_targets,
            table.longest,
        )
        self._steps = self._windows.train_steps(batch_size, drop_remainder, trained)
        self._batch = self._windows.training_targets(batch_size)
        rows = -(-(batch_size if eval_batch_size is None else eval_batch_size) // part.ranks)
        self._eval_batch = self._windows.evaluation_targets(rows, test_negatives)
        self._room = room_of(table.bytes, memory, part.ranks)
        self._held = HeldStretches(self._load, self._room.most)
        self._compiled: dict[str, Any] = {}

    def _load(self, blocks: tuple[int, ...]) -> dict[str, Any]:
        with tf.device(HOST):
            return self._windows.over(*self._blocks.joined(list(blocks), self._table)).placed

    def _stream(self, split: str, epoch: int | None) -> Stream:
        """The samples of a split: shuffled as in an epoch, or in order."""
        sizes = self._table.bytes
        order: Int64 = np.arange(len(sizes))
        shuffle = None
        if epoch is not None:
            order = shuffled(self._seed, epoch, tf.constant(order), len(sizes)).numpy()
            shuffle = (self._seed, epoch)
        stretches = stretches_of(order, sizes, self._room.stretch)
        window = 1 if shuffle is None else self._room.window
        samples = self._table.samples[split]
        return Stream(stretches, sizes, samples, self._part, shuffle, window)

    @property
    def notes(self) -> Sequence[str]:
        """That samples are shuffled among few users, which costs accuracy."""
        users, sizes = int(self._table.users[-1]), self._table.bytes
        stretches = len(stretches_of(np.arange(len(sizes)), sizes, self._room.stretch))
        together = users * self._room.window // stretches
        if stretches == 1 or together >= _FEWEST_USERS * self._batch:
            return ()
        return (
            f"warning: history_memory: samples are shuffled among some {together:,} of "
            f"{users:,} users at a time, and a batch has {self._batch:,} targets; so few have cost "
            "accuracy. Give more memory, or a smaller --global_batch_size.",
        )

    @property
    def id_features(self) -> tuple[str, ...]:
        """The first of users and of items."""
        return self._features.ids

    def item_counts(self) -> npt.NDArray[np.int64]:
        """Of all items."""
        return self._blocks.nobody.training_counts(self._table.counts)

    @property
    def grouped(self) -> bool:
        """Each row of a dataset of histories is a user."""
        return True

    def groups(self, split: str, feed: Filled) -> tf.Tensor:
        """Numbers of the users in the dataset."""
        del split
        return feed.users[feed.rows[0] : feed.rows[1]]

    def left_out(self, name: str) -> LeftOut:
        """Targets that are no item, or have no history."""
        return self._table.left_out[name]

    @property
    def held_out(self) -> Sequence[str]:
        """What the workflow held out."""
        return self._windows.held_out

    def both_classes(self, split: str) -> bool:
        """Whether impressions, where they are the targets, have labels of both."""
        return len(self._table.classes[split]) == 2

    def evaluations(self, split: str) -> list[EvaluationPass]:
        """The split among sampled candidates; of explicit labels, nothing is ranked."""
        if self._windows.explicit:
            return [EvaluationPass(split)]
        candidates = 1 + self._test_negatives
        return [EvaluationPass(split, ("binary", "ranking"), self._topk, candidates=candidates)]

    def train_steps(self) -> int:
        """Steps of one epoch, all passes together."""
        return self._steps * self._repeat_count

    def train_feeds(self, epoch: int, first_step: int) -> Iterator[Filled]:
        """Feeds: batches of this process's samples."""
        streams: dict[int, Stream] = {}

        def build(steps: range) -> list[Filled]:
            passes, index = divmod(steps.start, self._steps)
            number = epoch * self._repeat_count + passes
            if number not in streams:
                streams.clear()
                streams[number] = self._stream("train", number)
            steps = range(index, index + len(steps))
            return self._filled(_TRAINING, number, streams[number], steps, self._batch)

        runs = _runs(first_step, self.train_steps(), _at_a_time(self._batch), self._steps)
        return _ahead(build, runs)

    def parts_of(self, feed: Filled) -> Sequence[Filled]:
        """The same tensors, of which other rows count."""
        begin, end = feed.rows.numpy().tolist()
        found = []
        for number in range(self._micro_batches):
            first, behind = WHOLE.cut(number, self._micro_batches).bounds(end - begin)
            rows = tf.constant([begin + first, begin + behind], tf.int64)
            found.append(feed._replace(rows=rows))
        return found

    def eval_steps(self, split: str) -> int:
        """As the contract says; it is known, so that nobody is asked."""
        self._windows.num_samples(split)  # refuses what is no split of the dataset
        samples = self._table.samples[split]
        require_samples(split, int(samples.sum()), self.left_out(split))
        sizes, ranks = self._table.bytes, self._part.ranks
        stretches = stretches_of(np.arange(len(sizes)), sizes, self._room.stretch)
        owners = np.concatenate(owners_of(stretches, sizes, ranks))
        of_ranks = np.bincount(owners, samples[np.concatenate(stretches)], ranks)
        return -(-int(of_ranks.max()) // self._eval_batch)

    def eval_feeds(self, split: str) -> Iterator[Filled]:
        """Feeds: batches of this process's samples, in the order of users."""
        stream = self._stream(split, None)

        def build(steps: range) -> list[Filled]:
            return self._filled(split, 0, stream, steps, self._eval_batch)

        steps = self.eval_steps(split)
        return _ahead(build, _runs(0, steps, _at_a_time(self._eval_batch), steps))

    def _samples(
        self,
        purpose: str,
        placed: dict[str, Any],
        places: tf.Tensor,
        numbers: tf.Tensor,
        epoch: tf.Tensor,
    ) -> tuple[Any, ...]:
        """Features and labels of samples, and the numbers of their users; in the graph.

        Args:
          purpose: training, or the split that is evaluated.
          placed: of the stretch that they are in.
          places: of the samples there, ``[n]``.
          numbers: of the same samples among everybody's, ``[n]``.
          epoch: of training.
        """
        with tf.device(HOST):
            windows = self._windows.over_placed(placed)
            if purpose == _TRAINING:
                batch = windows.train_samples(self._seed, epoch, places, numbers)
                return *batch, windows.users("train", places)
            batch = windows.eval_samples(
                purpose, self._eval_seed, places, numbers, self._test_negatives
            )
            return *batch, windows.users(purpose, places)

    def _made(self, purpose: str, piece: StretchSamples, epoch: int) -> tuple[Any, ...]:
        """What `_samples` gives of a piece."""
        placed = self._held.get(piece.stretch, piece.following)
        given = (
            tf.constant(piece.places),
            tf.constant(piece.numbers),
            tf.constant(epoch, tf.int64),
        )
        if purpose not in self._compiled:
            # Traced once: of windows nothing but the types of their columns is known.
            self._compiled[purpose] = tf.function(
                functools.partial(self._samples, purpose),
                input_signature=[
                    tf.nest.map_structure(lambda of: tf.TensorSpec([None], of.dtype), placed),
                    *(tf.TensorSpec([None] * of.shape.rank, of.dtype) for of in given),
                ],
                autograph=False,
            )
        made: tuple[Any, ...] = self._compiled[purpose](placed, *given)
        return made

    def _filled(
        self, purpose: str, epoch: int, stream: Stream, steps: range, batch: int
    ) -> list[Filled]:
        """The batches of steps that follow each other, gathered together.

        Args:
          purpose: training, or the split that is evaluated.
          epoch: of training.
          stream: of the samples.
          steps: of the stream's pass, as many as are gathered at a time, or fewer.
          batch: samples a step.
        """
        size = batch * _at_a_time(batch)  # M
        edges = batch * np.arange(steps.start, steps.stop + 1)
        nothing = np.zeros(0, np.int64)
        with tf.device(HOST):
            given = list(stream.pieces(int(edges[0]), int(edges[-1])))
            given = given or [StretchSamples(NOBODY, None, nothing, nothing, nothing)]
            made = [self._made(purpose, piece, epoch) for piece in given]
            order = np.concatenate([piece.order for piece in given])
            ascending = tf.constant(np.argsort(order))
            free = size - len(order)

            def filled(*parts: tf.Tensor) -> tf.Tensor:
                values = parts[0]
                if len(parts) > 1:
                    values = tf.gather(tf.concat(parts, 0), ascending)
                if not free:
                    return values
                return tf.pad(values, [[0, free], *[[0, 0]] * (values.shape.rank - 1)])

            features, labels, users = tf.nest.map_structure(filled, *made)
            told = filled(*(tf.constant(piece.numbers) for piece in given))
            rows = np.searchsorted(np.sort(order), edges)
            return [
                Filled(features, labels, told, users, tf.constant(rows[n : n + 2], tf.int64))
                for n in range(len(steps))
            ]

    def train_batch(self, feed: Filled) -> Batch:
        """The rows of the feed that count."""
        return feed.cut()

    def eval_batch(self, split: str, feed: Filled) -> Batch | WeightedBatch:
        """The rows of the feed that count, and where they are ranked, which candidates compete."""
        del split
        features, labels = feed.cut()
        if self._windows.explicit:
            return features, labels
        return features, labels, competing(features[self._features.item[0]])

    def describe(self, feed: Filled) -> dict[str, list[Any]]:
        """Names the batch's samples by number, user, user features and items."""
        features, _ = feed.cut()
        begin, end = feed.rows.numpy().tolist()
        columns = {"sample": feed.numbers[begin:end], "user": feed.users[begin:end]}
        columns |= {name: features[name] for name in self._features.of("user")}
        columns[self._features.item[0]] = features[self._features.item[0]][:, 0]
        return {name: column.numpy().tolist() for name, column in columns.items()}


def _at_a_time(batch: int) -> int:
    """Batches that are gathered together."""
    return max(1, _TOGETHER // batch)


def _runs(first: int, behind: int, most: int, steps: int) -> list[range]:
    """Steps from `first` to before `behind`, at most so many together, those of one pass.

    Args:
      first: likewise.
      behind: likewise.
      most: likewise.
      steps: of a pass.
    """
    runs = []
    while first < behind:
        end = min(first + most, behind, (first // steps + 1) * steps)
        runs.append(range(first, end))
        first = end
    return runs


def _ahead(build: Callable[[range], list[Filled]], runs: Sequence[range]) -> Iterator[Filled]:
    """What `build` makes of runs of steps, each while the one before is used."""
    with ThreadPoolExecutor(1, "batches") as builder:
        coming = [builder.submit(build, run) for run in runs[:1]]
        for number in range(1, len(runs) + 1):
            feeds = coming.pop().result()
            coming += [builder.submit(build, run) for run in runs[number : number + 1]]
            yield from feeds
