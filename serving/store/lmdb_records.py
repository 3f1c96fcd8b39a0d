"""RecordKeeper in a directory, in LMDB: many processes read while one writes.

    STORE/store.json         the head, and the name of the next
    STORE/histories-X.mdb    the records; and LMDB's table of readers beside it (-lock)

LMDB never overwrites what a committed state needs: a writer that is killed, or finds the disk
full, leaves the last state. What it no longer needs stays in the file, though, as free pages; so
what must be gone is left behind by writing the rest to a new file (`compact`), of another name,
since readers may have the old one open: they see the head change, and open the new one.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb

from lookback.core.digests import reading
from lookback.core.errors import UserError
from lookback.core.faults import naming
from lookback.core.files import atomic_directory, atomic_file, held, inside_ours, sync
from lookback.core.outputs import FULL
from lookback.core.paths import refuse_address
from lookback.formats.stored_histories import (
    EARLIER,
    FILE,
    HEAD_FILE,
    HEADER_BYTES,
    STORE,
    Head,
    is_record,
)
from lookback.serving.store.records import Change, RecordKeeper

_MAP_BYTES = 1 << 40
"""Of addresses, not of memory or disk: no store outgrows it."""
_READERS = 500
"""Threads of all processes that may read at once."""
_LOCK_BYTES = 1 << 16
"""Of the table of readers, which has 64 bytes for each."""
_FILE = re.compile(r"histories-[0-9a-f]{8}\.mdb(-lock)?")
_UNFINISHED = re.compile(rf"\.{re.escape(HEAD_FILE)}\.\w+\.tmp")
"""Heads whose writer was killed."""
_LEAST_FREE = 1 << 20
"""Of a disk: LMDB calls a write that was cut short an error of the device."""
_RECORDS_AT_ONCE = 4096
_OPTION = "--store"


class LmdbRecords(RecordKeeper):
    """See the module.

    Args:
      directory: of the store.
      writes: whether it may change; one process at a time may.

    Raises:
      UserError: if it is no store, or another process writes it.
    """

    def __init__(self, directory: Path, *, writes: bool = False) -> None:
        self.place, self._directory, self._writes = str(directory), directory, writes
        self._changing, self._opening = threading.Lock(), threading.Lock()
        self._env: Any = None
        self._seen: tuple[int, int] | None = None
        refuse_address(directory, _OPTION)
        self.head, self._file, self._earlier = _read_head(directory)
        with contextlib.ExitStack() as claim:
            if writes:
                claim.enter_context(held(directory, _OPTION))
            self._current()
            if writes:
                _sweep(directory, self._file)
            self._claim = claim.pop_all()

    @staticmethod
    def create(
        directory: Path, head: Head, records: Iterable[tuple[bytes, bytes]], *, overwrite: bool
    ) -> None:
        """Writes a store, whole or not at all.

        Args:
          directory: to create.
          head: of the store.
          records: by key, no key twice.
          overwrite: replace a store that is there; no other process may be writing it.
        """
        with contextlib.ExitStack() as stack:
            if overwrite and (directory / HEAD_FILE).exists():
                _, file, _ = _read_head(directory)
                stack.enter_context(held(directory, _OPTION))
                _sweep(directory, file)
            new = stack.enter_context(atomic_directory(directory, STORE, overwrite=overwrite))
            file = _new_name()
            with naming(directory):
                _write_file(new / file, records)
            (new / HEAD_FILE).write_bytes(head.to_json(**{FILE: file}))

    def get(self, key: bytes) -> bytes | None:
        """A whole record."""
        with self._reading() as transaction:
            value = transaction.get(key)
            return None if value is None else bytes(value)

    def header(self, key: bytes) -> bytes | None:
        """Its first bytes."""
        with self._reading() as transaction:
            value = transaction.get(key)
            return None if value is None else bytes(value[:HEADER_BYTES])

    def update(self, changes: Mapping[bytes, Change]) -> None:
        """Changes records in one transaction, which is on the disk when this returns."""
        self._require_writes()
        with self._changing, _in_words(self._directory):
            env = self._current()
            env.reader_check()  # who was killed while reading keeps no pages from use
            with env.begin(write=True) as transaction:
                for key, change in changes.items():
                    after = change(transaction.get(key))
                    if after is None:
                        transaction.delete(key)
                    else:
                        transaction.put(key, after)
            _fill_up(env, self._directory / self._file)

    def adopt(self, head: Head, before: str) -> None:
        """Replaces the file of the head, which nobody else can."""
        self._require_writes()
        with self._changing, self._opening:
            self.require_head(before)
            earlier = self.head.followed(head, self._earlier)
            self._write_head(head, self._file, earlier)
            self.head, self._earlier, self._seen = head, earlier, None

    def refresh(self) -> None:
        """Of its file."""
        self._current()

    def keys(self) -> Iterator[bytes]:
        """In the order of their bytes."""
        with self._reading() as transaction:
            yield from map(bytes, transaction.cursor().iternext(values=False))

    def size(self) -> int:
        """Of the file."""
        self._current()
        return (self._directory / self._file).stat().st_size

    def compact(self, without: Iterable[bytes] = ()) -> None:
        """Copies record by record into a new file, then forgets the old one.

        Not by LMDB's own copy: it copies pages, and what was deleted stays in their gaps.
        """
        self._require_writes()
        left_out, new = set(without), _new_name()
        with self._changing:
            try:
                with self._reading() as transaction:
                    every = ((bytes(k), bytes(v)) for k, v in transaction.cursor())
                    kept = (record for record in every if record[0] not in left_out)
                    _write_file(self._directory / new, kept)
                self._write_head(self.head, new, self._earlier)
            finally:
                self._current()
                _sweep(self._directory, self._file)

    def close(self) -> None:
        """Lets others write."""
        self._env.close()
        self._claim.close()

    def _write_head(self, head: Head, file: str, earlier: Sequence[str]) -> None:
        path = self._directory / HEAD_FILE
        with atomic_file(path, replaces=inside_ours) as temporary:
            temporary.write_bytes(head.to_json(**{FILE: file, EARLIER: earlier}))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        with _in_words(self._directory), self._current().begin(buffers=True) as transaction:
            yield transaction

    def _current(self) -> Any:
        """LMDB's environment of the file that the head names now.

        Raises:
          UserError: if the store has become another one.
        """
        try:
            found = (self._directory / HEAD_FILE).stat()
        except OSError:
            found = None
        seen = None if found is None else (found.st_ino, found.st_mtime_ns)
        if self._env is not None and seen == self._seen:
            return self._env
        with self._opening:
            head, file, earlier = _read_head(self._directory)
            if self.head.digest not in (head.digest, *earlier):
                raise UserError(
                    f"{self.place} has become a store of other histories since it was opened. "
                    "Start again what reads it."
                )
            if self._env is None or file != self._file:
                # Who still reads the old one keeps it until then.
                self._env, self._file = _open(self._directory / file, self._writes), file
            self.head, self._earlier, self._seen = head, earlier, seen
            return self._env

    def _require_writes(self) -> None:
        if not self._writes:
            raise ValueError(f"{self.place} was opened for reading")


def _read_head(directory: Path) -> tuple[Head, str, list[str]]:
    """The head, the name of the file of records, and digests of heads that this one followed."""
    path = directory / HEAD_FILE
    if not path.is_file():
        raise UserError(
            f"{_OPTION} {directory}: there is no {HEAD_FILE} in it, so it is no history store. "
            "Make one with `lookback serving load-histories DATASET --store DIR`."
        )
    with reading(path):
        head, content = Head.from_json(path.read_bytes(), str(path))
    return head, str(content[FILE]), list(content.get(EARLIER, ()))


def _open(path: Path, writes: bool) -> Any:
    if not path.is_file():  # lmdb would make an empty one
        raise UserError(f"{path} is missing, which the store needs. Load the histories again.")
    _require_bytes(path, 1)  # likewise of one that is empty
    with _in_words(path.parent), naming(_lock_of(path)):
        # LMDB maps this file, and a page that the disk then has no room for is the end of the
        # process (SIGBUS).
        with _lock_of(path).open("ab") as lock:
            os.posix_fallocate(lock.fileno(), 0, _LOCK_BYTES)
        env = lmdb.open(
            str(path),
            subdir=False,
            create=False,
            readonly=not writes,
            map_size=_MAP_BYTES,
            max_readers=_READERS,
            readahead=False,  # users are read at random
        )
        # Likewise a page that is not in the file: LMDB believes what its first pages say of it.
        try:
            there, needed = path.stat().st_size, _bytes_of_pages(env)
            if there < needed and writes:  # who wrote it may have been killed before `_fill_up`
                _fill_up(env, path)
                if not _is_whole(env):
                    os.truncate(path, there)
            _require_bytes(path, needed)
        except UserError:
            env.close()
            raise
        return env


def _bytes_of_pages(env: Any) -> int:
    pages: int = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    return pages


def _fill_up(env: Any, path: Path) -> None:
    """Makes a file as long as its pages are.

    LMDB never writes the last ones that a transaction has taken and given back (its "loose" pages,
    when what is deleted lets leaves be merged), so a file that is whole may be shorter.
    """
    if path.stat().st_size < (needed := _bytes_of_pages(env)):
        os.truncate(path, needed)


def _is_whole(env: Any) -> bool:
    """Whether all records are as they were written."""
    try:
        with env.begin(buffers=True) as transaction:
            return all(is_record(bytes(value)) for _, value in transaction.cursor())
    except lmdb.Error:
        return False


def _require_bytes(path: Path, needed: int) -> None:
    """Refuses a file that is shorter than it was."""
    if (there := path.stat().st_size) < needed:
        raise UserError(
            f"{path} is cut off: it has {there:,} of {needed:,} or more bytes. Copy it again, or "
            "load the histories again."
        )


def _write_file(path: Path, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Writes a file of records, on the disk when this returns; a part of it is left on errors."""
    with _in_words(path.parent):
        # Nobody else reads it until it is whole, and it may be lost.
        env = lmdb.open(str(path), subdir=False, map_size=_MAP_BYTES, lock=False, sync=False)
        try:
            left = iter(records)
            while some := list(itertools.islice(left, _RECORDS_AT_ONCE)):
                with env.begin(write=True) as transaction:
                    for key, value in some:
                        if not transaction.put(key, value, overwrite=False):
                            raise UserError(f"expected every user once, received {key!r} twice.")
            env.sync(True)
            _fill_up(env, path)
        finally:
            env.close()


def _sweep(directory: Path, file: str) -> None:
    """Removes files of records that are no more, or were never, those of the store."""
    for path in directory.iterdir():
        other = _FILE.fullmatch(path.name) and not path.name.startswith(file)
        if other or _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
    sync(directory)


def _new_name() -> str:
    return f"histories-{secrets.token_hex(4)}.mdb"


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-lock")


@contextlib.contextmanager
def _in_words(directory: Path) -> Iterator[None]:
    """LMDB's errors as those of the system, or of the user."""
    try:
        yield
    except lmdb.ReadersFullError as error:
        raise UserError(
            f"{directory}: {_READERS} threads read the store, and no more can. End some of them."
        ) from error
    except (
        lmdb.CorruptedError,
        lmdb.InvalidError,
        lmdb.PageNotFoundError,
        lmdb.VersionMismatchError,
    ) as error:
        raise UserError(
            f"{directory} is damaged ({error}). Copy it again, or load the histories again."
        ) from error
    except lmdb.BadValsizeError as error:
        raise UserError(f"{directory}: expected ids of users of some bytes ({error}).") from error
    except lmdb.Error as error:
        known = (*FULL, errno.EACCES, errno.EROFS, errno.EIO)
        number = next((number for number in known if os.strerror(number) in str(error)), None)
        if number is None:
            raise
        if number == errno.EIO and shutil.disk_usage(directory).free < _LEAST_FREE:
            number = errno.ENOSPC
        raise OSError(number, os.strerror(number), str(directory)) from error
