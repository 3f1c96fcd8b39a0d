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

from lookback.serving.encoding import EncodedIds, Int32, ItemFeatures
from lookback.serving.layouts.candidates import (
    CANDIDATES,
    check_candidates,
    check_items,
    encode_lists,
    padded,
)
from lookback.serving.layouts.histories.encoding import FeatureEncoder
from lookback.serving.manifest import HISTORY_SUFFIX
from lookback.serving.requests import EncodedBatch, Request, RequestError, check_keys, is_list

HISTORY = "history"
TIMESTAMP = "timestamp"
TIME_GAP_INPUT = "time_gap_history"

_MOST_SECONDS = 1 << 61
"""Of a time: so that the gap between two of them still is an int64."""


@dataclasses.dataclass(frozen=True)
class HistoryRequestEncoder:
    """Encodes requests for one model.

    Attributes:
      user_features: names.
      item_features: names, the id first.
      context_features: names of what is known of the moment of a request, and of past events.
      event_features: names of what is known of past events alone.
      max_seq_length: history slots (T).
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
    time_gap_bucket: Callable[[npt.NDArray[np.int64]], npt.ArrayLike] | None
    encoders: Mapping[str, FeatureEncoder | EncodedIds]
    catalogue: ItemFeatures | None

    def check(self, index: int, request: Request) -> int:
        """Checks a request's shape, not its ids.

        Args:
          index: to name it by.
          request: see the module.

        Returns:
          Its number of candidates.

        Raises:
          RequestError: saying what was expected and what came.
        """
        check_keys(
            index,
            "the request",
            request,
            needed=(*self.user_features, *self.context_features, HISTORY, CANDIDATES),
            allowed=(TIMESTAMP,),
        )
        others = self.item_features[1:]
        optional = others if self.catalogue is not None else ()
        needed = [name for name in self.item_features if name not in optional]
        own = (*self.context_features, *self.event_features)
        allowed = [*optional, *own, TIMESTAMP]
        events = check_items(index, HISTORY, request[HISTORY], needed=needed, allowed=allowed)
        for name in own:
            if events and name not in request[HISTORY]:
                raise RequestError(
                    index, f"{HISTORY}.{name} is missing; the model reads it of every event."
                )
        return check_candidates(index, request, needed=needed, allowed=optional)

    def encode(self, requests: Sequence[Request]) -> EncodedBatch:
        """Encodes requests into one batch.

        Args:
          requests: at least one; see the module.

        Returns:
          int32: features of users and the context ``[B]``, of items ``[B, C]`` (0 beyond a
          request's own candidates), histories ``[B, T]``, those of time gaps among them (0 on the
          left). Bags have an axis more, and numbers are float32.

        Raises:
          RequestError: naming the request and the field.
        """
        counts = tuple(self.check(index, request) for index, request in enumerate(requests))
        inputs: dict[str, npt.NDArray[Any]] = {}
        for name in (*self.user_features, *self.context_features):
            values = encode_lists(
                self.encoders[name], name, [[request[name]] for request in requests]
            )
            inputs[name] = np.concatenate(values)
        T, C = self.max_seq_length, max(counts)
        for part, width in ((HISTORY, T), (CANDIDATES, C)):
            encoded = self._encode_items(part, requests)
            for name, rows in encoded.items():
                input_name = f"{name}{HISTORY_SUFFIX}" if part == HISTORY else name
                inputs[input_name] = padded(rows, width, left=part == HISTORY)
        if self.time_gap_bucket is not None:
            found = [self._gaps(index, request) for index, request in enumerate(requests)]
            buckets = np.asarray(self.time_gap_bucket(padded(found, T, left=True)))
            padding = inputs[f"{self.item_features[0]}{HISTORY_SUFFIX}"] == 0
            inputs[TIME_GAP_INPUT] = np.where(padding, 0, buckets).astype(np.int32)
        return EncodedBatch(inputs, counts)

    def _encode_items(
        self, part: str, requests: Sequence[Request]
    ) -> dict[str, list[npt.NDArray[Any]]]:
        """What is known of each request's newest T events, or of all its candidates."""
        item_id, *others = self.item_features
        kept = self.max_seq_length if part == HISTORY else None
        own = (*self.context_features, *self.event_features) if part == HISTORY else ()

        def newest(values: Sequence[Any]) -> Sequence[Any]:
            return values if kept is None else values[-kept:]

        raw = [newest(request[part][item_id]) for request in requests]
        encoded = {item_id: encode_lists(self.encoders[item_id], f"{part}.{item_id}", raw)}
        for name in (*others, *own):
            lists = [newest(request[part].get(name, ())) for request in requests]
            values = encode_lists(self.encoders[name], f"{part}.{name}", lists)
            for index, request in enumerate(requests):
                if name in others and name not in request[part]:
                    items = encoded[item_id][index]
                    values[index] = self._look_up(index, part, name, items, raw[index])
            encoded[name] = values
        return encoded

    def _look_up(
        self, index: int, part: str, name: str, items: Int32, raw: Sequence[Any]
    ) -> npt.NDArray[Any]:
        if self.catalogue is None:
            raise ValueError("check() demands every feature where there is no catalogue")
        known = self.catalogue.knows(items)
        if not known.all():
            raise RequestError(
                index,
                f"{part}.{name} is absent, and the catalogue does not know item "
                f"{raw[int(np.argmin(known))]!r}. Give {part}.{name}.",
            )
        return self.catalogue.lookup(name, items)

    def _gaps(self, index: int, request: Request) -> npt.NDArray[np.int64]:
        """Seconds from each of the newest T events to the request."""
        item_id = self.item_features[0]
        events = len(request[HISTORY][item_id])
        if not events:
            return np.zeros(0, np.int64)
        for where, value in ((f"{HISTORY}.", request[HISTORY]), ("", request)):
            if TIMESTAMP not in value:
                raise RequestError(
                    index, f"{where}{TIMESTAMP} (seconds) is missing; the model has time features."
                )
        now = _seconds(index, TIMESTAMP, [request[TIMESTAMP]])[0]
        times = _seconds(index, f"{HISTORY}.{TIMESTAMP}", request[HISTORY][TIMESTAMP])
        if np.any(np.diff(times) < 0):
            raise RequestError(
                index, f"{HISTORY}.{TIMESTAMP} decreases; histories are oldest first."
            )
        return now - times[-self.max_seq_length :]


def _seconds(index: int, field: str, values: Any) -> npt.NDArray[np.int64]:
    # By exact type: True is no number, and NumPy makes what it likes of lists of several types.
    whole = is_list(values) and all(
        type(value) is int or isinstance(value, np.integer) for value in values
    )
    if not whole or any(abs(int(value)) > _MOST_SECONDS for value in values):
        raise RequestError(
            index,
            f"{field}: expected whole seconds, at most {_MOST_SECONDS:,}, received {values!r:.60}.",
        )
    return np.asarray(values, np.int64)
