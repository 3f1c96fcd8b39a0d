"""What an output may replace: what we wrote ourselves, all of it, and nothing else.

A name proves nothing, so every directory that may be replaced says what it is and which files are
in it, with their sizes: bundles and checkpoints in their manifests, all others in a record
(``.lookback.json``) that `core.files.atomic_directory` writes. A file that it does not name, or of
another size, is somebody's, and makes the whole directory theirs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from lookback.core.errors import UserError
from lookback.core.json_files import read_json
from lookback.core.paths import refuse_address

RECORD = ".lookback.json"
FORMAT = "lookback-output"
FORMAT_VERSION = 1

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, of a full quota, and of a file at its limit."""

Entries = Mapping[str, int | None]
"""Files by name with their sizes in bytes (None: any), and empty directories (`FOLDER`)."""
FOLDER = -1


@dataclasses.dataclass(frozen=True)
class OutputKind:
    """A kind of directories that we write.

    Attributes:
      name: what one is, in words.
      manifest: the file that says so.
      entries: the files (with their sizes) and empty directories that the manifest of a directory
        names, relative to it; None if it is no manifest of this kind. Without it, the manifest is
        the record.
    """

    name: str
    manifest: str = RECORD
    entries: Callable[[Path], Entries | None] | None = None

    @property
    def has_record(self) -> bool:
        """Whether whoever writes a directory must write its record."""
        return self.entries is None

    def foreign(self, directory: Path) -> list[str] | None:
        """What lies in a directory and is not ours; None if the directory is not of this kind."""
        known = (self.entries or self._recorded)(directory)
        if known is None:
            return None
        known = {**known, self.manifest: None}
        # A directory of ours of which somebody has taken what was in it is still ours.
        folders = {str(above) for entry in known for above in PurePosixPath(entry).parents}
        return sorted(
            entry
            for entry in _entries(directory)
            if not (_is_folder(directory / entry) and entry in {*folders, *known})
            and not (entry in known and _is_file_of(directory / entry, known[entry]))
        )

    def _recorded(self, directory: Path) -> Entries | None:
        try:
            record = read_json(directory / RECORD)
        except UserError:
            return None
        if record.get("format") != FORMAT:
            return None
        entries = record.get("entries")
        return entries if record.get("kind") == self.name and isinstance(entries, dict) else None


def write_record(directory: Path, kind: OutputKind) -> None:
    """Writes down what a directory is, and all that is in it now.

    Args:
      directory: complete but for the record.
      kind: of the directory.
    """
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind.name,
        "entries": {
            entry: FOLDER if _is_folder(directory / entry) else (directory / entry).stat().st_size
            for entry in sorted(_entries(directory))
        },
    }
    text = json.dumps(record, indent=1) + "\n"
    (directory / RECORD).write_text(text, encoding="utf-8")


def check_directory(
    path: Path, kind: OutputKind | None, *, overwrite: bool = False, inputs: Iterable[Path] = ()
) -> None:
    """Checks that a directory may be written; touches nothing.

    Args:
      path: may be missing, or empty, or, with `overwrite`, a directory of this kind with nothing in
        it that we did not write.
      kind: of what is to be written; None: of no kind that is ever replaced.
      overwrite: whether the user allows to replace it.
      inputs: files and directories that are read: `path` must not be one of them, nor lie in one,
        nor one in it.

    Raises:
      UserError: saying what is in the way.
    """
    with in_words(path):
        _check_place(path, inputs)
        if not path.exists():
            return
        if not path.is_dir():
            raise UserError(f"{path} is not a directory. Choose another.")
        if path.is_mount():
            raise UserError(
                f"{path} is a mount point, which stays as it is. Choose a directory in it."
            )
        check_content(path, path, kind, overwrite=overwrite)


def check_content(directory: Path, path: Path, kind: OutputKind | None, *, overwrite: bool) -> None:
    """Checks that what is in a directory may be replaced: all of it ours, or nothing.

    Args:
      directory: where it is now.
      path: where the user knows it, for the error.
      kind: as for `check_directory`.
      overwrite: likewise.

    Raises:
      UserError: saying what is in the way.
    """
    if next(_entries(directory), None) is None:
        return
    if kind is None or not overwrite:
        way_out = "or remove it" if kind is None else "remove it, or pass --overwrite"
        raise UserError(
            f"{path} already exists and is not empty. Choose another directory, {way_out}."
        )
    foreign = kind.foreign(directory)
    if foreign is None:
        raise UserError(
            f"{path} exists and holds no {kind.manifest} that says it is a {kind.name} of ours; "
            "nothing else is ever replaced. Choose another directory, or remove this one."
        )
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise UserError(
            f"{path} is a {kind.name} of ours, but we did not write {', '.join(foreign[:3])}{more} "
            "in it as it is now, and nothing else is ever replaced. Move that away, or choose "
            "another directory."
        )


def check_file(
    path: Path, replaces: Callable[[Path], bool] | None, inputs: Iterable[Path] = ()
) -> None:
    """Checks that a file may be written; touches nothing.

    Args:
      path: may be missing, or a file that may be replaced.
      replaces: whether that is so, from the file's content; None: none may.
      inputs: as for `check_directory`.

    Raises:
      UserError: saying what is in the way.
    """
    with in_words(path):
        _check_place(path, inputs)
        if path.is_dir():
            raise UserError(f"{path} is a directory. Give the name of a file.")
        if not path.exists():
            return
        if not path.is_file():
            raise UserError(
                f"{path} is a device or the like, not a file. Give the name of a file, or leave "
                "the option out where there is a standard output."
            )
        if replaces is None or not replaces(path):
            raise UserError(
                f"{path} already exists, and only what we wrote is ever replaced. Choose another "
                "file, or remove this one."
            )


@contextlib.contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Says in words why something cannot be written; a full disk is the caller's to explain.

    Args:
      path: that is to be written.

    Raises:
      UserError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(
            f"{path} cannot be written ({error.strerror}). Choose another place, or mend the "
            "permissions."
        ) from error


def _check_place(path: Path, inputs: Iterable[Path]) -> None:
    """Refuses links, what overlaps with the inputs, and what lies below a file."""
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link, and nothing is written through one or in place of one. "
            "Give what it points to, or another name."
        )
    check_apart(path, inputs)
    real = Path(os.path.realpath(path))
    above = next((place for place in real.parents if os.path.lexists(place)), real)
    if not above.is_dir():
        raise UserError(
            f"{path} cannot be written: {above} is not a directory. Choose another place."
        )


def check_apart(path: Path, inputs: Iterable[Path]) -> None:
    """Refuses what is an input, lies in one, or has one in it; and addresses of other machines.

    Args:
      path: that is to be written.
      inputs: that are read.

    Raises:
      UserError: naming the input, or the address.
    """
    inputs = tuple(inputs)
    check_outside(path, inputs)
    real, *_ = _lineage(path)
    for given in inputs:
        _, *above = _lineage(given)
        if any(_same(real, place) for place in above):
            raise _overlap(path, f"has the input {given} in it")


def check_outside(path: Path, inputs: Iterable[Path]) -> None:
    """Refuses what is an input or lies in one, as `check_apart`; it may have one in it.

    Args:
      path: that is to be written to, where nothing else is replaced or removed.
      inputs: that are read.

    Raises:
      UserError: naming the input, or the address.
    """
    inputs = tuple(inputs)
    for named in (path, *inputs):
        refuse_address(named)
    real, *above = _lineage(path)
    for given in inputs:
        source, *_ = _lineage(given)
        if _same(real, source):
            raise _overlap(path, "is the input itself")
        if any(_same(source, place) for place in above):
            raise _overlap(path, f"lies in the input {given}")


def _overlap(path: Path, words: str) -> UserError:
    return UserError(f"The output {path} {words}. Choose one apart from the inputs.")


def _lineage(path: Path) -> list[Path]:
    """What a path leads to, and the directories above it."""
    real = Path(os.path.realpath(path))
    return [real, *real.parents]


def _same(one: Path, other: Path) -> bool:
    """Whether two names are of one place: a bind mount has another name, and no link tells it."""
    try:
        return one == other or one.samefile(other)
    except OSError:  # one of them is not there
        return False


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_file_of(path: Path, size: int | None) -> bool:
    """Whether a plain file (we write no links, pipes or devices) has the size it had."""
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and size in (None, status.st_size)


def _entries(directory: Path) -> Iterator[str]:
    """Files, links and empty directories in a directory and below, relative to it."""
    for root, folders, files in os.walk(directory, onerror=_unreadable):
        place = Path(root)
        links = [name for name in folders if (place / name).is_symlink()]
        for name in (*files, *links):
            yield (place / name).relative_to(directory).as_posix()
        if not folders and not files and place != directory:
            yield place.relative_to(directory).as_posix()


def _unreadable(error: OSError) -> None:
    raise UserError(
        f"{error.filename} cannot be read ({error.strerror}), so what is in it stays. Choose "
        "another directory, or mend its permissions."
    ) from error
