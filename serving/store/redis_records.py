"""RecordKeeper in a database of a Redis server.

    lookback:store         the head
    lookback:user:KEY      a record

Any number of processes may read and write: each change is a transaction that Redis refuses, and we
repeat, if somebody else has changed the record meanwhile. What is durable is for the server to say:
one that does not write every command to its disk before it answers (`appendonly yes`,
`appendfsync always`) would lose events that it has acknowledged, and is not written to.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from lookback.core.errors import UserError, shown
from lookback.formats.stored_histories import EARLIER, HEADER_BYTES, Head
from lookback.serving.store.records import Change, RecordKeeper

SCHEME = "redis://"
HEAD_KEY = b"lookback:store"
PREFIX = b"lookback:user:"

_TAIL = 80
"""Bytes at the end of the head: its digest is among them."""
_SECONDS = 10.0
"""That the server may take to answer."""
_DURABLE = {"appendonly": "yes", "appendfsync": "always"}
_EVICTS = "allkeys"
"""Begins the names of policies by which a server that is full drops records."""
_FULL = ("OOM ", "MISCONF ")
"""Begin what a server says that has no room: in memory, or on its disk."""
_AT_ONCE = 512
_TRIES = 100
_A_MOMENT = 0.05  # seconds
_REWRITING = ("aof_rewrite_in_progress", "aof_rewrite_scheduled", "rdb_bgsave_in_progress")


class RedisRecords(RecordKeeper):
    """See the module.

    Args:
      address: ``redis://[[user]:password@]host[:port][/database]``.
      writes: whether it may change.

    Raises:
      UserError: if there is no such server or no store in it, or it would lose what is written.
    """

    def __init__(self, address: str, *, writes: bool = False) -> None:
        self.place, self._writes = _without_password(address), writes
        self._client = _connect(address, self.place)
        with _in_words(self.place):
            text = self._client.get(HEAD_KEY)
            if text is None:
                raise UserError(
                    f"--store {self.place}: there is no history store in this database. Make one "
                    f"with `lookback serving load-histories DATASET --store {self.place}`."
                )
            self.head, self._earlier, self._tail = self._parsed(text)
            if writes:
                _require_durable(self._client, self.place)

    @staticmethod
    def create(
        address: str, head: Head, records: Iterable[tuple[bytes, bytes]], *, overwrite: bool
    ) -> None:
        """Writes a store. Its head comes last: without it there is none.

        Args:
          address: as of the class.
          head: of the store.
          records: by key, no key twice.
          overwrite: replace a store that is there.
        """
        place = _without_password(address)
        client = _connect(address, place)
        with _in_words(place):
            _require_durable(client, place)
            if client.exists(HEAD_KEY) and not overwrite:
                raise UserError(
                    f"--store {place} holds a history store already. Choose another database, or "
                    "pass --overwrite."
                )
            client.delete(HEAD_KEY)
            keys = client.scan_iter(match=PREFIX + b"*", count=_AT_ONCE)
            for some in _some(keys):
                client.delete(*some)
            for some in _some(records):
                client.mset({PREFIX + key: value for key, value in some})
            client.set(HEAD_KEY, head.to_json())

    def get(self, key: bytes) -> bytes | None:
        """A whole record."""
        return self._read("get", PREFIX + key)

    def header(self, key: bytes) -> bytes | None:
        """Its first bytes."""
        return self._read("getrange", PREFIX + key, 0, HEADER_BYTES - 1) or None

    def update(self, changes: Mapping[bytes, Change]) -> None:
        """Changes records in one transaction, which the server has written when this returns."""
        if not self._writes:
            raise ValueError(f"{self.place} was opened for reading")
        import redis

        keys = [PREFIX + key for key in changes]
        with _in_words(self.place):
            for _ in range(_TRIES):
                with self._client.pipeline() as pipe, contextlib.suppress(redis.WatchError):
                    pipe.watch(HEAD_KEY, *keys)
                    self._require_same(pipe.getrange(HEAD_KEY, -_TAIL, -1))
                    before = pipe.mget(keys)
                    after = [f(old) for f, old in zip(changes.values(), before, strict=True)]
                    kept = {
                        k: value for k, value in zip(keys, after, strict=True) if value is not None
                    }
                    pipe.multi()
                    if kept:
                        pipe.mset(kept)
                    if gone := [key for key in keys if key not in kept]:
                        pipe.delete(*gone)
                    pipe.execute()
                    return
        raise UserError(f"{self.place}: others change the same users all the time. Try again.")

    def adopt(self, head: Head, before: str) -> None:
        """Replaces the head, unless somebody else has."""
        import redis

        if not self._writes:
            raise ValueError(f"{self.place} was opened for reading")
        with _in_words(self.place), self._client.pipeline() as pipe:
            pipe.watch(HEAD_KEY)
            self._require_same(pipe.getrange(HEAD_KEY, -_TAIL, -1))
            self.require_head(before)
            text = head.to_json(**{EARLIER: self.head.followed(head, self._earlier)})
            pipe.multi()
            pipe.set(HEAD_KEY, text)
            try:
                pipe.execute()
            except redis.WatchError as error:
                raise self.replaced() from error
        self.head, self._earlier, self._tail = self._parsed(text)

    def refresh(self) -> None:
        """Of its key."""
        with _in_words(self.place):
            self._require_same(self._client.getrange(HEAD_KEY, -_TAIL, -1))

    def keys(self) -> Iterator[bytes]:
        """As the server comes across them; each once."""
        seen = set()
        with _in_words(self.place):
            for key in self._client.scan_iter(match=PREFIX + b"*", count=_AT_ONCE):
                if key not in seen:
                    seen.add(key)
                    yield key[len(PREFIX) :]

    def size(self) -> int:
        """Of the server's memory."""
        with _in_words(self.place):
            return int(self._client.info("memory")["used_memory"])

    def compact(self, without: Iterable[bytes] = ()) -> None:
        """Deletes, then has the server write its files anew, and waits until it has.

        Copies elsewhere (replicas, backups) are for whoever keeps them.
        """
        with _in_words(self.place):
            for some in _some(without):
                self._client.delete(*(PREFIX + key for key in some))
            self._written()
            self._client.bgrewriteaof()
            self._written()
            if self._client.config_get("save").get("save"):
                self._client.bgsave()
                self._written()
            state = self._client.info("persistence")
            if "err" in (state["aof_last_bgrewrite_status"], state["rdb_last_bgsave_status"]):
                raise UserError(
                    f"{self.place}: deleted, but the server could not write its files anew, which "
                    "still hold what was deleted: its log says why. Mend that, and run `lookback "
                    "serving compact`."
                )

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def _read(self, *command: Any) -> bytes | None:
        with _in_words(self.place), self._client.pipeline(transaction=False) as pipe:
            pipe.getrange(HEAD_KEY, -_TAIL, -1)
            pipe.execute_command(*command)
            tail, found = pipe.execute()
            self._require_same(tail)
        value: bytes | None = found
        return value

    def _require_same(self, tail: bytes) -> None:
        """Goes on with a newer dataset's head, and with no other."""
        if tail == self._tail:
            return
        text = self._client.get(HEAD_KEY)
        if text is not None:
            head, earlier, tail = self._parsed(text)
            if self.head.digest in (head.digest, *earlier):
                self.head, self._earlier, self._tail = head, earlier, tail
                return
        raise UserError(
            f"{self.place} has become a store of other histories since it was opened. Start "
            "again what reads it."
        )

    def _parsed(self, text: bytes) -> tuple[Head, list[str], bytes]:
        """The head, digests of heads that it followed, and the text's end."""
        head, content = Head.from_json(text, self.place)
        return head, list(content.get(EARLIER, ())), text[-_TAIL:]

    def _written(self) -> None:
        """Waits until the server writes no file anew."""
        while any(int(self._client.info("persistence")[name]) for name in _REWRITING):
            time.sleep(_A_MOMENT)


def _connect(address: str, place: str) -> Any:
    try:
        import redis
    except ModuleNotFoundError as error:
        raise UserError(
            f"--store {place}: the package redis is not installed. Install the extra: "
            "lookback[redis]."
        ) from error
    try:
        return redis.Redis.from_url(address, socket_timeout=_SECONDS)
    except ValueError as error:
        raise UserError(
            f"--store {place}: expected redis://HOST:PORT/DATABASE, received {shown(place)}."
        ) from error


def _require_durable(client: Any, place: str) -> None:
    """Refuses a server that acknowledges what is not on its disk.

    Raises:
      UserError: with what to set.
    """
    import redis

    try:
        found = client.config_get(*_DURABLE)
        room = client.config_get("maxmemory", "maxmemory-policy")
    except redis.ResponseError:
        print(
            f"warning: {place} does not say whether it is durable: see to it that it has "
            "appendonly yes and appendfsync always",
            file=sys.stderr,
        )
        return
    if found != _DURABLE:
        raise UserError(
            f"--store {place}: this server would lose events that it has acknowledged (it has "
            f"{', '.join(f'{k} {v}' for k, v in sorted(found.items()))}). Set appendonly yes and "
            "appendfsync always (CONFIG SET, and in redis.conf)."
        )
    policy = room["maxmemory-policy"]
    if int(room["maxmemory"]) and policy.startswith(_EVICTS):
        raise UserError(
            f"--store {place}: this server would drop histories when its memory is full (it has "
            f"maxmemory-policy {policy}). Set maxmemory-policy noeviction (CONFIG SET, and in "
            "redis.conf): it then refuses what it has no room for."
        )


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _some(values: Iterable[Any]) -> Iterator[list[Any]]:
    left = iter(values)
    while some := list(itertools.islice(left, _AT_ONCE)):
        yield some


@contextlib.contextmanager
def _in_words(place: str) -> Iterator[None]:
    import redis

    try:
        yield
    except redis.ResponseError as error:
        if str(error).startswith(_FULL) or isinstance(error, redis.exceptions.OutOfMemoryError):
            raise OSError(errno.ENOSPC, f"the Redis server has no room: {error}", place) from error
        raise UserError(f"--store {place}: {error}. Look at the server's log.") from error
    except redis.RedisError as error:
        raise UserError(
            f"--store {place}: {type(error).__name__}: {error}. Check the address, and that the "
            "server is running, has room, and lets you."
        ) from error
