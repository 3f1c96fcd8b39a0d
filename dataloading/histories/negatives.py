"""What negatives of histories are drawn from: events, or the items of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from lookback.core.devices import resident
from lookback.dataloading.draws import Key, Without, draw_below
from lookback.dataloading.histories.resident import Histories, ItemCounts
from lookback.dataloading.histories.targets import UnknownEvents
from lookback.formats.vocabulary import FIRST_KNOWN

NEGATIVES = ("popularity", "uniform")


class Draws(NamedTuple):
    """What negatives are drawn by.

    Attributes:
      key: what they are for.
      numbers: of the samples among all processes', int64 ``[B]``.
    """

    key: Key
    numbers: tf.Tensor


class NegativePool:
    """Rows that negatives are drawn from, each alike; what is no item is not among them.

    To draw an event is to draw an item by popularity, its other features with it. Where not all
    events are here, items take the place of their events: a number below the events of all items
    belongs to the item whose events it falls among.

    Attributes:
      features: of the items, by name, ``[R]`` each: of a row the item's.
      count: of what training draws from.
      of_events: whether its rows are the events of the histories that are here.
    """

    def __init__(
        self,
        histories: Histories,
        events: Mapping[str, tf.Tensor],
        unknown: UnknownEvents,
        negatives: str,
        counts: ItemCounts | None = None,
    ) -> None:
        """Places it on the device.

        Args:
          histories: that are here: everybody's, or of some users.
          events: features of the items of their events, ``[N]``.
          unknown: events that are no item.
          negatives: one of `NEGATIVES`.
          counts: how often each item of the catalogue occurs among everybody's events; None: the
            histories are everybody's.
        """
        self._uniform = negatives == "uniform"
        self.of_events = not self._uniform and counts is None
        self._known_events = Without(unknown.events)
        # Events of training are numbered user by user, held-out ones left out.
        training = histories.targets["train"]
        ends = np.cumsum(training[1])
        shift = histories.offsets[:-1] - (ends - training[1])
        left_out = (unknown.events - shift[unknown.users])[unknown.among(*training)]
        self._training_events = Without(left_out)
        self._training_ends = tf.constant(ends, tf.int64)
        self._training_shift = tf.constant(shift, tf.int64)
        self._item_ends: dict[str, tf.Tensor] = {}
        if self.of_events:
            self.features = dict(events)
            self.count = int(ends[-1]) - self._training_events.count if len(ends) else 0
            return
        known = histories.catalogue[histories.features.item[0]] >= FIRST_KNOWN
        self.features = {n: resident(v[known]) for n, v in histories.catalogue.items()}
        self.count = int(known.sum())
        if counts is not None and not self._uniform:
            for purpose, occurrences in (("train", counts.training), ("evaluate", counts.all)):
                self._item_ends[purpose] = tf.constant(np.cumsum(occurrences[known]), tf.int64)
            self.count = int(counts.training[known].sum())

    def draw(self, draws: Draws, stream: str, width: int) -> tf.Tensor:
        """Draws rows ``[B, width]``, int64.

        Args:
          draws: what they are drawn by; for training, or for an evaluation.
          stream: name of what draws for the same samples.
          width: how many each of them gets.
        """
        key, numbers = draws
        if self._item_ends:
            ends = self._item_ends[key[1].partition("/")[0]]
            drawn = draw_below(key, stream, numbers, width, ends[-1])
            item = tf.searchsorted(ends, tf.reshape(drawn, [-1]), side="right", out_type=tf.int64)
            return tf.reshape(item, tf.shape(drawn))
        rows = tf.size(next(iter(self.features.values())), out_type=tf.int64)
        if self._uniform:
            return draw_below(key, stream, numbers, width, rows)
        if key[1] != "train":
            rows -= self._known_events.count
            return self.known_events(draw_below(key, stream, numbers, width, rows))
        rows = self._training_ends[-1] - self._training_events.count
        return self.training_events(draw_below(key, stream, numbers, width, rows))

    def known_events(self, places: tf.Tensor) -> tf.Tensor:
        """Numbers of events, from places (int64 of any shape) among those that are an item."""
        return self._known_events.nth(places)

    def training_events(self, places: tf.Tensor) -> tf.Tensor:
        """As `known_events`, from places among those of training that are an item."""
        events = tf.reshape(self._training_events.nth(places), [-1])
        user = tf.searchsorted(self._training_ends, events, side="right", out_type=tf.int64)
        return tf.reshape(events + tf.gather(self._training_shift, user), tf.shape(places))
