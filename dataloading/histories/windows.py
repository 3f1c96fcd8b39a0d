"""Windows over resident histories, built in the graph: a sample is (user, position), no more.

Nothing is materialised. From the number of a sample the graph finds its user and position,
gathers the window before it, pads it on the left and draws negatives. Shuffling is a
pseudo-random permutation evaluated index by index, and negatives come from a counter-based
generator, so that any batch can be rebuilt from (seed, epoch, step) alone.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lookback.core.devices import resident, whole_numbers
from lookback.core.errors import UserError
from lookback.dataloading.draws import Hiding, Without, shuffled
from lookback.dataloading.evaluations import LeftOut
from lookback.dataloading.histories.negatives import NEGATIVES, Draws, NegativePool
from lookback.dataloading.histories.resident import Histories, ItemCounts
from lookback.dataloading.histories.splits import Int64, LeaveLastOut
from lookback.dataloading.histories.targets import (
    NOTHING_IS_NEW,
    EventTargets,
    ImpressionTargets,
    ListedTargets,
    Located,
    Targets,
    UnknownEvents,
)
from lookback.dataloading.parts import WHOLE, Part
from lookback.formats.dataset_info import AGAIN, SPLITS
from lookback.formats.features import TIME_GAP_BUCKETS, history_name, negatives_name
from lookback.formats.history_columns import TIME_GAP
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.kernels.windows import occupied, windows

FeatureTensors = dict[str, tf.Tensor]


class Trained(NamedTuple):
    """What there is to train on.

    Attributes:
      samples: targets.
      unknown: targets that are no item.
      longest: events of the longest history.
    """

    samples: int
    unknown: int
    longest: int


@dataclasses.dataclass(frozen=True)
class WindowConfig:
    """What a window holds.

    Attributes:
      max_seq_length: history slots (T); the newest are kept.
      long_seq_length: the first of them form the long sequence, the other S the short one (as
        NVIDIA's option of that name).
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
      oov_rate: share of (sample, id) whose id training hides, see `Hiding`.
      min_history: shortest history that training targets have (NVIDIA's default).
    """

    max_seq_length: int = 100
    long_seq_length: int = 90
    negatives: str = "popularity"
    auxiliary_negatives: bool = True
    time_features: bool = False
    repeatable: bool = False
    oov_rate: float = 0.0
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
    as context, and are neither targets nor negatives: they stand for many items at once. Explicit
    labels are of whatever was shown, so there they are targets.

    Attributes:
      explicit: whether labels come with the targets, so that no candidates are drawn (C = 1).
      pool: what negatives are drawn from.
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
          UserError: if time features are wanted from a dataset without timestamps, or there is
            nothing to draw negatives from.
        """
        if config.time_features and histories.timestamps is None:
            raise UserError(
                "--time_features needs timestamps, and the dataset has no column tagged TIME."
            )
        histories.require_targets()
        self._config = config
        self._features = histories.features
        self._split, self._shard = histories.split, histories.part
        self.explicit, self._only_new = histories.impressions is not None, histories.only_new
        self._bags = {n: resident(v) for n, v in histories.bags.items()}
        self._numbers: tf.Tensor | None = None
        unknown = self._place(histories)
        self.pool = NegativePool(histories, self._items, unknown, config.negatives, counts)

    def over(self, histories: Histories, numbers: Int64) -> WindowBuilder:
        """The same windows over others' histories of the dataset, with the same negatives.

        Args:
          histories: of some users; their catalogue and bags are not looked at.
          numbers: of the users among everybody, ``[U]``.

        Raises:
          ValueError: if negatives are drawn from the histories that this one has.
        """
        if self.pool.of_events:
            raise ValueError("Negatives of other users' histories need everybody's counts.")
        other = copy.copy(self)
        other._numbers = tf.constant(numbers, tf.int64)
        other._place(histories)
        return other

    @property
    def placed(self) -> dict[str, Any]:
        """Tensors, of one axis each, of the users that the windows are over."""
        found = {"offsets": self._offsets, "users": self._users, "events": self._events}
        found |= {"unknown": self._unknown_events.placed, "numbers": self._numbers}
        if self._times is not None:
            found["times"] = self._times
        return {**found, "targets": {split: of.placed for split, of in self._targets.items()}}

    def over_placed(self, placed: dict[str, Any]) -> WindowBuilder:
        """As `over`, in a graph that is made before it is known of whom.

        Args:
          placed: of what `over` gave, as `placed` says.
        """
        other = copy.copy(self)
        other._offsets, other._users = placed["offsets"], placed["users"]
        other._events = placed["events"]
        other._items = {name: other._events[name] for name in self._items}
        other._times, other._numbers = placed.get("times"), placed["numbers"]
        other._unknown_events = Without.of(placed["unknown"])
        of_events = (other._offsets, other._events, other._times)
        other._targets = {
            split: self._targets[split].over(of, *of_events)
            for split, of in placed["targets"].items()
        }
        return other

    def _place(self, histories: Histories) -> UnknownEvents:
        """Places users, events and targets on the device."""
        self._longest = int(np.diff(histories.offsets).max(initial=0))
        self._offsets = tf.constant(histories.offsets, tf.int64)
        self._users = {n: resident(v) for n, v in histories.user_features.items()}
        self._items = {n: _events(v) for n, v in histories.item_features.items()}
        others = {n: _events(v) for n, v in histories.event_features.items()}
        self._events = {**self._items, **others}
        times = histories.timestamps if self._config.time_features else None
        self._times = None if times is None else _events(times)
        unknown = UnknownEvents(histories)
        self._unknown_events = Without(unknown.events)
        self._targets = self._targets_of(histories, unknown)
        return unknown

    def _targets_of(self, histories: Histories, unknown: UnknownEvents) -> dict[str, Targets]:
        """Impressions, or else events, of the splits that there are."""
        if histories.impressions is not None:
            times = self._config.time_features
            return {n: ImpressionTargets(i, times) for n, i in histories.impressions.items()}
        begins, ends = histories.targets["train"]
        # Training asks for a history, so that what has none is no target that it leaves out.
        ranges = {**histories.targets, "train": (begins + self._config.min_history, ends)}
        shared = (self._offsets, self._events, self._times)
        found: dict[str, Targets] = {
            split: EventTargets(of, unknown, *shared)
            for split, of in ranges.items()
            if split != "validation" or histories.split.has_validation
        }
        if histories.new is not None:
            found["train"] = ListedTargets(
                np.flatnonzero(histories.new), histories, ranges["train"], *shared
            )
        return found

    @property
    def rows(self) -> int:
        """Of a training batch, for each target: itself, and the negative that is drawn for it."""
        return 1 if self.explicit else 2

    @property
    def held_out(self) -> tuple[str, ...]:
        """The splits that there are but for training."""
        return tuple(split for split in SPLITS[1:] if split in self._targets)

    def num_samples(self, split: str) -> int:
        """Number of targets of a split.

        Args:
          split: "train", "validation" or "test".

        Raises:
          UserError: if the split is unknown, or the dataset was written without it.
        """
        return self._of(split).count

    def left_out(self, split: str) -> LeftOut:
        """How many targets of a split are left out, and why.

        Args:
          split: as of `num_samples`.

        Raises:
          UserError: likewise.
        """
        return self._of(split).left_out

    def classes(self, split: str) -> list[int]:
        """Which labels a split has; as of `left_out`."""
        labels = self._of(split).labels
        return [0, 1] if labels is None else np.unique(labels).tolist()

    def target_events(self, split: str) -> tuple[Int64, Int64]:
        """Of all samples of a split, whose they are and which event is the target.

        Args:
          split: as of `num_samples`.

        Returns:
          Places of users and numbers of events, ``[N]`` each.
        """
        located = self.located(split, tf.range(self.num_samples(split), dtype=tf.int64))
        return located.user.numpy(), located.place.numpy()

    def located(self, split: str, numbers: tf.Tensor) -> Located:
        """Where samples ``[B]`` of a split are; errors as of `num_samples`."""
        return self._of(split).at(numbers)

    @property
    def trained(self) -> Trained:
        """What there is to train on here."""
        left_out = self.left_out("train")
        return Trained(self.num_samples("train"), left_out.unknown_targets, self._longest)

    def train_steps(
        self, batch_size: int, drop_remainder: bool = False, trained: Trained | None = None
    ) -> int:
        """Steps of one epoch.

        Args:
          batch_size: rows of a batch, even where negatives are drawn.
          drop_remainder: leave out a last batch that is not full.
          trained: what there is; None: what is here.

        Raises:
          UserError: if the batch size is odd or below 2, or larger than the dataset while
            `drop_remainder` leaves nothing; or if no user has a sample.
        """
        batch = self.training_targets(batch_size)
        trained = trained or self.trained
        samples = trained.samples
        if not samples:
            raise self._nothing_to_train_on(trained)
        if self._config.auxiliary_negatives and not self.pool.count:
            raise UserError(
                "The model's auxiliary loss draws negatives from the events of training, and there "
                f"is none of a known item. Train a model without it, or hold out less: {AGAIN}"
            )
        steps = samples // batch if drop_remainder else -(-samples // batch)
        if not steps:
            raise UserError(
                f"The training set has {self.rows * samples} rows, fewer than one batch of "
                f"{batch_size}{' (--drop_remainder)' if drop_remainder else ''}. Reduce "
                "--global_batch_size."
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
          batch_size: rows; where negatives are drawn even: half as many histories with two
            candidates each.
          part: of the batch.

        Returns:
          The features (see `formats.features.sample_schema`; B = batch_size / 2, C = 2) and
          float32 labels ``[B, 2]``: column 0 the positive, column 1 the negative. Of explicit
          labels B = batch_size, C = 1.
        """
        numbers = self.train_numbers(seed, epoch, step, batch_size, part)
        return self.train_samples(seed, epoch, numbers, self._shard.global_numbers(numbers))

    def train_samples(
        self, seed: int, epoch: tf.Tensor | int, numbers: tf.Tensor, drawn_by: tf.Tensor
    ) -> tuple[FeatureTensors, tf.Tensor]:
        """Training samples, as `train_batch` gives them.

        Args:
          seed: of the run.
          epoch: integer scalar.
          numbers: of the samples here, int64 ``[B]``.
          drawn_by: of the same samples among everybody's, int64 ``[B]``.
        """
        located = self._targets["train"].at(numbers)
        drawn_in = tf.constant(0, tf.int64) if self._config.repeatable else tf.cast(epoch, tf.int64)
        draws = Draws((seed, "train", drawn_in), drawn_by)
        features, labels = self._batch("train", located, draws, candidates=self.rows)
        key = (seed, "hidden", tf.cast(epoch, tf.int64))
        hide = Hiding(key, self._config.oov_rate, draws.numbers)
        for name in self._features.ids:
            for column in (name, history_name(name), negatives_name(name)):
                if column in features:
                    features[column] = hide(name, features[column])
        return features, labels

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
        index = part.of_batch(step, self.training_targets(batch_size), samples)
        return shuffled(seed, epoch, index, samples)

    def eval_steps(self, split: str, batch_size: int, negatives: int = 1) -> int:
        """Steps that cover a split once, `negatives` sampled for each positive."""
        return -(-self.num_samples(split) // self.evaluation_targets(batch_size, negatives))

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
          negatives: candidates beside the positive; of explicit labels there are none.
          part: of the batch.

        Returns:
          The features (C = 1 + negatives, no auxiliary negatives) and float32 labels ``[B, C]``.
        """
        numbers = self.eval_numbers(split, step, batch_size, negatives, part)
        return self.eval_samples(
            split, seed, numbers, self._shard.global_numbers(numbers), negatives
        )

    def eval_samples(
        self, split: str, seed: int, numbers: tf.Tensor, drawn_by: tf.Tensor, negatives: int = 1
    ) -> tuple[FeatureTensors, tf.Tensor]:
        """Samples of a split, as `eval_batch` gives them.

        Args:
          split: likewise.
          seed: likewise.
          numbers: of the samples here, int64 ``[B]``.
          drawn_by: of the same samples among everybody's, int64 ``[B]``.
          negatives: as of `eval_batch`.
        """
        targets, key = self._of(split), (seed, f"evaluate/{split}", tf.constant(0, tf.int64))
        located = targets.at(numbers)
        if targets.labels is not None:
            return self._batch(split, located, None, candidates=1)
        if split != "train" and isinstance(targets, EventTargets):
            drawn_by = targets.draw_numbers(located, self._everybodys(located.user))
        return self._batch(split, located, Draws(key, drawn_by), candidates=1 + negatives)

    def eval_numbers(
        self,
        split: str,
        step: tf.Tensor | int,
        batch_size: int,
        negatives: int = 1,
        part: Part = WHOLE,
    ) -> tf.Tensor:
        """Numbers ``[B]`` (int64) of the samples in what `eval_batch` returns."""
        batch = self.evaluation_targets(batch_size, negatives)
        return part.of_batch(step, batch, self.num_samples(split))

    def users(self, split: str, numbers: tf.Tensor) -> tf.Tensor:
        """Whose samples ``[B]`` of a split are: numbers of users, everybody's counted."""
        return self._everybodys(self.located(split, numbers).user)

    def _everybodys(self, users: tf.Tensor) -> tf.Tensor:
        """Numbers ``[B]`` of users among everybody, from their places here."""
        if self._numbers is None:
            return self._shard.global_numbers(users)
        return tf.gather(self._numbers, users)

    def positives(self, split: str, numbers: tf.Tensor) -> tuple[tf.Tensor, FeatureTensors]:
        """Samples ``[B]`` of a split by number, without negatives.

        Returns:
          Whose they are (``[B]``, places of users), and the features, C = 1.
        """
        located = self.located(split, numbers)
        return located.user, self._batch(split, located, None, candidates=1)[0]

    def describe(self, numbers: tf.Tensor) -> dict[str, list[int]]:
        """Says which training samples ``[B]`` are: number, user features and position of each."""
        located = self._targets["train"].at(numbers)
        columns = {name: tf.gather(v, located.user) for name, v in self._users.items()}
        columns = {"sample": numbers, **columns, "position": located.position}
        return {name: column.numpy().tolist() for name, column in columns.items()}

    def expanded(self, features: FeatureTensors) -> FeatureTensors:
        """Features with the ids of their bags ``[..., M]`` in place of the bags' numbers."""
        found = dict(features)
        for name, bags in self._bags.items():
            for column in (name, history_name(name), negatives_name(name)):
                if column in found:
                    found[column] = tf.gather(bags, found[column])
        return found

    def _batch(
        self, split: str, located: Located, draws: Draws | None, candidates: int
    ) -> tuple[FeatureTensors, tf.Tensor]:
        T, targets = self._config.max_seq_length, self._targets[split]
        user, position, place = located
        features: FeatureTensors = {name: tf.gather(v, user) for name, v in self._users.items()}
        for name in self._features.of("context"):
            features[name] = tf.gather(targets.features[name], place)  # [B]
        for name in self._items:
            features[name] = tf.expand_dims(tf.gather(targets.features[name], place), 1)  # [B, 1]
        if draws is not None and candidates > 1:
            drawn = self.pool.draw(draws, "candidates", candidates - 1)  # [B, C - 1]
            for name, values in self.pool.features.items():
                features[name] = tf.concat([features[name], tf.gather(values, drawn)], 1)  # [B, C]
        columns = {history_name(name): values for name, values in self._events.items()}
        if self._times is not None:
            columns[history_name(TIME_GAP)] = self._times
        features |= windows(tf.gather(self._offsets, user), position, columns, T)  # [B, T] each
        if draws is not None and draws.key[1] == "train" and self._config.auxiliary_negatives:
            features |= self._auxiliary(features, draws, position)
        if self._times is not None:
            now = tf.expand_dims(tf.gather(targets.times, place), 1)  # [B, 1]
            buckets = time_gap_bucket(now - features[history_name(TIME_GAP)])
            features[history_name(TIME_GAP)] = _where(occupied(position, T), buckets)  # [B, T]
        if targets.labels is None:
            labels = tf.one_hot(tf.zeros_like(user), candidates)  # [B, C]
        else:
            labels = tf.cast(tf.gather(targets.labels, place), tf.float32)[:, tf.newaxis]  # [B, 1]
        return self.expanded(features), labels

    def _auxiliary(
        self, features: FeatureTensors, draws: Draws, position: tf.Tensor
    ) -> FeatureTensors:
        """Negatives ``[B, S]`` of the short slots before positions ``[B]``."""
        S = self._config.short_seq_length
        drawn = self.pool.draw(draws, "auxiliary", S)  # [B, S]
        valid = occupied(position, S)
        unknown = features[history_name(self._features.item[0])][:, -S:] < FIRST_KNOWN
        found = {}
        for name, values in self.pool.features.items():
            negative = _where(valid, tf.gather(values, drawn))  # [B, S]
            # What is no item is set against itself: it teaches nothing.
            if not self._unknown_events.empty:
                negative = tf.where(unknown, features[history_name(name)][:, -S:], negative)
            found[negatives_name(name)] = negative
        return found

    def _of(self, split: str) -> Targets:
        if split not in SPLITS:
            raise UserError(f"split must be one of {SPLITS}, received {split!r}.")
        if split not in self._targets:
            by_last = split == "validation" and isinstance(self._split, LeaveLastOut)
            raise UserError(
                f"The dataset has no {split} split. Run the workflow again, "
                f"{'without --no_validation' if by_last else 'with one'}."
            )
        return self._targets[split]

    def training_targets(self, batch_size: int) -> int:
        """Targets of a training batch.

        Args:
          batch_size: rows.

        Raises:
          UserError: if the batch size is odd or below 2.
        """
        if batch_size < self.rows or batch_size % self.rows:
            raise UserError(
                f"global_batch_size must be {'even and ' if self.rows > 1 else ''}at least "
                f"{self.rows}{' (each positive comes with its negative)' if self.rows > 1 else ''},"
                f" received {batch_size}."
            )
        return batch_size // self.rows

    def evaluation_targets(self, batch_size: int, negatives: int) -> int:
        """Targets of an evaluation batch.

        Args:
          batch_size: rows.
          negatives: beside each positive.

        Raises:
          UserError: if there are none.
        """
        if negatives < 1:
            raise UserError(f"test_negatives must be at least 1, received {negatives}.")
        return max(1, batch_size if self.explicit else batch_size // (1 + negatives))

    def _nothing_to_train_on(self, trained: Trained) -> UserError:
        if self._only_new:
            return UserError(NOTHING_IS_NEW)
        if self.explicit:
            return UserError(f"The training set has no impressions. {AGAIN}")
        if trained.unknown:
            return UserError(
                f"The training set has no samples: all {trained.unknown} events that could be "
                "targets are unknown ids. Run the workflow with a lower --frequency_threshold, or "
                "on the data that its ids come from."
            )
        if not isinstance(self._split, LeaveLastOut):
            return UserError(
                "The training set has no samples: no user has an event that is not held out with "
                f"{self._config.min_history} before it. Hold out less: {AGAIN}"
            )
        least = self._config.min_history + 1 + self._split.held_out
        return UserError(
            f"The training set has no samples: they need users with {least} interactions or more "
            f"({self._split.held_out} held out, one to train on and {self._config.min_history} "
            f"before it), and the longest history has {trained.longest}. Run the workflow with "
            f"--min_interactions {least}, on data that has such users."
        )


def time_gap_bucket(seconds: tf.Tensor) -> tf.Tensor:
    """Log bucket of a time gap: ``1 + floor(log2(1 + seconds))``, so that 0 stays padding.

    Args:
      seconds: int64 gaps of any shape; negative ones count as 0.

    Returns:
      Buckets (`whole_numbers`) of the same shape, in ``[1, TIME_GAP_BUCKETS)``.
    """
    # In whole numbers: compiled, a quotient of logarithms is one bucket off at powers of two.
    powers = tf.constant([1 << power for power in range(TIME_GAP_BUCKETS - 1)], tf.int64)
    later = tf.reshape(tf.maximum(seconds, 0) + 1, [-1])
    kind = tf.as_dtype(whole_numbers())
    return tf.reshape(tf.searchsorted(powers, later, "right", kind), tf.shape(seconds))


def _events(values: npt.NDArray[Any]) -> tf.Tensor:
    """Values ``[N]`` of events; where nobody has one, one that no slot takes: a gather needs it."""
    return resident(values if len(values) else np.zeros(1, values.dtype))


def _where(valid: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Values where there is an event, elsewhere 0."""
    return tf.where(valid, values, tf.zeros([], values.dtype))
