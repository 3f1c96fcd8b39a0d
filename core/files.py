"""Atomic writes: a file or directory is either whole under its name, or not there.

`core.outputs` says what may be written where; nothing here replaces or removes what it forbids.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lookback.core.errors import UserError
from lookback.core.faults import naming
from lookback.core.outputs import (
    OutputKind,
    check_apart,
    check_content,
    check_directory,
    check_file,
    check_outside,
    in_words,
    write_record,
)
from lookback.core.paths import refuse_address

_WORKING = re.compile(r"\.(.+)\.lookback")
_NEW, _OLD, _MARK = "new", "old", "owner.json"
_FORMAT = "lookback-working"
_PROBE_BYTES = 4096


def located(path: str | os.PathLike[str]) -> Path:
    """The path with a name at its end: `.` and `..` have none to write a temporary file beside."""
    path = Path(path)
    return path if path.name not in ("", "..") else Path(os.path.realpath(path))


def inside_ours(path: Path) -> bool:
    """For `atomic_file`: any file may be replaced, as its directory is known to be ours."""
    return True


@contextlib.contextmanager
def atomic_file(
    path: str | os.PathLike[str],
    *,
    replaces: Callable[[Path], bool] | None = None,
    inputs: Iterable[Path] = (),
) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block succeeds.

    The temporary file lies in the same directory (so the rename is atomic), its content is
    flushed to disk before the rename, and it is removed if the block raises. It is locked, so that
    what killed processes left can be told from it: that is named, as a name alone is no reason to
    delete anything.

    Args:
      path: the file to write. Its directory must exist.
      replaces: whether an existing file may be replaced, from its content; None: none may.
      inputs: files and directories that are read, which `path` must keep apart from.

    Raises:
      UserError: if `path` is in the way, before the block or after it, or cannot be created.
    """
    path, inputs = located(path), tuple(inputs)
    check_file(path, replaces, inputs)
    with in_words(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    _lock_if_possible(handle)
    _name_leftovers(path)
    # mkstemp makes private files; what replaces `path` should be as readable as any other file.
    temporary.chmod(0o666 & ~_umask())
    try:
        with naming(path):
            yield temporary
            sync(temporary)
            check_file(path, replaces, inputs)
            temporary.replace(path)
            sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def atomic_directory(
    path: str | os.PathLike[str],
    kind: OutputKind | None = None,
    *,
    overwrite: bool = False,
    inputs: Iterable[Path] = (),
) -> Iterator[Path]:
    """Yields a temporary directory; renames it to `path` if the block succeeds.

    It lies in a working directory beside `path`, which is locked while the block runs. What killed
    processes left there is cleared up first.

    Args:
      path: the directory to create; an empty one may be there.
      kind: of the directory; None: of no kind that is ever replaced.
      overwrite: replace a directory of this kind at `path`, if all in it is ours. It is moved aside
        first, deleted only after the new one is in place, and moved back if that fails.
      inputs: files and directories that are read, which `path` must keep apart from.

    Raises:
      UserError: if `path` is in the way, or another process is writing it: before the block runs,
        or after it if that has come about meanwhile.
    """
    path, inputs = located(path), tuple(inputs)

    def check() -> None:
        check_directory(path, kind, overwrite=overwrite, inputs=inputs)
        check_apart(_working_of(path), inputs)

    check()
    with naming(path), _claimed(path) as working:
        check()  # it may have appeared before the lock was ours
        new = working / _NEW
        new.mkdir()
        yield new
        if kind is not None and kind.has_record:
            write_record(new, kind)
        for root, _, files in os.walk(new):
            for name in files:
                sync(Path(root) / name)
            sync(Path(root))
        check()
        replaced = path.exists() and any(path.iterdir())

        def judge(moved: Path) -> None:
            check_content(moved, path, kind, overwrite=overwrite)

        _put_in_place(new, path, working / _OLD, judge)
        sync(path.parent)
        if replaced and kind is not None:
            print(f"replaced the {kind.name} that was at {path}", file=sys.stderr)


def remove_directory(path: Path, kind: OutputKind) -> None:
    """Deletes a directory of ours, at once under its name; one with anything else in it stays."""
    if not path.is_symlink() and kind.foreign(path) == []:
        with _claimed(path) as working:
            path.rename(working / _NEW)
            if kind.foreign(working / _NEW) != []:  # has come about meanwhile
                (working / _NEW).rename(path)


def clear_up(directory: Path, names: re.Pattern[str]) -> None:
    """Clears up what killed processes left of the directories that they were writing.

    Args:
      directory: where they wrote.
      names: of what they wrote.

    Raises:
      UserError: if a process is still writing one.
    """
    for working in directory.glob(".*.lookback"):
        match = _WORKING.fullmatch(working.name)
        if match is not None and names.fullmatch(match[1]):
            with _claimed(directory / match[1]):
                pass


def require_writable(directory: Path, option: str) -> None:
    """Creates a directory if needed and checks that files can be made in it.

    Args:
      directory: where a run will write.
      option: of the command line that names it.

    Raises:
      UserError: if it cannot be written to.
    """
    refuse_address(directory, option)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(bytes(_PROBE_BYTES))  # a full disk still has names to give
    except OSError as error:
        raise UserError(
            f"{option}: {directory} cannot be written to ({error.strerror}). Choose another "
            "directory, or mend its permissions."
        ) from error


@contextlib.contextmanager
def held(directory: Path, option: str, inputs: Iterable[Path] = ()) -> Iterator[None]:
    """Locks a writable directory for this process, until the block ends.

    It is created if need be, and removed again if nothing has come into it.

    Args:
      directory: where a run will write.
      option: of the command line that names it.
      inputs: files and directories that are read, in which nothing may come to be.

    Raises:
      UserError: if it cannot be written to, or another process holds it.
    """
    check_outside(directory, inputs)
    made = not os.path.lexists(directory)
    require_writable(directory, option)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{option}: another run is writing to {directory}. Wait for it, or choose another "
                "directory."
            ) from error
        except OSError as error:  # a network's file system that knows no locks
            print(
                f"warning: {option}: {directory} cannot be locked ({error.strerror}); see to it "
                "that no other run writes there",
                file=sys.stderr,
            )
        yield
    finally:
        os.close(lock)
        if made:
            with contextlib.suppress(OSError):
                directory.rmdir()


def require_readable(path: Path, option: str, *, takes_file: bool = False) -> None:
    """Checks that an input is there and can be read.

    Args:
      path: the directory, or file, that a run will read.
      option: of the command line that names it.
      takes_file: whether it may be a file.

    Raises:
      UserError: if not.
    """
    refuse_address(path, option)
    try:
        if takes_file and path.is_file():
            with path.open("rb"):
                return
        with os.scandir(path):
            if os.access(path, os.X_OK):
                return
            why = "cannot be read (its files may be listed only)"
    except NotADirectoryError:
        why = "is not a directory"
    except FileNotFoundError:
        why = "does not exist"
    except (OSError, ValueError) as error:  # no permission, a name that is too long or has a \0
        why = f"cannot be read ({getattr(error, 'strerror', None) or error})"
    needed = "a raw file, or a directory" if takes_file else "the one with the raw files"
    raise UserError(f"{option} {path} {why}. Give {needed}.")


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[Path]:
    """The working directory of `path`, without leftovers and for us alone; removed at the end."""
    working = _working_of(path)
    made = [above for above in working.parents if not above.exists()]
    with in_words(path):
        lock = _lock(working, path)
    try:
        with in_words(working):
            _take_over(working, path)
    except BaseException:
        os.close(lock)
        raise
    try:  # from here on all that is in it is ours
        with in_words(working):
            _recover(working, path)
        yield working
        # What was replaced, and only now: where the block failed, it may be all that there is.
        shutil.rmtree(working / _OLD, ignore_errors=True)
        if (working / _OLD).exists():
            print(f"{working / _OLD} was replaced and cannot be removed", file=sys.stderr)
    finally:
        shutil.rmtree(working / _NEW, ignore_errors=True)
        with contextlib.suppress(OSError):
            if {entry.name for entry in working.iterdir()} <= {_MARK}:
                (working / _MARK).unlink(missing_ok=True)
                working.rmdir()
            for above in made:  # what is empty now is so because the block failed
                above.rmdir()
        os.close(lock)


def _working_of(path: Path) -> Path:
    """Where a directory is written before it has its name."""
    return path.with_name(f".{path.name}.lookback")


def _take_over(working: Path, path: Path) -> None:
    """Marks a working directory as ours; one that has anything in it must be marked already.

    Raises:
      UserError: if somebody else made it: what is in it is theirs, whatever it is called.
    """
    mark, file = json.dumps({"format": _FORMAT, "target": path.name}), working / _MARK
    there = sorted(entry.name for entry in working.iterdir())
    written = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    # Whoever was killed while writing the mark had nothing beside it yet.
    if written != mark and there and not (there == [_MARK] and mark.startswith(written)):
        raise UserError(f"{working} holds {there[0]}, which we did not write. Move it away.")
    if written != mark:
        file.write_text(mark, encoding="utf-8")


def _lock(working: Path, path: Path) -> int:
    """Creates and locks a working directory; the system lets go of it if the process is killed."""
    while True:
        working.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(working, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # whoever had it has just removed it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if working.exists() and os.path.samestat(os.fstat(lock), working.stat()):
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise UserError(
                f"Another process is writing {path} (it holds {working}). Wait for it, or choose "
                "another directory."
            ) from error
        os.close(lock)


def _recover(working: Path, path: Path) -> None:
    """Clears up what a killed process left: undoes a replacement that it had not finished."""
    new, old = working / _NEW, working / _OLD
    foreign = sorted({entry.name for entry in working.iterdir()} - {_NEW, _OLD, _MARK})
    if foreign:
        raise UserError(f"{working} holds {foreign[0]}, which we did not write. Move it away.")
    if old.exists() and new.exists():
        if os.path.lexists(path):
            raise UserError(
                f"{old} is what was at {path} when a process that was replacing it was killed, and "
                "something else is there now. Move one of them away."
            )
        old.rename(path)
    for left in (old, new):
        if left.exists():
            shutil.rmtree(left)


def _put_in_place(new: Path, path: Path, aside: Path, judge: Callable[[Path], None]) -> None:
    """Renames a directory to `path`; what is there goes aside, and comes back on failure.

    `judge` refuses what may not be replaced. It looks at what has been moved aside, where nobody
    adds to it any more by the path that they know.
    """
    try:
        if path.exists():
            path.rename(aside)
            judge(aside)
        new.rename(path)
    except BaseException:
        if aside.exists() and not os.path.lexists(path):
            aside.rename(path)
        raise


def _name_leftovers(path: Path) -> None:
    """Says which temporary files of a file nobody is writing any more."""
    form = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}\.tmp")
    with contextlib.suppress(OSError):
        for left in filter(lambda entry: form.fullmatch(entry.name), path.parent.iterdir()):
            handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                free = _lock_if_possible(handle)
            finally:
                os.close(handle)
            if free:
                print(f"note: {left} is of a process that was killed: remove it", file=sys.stderr)


def _lock_if_possible(handle: int) -> bool:
    """Locks an open file until it is closed; False where another process has it, or none can."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Flushes the content of a file, or the entries of a directory, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
