"""The targets of one split: what is predicted, of whom, and from how much of a history."""

from __future__ import annotations

import abc
import copy
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lookback.core.devices import resident
from lookback.dataloading.draws import Without
from lookback.dataloading.evaluations import LeftOut
from lookback.dataloading.histories.impressions import Impressions
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.splits import Int64
from lookback.formats.vocabulary import FIRST_KNOWN

NOTHING_IS_NEW = (
    "The training set has no target that is new and not held out. Leave --train_on out, or update "
    "the dataset with later events."
)
"""Of --train_on new."""

_MORE_THAN_USERS = 1 << 40


class Located(NamedTuple):
    """Targets ``[B]`` (int64 each).

    Attributes:
      user: places of users in the histories.
      position: how many events of the user come before.
      place: where the target's features and time are, among those of `Targets`.
    """

    user: tf.Tensor
    position: tf.Tensor
    place: tf.Tensor


class Targets(abc.ABC):
    """The targets of a split, by number.

    Attributes:
      count: how many there are.
      left_out: why others are not.
      features: ``[N]`` by feature of items and of the context.
      times: int64 ``[N]`` seconds, None if the dataset has none.
      labels: int8 ``[N]``, None where a target is a positive and negatives are drawn.
    """

    count: int
    left_out: LeftOut
    features: dict[str, tf.Tensor]
    times: tf.Tensor | None
    labels: tf.Tensor | None

    @abc.abstractmethod
    def at(self, numbers: tf.Tensor) -> Located:
        """The targets with numbers ``[B]`` (int64, below `count`)."""

    @property
    @abc.abstractmethod
    def placed(self) -> dict[str, Any]:
        """Tensors ``[N]`` of these targets but for what is of all events."""

    @abc.abstractmethod
    def over(
        self,
        placed: dict[str, Any],
        offsets: tf.Tensor,
        features: dict[str, tf.Tensor],
        times: tf.Tensor | None,
    ) -> Targets:
        """Others' targets of the dataset, for `at`.

        Args:
          placed: of the others.
          offsets: of their histories, ``[U + 1]``.
          features: ``[N]`` of all their events.
          times: ``[N]`` likewise, None if they are not wanted.
        """


class UnknownEvents:
    """The events of ids that are no item (missing, rare, unknown).

    Attributes:
      events: their numbers ``[K]``, ascending.
      users: places of their users ``[K]``.
      positions: in their users' histories ``[K]``.
    """

    def __init__(self, histories: Histories) -> None:
        """Finds them."""
        ids = histories.item_features[histories.features.item[0]]
        self.events = np.flatnonzero(ids < FIRST_KNOWN)
        self.users = np.searchsorted(histories.offsets, self.events, "right") - 1
        self.positions = self.events - histories.offsets[self.users]

    def among(self, begins: Int64, ends: Int64) -> npt.NDArray[np.bool_]:
        """Which of them ``[K]`` are in a range of positions ``[U]`` of each user."""
        return (self.positions >= begins[self.users]) & (self.positions < ends[self.users])


class EventTargets(Targets):
    """Events that are items and have one before them, in a range of each user's positions."""

    def __init__(
        self,
        ranges: tuple[Int64, Int64],
        unknown: UnknownEvents,
        offsets: tf.Tensor,
        features: dict[str, tf.Tensor],
        times: tf.Tensor | None,
    ) -> None:
        """Finds them.

        Args:
          ranges: begins and ends of the positions, ``[U]`` each.
          unknown: which are no targets.
          offsets: of the histories, ``[U + 1]``.
          features: ``[N]`` of all events, items' and the context's among them.
          times: ``[N]`` likewise, None if the dataset has none.
        """
        self.features, self.times, self.labels = features, times, None
        first, ends = ranges
        begins = np.maximum(first, 1)
        sizes = np.maximum(ends - begins, 0)
        starts = np.cumsum(sizes) - sizes
        inside = unknown.among(begins, ends)
        shift = starts - begins
        self._known = Without((unknown.positions + shift[unknown.users])[inside])
        self._ends = tf.constant(starts + sizes, tf.int64)
        self._shift = tf.constant(shift, tf.int64)
        self._first = tf.constant(first, tf.int64)
        self._offsets = offsets
        self.count = int(sizes.sum()) - self._known.count
        early = np.clip(begins, first, np.maximum(first, ends))  # where what comes too early ends
        nameless = int(unknown.among(first, early).sum())
        self.left_out = LeftOut(
            self._known.count + nameless, without_history=int((early - first).sum()) - nameless
        )

    def at(self, numbers: tf.Tensor) -> Located:
        """As the contract says; `place` is the number of the event."""
        numbers = self._known.nth(numbers)
        user = tf.searchsorted(self._ends, numbers, side="right", out_type=tf.int64)
        position = numbers - tf.gather(self._shift, user)
        return Located(user, position, tf.gather(self._offsets, user) + position)

    @property
    def placed(self) -> dict[str, Any]:
        """As the contract says."""
        rest = {"ends": self._ends, "shift": self._shift, "first": self._first}
        return {"known": self._known.placed, **rest}

    def over(
        self,
        placed: dict[str, Any],
        offsets: tf.Tensor,
        features: dict[str, tf.Tensor],
        times: tf.Tensor | None,
    ) -> EventTargets:
        """As the contract says."""
        other = copy.copy(self)
        other._known, other._offsets = Without.of(placed["known"]), offsets
        other._ends, other._shift, other._first = (placed[n] for n in ("ends", "shift", "first"))
        other.features, other.times = features, times
        return other

    def draw_numbers(self, located: Located, users: tf.Tensor) -> tf.Tensor:
        """What negatives of an evaluation are drawn by: who else is left out changes nobody's.

        Args:
          located: the targets.
          users: numbers of their users among all processes'.

        Returns:
          Int64 ``[B]``: the user's number for its first target, one beyond all users' for others.
        """
        later = located.position - tf.gather(self._first, located.user)
        return users + later * _MORE_THAN_USERS


class ListedTargets(Targets):
    """Events that are listed one by one: those of training that are new."""

    def __init__(
        self,
        events: Int64,
        histories: Histories,
        ranges: tuple[Int64, Int64],
        offsets: tf.Tensor,
        features: dict[str, tf.Tensor],
        times: tf.Tensor | None,
    ) -> None:
        """Finds those that are targets.

        Args:
          events: their numbers ``[K]``, ascending.
          histories: that they are of.
          ranges: begins and ends of the positions, ``[U]`` each.
          offsets: see `EventTargets`.
          features: likewise.
          times: likewise.
        """
        self.features, self.times, self.labels = features, times, None
        users = np.searchsorted(histories.offsets, events, "right") - 1
        positions = events - histories.offsets[users]
        events = events[(positions >= ranges[0][users]) & (positions < ranges[1][users])]
        known = histories.item_features[histories.features.item[0]][events] >= FIRST_KNOWN
        self.count = int(known.sum())
        self.left_out = LeftOut(len(events) - self.count)
        self._events = tf.constant(events[known], tf.int64)
        self._offsets = offsets

    def at(self, numbers: tf.Tensor) -> Located:
        """As the contract says; `place` is the number of the event."""
        event = tf.gather(self._events, numbers)
        user = tf.searchsorted(self._offsets, event, side="right", out_type=tf.int64) - 1
        return Located(user, event - tf.gather(self._offsets, user), event)

    @property
    def placed(self) -> dict[str, Any]:
        """As the contract says."""
        return {"listed": self._events}

    def over(
        self,
        placed: dict[str, Any],
        offsets: tf.Tensor,
        features: dict[str, tf.Tensor],
        times: tf.Tensor | None,
    ) -> ListedTargets:
        """As the contract says."""
        other = copy.copy(self)
        other._events, other._offsets = placed["listed"], offsets
        other.features, other.times = features, times
        return other


class ImpressionTargets(Targets):
    """Impressions, whose labels are their own."""

    def __init__(self, impressions: Impressions, times: bool) -> None:
        """Places them on the device, their times if wanted."""
        self.count, self.left_out = len(impressions.users), LeftOut()
        self.features = {name: resident(v) for name, v in impressions.features.items()}
        self.times = tf.constant(impressions.timestamps) if times else None
        self.labels = resident(impressions.labels)
        self._users = resident(impressions.users)
        self._positions = resident(impressions.positions)

    def at(self, numbers: tf.Tensor) -> Located:
        """As the contract says; `place` is the number."""
        user, position = (tf.gather(a, numbers) for a in (self._users, self._positions))
        return Located(tf.cast(user, tf.int64), tf.cast(position, tf.int64), numbers)

    @property
    def placed(self) -> dict[str, Any]:
        """As the contract says."""
        times = {} if self.times is None else {"times": self.times}
        rest = {"users": self._users, "positions": self._positions, "labels": self.labels}
        return {"features": self.features, **rest, **times}

    def over(
        self,
        placed: dict[str, Any],
        offsets: tf.Tensor,
        features: dict[str, tf.Tensor],
        times: tf.Tensor | None,
    ) -> ImpressionTargets:
        """As the contract says; nothing of it is of all events."""
        del offsets, features, times
        other = copy.copy(self)
        other._users, other._positions = placed["users"], placed["positions"]
        other.features, other.labels = placed["features"], placed["labels"]
        other.times = placed.get("times")
        return other
