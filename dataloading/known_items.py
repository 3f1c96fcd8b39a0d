"""Which items each user has met, and the others by number: negatives without rejection."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.dataloading.histories.resident import Histories, Int64
from lookback.formats.vocabulary import FIRST_KNOWN


class Catalogue:
    """The distinct items of a dataset, by place; ids that are no item (missing, rare) are not here.

    Attributes:
      ids: int32 ``[I]``, ascending, NumPy.
      features: ``[I]`` by item feature, ids among them.
    """

    def __init__(self, histories: Histories) -> None:
        """Sorts the items."""
        item = histories.features.item[0]
        ids, first = np.unique(histories.catalogue[item], return_index=True)
        first = first[ids >= FIRST_KNOWN]
        self.ids = histories.catalogue[item][first]
        self.features = {name: values[first] for name, values in histories.catalogue.items()}

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, ids: np.ndarray) -> Int64:
        """Places ``[N]`` of item ids ``[N]``.

        Raises:
          UserError: if one of them is not here.
        """
        places = np.searchsorted(self.ids, ids)
        found = self.ids[np.minimum(places, len(self.ids) - 1)] == ids if len(self.ids) else False
        if not np.all(found):
            strange = int(ids[np.argmin(found)]) if len(self.ids) else int(ids[0])
            raise UserError(
                f"Item id {strange} occurs in a history but not in items.parquet. The dataset's "
                "parts do not belong together; run the workflow again."
            )
        return places.astype(np.int64)


class KnownItems:
    """The distinct items of each user's events, and every user's other items by number.

    A user's known items, as ascending places s_0 < s_1 < ..., leave free the places that are not
    among them; free place number r is ``r + k``, k the number of j with ``s_j - j <= r``. So one
    uniform number below the count of free items gives a negative that is none of the user's items,
    by a binary search and without a second try.

    Attributes:
      free: how many items each user has not met, int64 ``[U]``.
      repeated: whether the user of an event has met its item in an event before, ``[N]``; only
        events that count.
    """

    def __init__(self, histories: Histories, catalogue: Catalogue, *, training: bool) -> None:
        """Collects the items.

        Args:
          histories: of U users.
          catalogue: I items.
          training: whether held-out events do not count, as those of ids that are no item do not.

        Raises:
          UserError: if an event's item is not in the catalogue.
        """
        ids = histories.item_features[histories.features.item[0]]
        users = histories.num_users
        lengths = np.diff(histories.offsets)
        self.repeated = ids >= FIRST_KNOWN
        if training:
            self.repeated &= histories.in_training()
        event = np.flatnonzero(self.repeated)
        user = np.repeat(np.arange(users, dtype=np.int64), lengths)[event]
        size = max(len(catalogue), 1)
        pairs, first = np.unique(user * size + catalogue.places(ids[event]), return_index=True)
        self.repeated[event[first]] = False
        user, place = np.divmod(pairs, size)
        known = np.bincount(user, minlength=users)
        offsets = np.concatenate([[0], np.cumsum(known)])
        self.free = len(catalogue) - known  # [U]
        order = np.arange(len(pairs)) - np.repeat(offsets[:-1], known)
        self._places = tf.constant(place, tf.int64)
        self._ahead = tf.constant(place - order, tf.int64)  # free places in front of each
        self._begins = tf.constant(offsets, tf.int64)
        self._rounds = int(known.max(initial=0)).bit_length()

    def free_places(self, users: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        """Places of free items, by number.

        Args:
          users: int64 ``[B]``.
          numbers: int64 ``[B, K]``, below the user's `free`.

        Returns:
          int64 ``[B, K]``.
        """
        begin = tf.expand_dims(tf.gather(self._begins, users), 1)  # [B, 1]
        low = begin + tf.zeros_like(numbers)  # [B, K]
        high = tf.expand_dims(tf.gather(self._begins, users + 1), 1) + tf.zeros_like(numbers)
        last = tf.maximum(tf.size(self._ahead, tf.int64) - 1, 0)
        for _ in range(self._rounds):
            middle = (low + high) // 2
            before = tf.gather(self._ahead, tf.minimum(middle, last)) <= numbers
            before &= low < high
            low, high = tf.where(before, middle + 1, low), tf.where(before, high, middle)
        return numbers + low - begin

    def mask(self, users: tf.Tensor, items: int) -> tf.Tensor:
        """Which items users have not met.

        Args:
          users: int64 ``[B]``.
          items: I, of the catalogue.

        Returns:
          float32 ``[B, I]``: 0 for known items, 1 for others.
        """
        begins, ends = tf.gather(self._begins, users), tf.gather(self._begins, users + 1)
        places = tf.ragged.range(begins, ends)
        where = tf.stack(
            [places.value_rowids(), tf.gather(self._places, places.flat_values)], axis=1
        )
        known = tf.scatter_nd(
            where,
            tf.ones([tf.shape(where)[0]]),
            tf.stack([tf.size(users, tf.int64), tf.constant(items, tf.int64)]),
        )
        return 1.0 - known
