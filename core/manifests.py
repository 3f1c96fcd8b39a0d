"""Manifests: what names all other files of a directory with their sizes and SHA-256, and itself.

The digest of its own content finds damage in it; the digest of the file stands for the whole
directory, if it came by another way (`core.digests`).

SHA-256, which such a chain of trust needs, is fast enough to find damage as well: 0.9 to 1.4 GB/s a
core with the SHA instructions of newer x86, where CRC-32 does 1.4 to 2.4 and BLAKE2 0.3 to 0.7
(hashlib and zlib on one shared Xeon). It lets go of the interpreter's lock, so all cores take part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from lookback.core.devices import cores
from lookback.core.digests import digest_of, is_file

FILES, DIGEST = "files", "sha256"
"""Keys of a manifest: the files by name, and the digest of all of its other content."""

BYTES = "bytes"
"""Key of a file's size."""

_SHOWN = 12  # digits of a digest in an error

Files = Mapping[str, Mapping[str, Any]]
"""Size and digest of files, by their names relative to the manifest's directory."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """How far files are compared with their manifest; names and sizes always are.

    Attributes:
      digests: whether digests are.
      rank: the process that compares, of some that share the digests.
      ranks: how many these are.
    """

    digests: bool = True
    rank: int = 0
    ranks: int = 1


WHOLLY = Verification()
SIZES = Verification(digests=False)


def entries_of(directory: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Sizes and digests of files, as they are now.

    Args:
      directory: which the names are relative to.
      names: of the files.
    """
    names = list(names)
    sizes = [(directory / name).stat().st_size for name in names]
    return {
        name: {BYTES: size, DIGEST: digest}
        for name, size, digest in zip(names, sizes, _digests(directory, names), strict=True)
    }


def visible_files(directory: Path) -> list[str]:
    """Names of the files in a directory and below, sorted; not of what has a dot in front."""
    names = (path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir())
    return sorted(
        name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)
    )


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a manifest, as JSON will give it back, and its digest."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(content)))
    return {**plain, DIGEST: _digest_of_content(plain)}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether content is as `sealed` gave it."""
    files = content.get(FILES)
    try:
        same = content.get(DIGEST) == _digest_of_content(content)
    except TypeError:  # of keys or values that JSON has not, so we did not write them
        return False
    return (
        same
        and isinstance(files, Mapping)
        and all(_is_entry(name, entry) for name, entry in files.items())
    )


def has_digests(content: Mapping[str, Any]) -> bool:
    """Whether a manifest claims to have digests; those of earlier versions may not."""
    return FILES in content or DIGEST in content


def fault_of(
    directory: Path,
    files: Files,
    *,
    present: Iterable[str] = (),
    verification: Verification = WHOLLY,
) -> str | None:
    """The first way in which a directory is not as its manifest says, in words; None without any.

    Args:
      directory: of the manifest.
      files: that must be there as they were.
      present: names of files that are there, which `files` must name.
      verification: how far they are compared.

    Raises:
      UserError: if a file cannot be read.
    """
    for name, entry in files.items():
        if not is_file(directory / name):
            return f"{name} is missing"
        size = (directory / name).stat().st_size
        if size != entry[BYTES]:
            return f"{name} has {size} bytes instead of {entry[BYTES]}"
    for name in present:
        if name not in files:
            return f"{name} is there, which is not of it"
    if verification.digests:
        # The largest first: the cores then end together.
        names = sorted(files, key=lambda name: (-files[name][BYTES], name))
        names = names[verification.rank :: verification.ranks]
        for name, found in zip(names, _digests(directory, names), strict=True):
            expected = files[name][DIGEST]
            if found != expected:
                return (
                    f"the content of {name} is not what was written (its SHA-256 is "
                    f"{found[:_SHOWN]}... instead of {expected[:_SHOWN]}...)"
                )
    return None


def _digests(directory: Path, names: list[str]) -> Iterator[str]:
    with ThreadPoolExecutor(max(1, min(cores(), len(names)))) as pool:
        try:
            yield from pool.map(digest_of, (directory / name for name in names))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _digest_of_content(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _is_entry(name: str, entry: Any) -> bool:
    """Whether an entry names a file below the directory, with a size and a digest."""
    path = PurePosixPath(name)
    return (
        not path.is_absolute()
        and ".." not in path.parts
        and isinstance(entry, Mapping)
        and type(entry.get(BYTES)) is int
        and isinstance(entry.get(DIGEST), str)
    )
