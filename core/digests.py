"""SHA-256 digests of files: they tell which file it is, not who made it.

The manifests of datasets, bundles and checkpoints hold the digests of all that is beside them, so
the digest of the manifest stands for the whole, if it came by another way than the files.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from lookback.core.errors import UserError
from lookback.core.paths import refuse_address

_CHUNK = 1 << 20  # bytes read at once


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
      UserError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def is_file(path: Path) -> bool:
    """Whether a file is there.

    Raises:
      UserError: if a directory on the way may not be looked into.
    """
    with reading(path):
        return path.is_file()


def read_trusted(
    path: Path, trusted: str | None = None, option: str = "trusted_digest"
) -> tuple[bytes, str]:
    """A file's content and its digest.

    Args:
      path: of the file, which is read whole.
      trusted: what its digest must be; None: anything.
      option: that says so.

    Raises:
      UserError: if it is another one, or cannot be read.
    """
    with reading(path):
        content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if trusted is not None and trusted.strip().lower() != found:
        raise UserError(
            f"{path}: expected the SHA-256 {trusted}, as {option} says, found {found}. It is "
            "not what you trust: get it again from where the digest came from, or ask there for "
            "the digest of this one."
        )
    return content, found


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Says in words why a file cannot be read.

    Args:
      path: of the file.

    Raises:
      UserError: in place of an `OSError`.
    """
    refuse_address(path)
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Mend its permissions, or those of the "
            "directories above it."
        ) from error
