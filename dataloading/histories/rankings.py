"""Who competes with a user's held-out event: sampled candidates, or the whole catalogue."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from lookback.dataloading.evaluations import LeftOut
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.windows import FeatureTensors, WindowBuilder
from lookback.dataloading.known_items import Catalogue, KnownItems

SCORES_AT_A_TIME = 1 << 14  # of a process: with 100 slots of 64 numbers 400 MB for a layer


def competing(items: tf.Tensor) -> tf.Tensor:
    """Weights of sampled candidates, which are drawn with repetition.

    Args:
      items: ids ``[B, C]``; column 0 is the positive.

    Returns:
      float32 ``[B, C]``: 0 for draws of the positive itself; 1 for others, as often as they are
      drawn, and for the positive.
    """
    positive = items[:, :1]  # [B, 1]
    others = tf.cast(items[:, 1:] != positive, tf.float32)  # [B, C - 1]
    return tf.concat([tf.ones_like(positive, tf.float32), others], 1)


class CatalogueRankings:
    """Evaluation batches in which the items of the catalogue compete that the user has not met.

    Left out are, beside targets that are no item, those that the user had before (all others that
    compete are new to the user) and users who have met every item.

    Attributes:
      items: how many items there are (I).
      users: of a batch, all processes together.
      pieces: how many candidates can be scored at a time; None: all.
    """

    def __init__(self, histories: Histories, windows: WindowBuilder, ranks: int) -> None:
        """Collects what users have met, the held-out events too.

        Args:
          histories: whose users are ranked for.
          windows: over them.
          ranks: among how many processes a batch is shared.

        Raises:
          UserError: if an event's item is not in the catalogue.
        """
        self._windows = windows
        self._catalogue = Catalogue(histories)
        self._met = KnownItems(histories, self._catalogue, training=False)
        self._ids = tf.constant(self._catalogue.ids)
        self._features = windows.expanded(
            {n: tf.constant(v) for n, v in self._catalogue.features.items()}
        )  # [I], of bags [I, M]
        self._item = histories.features.item[0]
        self.items = len(self._catalogue)
        self.users = ranks * max(1, SCORES_AT_A_TIME // max(1, self.items))
        self.pieces = SCORES_AT_A_TIME if self.items > SCORES_AT_A_TIME else None
        self._ranked: dict[str, tf.Tensor] = {}

    def prepare(self, split: str) -> tuple[int, LeftOut]:
        """Finds out which samples of a split can be ranked; before a graph asks for them.

        Args:
          split: "train", "validation" or "test".

        Returns:
          How many, and why the others are not.
        """
        user, event = self._windows.target_events(split)
        known = np.zeros(len(event), np.bool_)  # the windows have left the others out
        ranked, left_out = LeftOut.among(known, self._met.repeated[event], self._met.free[user] < 1)
        self._ranked[split] = tf.constant(ranked, tf.int64)
        return len(ranked), self._windows.left_out(split) + left_out

    def batch(self, split: str, places: tf.Tensor) -> tuple[FeatureTensors, tf.Tensor, tf.Tensor]:
        """The whole catalogue for each of some samples.

        Args:
          split: that was prepared.
          places: int64 ``[B]``, among its samples that can be ranked.

        Returns:
          Features with candidates ``[B, I]``, and float32 labels and weights ``[B, I]``.
        """
        user, features = self._windows.positives(split, tf.gather(self._ranked[split], places))
        positive = features[self._item]  # [B, 1]
        labels = tf.cast(self._ids == positive, tf.float32)  # [B, I]
        free = self._met.mask(user, self.items)
        for name, values in self._features.items():
            shape = tf.concat([tf.shape(positive)[:1], tf.shape(values)], 0)
            features[name] = tf.broadcast_to(values, shape)  # [B, I], of bags [B, I, M]
        return features, labels, tf.maximum(free, labels)
