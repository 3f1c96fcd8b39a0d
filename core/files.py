"""Atomic writes: a file or directory is either whole under its name, or not there."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lookback.core.errors import UserError


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block succeeds.

    The temporary file lies in the same directory (so the rename is atomic), its content is
    flushed to disk before the rename, and it is removed if the block raises.

    Args:
      path: the file to write or replace. Its directory must exist.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    # mkstemp makes private files; what replaces `path` should be as readable as any other file.
    temporary.chmod(0o666 & ~_umask())
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary directory beside `path`; renames it to `path` if the block succeeds.

    Before the block it clears up what killed processes left of earlier attempts.

    Args:
      path: the directory to create.
      overwrite: replace an existing directory at `path`. It is moved aside first and deleted only
        after the new one is in place.

    Raises:
      UserError: if `path` exists and `overwrite` is false; raised before the block runs.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_up(path)
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} already exists. Choose another directory, remove it, or pass --overwrite."
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary.chmod(0o777 & ~_umask())
    # Held while the block runs, and let go by the system if the process is killed.
    lock = os.open(temporary, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        yield temporary
        for root, _, files in os.walk(temporary):
            for name in files:
                _sync(Path(root) / name)
            _sync(Path(root))
        if path.exists():
            replaced = temporary.with_suffix(".old")
            path.rename(replaced)
            temporary.rename(path)
            shutil.rmtree(replaced)
        else:
            temporary.rename(path)
        _sync(path.parent)
    finally:
        os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)


def require_writable(directory: Path, option: str) -> None:
    """Creates a directory if needed and checks that files can be made in it.

    Args:
      directory: where a run will write.
      option: of the command line that names it.

    Raises:
      UserError: if it cannot be written to.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise UserError(
            f"{option}: {directory} cannot be written to ({error.strerror}). Choose another "
            "directory, or mend its permissions."
        ) from error


def _clear_up(path: Path) -> None:
    """Clears up what killed processes left beside `path`.

    Unlocked temporary directories are removed. A directory that was moved aside to be replaced is
    moved back if the new one never came, else removed.
    """
    for replaced in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not left.is_dir():
            continue
        try:
            lock = os.open(left, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue  # a process is writing to it
        finally:
            os.close(lock)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
