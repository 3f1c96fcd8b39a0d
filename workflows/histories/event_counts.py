"""What is counted of raw events on the way, by partitions and in all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lookback.formats.dataset_info import SPLITS
from lookback.workflows.text import summed


@dataclass(frozen=True, kw_only=True)
class EventCounts:
    """What was counted of the events of a partition, or of all.

    Attributes:
      events: number of events.
      users: number of users.
      users_with_one_event: how many of them have a single event.
      users_kept: how many are kept.
      events_kept: events of the kept users, without the repeated ones.
      exact_repeats: events that were dropped because another is the same.
      events_repeated: events of the kept users with an item that they had before; 0 where these
        are kept, too.
      held_out_ties: held-out events of the kept users that have the time of the event before
        them: something else than time says which of the two is held out.
      users_short: users who have `min_interactions` events or more, but of too few items.
      longest: length of the longest history.
      without_features: events whose id the feature table does not have, by feature.
      rare_events: events of items that have too few.
      people_kept: (typed) users who are kept; of them each may have several sessions, and then
        what is said of users is said of these.
      missing: (typed) events of the kept users without a value, by feature.
      parts: (typed) these users' events by part of the split; of explicit labels the clicks.
      impressions: likewise all events, where labels are explicit.
      seen_again: of an update, events that came though the dataset before had them.
      new_events: likewise those that came and are in histories.
      new_impressions: likewise among the impressions, or if there are none the histories.
      new_training: targets to train on that the dataset before did not train on.
    """

    events: int
    users: int
    users_with_one_event: int
    users_kept: int
    events_kept: int
    exact_repeats: int
    events_repeated: int
    held_out_ties: int
    users_short: int
    longest: int
    without_features: Mapping[str, int] = field(default_factory=dict)
    rare_events: int = 0
    people_kept: int = 0
    missing: Mapping[str, int] = field(default_factory=dict)
    parts: tuple[int, ...] = (0,) * len(SPLITS)
    impressions: tuple[int, ...] = (0,) * len(SPLITS)
    seen_again: int = 0
    new_events: int = 0
    new_impressions: int = 0
    new_training: int = 0


def totals(partitions: Sequence[EventCounts]) -> dict[str, Any]:
    """What all partitions add up to, by the names of `EventCounts`; the longest is the longest."""
    return {
        counter.name: _total(counter.name, [getattr(one, counter.name) for one in partitions])
        for counter in dataclasses.fields(EventCounts)
    }


def _total(name: str, values: Sequence[Any]) -> Any:
    if name == "longest":
        return max(values)
    if isinstance(values[0], Mapping):
        return summed(values)
    if isinstance(values[0], tuple):
        return tuple(np.sum(values, axis=0).tolist())
    return sum(values)
