"""Histories of users as a store for serving holds them: its head, and one record a user.

The head says what is in the records: whose features by name, of which kind, and of which
vocabularies the dataset was whose users were loaded. Values are raw, as requests give them, so that
what encodes requests encodes these.

A record is a user's whole history, oldest event first::

    header      `_HEADER`: what it is, its version, CRC-32 of all that follows the header's first 12
                bytes, number of events, revision, floor, length of the next two parts
    user        JSON: the user's own features by name
    events      Arrow: a column for each feature of events (`Head.event_schema`), their times and
                ids, and their places by category
    categories  Arrow: the categories that occur, and where the places of each end

The last two are the user behaviour tree of the SIM paper (section 3.2: user, category, events): the
events of a category are read without a look at the others.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookback.core.arrow_files import read_batch
from lookback.core.errors import UserError, shown
from lookback.core.json_files import load_object
from lookback.core.manifests import FILES, is_whole, sealed
from lookback.core.outputs import Entries, OutputKind
from lookback.formats.history_columns import TIMESTAMP

FORMAT = "lookback-history-store"
FORMAT_VERSION = 1
HEAD_FILE = "store.json"
"""Of a store that is a directory: the head, and which file holds the records."""

USER, EVENT_ID = "user", "event_id"
"""Keys of an event beside its time and features: whose it is, and what tells it from others."""

FILE, EARLIER = "file", "earlier"
"""Beside a head: the file of its records, and the digests of heads that it took the place of."""

_MAGIC = b"LBHR"
_HEADER = struct.Struct("<4sIIIQqII")
HEADER_BYTES = _HEADER.size
"""Of a record; no two contents of a user's record have the same."""
_SUMMED = 12  # the CRC is of what follows it
NO_FLOOR = -(1 << 63)
_MOST_EARLIER = 100
"""Updates that a reader may sleep through."""
_OF_RECORDS = (
    *("user_id", "user_features", "item_features", "context_features", "event_features"),
    *("kinds", "category"),
)
"""What two heads must agree in, for records of one to be records of the other."""
_ORDER, _CATEGORY, _END = "#order", "#category", "#end"  # no feature has such a name

Kind = Literal["integer", "number", "text", "texts"]
"""Of raw values: an integer, a number, a text, or a list of texts; null is a missing one."""

_TYPES: Mapping[Kind, pa.DataType] = {
    "integer": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
    "texts": pa.list_(pa.field("item", pa.string())),
}


@dataclasses.dataclass(frozen=True)
class Head:
    """What a store says of its records.

    Attributes:
      user_id: name of the users' ids, which models may read as a feature.
      user_features: names of what else is known of a user.
      item_features: names, the id first; an event has them of its item.
      context_features: names of what is known of an event, and of the moment of a request.
      event_features: names of what is known of past events alone.
      kinds: of all of these.
      category: the item feature by which events are found; None: there is none.
      max_events: newest events of a user that are kept.
      vocabularies: digests of what the ids of features stood for in the dataset, by name.
      transforms: what `formats.transforms` says of its other features.
      dataset: its name and content hash.
    """

    user_id: str
    user_features: tuple[str, ...]
    item_features: tuple[str, ...]
    context_features: tuple[str, ...]
    event_features: tuple[str, ...]
    kinds: Mapping[str, Kind]
    category: str | None
    max_events: int
    vocabularies: Mapping[str, str]
    transforms: Mapping[str, Mapping[str, Any]]
    dataset: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuses features that are called as a part of an event is."""
        clash = sorted({USER, EVENT_ID, TIMESTAMP} & set(self.kinds))
        if clash:
            raise UserError(
                f"A history store calls {clash[0]!r} something else than this dataset's feature of "
                "that name. Name the feature otherwise, and write the dataset again."
            )

    @functools.cached_property
    def of_events(self) -> tuple[str, ...]:
        """The features of events."""
        return (*self.item_features, *self.context_features, *self.event_features)

    @functools.cached_property
    def event_schema(self) -> pa.Schema:
        """Columns of events: their features, time (seconds) and id (null: loaded without)."""
        fields = [pa.field(name, _TYPES[self.kinds[name]]) for name in self.of_events]
        own = [pa.field(TIMESTAMP, pa.int64()), pa.field(EVENT_ID, pa.string())]
        return pa.schema([*fields, *own])

    @functools.cached_property
    def stored_schema(self) -> pa.Schema:
        """As `event_schema`, and the places by category."""
        return self.event_schema.append(pa.field(_ORDER, pa.int32()))

    @functools.cached_property
    def category_schema(self) -> pa.Schema:
        """Categories, and where the places of each end."""
        kind = "text" if self.category is None else self.kinds[self.category]
        return pa.schema([pa.field(_CATEGORY, _TYPES[kind]), pa.field(_END, pa.int32())])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of what it says."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: Head) -> dict[str, tuple[Any, Any]]:
        """What keeps records of one from being records of the other: by name, both values."""
        both = {name: (getattr(self, name), getattr(other, name)) for name in _OF_RECORDS}
        return {name: values for name, values in both.items() if values[0] != values[1]}

    def followed(self, after: Head, earlier: Sequence[str]) -> list[str]:
        """The heads whose readers may go on when another takes this one's place.

        Values are raw, so a record means the same with either; but a hashed one is a text of that
        hash, which another transformation hashes otherwise.

        Args:
          after: the other, whose records these have become.
          earlier: digests of those that this one followed.
        """
        if self.differences(after) or self.transforms != after.transforms:
            return []
        return [*earlier, *([self.digest] if self != after else [])][-_MOST_EARLIER:]

    def to_json(self, **more: Any) -> bytes:
        """The head as text, with what a store adds to it."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, FILES: {}, **more}
        return json.dumps(sealed({**content, **dataclasses.asdict(self)}), indent=1).encode()

    @classmethod
    def from_json(cls, text: bytes, source: str) -> tuple[Head, dict[str, Any]]:
        """Reads `to_json`.

        Args:
          text: that it gave.
          source: names it in errors.

        Returns:
          The head, and all that the text holds.

        Raises:
          UserError: if it is no head of this version, or damaged.
        """
        content = load_object(text, source)
        found = content.get("format"), content.get("format_version")
        if found != (FORMAT, FORMAT_VERSION):
            raise UserError(
                f"{source}: expected a history store ({FORMAT!r} version {FORMAT_VERSION}), found "
                f"{shown(found[0])} version {shown(found[1])}. Load the histories again with "
                "`lookback serving load-histories`."
            )
        names = [field.name for field in dataclasses.fields(cls)]
        if not is_whole(content) or not set(names) <= set(content):
            raise UserError(
                f"{source} is damaged: its content is not what was written. Load the histories "
                "again with `lookback serving load-histories`."
            )
        values = {name: content[name] for name in names}
        return cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        ), content


def type_of(kind: Kind) -> pa.DataType:
    """The Arrow type of raw values of a kind."""
    return _TYPES[kind]


@dataclasses.dataclass(frozen=True)
class Record:
    """A user's history.

    Attributes:
      user: the user's features by name.
      events: oldest first, see `Head.event_schema`; equal times are in the order of arrival.
      revision: how often it was written.
      floor: the time of the newest event that was dropped since there were too many: what is not
        later than it is too old to be taken again. `NO_FLOOR`: none was.
    """

    user: Mapping[str, Any]
    events: pa.RecordBatch
    revision: int = 1
    floor: int = NO_FLOOR

    @property
    def times(self) -> npt.NDArray[np.int64]:
        """Of the events, in seconds: ``[N]``."""
        found: npt.NDArray[np.int64] = self.events.column(TIMESTAMP).to_numpy()
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredRecord(Record):
    """A record that was read from a store.

    Attributes:
      order: places of the events, those of a category together, oldest first. ``[N]``
      groups: the categories that occur (null is one), and where the places of each end ``[G]``.
    """

    order: npt.NDArray[np.int32]
    groups: pa.RecordBatch

    @functools.cached_property
    def categories(self) -> list[Any]:
        """That occur."""
        return self.groups.column(_CATEGORY).to_pylist()

    def of_category(self, value: Any) -> npt.NDArray[np.int32]:
        """Places of the events of a category, oldest first."""
        if value not in self.categories:
            return self.order[:0]
        group, ends = self.categories.index(value), self.groups.column(_END).to_numpy()
        return self.order[ends[group - 1] if group else 0 : ends[group]]


def encode_record(head: Head, record: Record) -> bytes:
    """The bytes of a record."""
    events, count = record.events, record.events.num_rows
    order, categories, ends = _by_category(
        events.column(head.category) if head.category is not None else pa.nulls(count, pa.string())
    )
    stored = pa.RecordBatch.from_arrays(
        [*events.columns, pa.array(order)], schema=head.stored_schema
    )
    groups = pa.RecordBatch.from_arrays([categories, pa.array(ends)], schema=head.category_schema)
    user = json.dumps(dict(record.user), ensure_ascii=False).encode()
    parts = [user, stored.serialize().to_pybytes()]
    lengths = len(parts[0]), len(parts[1])
    body = b"".join([*parts, groups.serialize().to_pybytes()])
    header = (_MAGIC, FORMAT_VERSION)
    rest = (count, record.revision, record.floor, *lengths)
    blank = _HEADER.pack(*header, 0, *rest)
    crc = zlib.crc32(body, zlib.crc32(blank[_SUMMED:]))
    return _HEADER.pack(*header, crc, *rest) + body


def is_record(data: bytes) -> bool:
    """Whether some bytes are a record as it was written, by its checksum."""
    if len(data) < HEADER_BYTES or data[:4] != _MAGIC:
        return False
    crc: int = _HEADER.unpack_from(data)[2]
    return zlib.crc32(memoryview(data)[_SUMMED:]) == crc


def decode_record(head: Head, data: bytes, whose: str) -> StoredRecord:
    """The record of some bytes, which stay its memory.

    Args:
      head: of the store.
      data: as `encode_record` gave it.
      whose: names it in errors.

    Raises:
      UserError: if it is of another version, or damaged.
    """
    if len(data) >= HEADER_BYTES and data[:4] == _MAGIC:
        _, version, _, count, revision, floor, user, events = _HEADER.unpack_from(data)
        if version != FORMAT_VERSION:
            raise UserError(
                f"{whose}: expected a history of version {FORMAT_VERSION}, found {version}. Use "
                "the version of Lookback that wrote the store, or load the histories again."
            )
        if is_record(data):
            whole, start = pa.py_buffer(data), HEADER_BYTES + user
            stored = read_batch(whole.slice(start, events), head.stored_schema)
            groups = read_batch(whole.slice(start + events), head.category_schema)
            if stored.num_rows == count:
                return StoredRecord(
                    json.loads(data[HEADER_BYTES:start]),
                    stored.select(head.event_schema.names),
                    revision,
                    floor,
                    order=stored.column(_ORDER).to_numpy(),
                    groups=groups,
                )
    raise UserError(
        f"{whose}: the stored history is damaged: its bytes are not what was written. Delete this "
        "user's (`lookback serving delete`), or load the histories again."
    )


def _by_category(
    values: pa.Array,
) -> tuple[npt.NDArray[np.int32], pa.Array, npt.NDArray[np.int32]]:
    """Places by category, the categories, and where the places of each end."""
    coded = pc.dictionary_encode(values, null_encoding="encode")
    codes = coded.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(coded.dictionary))
    order = np.argsort(codes, kind="stable").astype(np.int32)
    return order, coded.dictionary, counts.cumsum().astype(np.int32)


def _entries(directory: Path) -> Entries | None:
    """What a store holds: files whose sizes change with every event."""
    try:
        text = (directory / HEAD_FILE).read_bytes()
        _, content = Head.from_json(text, str(directory / HEAD_FILE))
    except (OSError, UserError):
        return None
    file = str(content.get(FILE))
    return {file: None, f"{file}-lock": None}


STORE = OutputKind("history store", HEAD_FILE, _entries)
