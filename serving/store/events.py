"""Events as others give them, checked: objects of JSON, or rows of a table.

An event is a plain dictionary::

    {"user": "A2SUAM1J3GNN3B", "event_id": "7f3c", "timestamp": 1393545600,
     "item_id": "B002", "category_id": "Mics", "device": "phone", "dwell": 12.5}

It has every feature of events that the store has (null where a value is missing), and what tells it
from others: who sends it again, as its acknowledgement was lost, sends the same `event_id`. What
else is known of an item may be left out where somebody can look it up (a bundle's catalogue).
Times are whole seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookback.core.errors import UserError, shown
from lookback.formats.history_columns import TIMESTAMP
from lookback.formats.stored_histories import EVENT_ID, USER, Head, Kind, type_of
from lookback.serving.requests import NumberedError

MOST_SECONDS = 1 << 61
"""Of a time, as of requests."""
_MOST_OF_ID = 500
"""Bytes of a user's or an event's id; LMDB's keys have 511."""


class EventError(NumberedError):
    """It is an event."""

    of = "events"


class IdError(UserError):
    """Something is no id of this store's users."""


class EventRows(NamedTuple):
    """Events in the order in which they came.

    Attributes:
      users: whose each is, raw ids ``[N]``.
      rows: what they are, see `Head.event_schema`.
    """

    users: Sequence[Any]
    rows: pa.RecordBatch


class ItemLookup(Protocol):
    """Knows items' features."""

    def look_up(self, items: Sequence[Any], feature: str) -> list[Any] | None:
        """Raw values of a feature of items ``[N]``; None if an item is not known."""


def user_key(head: Head, user: Any) -> bytes:
    """The key of a user's record.

    Raises:
      IdError: if it is no id of this store's users.
    """
    integer = head.kinds[head.user_id] == "integer"
    if type(user) is int if integer else isinstance(user, str):
        try:
            key = str(user).encode()
        except UnicodeEncodeError:
            key = b""
        if 0 < len(key) <= _MOST_OF_ID and (not integer or abs(user) < 1 << 63):
            return key
    expected = "an integer" if integer else f"a text of 1 to {_MOST_OF_ID} bytes"
    raise IdError(f"expected the id of a user, {expected}, received {shown(user)}")


def raw_value(head: Head, feature: str, word: str) -> Any:
    """A raw id or category as a person writes it.

    Raises:
      IdError: if the feature's are integers, and it is none.
    """
    if head.kinds[feature] != "integer":
        return word
    try:
        return int(word)
    except ValueError as error:
        raise IdError(f"{feature}: expected an integer, received {shown(word)}") from error


def read_events(head: Head, objects: Sequence[Any], items: ItemLookup | None = None) -> EventRows:
    """Events that are objects.

    Args:
      head: of the store.
      objects: see the module.
      items: knows what an event leaves out of its item; None: events must give all.

    Raises:
      EventError: naming the first that is not as it must be.
    """
    item_id, *others = head.item_features
    needed = [USER, EVENT_ID, TIMESTAMP, item_id, *head.context_features, *head.event_features]
    for index, event in enumerate(objects):
        _check_keys(index, event, needed, others)
        for name in (USER, EVENT_ID, TIMESTAMP, item_id):
            try:
                _check(head, name, event[name])
            except (ValueError, IdError) as error:
                raise EventError(index, f"{name}: {error}.") from error
    columns = []
    for name in head.event_schema.names:
        values = [event.get(name) for event in objects]
        absent = [index for index, event in enumerate(objects) if name not in event]
        if absent:
            _fill(values, absent, name, [objects[index][item_id] for index in absent], items)
        columns.append(_column(name, _kind(head, name), values))
    rows = pa.RecordBatch.from_arrays(columns, schema=head.event_schema)
    return EventRows([event[USER] for event in objects], rows)


def read_event_table(head: Head, table: pa.Table) -> EventRows:
    """Events that are rows of a table, whose columns are all that an event has.

    Raises:
      EventError: naming the first row that is not as it must be.
      UserError: if a column is missing, or of another type.
    """
    names = [USER, *head.event_schema.names]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise UserError(
            f"expected the columns {', '.join(names)}; {', '.join(missing)} is missing, found "
            f"{', '.join(table.column_names)}."
        )
    columns = {}
    for name in names:
        kind = _kind(head, head.user_id if name == USER else name)
        values = table[name]
        if not _holds(values.type, kind):
            raise UserError(f"column {name}: expected {kind}s, found {values.type}.")
        columns[name] = values.cast(type_of(kind)).combine_chunks()
        if pa.types.is_floating(columns[name].type):
            bad = pc.fill_null(pc.invert(pc.is_finite(columns[name])), False)
            _refuse_rows(bad, name, "a finite number")
    rows = [columns[name] for name in names[1:]]
    ids = {name: columns[name] for name in (USER, EVENT_ID, TIMESTAMP, head.item_features[0])}
    for name, values in ids.items():
        _refuse_rows(values.is_null(), name, "a value")
    users = columns[USER].to_pylist()
    for values, name in ((columns[EVENT_ID], EVENT_ID), (columns[USER], USER)):
        if pa.types.is_string(values.type):
            size = pc.binary_length(values)
            bad = pc.or_(pc.equal(size, 0), pc.greater(size, _MOST_OF_ID))
            _refuse_rows(bad, name, f"a text of 1 to {_MOST_OF_ID} bytes")
    late = pc.greater(pc.abs(columns[TIMESTAMP]), MOST_SECONDS)
    _refuse_rows(late, TIMESTAMP, "whole seconds")
    return EventRows(users, pa.RecordBatch.from_arrays(rows, schema=head.event_schema))


def _check_keys(index: int, event: Any, needed: Sequence[str], allowed: Sequence[str]) -> None:
    if not isinstance(event, Mapping):
        raise EventError(index, f"expected an object, received {shown(event)}.")
    faults = [f"{name!r} is missing" for name in needed if name not in event]
    faults += [f"{name!r} is unknown" for name in event if name not in (*needed, *allowed)]
    if faults:
        optional = f", and of the item {', '.join(allowed)}" if allowed else ""
        raise EventError(index, f"{', '.join(faults)}. Expected {', '.join(needed)}{optional}.")


def _check(head: Head, name: str, value: Any) -> None:
    """Refuses what must be there and is not as it must be; raises ValueError."""
    if name == USER:
        user_key(head, value)
    elif name == EVENT_ID:
        if not isinstance(value, str) or not 0 < len(value) <= _MOST_OF_ID:
            raise ValueError(
                f"expected a text of 1 to {_MOST_OF_ID} characters, received {shown(value)}"
            )
    elif name == TIMESTAMP:
        if type(value) is not int or abs(value) > MOST_SECONDS:
            raise ValueError(
                f"expected whole seconds, at most {MOST_SECONDS:,}, received {shown(value)}"
            )
    elif value is None:
        raise ValueError("expected an item, received null")


def _kind(head: Head, name: str) -> Kind:
    own: Mapping[str, Kind] = {TIMESTAMP: "integer", EVENT_ID: "text"}
    return own.get(name) or head.kinds[name]


def _fill(
    values: list[Any],
    absent: Sequence[int],
    name: str,
    items: Sequence[Any],
    lookup: ItemLookup | None,
) -> None:
    """Puts in what events leave out of their items."""
    for index, item in zip(absent, items, strict=True):
        found = None if lookup is None else lookup.look_up([item], name)
        if found is None:
            why = "" if lookup is None else f", and the catalogue does not know {shown(item)}"
            raise EventError(index, f"{name!r} is missing{why}. Give {name!r} of the item.")
        (values[index],) = found


def _column(name: str, kind: Kind, values: Sequence[Any]) -> pa.Array:
    """Values of a kind as Arrow has them.

    Raises:
      EventError: naming the first that is none.
    """
    plain = []
    for index, value in enumerate(values):
        try:
            plain.append(None if value is None else _plain(kind, value))
        except (ValueError, OverflowError) as error:
            raise EventError(
                index, f"{name}: expected {_WORDS[kind]} (or null), received {shown(value)}."
            ) from error
    return pa.array(plain, type_of(kind))


_WORDS: Mapping[Kind, str] = {
    "integer": "an integer",
    "number": "a finite number",
    "text": "a text",
    "texts": "a list of texts",
}


def _plain(kind: Kind, value: Any) -> Any:
    """A value as its kind has it; raises ValueError."""
    integer = type(value) is int
    if kind == "integer" and integer and -(1 << 63) <= value < 1 << 63:
        return value
    if kind == "number" and (integer or isinstance(value, float)) and math.isfinite(value):
        return float(value)
    if kind == "text" and isinstance(value, str):
        value.encode()  # not half of a surrogate pair
        return value
    if kind == "texts" and isinstance(value, list | tuple):
        return [_plain("text", element) for element in value]
    raise ValueError


def _holds(found: pa.DataType, kind: Kind) -> bool:
    """Whether a column's values are of a kind."""
    text = pa.types.is_string(found) or pa.types.is_large_string(found)
    if kind == "text":
        return text
    if kind == "texts":
        return pa.types.is_list(found) and _holds(found.value_type, "text")
    integer = pa.types.is_integer(found)
    return integer or (kind == "number" and pa.types.is_floating(found))


def _refuse_rows(bad: Any, name: str, expected: str) -> None:
    places = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
    if len(places):
        raise EventError(int(places[0]), f"{name}: expected {expected}.")
