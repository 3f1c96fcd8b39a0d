"""A store of histories: a user's events are read at once, and what is appended is kept."""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.core.errors import shown
from lookback.formats.stored_histories import (
    HEADER_BYTES,
    Head,
    Record,
    StoredRecord,
    decode_record,
    encode_record,
)
from lookback.serving.store.events import EventRows, user_key
from lookback.serving.store.lmdb_records import LmdbRecords
from lookback.serving.store.merging import Appended, merged
from lookback.serving.store.records import Change, RecordKeeper
from lookback.serving.store.redis_records import SCHEME, RedisRecords
from lookback.serving.store.renewal import AsKnown, Renewed, renewed, require_alike

MOST_CACHED_EVENTS = 1 << 19
"""Of all users whose histories are kept decoded: some 100 MB of a few features."""


_USERS_AT_ONCE = 1024
"""That are changed in one transaction: of a thousand events each some 100 MB."""


class History:
    """What the store has of a user.

    Attributes:
      record: as it is stored.
    """

    def __init__(self, record: StoredRecord) -> None:
        self.record = record
        self._lists: dict[tuple[str, int], list[Any]] = {}

    def __len__(self) -> int:
        return self.record.events.num_rows

    def newest(self, names: Sequence[str], most: int) -> dict[str, list[Any]]:
        """Raw values of some columns of the newest events, oldest first; not to be changed."""
        for name in names:
            if (name, most) not in self._lists:
                column = self.record.events.column(name)
                self._lists[name, most] = _listed(column.slice(max(0, len(column) - most)))
        return {name: self._lists[name, most] for name in names}

    def at(self, names: Sequence[str], places: npt.NDArray[Any]) -> dict[str, list[Any]]:
        """Raw values of some columns of the events at places ``[N]``."""
        taken = pa.array(places)
        return {name: _listed(self.record.events.column(name).take(taken)) for name in names}

    def as_json(self, places: npt.NDArray[Any] | None = None) -> dict[str, Any]:
        """All of it, or of its events those at some places."""
        names = self.record.events.schema.names
        chosen = np.arange(len(self)) if places is None else places
        return {
            "user": dict(self.record.user),
            "events": len(self),
            "revision": self.record.revision,
            "history": self.at(names, chosen),
        }


class HistoryStore:
    """Histories by user.

    Args:
      records: what keeps them.
      writes: whether they may change.

    Attributes:
      place: the store's address, for people.
      writes: as given.
      hits: histories that were still decoded when they were asked for.
      misses: those that were not.
    """

    def __init__(self, records: RecordKeeper, *, writes: bool = False) -> None:
        self._records, self.writes = records, writes
        self.place = records.place
        self._cache: collections.OrderedDict[bytes, tuple[bytes, History]]
        self._cache = collections.OrderedDict()
        self._cached_events = 0
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    @classmethod
    def open(cls, address: str, *, writes: bool = False) -> HistoryStore:
        """Opens a store.

        Args:
          address: a directory, or ``redis://HOST:PORT/DATABASE``.
          writes: whether to append to it, or delete; of a directory, one process at a time.

        Raises:
          UserError: if there is none, or another process writes it.
        """
        if address.startswith(SCHEME):
            return cls(RedisRecords(address, writes=writes), writes=writes)
        return cls(LmdbRecords(Path(address), writes=writes), writes=writes)

    @property
    def head(self) -> Head:
        """What the histories have; as `RecordKeeper.head`."""
        return self._records.head

    def refresh(self) -> None:
        """As `RecordKeeper.refresh`."""
        self._records.refresh()

    @staticmethod
    def create(
        address: str,
        head: Head,
        users: Iterable[tuple[Any, Record]],
        *,
        overwrite: bool = False,
    ) -> None:
        """Writes a store; until it is whole there is none.

        Args:
          address: see `open`.
          head: of the store.
          users: raw ids, each once, and their records.
          overwrite: replace a store that is there.

        Raises:
          UserError: if something else is there, or the address cannot be written to.
        """
        records = ((user_key(head, user), encode_record(head, record)) for user, record in users)
        if address.startswith(SCHEME):
            RedisRecords.create(address, head, records, overwrite=overwrite)
        else:
            LmdbRecords.create(Path(address), head, records, overwrite=overwrite)

    def get(self, user: Any) -> History | None:
        """The history of a user, as it is now; None: the store does not know the user.

        Raises:
          UserError: if it is damaged.
          IdError: if that is no id of this store's users.
        """
        key = user_key(self.head, user)
        header = self._records.header(key)
        if header is None:
            self._forget(key)
            return None
        with self._lock:
            found = self._cache.get(key)
            if found is not None and found[0] == header:
                self._cache.move_to_end(key)
                self.hits += 1
                return found[1]
            self.misses += 1
        data = self._records.get(key)
        if data is None:  # deleted since
            return None
        history = History(decode_record(self.head, data, self._whose(user)))
        self._remember(key, data[:HEADER_BYTES], history)
        return history

    def append(self, events: EventRows) -> Appended:
        """Puts events into their users' histories, all of them or none; durable when it returns.

        Raises:
          OSError: if the disk is full.
          UserError: if a history is damaged.
        """
        of: dict[Any, list[int]] = {}
        for place, user in enumerate(events.users):
            of.setdefault(user, []).append(place)
        counts: dict[Any, Appended] = {}

        def change(user: Any, places: list[int]) -> Change:
            def changed(data: bytes | None) -> bytes:
                before = None
                if data is not None:
                    before = decode_record(self.head, data, self._whose(user))
                rows = events.rows.take(pa.array(places, pa.int64()))
                record, counts[user] = merged(self.head, before, rows)
                return encode_record(self.head, record)

            return changed

        self._records.update({user_key(self.head, u): change(u, p) for u, p in of.items()})
        return sum(counts.values(), Appended())

    def renew(self, head: Head, users: Iterable[tuple[Any, Record]], as_known: AsKnown) -> Renewed:
        """Puts a newer dataset's histories in the place of an older one's, but keeps what came.

        Users are changed some at a time, and the head last: whoever is killed has lost nothing,
        and does it again. Records mean the same with both heads, as their values are raw.

        Args:
          head: of the newer dataset.
          users: its raw ids, each once, and their records.
          as_known: of the newer dataset.

        Raises:
          OSError: if the disk is full.
          UserError: if the events of the two are not alike, or a history is damaged.
        """
        current = self.head.digest
        require_alike(self.head, head, self.place)
        seen: set[bytes] = set()
        total = Renewed()
        left = iter(users)
        while some := list(itertools.islice(left, _USERS_AT_ONCE)):
            fresh = {user_key(head, user): (user, record) for user, record in some}
            seen |= set(fresh)
            total += self._renew(head, fresh, as_known, current)
        others = (key for key in self._records.keys() if key not in seen)  # noqa: SIM118
        # All of them first: keys that change while they are listed may be listed again.
        every = iter(list(others))
        while keys := list(itertools.islice(every, _USERS_AT_ONCE)):
            gone = {key: (key.decode(), None) for key in keys}
            total += self._renew(head, gone, as_known, current)
        self._records.adopt(head, current)
        return total

    def _renew(
        self,
        head: Head,
        fresh: Mapping[bytes, tuple[Any, Record | None]],
        as_known: AsKnown,
        current: str,
    ) -> Renewed:
        """Of some users; errors if the store's head is no longer that of the digest `current`."""
        counts: dict[bytes, Renewed] = {}

        def change(key: bytes) -> Change:
            user, record = fresh[key]

            def changed(data: bytes | None) -> bytes | None:
                after = record
                self._records.require_head(current)
                if data is not None:
                    before = decode_record(self.head, data, self._whose(user))
                    after, counts[key] = renewed(head, record, before, as_known)
                return None if after is None else encode_record(head, after)

            return changed

        self._records.update({key: change(key) for key in fresh})
        return sum(counts.values(), Renewed())

    def delete(self, users: Sequence[Any]) -> list[Any]:
        """Deletes users, so that nothing is left of them in the store's files.

        Returns:
          Those that the store did not know.

        Raises:
          UserError: if that cannot be done.
          IdError: if that is no id of this store's users.
        """
        keys = {user: user_key(self.head, user) for user in users}
        known = {user: key for user, key in keys.items() if self._records.header(key) is not None}
        if known:
            self._records.compact(known.values())
        for key in keys.values():
            self._forget(key)
        return [user for user in keys if user not in known]

    def compact(self) -> tuple[int, int]:
        """Writes the store anew; gives its bytes before and after."""
        before = self._records.size()
        self._records.compact()
        return before, self._records.size()

    def users(self) -> Iterator[Any]:
        """Raw ids of all users."""
        integers = self.head.kinds[self.head.user_id] == "integer"
        for key in self._records.keys():  # noqa: SIM118
            yield int(key) if integers else key.decode()

    def close(self) -> None:
        """Lets others write."""
        self._records.close()

    def _whose(self, user: Any) -> str:
        return f"{self.place}, user {shown(user)}"

    def _remember(self, key: bytes, header: bytes, history: History) -> None:
        with self._lock:
            self._drop(key)
            self._cache[key] = header, history
            self._cached_events += len(history)
            while self._cached_events > MOST_CACHED_EVENTS:
                self._drop(next(iter(self._cache)))

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._drop(key)

    def _drop(self, key: bytes) -> None:
        found = self._cache.pop(key, None)
        if found is not None:
            self._cached_events -= len(found[1])


def _listed(column: pa.Array) -> list[Any]:
    """Values as JSON has them; faster than Arrow's own way."""
    kind = column.type
    if pa.types.is_string(kind) or (not column.null_count and not pa.types.is_list(kind)):
        values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
        return values
    return column.to_pylist()
