"""Pairs of user and item over resident histories: what NeuMF trains on and is ranked by.

A training sample is a positive, an event that is not held out, with its sampled negatives; in an
evaluation every user's held-out event competes with negatives that the user has not met, or with
all such items of the catalogue (He et al. 2017, section 4.1). Of a split by time that is the first
event of the user in the part; users without one, and those who have none to train on, are not
ranked. Everything is drawn by counter-based generators, so that any batch can be rebuilt from
(seed, epoch, step), on any number of processes.

Ids that are no item (missing, rare, unknown: they share a row) are neither positives nor negatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lookback.core.devices import resident
from lookback.core.errors import UserError
from lookback.dataloading.draws import Hiding, Key, draw_below, sample_keys, shuffled
from lookback.dataloading.evaluations import (
    CATALOGUE,
    EvaluationPass,
    LeftOut,
    require_samples,
)
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.splits import ByUsers
from lookback.dataloading.histories.targets import NOTHING_IS_NEW
from lookback.dataloading.known_items import Catalogue, KnownItems
from lookback.dataloading.parts import WHOLE, Part
from lookback.dataloading.sources import Batch, NumberedSource
from lookback.formats.interaction_features import SAMPLE_KEY, InteractionFeatures
from lookback.formats.vocabulary import FIRST_KNOWN

_USERS_AT_A_TIME = 1 << 14
_CATALOGUE_SCORES = 1 << 17  # 128 MB for a layer of 256 units


class _Ranked(NamedTuple):
    """The users that a pass over a split ranks.

    Attributes:
      users: places ``[U']``.
      targets: places ``[U']`` of their held-out items.
      candidates: ids ``[U', C]`` that compete, column 0 the held-out one; None: the catalogue.
      left_out: why the others are not.
    """

    users: tf.Tensor
    targets: tf.Tensor
    candidates: tf.Tensor | None
    left_out: LeftOut


class InteractionSource(NumberedSource):
    """Positives with sampled negatives; evaluation ranks each user's held-out item."""

    def __init__(
        self,
        histories: Histories,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int | None = None,
        eval_seed: int = 0,
        negative_samples: int = 4,
        exact_negatives: bool = False,
        repeatable: bool = False,
        oov_rate: float = 0.0,
        test_negatives: int = 100,
        full_catalogue: bool = False,
        topk: int = 10,
        drop_remainder: bool = False,
        repeat_count: int = 1,
        part: Part = WHOLE,
        micro_batches: int = 1,
    ) -> None:
        """Places the positives on the device.

        Args:
          histories: everybody's.
          seed: of shuffling and training negatives.
          batch_size: rows of a training batch, a positive or a negative each; what does not fill
            a positive with its negatives is left out.
          eval_batch_size: rows of an evaluation batch; None: as in training.
          eval_seed: of evaluation's negatives; not the run's, so that runs compare on the same.
          negative_samples: for each positive of training.
          exact_negatives: draw none that the user has met in training; users who have met every
            item there are not trained on. Without it negatives are drawn from the whole catalogue,
            and a few are positives (the approximation of NVIDIA's NCF).
          repeatable: the same training negatives in every epoch instead of fresh ones.
          oov_rate: share of users and items that training hides, see `Hiding`.
          test_negatives: for each held-out item; distinct, and none that the user has met.
          full_catalogue: evaluate among all items that the user has not met as well.
          topk: K of the figures.
          drop_remainder: leave out a last training batch that is not full.
          repeat_count: passes over the training set in one epoch, each with its own order.
          part: this process's.
          micro_batches: parts into which its share of a training batch can be cut.

        Raises:
          UserError: if a batch is too small for one sample, a user has too few interactions, or
            nothing is left to train on; or if users are held out, or labels are given.
        """
        self.schema = histories.schema
        self._features = InteractionFeatures.from_schema(histories.schema)
        self._histories = histories
        self._catalogue = Catalogue(histories)
        self._seed, self._eval_seed = seed, eval_seed
        self._negatives, self._test_negatives = negative_samples, test_negatives
        self._repeatable, self._full_catalogue = repeatable, full_catalogue
        self._topk, self._oov_rate = topk, oov_rate
        self._part, self._micro_batches = part, micro_batches
        self._repeat_count = repeat_count
        eval_size = batch_size if eval_batch_size is None else eval_batch_size
        self._batch = _samples("global_batch_size", batch_size, 1 + negative_samples)
        _require_events_held_out(histories)
        histories.require_targets()
        self._known = None
        if exact_negatives:
            self._known = KnownItems(histories, self._catalogue, training=True)
            self._free = tf.constant(self._known.free, tf.int64)
        self._place_positives(histories)
        self._user_ids = resident(histories.user_features[self._features.user])
        self._item_ids = resident(self._catalogue.ids)
        self._steps = self._positives // self._batch
        if not drop_remainder:
            self._steps = -(-self._positives // self._batch)
        if not self._steps:
            raise UserError(
                f"The training set has {self._positives} positives, fewer than one batch of "
                f"{self._batch}. Reduce --global_batch_size"
                f"{', or leave --drop_remainder out' if drop_remainder else ''}."
            )
        self._eval_users = max(1, eval_size // (1 + test_negatives))
        least = max(eval_size, _CATALOGUE_SCORES)  # of a batch, or small batches would take long
        self._catalogue_users = max(1, least // max(1, len(self._catalogue)))
        # All items that users have met, the held-out ones too.
        self._met = KnownItems(histories, self._catalogue, training=False)
        self._ranked: dict[str, _Ranked] = {}

    def _place_positives(self, histories: Histories) -> None:
        """Events to train on: users by place, items by id; 160 MB for 20 M.

        Raises:
          UserError: if there is none.
        """
        chosen = histories.in_training()
        if histories.new is not None:
            chosen &= histories.new == 1
        event = np.flatnonzero(chosen)
        item = histories.item_features[self._features.item][event]
        places = np.arange(histories.num_users, dtype=np.int32)
        user = np.repeat(places, np.diff(histories.offsets))[event]
        unknown, repeated = item < FIRST_KNOWN, np.zeros(len(event), np.bool_)
        bound = repeated if self._known is None else self._known.free[user] < 1
        positive, self._left_out = LeftOut.among(unknown, repeated, bound)
        self._sample_users = resident(user[positive])
        self._sample_items = resident(item[positive])
        self._positives = len(positive)
        if not len(event) and histories.new is not None:
            raise UserError(NOTHING_IS_NEW)
        if len(event) and not self._positives:
            raise UserError(
                f"The training set has no positives: {self._left_out}. Run the workflow with a "
                "lower --frequency_threshold if ids are unknown, or on the data that its ids come "
                "from; leave --exact_negatives out if users have met too many items."
            )

    def train_batch(self, feed: tf.Tensor) -> Batch:
        """The batch of (pass, step), or a part of it.

        Returns:
          Users ``[B]``, items ``[B, 1 + negative_samples]`` (column 0 the positive) and
          `SAMPLE_KEY` ``[B]``; float32 labels of the items' shape.
        """
        numbers = self._numbers(feed, self._part_of(feed))
        user = tf.gather(self._sample_users, numbers)
        positive = tf.expand_dims(tf.gather(self._sample_items, numbers), 1)  # [B, 1]
        drawn_in = tf.constant(0, tf.int64) if self._repeatable else tf.cast(feed[0], tf.int64)
        negatives = self._draw((self._seed, "interactions", drawn_in), user, numbers)
        hide = Hiding((self._seed, "hidden", feed[0]), self._oov_rate, numbers)
        features = {
            self._features.user: hide("user", tf.gather(self._user_ids, user)),
            self._features.item: hide("item", tf.concat([positive, negatives], 1)),
            SAMPLE_KEY: sample_keys((self._seed, "dropout", feed[0]), "units", numbers),
        }
        return features, _first_of(user, 1 + self._negatives)

    @property
    def grouped(self) -> bool:
        """Each row of a dataset of histories is a user."""
        return True

    def groups(self, split: str, feed: tf.Tensor) -> tf.Tensor:
        """Numbers of the users in the dataset: all who are unknown have one id, and are many."""
        return tf.gather(self._ranked[split].users, self._eval_places(split, feed))

    def left_out(self, name: str) -> LeftOut:
        """Positives that cannot be trained on; of passes, users who cannot be ranked."""
        return self._left_out if name == "train" else self._ranked[name].left_out

    @property
    def id_features(self) -> tuple[str, ...]:
        """Both."""
        return self._features.user, self._features.item

    def item_counts(self) -> npt.NDArray[np.int64]:
        """Of all items."""
        return self._histories.training_counts()

    @property
    def held_out(self) -> Sequence[str]:
        """The test, and the validation where the workflow made one."""
        return ("validation", "test") if self._histories.split.has_validation else ("test",)

    def evaluations(self, split: str) -> list[EvaluationPass]:
        """The split among sampled negatives, and if wanted among the whole catalogue.

        Scores of a whole catalogue are too many to keep, so that it is ranked only.
        """
        topk, sampled = self._topk, 1 + self._test_negatives
        passes = [EvaluationPass(split, ("ranking", "binary"), topk, candidates=sampled)]
        if self._full_catalogue:
            items = len(self._catalogue)
            passes.append(EvaluationPass(split + CATALOGUE, ("ranking",), topk, candidates=items))
        return passes

    def eval_steps(self, split: str) -> int:
        """Steps that cover once the users of a split who can be ranked."""
        if split not in self._ranked:
            self._ranked[split] = self._rank(split)
        return -(-len(self._ranked[split].users) // self._users_of(split))

    def eval_batch(self, split: str, feed: tf.Tensor) -> Batch | tuple[Any, tf.Tensor, tf.Tensor]:
        """The candidates of some users.

        Returns:
          Users ``[B]`` and items ``[B, C]``, column 0 the held-out one, and labels; among the whole
          catalogue items ``[1, I]``, labels ``[B, I]`` and weights ``[B, I]``, 0 for items that
          the user has met.
        """
        ranked, places = self._ranked[split], self._eval_places(split, feed)
        user = tf.gather(ranked.users, places)  # [B]
        features = {self._features.user: tf.gather(self._user_ids, user)}
        if ranked.candidates is not None:
            features[self._features.item] = tf.gather(ranked.candidates, places)  # [B, C]
            return features, _first_of(user, 1 + self._test_negatives)
        features[self._features.item] = tf.expand_dims(self._item_ids, 0)  # [1, I]
        labels = tf.one_hot(tf.gather(ranked.targets, places), len(self._catalogue))
        free = self._met.mask(user, len(self._catalogue))
        return features, labels, tf.maximum(free, labels)

    def describe(self, feed: tf.Tensor) -> dict[str, list[Any]]:
        """Names the batch's positives by number, user and item."""
        numbers = self._numbers(feed, self._part)
        user = tf.gather(self._user_ids, tf.gather(self._sample_users, numbers))
        item = tf.gather(self._sample_items, numbers)
        columns = {"sample": numbers, self._features.user: user, self._features.item: item}
        return {name: column.numpy().tolist() for name, column in columns.items()}

    def _numbers(self, feed: tf.Tensor, part: Part) -> tf.Tensor:
        """Numbers ``[B]`` of the positives in a part of the batch of (pass, step)."""
        passes, step = self._of_feed(feed)
        index = part.of_batch(step, self._batch, self._positives)
        return shuffled(self._seed, passes, index, self._positives)

    def _draw(self, key: Key, user: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        """Training negatives ``[B, negative_samples]`` of users ``[B]`` (places), as item ids."""
        if self._known is None:
            bound = tf.constant(len(self._catalogue), tf.int64)
            place = draw_below(key, "negatives", numbers, self._negatives, bound)
        else:
            user = tf.cast(user, tf.int64)
            bound = tf.expand_dims(tf.gather(self._free, user), 1)
            number = draw_below(key, "negatives", numbers, self._negatives, bound)
            place = self._known.free_places(user, number)
        return tf.gather(self._item_ids, place)

    def _users_of(self, split: str) -> int:
        """Users of a batch."""
        return self._catalogue_users if split.endswith(CATALOGUE) else self._eval_users

    def _eval_places(self, split: str, feed: tf.Tensor) -> tf.Tensor:
        """Places ``[B]`` of this process's part of a batch among those who are ranked."""
        return self._part.of_batch(feed, self._users_of(split), len(self._ranked[split].users))

    def _events(self, split: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Users of whom a split holds something out, and the first event of each that it does.

        Returns:
          Places ``[U']``, and numbers of events ``[U']``.

        Raises:
          UserError: if it holds nothing out.
        """
        name = split.removesuffix(CATALOGUE)
        if name == "train":
            raise UserError(
                "eval_train: models of users and items are ranked by what is held out. Leave "
                "--eval_train out."
            )
        if name == "validation" and not self._histories.split.has_validation:
            raise UserError(
                "The dataset has no validation split. Run the workflow again, without "
                "--no_validation."
            )
        begins, ends = self._histories.targets[name]
        users = np.flatnonzero(ends > begins)
        return users, (self._histories.offsets[:-1] + begins)[users]

    def _rank(self, split: str) -> _Ranked:
        """The users to rank, and the items among which.

        Raises:
          UserError: if the split is not there, or nobody can be ranked.
        """
        users, events = self._events(split)
        item = self._histories.item_features[self._features.item][events]  # [U']
        wanted = 1 if split.endswith(CATALOGUE) else self._test_negatives
        free = self._met.free[users]
        unknown, repeated = item < FIRST_KNOWN, self._met.repeated[events]
        new = self._histories.targets["train"][1][users] < 1  # nothing to train on
        kept, left_out = LeftOut.among(unknown, repeated, free < wanted, new)
        most = int(free[~(unknown | repeated)].max(initial=0))
        users, item = users[kept], item[kept]
        if 0 < most < wanted:
            raise UserError(
                f"test_negatives: expected at most {most}, the most items that a user has not met "
                f"(of {len(self._catalogue)}), received {wanted}. Users with fewer are not ranked."
            )
        require_samples(split, len(users), left_out)
        targets = self._catalogue.places(item)
        candidates = None
        if not split.endswith(CATALOGUE):
            places = np.concatenate([targets[:, None], self._test_places(split, users)], 1)
            candidates = resident(self._catalogue.ids[places])
        return _Ranked(tf.constant(users, tf.int64), tf.constant(targets), candidates, left_out)

    def _test_places(self, split: str, users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Distinct places ``[U', test_negatives]``, none of an item that the user has met.

        Floyd's algorithm (Bentley & Floyd 1987, "A sample of brilliance") draws among the numbers
        of the free items: every set is equally likely.
        """
        met, wanted = self._met, self._test_negatives
        places = np.empty((len(users), wanted), np.int64)
        for begin in range(0, len(users), _USERS_AT_A_TIME):
            user = tf.constant(users[begin : begin + _USERS_AT_A_TIME], tf.int64)
            first = tf.expand_dims(tf.gather(tf.constant(met.free), user) - wanted, 1)
            last = first + tf.range(wanted, dtype=tf.int64)  # [B, K]: what number k may be at most
            key = (self._eval_seed, f"evaluate/{split}", tf.constant(0, tf.int64))
            chosen = draw_below(key, "candidates", user, wanted, last + 1).numpy()
            limit = last.numpy()
            for column in range(1, wanted):
                taken = (chosen[:, :column] == chosen[:, column : column + 1]).any(1)
                chosen[taken, column] = limit[taken, column]
            numbers = tf.constant(chosen)
            places[begin : begin + len(chosen)] = met.free_places(user, numbers).numpy()
        return places


def _first_of(user: tf.Tensor, candidates: int) -> tf.Tensor:
    """Labels ``[B, C]``: 1 in column 0."""
    return tf.one_hot(tf.zeros_like(user), candidates)


def _samples(option: str, rows: int, candidates: int) -> int:
    """How many samples of `candidates` rows fit into a batch."""
    if rows < candidates:
        raise UserError(
            f"{option}: expected at least {candidates} rows, a positive with its negatives, "
            f"received {rows}."
        )
    return rows // candidates


def _require_events_held_out(histories: Histories) -> None:
    """Refuses data of which no user's event is held out, of those that are trained on."""
    if histories.impressions is not None:
        raise UserError(
            "dataset_dir: models of users and items learn of what users chose and are ranked by "
            "what they chose next, and this dataset has explicit labels, of items as they were "
            "shown. Choose a model over histories or over rows, or run the workflow with sampled "
            "labels."
        )
    if isinstance(histories.split, ByUsers):
        raise UserError(
            "dataset_dir: models of users and items know the users that they were trained on "
            "alone, and this dataset has a split by users: those of the test are others. Choose a "
            "model over histories, or run the workflow with a split by last or by time."
        )
