"""Requests of models over histories: encoded, cut to windows, padded to one batch.

A request is a plain dictionary::

    {"user_id": "A2SUAM1J3GNN3B", "device": "phone",
     "history": {"item_id": ["B001", "B007"], "category_id": ["Cables", "Mics"],
                 "price": [7.5, null], "tags": [["usb", "black"], []],
                 "device": ["phone", "laptop"], "dwell": [12.5, 40],
                 "timestamp": [1365465600, 1376006400]},
     "candidates": {"item_id": ["B002", "B003"], "category_id": ["Mics", "Strings"],
                    "price": [99.0, 5], "tags": [null, ["steel"]]},
     "timestamp": 1393545600}

Every user feature stands by its name. So does every feature of the context (here `device`): what is
known of the moment of the request, and in the history of each event. What is known of events only
afterwards (`dwell`) is in the history alone. Histories are oldest first and may be empty. An item's
other features may be left out where the catalogue knows the item.

Values are raw: a category is as the data had it, a list of categories a list, a number a number,
and what is missing null. Timestamps are seconds; only a model with time features needs them, and
then `timestamp`, the moment of the request, has no default: it is not ours to guess, and a wrong
one moves every score. Of each candidate the answer says whether the workflow knows the item
(`known`): all that it does not know share one row of the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.formats.history_columns import TIMESTAMP
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.columns import (
    CANDIDATES,
    HISTORY,
    Columns,
    Ragged,
    RequestTable,
    columns_of,
    encode_ragged,
)
from lookback.serving.encoding import EncodedIds, ItemFeatures, whole_numbers
from lookback.serving.feature_encoders import FeatureEncoder
from lookback.serving.layouts.candidates import (
    CandidateRequestEncoder,
    IdEncoder,
    Inputs,
    check_candidates,
    check_items,
)
from lookback.serving.manifest import HISTORY_SUFFIX
from lookback.serving.requests import EncodedBatch, Request, RequestError, check_keys, padded

TIME_GAP_INPUT = "time_gap_history"

MOST_SECONDS = 1 << 61
"""Of a time: so that the gap between two of them still is an int64."""


@dataclasses.dataclass(frozen=True)
class HistoryRequestEncoder(CandidateRequestEncoder):
    """Encodes requests for one model.

    Attributes:
      user_features: names.
      item_features: names, the id first.
      context_features: names of what is known of the moment of a request, and of past events.
      event_features: names of what is known of past events alone.
      max_seq_length: history slots (T), of which the newest events take the last.
      least_slots: of a batch, which has as many as its longest history needs (at most T).
      time_gap_bucket: buckets of gaps in seconds (int64 of any shape) for a model that reads
        them; None for one without time features.
      encoders: of each feature.
      catalogue: of the items' other features; None: every request must bring them.
    """

    user_features: tuple[str, ...]
    item_features: tuple[str, ...]
    context_features: tuple[str, ...]
    event_features: tuple[str, ...]
    max_seq_length: int
    least_slots: int
    time_gap_bucket: Callable[[npt.NDArray[np.int64]], npt.ArrayLike] | None
    encoders: Mapping[str, FeatureEncoder | EncodedIds]
    catalogue: ItemFeatures | None

    @property
    def ids(self) -> tuple[tuple[str, IdEncoder] | None, tuple[str, IdEncoder]]:
        """The first features of users and items."""
        user, item = self.user_features[:1], self.item_features[0]
        ids: dict[str, Any] = {name: self.encoders[name] for name in (*user, item)}
        return (user[0], ids[user[0]]) if user else None, (item, ids[item])

    @property
    def item_fields(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The id alone must be there, if there is a catalogue."""
        if self.catalogue is None:
            return self.item_features, ()
        return self.item_features[:1], self.item_features[1:]

    @property
    def optional(self) -> tuple[str, ...]:
        """The time."""
        return (TIMESTAMP,)

    @property
    def whole_catalogue(self) -> Inputs | None:
        """Of the bundle."""
        if self.catalogue is None:
            return None
        item_id, *others = self.item_features
        ids = np.sort(self.catalogue.ids[self.catalogue.ids >= FIRST_KNOWN])
        return {item_id: ids, **{n: self.catalogue.lookup(n, ids) for n in others}}

    def check(self, index: int, request: Request, *, candidates: bool | None = None) -> int:
        """As `CandidateRequestEncoder` has it; `score` demands candidates."""
        candidates = candidates is None or candidates
        asked = (CANDIDATES,) if candidates else ()
        check_keys(
            index,
            "the request",
            request,
            needed=(*self._of_users, HISTORY, *asked),
            allowed=(TIMESTAMP,),
        )
        needed, optional = self.item_fields
        events = check_items(
            index, HISTORY, request[HISTORY], needed=needed, allowed=(*optional, *self._of_events)
        )
        for name in self._of_events[:-1]:
            if events and name not in request[HISTORY]:
                raise RequestError(
                    index, f"{HISTORY}.{name} is missing; the model reads it of every event."
                )
        if not candidates:
            return 0
        return check_candidates(index, request, needed=needed, allowed=optional)

    def encode(
        self, requests: Sequence[Request], counts: Sequence[int] | None = None
    ) -> EncodedBatch:
        """Encodes requests into one batch.

        Args:
          requests: at least one; see the module.
          counts: what `check` said of each; None: they are checked here.

        Returns:
          int32: features of users and the context ``[B]``, of items ``[N]``, histories of as many
          slots as the longest needs, those of time gaps among them (0 on the left). Bags have an
          axis more, and numbers are float32.

        Raises:
          RequestError: naming the request and the field.
        """
        if counts is None:
            counts = self.check_all(requests, candidates=True)
        columns = columns_of(requests)
        return EncodedBatch(self.encode_users(columns), counts, self.encode_items(columns))

    def encode_users(self, columns: Columns) -> Inputs:
        """What of requests, which are checked, does not depend on candidates; see `encode`."""
        inputs = {
            name: encode_ragged(self.encoders[name], name, columns.one(name))
            for name in self._of_users
        }
        events, lengths = self._encode(columns, HISTORY)
        slots = max(self.least_slots, int(lengths.max()))
        for name, values in events.items():
            inputs[f"{name}{HISTORY_SUFFIX}"] = padded(values, lengths, slots, left=True)
        if self.time_gap_bucket is not None:
            buckets = np.asarray(self.time_gap_bucket(self._gaps(columns)))
            inputs[TIME_GAP_INPUT] = padded(buckets.astype(np.int32), lengths, slots, left=True)
        return inputs

    def encode_items(self, columns: Columns) -> Inputs:
        """The candidates of requests, which are checked: ``[N, ...]`` by item feature."""
        items, _ = self._encode(columns, CANDIDATES)
        return items

    def seen(self, columns: Columns) -> Ragged:
        """The items of each request's history."""
        return columns.several(HISTORY, self.item_features[0])

    @property
    def _of_users(self) -> tuple[str, ...]:
        return *self.user_features, *self.context_features

    @property
    def _of_events(self) -> tuple[str, ...]:
        """What a history may hold beside its items; the time comes last."""
        return *self.context_features, *self.event_features, TIMESTAMP

    def counts_of(self, table: RequestTable, *, candidates: bool) -> list[int] | None:
        """By the lengths of the lists."""
        needed, optional = self.item_fields
        own = self._of_events
        if not set(self._of_users) <= set(table.names()) <= {*self._of_users, TIMESTAMP}:
            return None
        events = table.lengths(HISTORY, needed, (*optional, *own), own[:-1])
        if events is None or bool(table.names(CANDIDATES)) != candidates:
            return None
        if not candidates:
            return [0] * len(table)
        counts = table.lengths(CANDIDATES, needed, optional)
        return None if counts is None or not counts.all() else counts.tolist()

    def _encode(self, columns: Columns, part: str) -> tuple[Inputs, npt.NDArray[np.int64]]:
        """What is known of each request's newest T events, or of all its candidates.

        Args:
          columns: of requests.
          part: of which.

        Returns:
          Values ``[N, ...]`` by feature, and how many each request has.
        """
        item_id, *others = self.item_features
        own = self._of_events[:-1] if part == HISTORY else ()

        def field(name: str) -> Ragged:
            values = columns.several(part, name)
            return values.newest(self.max_seq_length) if part == HISTORY else values

        items = field(item_id)
        ids = encode_ragged(self.encoders[item_id], f"{part}.{item_id}", items)
        encoded = {item_id: ids}
        for name in (*others, *own):
            values = field(name)
            if name in others and not values.given.all():
                encoded[name] = self._look_up(part, name, items, ids, values)
            else:
                encoded[name] = encode_ragged(self.encoders[name], f"{part}.{name}", values)
        return encoded, items.lengths

    def _look_up(
        self, part: str, name: str, items: Ragged, ids: npt.NDArray[Any], values: Ragged
    ) -> npt.NDArray[Any]:
        """A feature of all items ``[N, ...]``: as it is given, or else as the catalogue has it.

        Args:
          part: of the requests.
          name: of the feature.
          items: of the requests.
          ids: these, encoded.
          values: of the feature, of some requests.
        """
        if self.catalogue is None:
            raise ValueError("check() demands every feature where there is no catalogue")
        absent = ~values.given[items.owners]
        known = self.catalogue.knows(ids) | ~absent
        if not known.all():
            place = int(np.argmin(known))
            (item,) = items.values[place : place + 1]
            item = item.as_py() if isinstance(item, pa.Scalar) else item
            raise RequestError(
                int(items.owners[place]),
                f"{part}.{name} is absent, and the catalogue does not know item {item!r}. Give "
                f"{part}.{name}.",
            )
        found = self.catalogue.lookup(name, ids)
        if not absent.all():
            found[~absent] = encode_ragged(self.encoders[name], f"{part}.{name}", values)
        return found

    def _gaps(self, columns: Columns) -> npt.NDArray[np.int64]:
        """Seconds from each of the newest T events to the request: ``[N]``."""
        events = self.seen(columns).lengths
        times = columns.several(HISTORY, TIMESTAMP)
        now = columns.one(TIMESTAMP)
        for where, field in ((f"{HISTORY}.", times), ("", now)):
            absent = (events > 0) & ~field.given
            if absent.any():
                raise RequestError(
                    int(np.argmax(absent)),
                    f"{where}{TIMESTAMP} (seconds) is missing; the model has time features.",
                )
        seconds = encode_ragged(_Seconds(), f"{HISTORY}.{TIMESTAMP}", times)
        owners = times.owners
        decreases = (np.diff(seconds) < 0) & (owners[1:] == owners[:-1])
        if decreases.any():
            raise RequestError(
                int(owners[int(np.argmax(decreases))]),
                f"{HISTORY}.{TIMESTAMP} decreases; histories are oldest first.",
            )
        moments = np.zeros(len(events), np.int64)
        moments[now.given] = encode_ragged(_Seconds(), TIMESTAMP, now)
        gaps = moments[owners] - seconds
        newest = np.arange(len(gaps)) >= np.repeat(times.ends - self.max_seq_length, events)
        return gaps[newest]


class _Seconds:
    """Times of requests: only checked."""

    def encode(self, values: Sequence[Any]) -> npt.NDArray[np.int64]:
        """The whole seconds ``[N]`` themselves; raises ValueError if they are none."""
        return whole_numbers(
            values,
            -MOST_SECONDS,
            MOST_SECONDS,
            f"expected whole seconds, at most {MOST_SECONDS:,}",
        )
