"""Who competes with a user's held-out event: sampled candidates, or the whole catalogue."""

from __future__ import annotations

import tensorflow as tf

from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.windows import Features, WindowBuilder
from lookback.dataloading.known_items import Catalogue, KnownItems
from lookback.formats.vocabulary import FIRST_KNOWN

_SCORES_AT_A_TIME = 1 << 14  # of a process: with 100 slots of 64 numbers 400 MB for a layer


def competing(items: tf.Tensor) -> tf.Tensor:
    """Weights of sampled candidates, which are drawn with repetition.

    Args:
      items: ids ``[B, C]``; column 0 is the positive.

    Returns:
      float32 ``[B, C]``: 0 for draws of the positive itself, and of ids that are no item (below
      `FIRST_KNOWN`); 1 for others, as often as they are drawn, and for the positive.
    """
    positive = items[:, :1]  # [B, 1]
    others = tf.logical_and(items[:, 1:] != positive, items[:, 1:] >= FIRST_KNOWN)  # [B, C - 1]
    return tf.concat([tf.ones_like(positive, tf.float32), tf.cast(others, tf.float32)], 1)


class CatalogueRankings:
    """Evaluation batches in which the items of the catalogue compete that the user has not met.

    Attributes:
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
        self._met = KnownItems(histories, self._catalogue, held_out=0)
        self._ids = tf.constant(self._catalogue.ids)
        self._features = {n: tf.constant(v) for n, v in self._catalogue.features.items()}
        self._item = histories.features.item[0]
        items = max(1, len(self._catalogue))
        self.users = ranks * max(1, _SCORES_AT_A_TIME // items)
        self.pieces = _SCORES_AT_A_TIME if items > _SCORES_AT_A_TIME else None

    def batch(self, split: str, numbers: tf.Tensor) -> tuple[Features, tf.Tensor, tf.Tensor]:
        """The whole catalogue for each of some samples.

        Args:
          split: "train", "validation" or "test".
          numbers: int64 ``[B]``, of its samples.

        Returns:
          Features with candidates ``[B, I]``, and float32 labels and weights ``[B, I]``.
        """
        user, features = self._windows.positives(split, numbers)
        positive = features[self._item]  # [B, 1]
        labels = tf.cast(self._ids == positive, tf.float32)  # [B, I]
        known = tf.cast(self._ids >= FIRST_KNOWN, tf.float32)  # [I]
        free = self._met.mask(user, len(self._catalogue)) * known
        for name, values in self._features.items():
            features[name] = tf.zeros_like(positive) + values  # [B, I]
        return features, labels, tf.maximum(free, labels)
