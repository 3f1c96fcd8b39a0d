"""Windows over resident histories, built in the graph: a sample is (user, position), no more.

Nothing is materialised. From the number of a sample the graph finds its user and position,
gathers the window before it, pads it on the left and draws negatives. Shuffling is a
pseudo-random permutation evaluated index by index, and negatives come from a counter-based
generator, so that any batch can be rebuilt from (seed, epoch, step) alone.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.dataloading.draws import Without, draw_below, shuffled
from lookback.dataloading.histories.resident import Histories, ItemCounts
from lookback.dataloading.parts import WHOLE, Part
from lookback.formats.features import TIME_GAP, TIME_GAP_BUCKETS, history_name, negatives_name
from lookback.formats.vocabulary import FIRST_KNOWN

NEGATIVES = ("popularity", "uniform")
SPLITS = ("train", "validation", "test")

FeatureTensors = dict[str, tf.Tensor]
Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """What a window holds.

    Attributes:
      max_seq_length: history slots (T); the newest are kept.
      long_seq_length: the first of them form the long sequence, the other S the short one (seed
        000's `long_seq_length`).
      negatives: distribution that negatives are drawn from: "popularity" follows the items'
        frequency (what NVIDIA's preprocessing code does), "uniform" takes every item alike (what
        its text says). As in both, a negative may happen to be an item of the user. Different
        from NVIDIA's: training's popularity counts no held-out event. With them, an item that is
        a test target is a negative more often than a positive in training, and short histories
        learn to reject what they are tested on (Musical Instruments, 5 events and more: SIM's
        test AUC 0.38 with them, 0.49 without).
      auxiliary_negatives: draw one negative for each short slot, for DIEN's auxiliary loss.
      time_features: add log-bucketed gaps between event and target.
      repeatable: the same negatives in every epoch instead of fresh ones.
      min_history: shortest history that training targets have (seed 000's default).
    """

    max_seq_length: int = 100
    long_seq_length: int = 90
    negatives: str = "popularity"
    auxiliary_negatives: bool = True
    time_features: bool = False
    repeatable: bool = False
    min_history: int = 1

    def __post_init__(self) -> None:
        """Validates lengths and the distribution's name."""
        if not 0 <= self.long_seq_length < self.max_seq_length:
            raise UserError(
                f"long_seq_length must be at least 0 and less than max_seq_length, received "
                f"{self.long_seq_length} and {self.max_seq_length}."
            )
        if self.negatives not in NEGATIVES:
            raise UserError(f"negatives must be one of {NEGATIVES}, received {self.negatives!r}.")
        if self.min_history < 1:
            raise UserError(f"min_history must be at least 1, received {self.min_history}.")

    @property
    def short_seq_length(self) -> int:
        """S."""
        return self.max_seq_length - self.long_seq_length


class WindowBuilder:
    """Makes batches from resident histories inside a `tf.function`.

    Batch sizes count rows, one a label: a history with its C candidates makes C rows. Training
    puts each positive and its sampled negative (C = 2) into one history's row of the batch, so
    that a model computes what depends on the history alone once for both.

    The rows of ids that are no item (below `FIRST_KNOWN`: missing, rare, unknown) stay in histories
    as context, and are neither targets nor negatives: they stand for many items at once.
    """

    def __init__(
        self, histories: Histories, config: WindowConfig, counts: ItemCounts | None = None
    ) -> None:
        """Places the histories on the device.

        Args:
          histories: to draw windows from: everybody's, or those of this process's users.
          config: what a window holds.
          counts: how often each item of the catalogue occurs among everybody's events; needed if
            the histories are not everybody's.

        Raises:
          UserError: if time features are wanted from a dataset without timestamps.
        """
        if config.time_features and histories.timestamps is None:
            raise UserError(
                "--time_features needs timestamps, and the dataset has no column tagged TIME."
            )
        self._config = config
        self._split = histories.split
        self._features = histories.features
        item = histories.features.item[0]
        lengths = np.diff(histories.offsets)
        held_out = histories.split.held_out
        histories.require_targets()
        # Targets of training: positions min_history .. length - 1 - held_out of each user.
        targets = np.maximum(lengths - held_out - config.min_history, 0)
        begins = np.cumsum(targets) - targets
        self._longest = int(lengths.max(initial=0))
        self._sample_ends = tf.constant(np.cumsum(targets), tf.int64)
        self._sample_begins = tf.constant(begins, tf.int64)
        self._offsets = tf.constant(histories.offsets, tf.int64)
        self._users = {n: tf.constant(v) for n, v in histories.user_features.items()}
        self._items = {n: tf.constant(v) for n, v in histories.item_features.items()}
        self._times = tf.constant(histories.timestamps) if config.time_features else None
        unknown = np.flatnonzero(histories.item_features[item] < FIRST_KNOWN)
        user = np.searchsorted(histories.offsets, unknown, "right") - 1
        position = unknown - histories.offsets[user]
        in_training = position < (lengths - held_out)[user]
        target = in_training & (position >= config.min_history)
        self._samples = Without((begins[user] + position - config.min_history)[target])
        # Users whose held-out item is one, by split.
        self._judged: dict[str, tf.Tensor] = {}
        for split, back in (("validation", held_out), ("test", 1)):
            ids = histories.item_features[item][histories.offsets[1:] - back]
            self._judged[split] = tf.constant(np.flatnonzero(ids >= FIRST_KNOWN), tf.int64)
        self._left_out = {n: histories.num_users - len(u) for n, u in self._judged.items()}
        self._left_out["train"] = self._samples.count
        self._num_samples = {split: len(users) for split, users in self._judged.items()}
        self._num_samples["train"] = int(targets.sum()) - self._samples.count
        # Drawing an event uniformly draws an item by popularity, its other features with it.
        self._pool = self._items
        self._events = Without(unknown)
        # Events of training are numbered user by user, held-out ones left out.
        self._training_events = Without((unknown - held_out * user)[in_training])
        self._training_ends = tf.constant(np.cumsum(lengths - held_out), tf.int64)
        self._shard = histories.part
        self._item_ends: dict[str, tf.Tensor] = {}
        if config.negatives == "uniform" or counts is not None:
            known = histories.catalogue[item] >= FIRST_KNOWN
            self._pool = {n: tf.constant(v[known]) for n, v in histories.catalogue.items()}
        if config.negatives == "popularity" and counts is not None:
            for purpose, occurrences in (("train", counts.training), ("evaluate", counts.all)):
                self._item_ends[purpose] = tf.constant(np.cumsum(occurrences[known]), tf.int64)

    def num_samples(self, split: str) -> int:
        """Number of positives (targets) of a split.

        Args:
          split: "train", "validation" or "test".

        Raises:
          UserError: if the split is unknown, or the dataset was written without it.
        """
        self._require(split)
        return self._num_samples[split]

    def unknown_targets(self, split: str) -> int:
        """How many targets of a split are left out because they are no item.

        Args:
          split: as of `num_samples`.

        Raises:
          UserError: likewise.
        """
        self._require(split)
        return self._left_out[split]

    def target_events(self, split: str) -> tuple[Int64, Int64]:
        """Of all samples of a split, whose they are and which event is the target.

        Args:
          split: as of `num_samples`.

        Returns:
          Places of users and numbers of events, ``[N]`` each.
        """
        numbers = tf.range(self.num_samples(split), dtype=tf.int64)
        user, position = self._targets(split, numbers)
        return user.numpy(), (tf.gather(self._offsets, user) + position).numpy()

    def train_steps(self, batch_size: int, drop_remainder: bool = False) -> int:
        """Steps of one epoch.

        Args:
          batch_size: rows of a batch, even.
          drop_remainder: leave out a last batch that is not full.

        Raises:
          UserError: if the batch size is odd or below 2, or larger than the dataset while
            `drop_remainder` leaves nothing; or if no user has a sample.
        """
        pairs = _pairs(batch_size)
        samples = self.num_samples("train")
        if not samples:
            raise self._nothing_to_train_on()
        steps = samples // pairs if drop_remainder else -(-samples // pairs)
        if not steps:
            raise UserError(
                f"The training set has {2 * samples} rows, fewer than one batch of {batch_size}"
                f"{' (--drop_remainder)' if drop_remainder else ''}. Reduce --global_batch_size."
            )
        return steps

    def train_batch(
        self,
        seed: int,
        epoch: tf.Tensor | int,
        step: tf.Tensor | int,
        batch_size: int,
        part: Part = WHOLE,
    ) -> tuple[FeatureTensors, tf.Tensor]:
        """The training batch of (seed, epoch, step), the same on every call and machine.

        Args:
          seed: of the run.
          epoch: integer scalar; each has its own permutation and negatives.
          step: integer scalar within the epoch; the last batch may be smaller.
          batch_size: rows, even: half as many histories with two candidates each.
          part: of the batch.

        Returns:
          The features (see `formats.features.sample_schema`; B = batch_size / 2, C = 2) and
          float32 labels ``[B, 2]``: column 0 the positive, column 1 the negative.
        """
        numbers = self.train_numbers(seed, epoch, step, batch_size, part)
        user, position = self._train_targets(numbers)
        drawn_in = tf.constant(0, tf.int64) if self._config.repeatable else tf.cast(epoch, tf.int64)
        return self._batch(user, position, numbers, (seed, "train", drawn_in), candidates=2)

    def train_numbers(
        self,
        seed: int,
        epoch: tf.Tensor | int,
        step: tf.Tensor | int,
        batch_size: int,
        part: Part = WHOLE,
    ) -> tf.Tensor:
        """Numbers ``[B]`` (int64) of the samples in a part of the batch of (seed, epoch, step)."""
        samples = self.num_samples("train")
        index = part.of_batch(step, _pairs(batch_size), samples)
        return shuffled(seed, epoch, index, samples)

    def eval_steps(self, split: str, batch_size: int, negatives: int = 1) -> int:
        """Steps that cover a split once, `negatives` sampled for each positive."""
        return -(-self.num_samples(split) // _histories(batch_size, negatives))

    def eval_batch(
        self,
        split: str,
        seed: int,
        step: tf.Tensor | int,
        batch_size: int,
        negatives: int = 1,
        part: Part = WHOLE,
    ) -> tuple[FeatureTensors, tf.Tensor]:
        """A batch of a split in its own order, with negatives that depend on `seed` alone.

        Args:
          split: "train", "validation" or "test".
          seed: of the negatives.
          step: integer scalar.
          batch_size: rows; at least one history is taken.
          negatives: candidates beside the positive.
          part: of the batch.

        Returns:
          The features (C = 1 + negatives, no auxiliary negatives) and float32 labels ``[B, C]``.
        """
        numbers = self.eval_numbers(split, step, batch_size, negatives, part)
        user, position = self._targets(split, numbers)
        key = (seed, f"evaluate/{split}", tf.constant(0, tf.int64))
        # By user, where each has one: who else is left out changes nobody's negatives.
        drawn_by = numbers if split == "train" else user
        return self._batch(user, position, drawn_by, key, candidates=1 + negatives, auxiliary=False)

    def eval_numbers(
        self,
        split: str,
        step: tf.Tensor | int,
        batch_size: int,
        negatives: int = 1,
        part: Part = WHOLE,
    ) -> tf.Tensor:
        """Numbers ``[B]`` (int64) of the samples in what `eval_batch` returns."""
        return part.of_batch(step, _histories(batch_size, negatives), self.num_samples(split))

    def users(self, split: str, numbers: tf.Tensor) -> tf.Tensor:
        """Whose samples ``[B]`` of a split are: numbers of users, everybody's counted."""
        return self._shard.global_numbers(self._targets(split, numbers)[0])

    def positives(self, split: str, numbers: tf.Tensor) -> tuple[tf.Tensor, FeatureTensors]:
        """Samples ``[B]`` of a split by number, without negatives.

        Returns:
          Whose they are (``[B]``, places of users), and the features, C = 1.
        """
        user, position = self._targets(split, numbers)
        key = (0, f"evaluate/{split}", tf.constant(0, tf.int64))
        features, _ = self._batch(user, position, numbers, key, candidates=1, auxiliary=False)
        return user, features

    def describe(self, numbers: tf.Tensor) -> dict[str, list[int]]:
        """Says which training samples ``[B]`` are: number, user features and position of each."""
        user, position = self._train_targets(numbers)
        columns = {name: tf.gather(values, user) for name, values in self._users.items()}
        columns = {"sample": numbers, **columns, "position": position}
        return {name: column.numpy().tolist() for name, column in columns.items()}

    def _targets(self, split: str, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """User ``[B]`` and position ``[B]`` in the user's history of a split's samples."""
        if split == "train":
            return self._train_targets(numbers)
        user = tf.gather(self._judged[split], numbers)
        length = tf.gather(self._offsets, user + 1) - tf.gather(self._offsets, user)
        return user, length - (self._split.held_out if split == "validation" else 1)

    def _train_targets(self, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """User ``[B]`` and position ``[B]`` in the user's history of training samples."""
        numbers = self._samples.nth(numbers)
        user = tf.searchsorted(self._sample_ends, numbers, side="right", out_type=tf.int64)
        return user, numbers - tf.gather(self._sample_begins, user) + self._config.min_history

    def _batch(
        self,
        user: tf.Tensor,
        position: tf.Tensor,
        numbers: tf.Tensor,
        key: tuple[int, str, tf.Tensor],
        candidates: int,
        auxiliary: bool = True,
    ) -> tuple[FeatureTensors, tf.Tensor]:
        T, S = self._config.max_seq_length, self._config.short_seq_length
        begin = tf.gather(self._offsets, user)  # [B]
        target = begin + position  # [B]
        slots = tf.expand_dims(target, 1) + tf.range(-T, 0, dtype=tf.int64)  # [B, T]
        valid = slots >= tf.expand_dims(begin, 1)  # [B, T]
        slots = tf.maximum(slots, 0)
        drawn = self._draw_rows(key, "candidates", numbers, candidates - 1)  # [B, C - 1]
        features: FeatureTensors = {name: tf.gather(v, user) for name, v in self._users.items()}
        for name, values in self._items.items():
            positive = tf.expand_dims(tf.gather(values, target), 1)  # [B, 1]
            features[name] = tf.concat([positive, tf.gather(self._pool[name], drawn)], 1)  # [B, C]
            features[history_name(name)] = tf.where(valid, tf.gather(values, slots), 0)  # [B, T]
        if auxiliary and self._config.auxiliary_negatives:
            drawn = self._draw_rows(key, "auxiliary", numbers, S)  # [B, S]
            unknown = features[history_name(self._features.item[0])][:, T - S :] < FIRST_KNOWN
            for name, values in self._pool.items():
                negative = tf.where(valid[:, T - S :], tf.gather(values, drawn), 0)  # [B, S]
                if self._events.count:  # what is no item is set against itself: it teaches nothing
                    short = features[history_name(name)][:, T - S :]
                    negative = tf.where(unknown, short, negative)
                features[negatives_name(name)] = negative
        if self._times is not None:
            gaps = tf.expand_dims(tf.gather(self._times, target), 1) - tf.gather(self._times, slots)
            features[history_name(TIME_GAP)] = tf.where(valid, time_gap_bucket(gaps), 0)  # [B, T]
        labels = tf.one_hot(tf.zeros_like(user, tf.int32), candidates)  # [B, C]
        return features, labels

    def _draw_rows(
        self, key: tuple[int, str, tf.Tensor], stream: str, numbers: tf.Tensor, width: int
    ) -> tf.Tensor:
        """Draws rows ``[B, width]`` of the pool of negatives."""
        numbers = self._shard.global_numbers(numbers)  # or processes would all draw alike
        if self._item_ends:
            # An event among everybody's, which are not here: items take the place of their events.
            ends = self._item_ends[key[1].partition("/")[0]]
            drawn = draw_below(key, stream, numbers, width, ends[-1])
            item = tf.searchsorted(ends, tf.reshape(drawn, [-1]), side="right", out_type=tf.int64)
            return tf.reshape(item, tf.shape(drawn))
        rows = tf.size(next(iter(self._pool.values())), out_type=tf.int64)
        if self._config.negatives == "uniform":
            return draw_below(key, stream, numbers, width, rows)
        if key[1] != "train":
            drawn = draw_below(key, stream, numbers, width, rows - self._events.count)
            return self._events.nth(drawn)
        bound = self._training_ends[-1] - self._training_events.count
        drawn = self._training_events.nth(draw_below(key, stream, numbers, width, bound))
        flat = tf.reshape(drawn, [-1])
        user = tf.searchsorted(self._training_ends, flat, side="right", out_type=tf.int64)
        return tf.reshape(flat + user * self._split.held_out, tf.shape(drawn))

    def _require(self, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"split must be one of {SPLITS}, received {split!r}.")
        if split == "validation" and not self._split.validation:
            raise UserError(
                "The dataset has no validation split. Run the workflow again, without "
                "--no_validation."
            )

    def _nothing_to_train_on(self) -> UserError:
        least = self._config.min_history + 1 + self._split.held_out
        if self._left_out["train"]:
            return UserError(
                f"The training set has no samples: all {self._left_out['train']} events that could "
                "be targets are unknown ids. Run the workflow with a lower --frequency_threshold, "
                "or on the data that its ids come from."
            )
        return UserError(
            f"The training set has no samples: they need users with {least} interactions or more "
            f"({self._split.held_out} held out, one to train on and {self._config.min_history} "
            f"before it), and the longest history has {self._longest}. Run the workflow with "
            f"--min_interactions {least}, on data that has such users."
        )


def time_gap_bucket(seconds: tf.Tensor) -> tf.Tensor:
    """Log bucket of a time gap: ``1 + floor(log2(1 + seconds))``, so that 0 stays padding.

    Args:
      seconds: int64 gaps of any shape; negative ones count as 0.

    Returns:
      int32 buckets of the same shape, in ``[1, TIME_GAP_BUCKETS)``.
    """
    gap = tf.cast(tf.maximum(seconds, 0), tf.float64)
    bucket = tf.cast(tf.math.log1p(gap) / np.log(2.0), tf.int32) + 1
    return tf.minimum(bucket, TIME_GAP_BUCKETS - 1)


def _pairs(batch_size: int) -> int:
    if batch_size < 2 or batch_size % 2:
        raise UserError(
            "global_batch_size must be even and at least 2 (each positive comes with its "
            f"negative), received {batch_size}."
        )
    return batch_size // 2


def _histories(batch_size: int, negatives: int) -> int:
    if negatives < 1:
        raise UserError(f"test_negatives must be at least 1, received {negatives}.")
    return max(1, batch_size // (1 + negatives))
