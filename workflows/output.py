"""What the commands write: which kind of directory, and where.

With --overwrite, each kind replaces its own kind alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lookback.core.errors import UserError
from lookback.core.files import atomic_directory
from lookback.core.outputs import FULL, OutputKind, check_directory

DATASET = OutputKind("dataset")
WORKFLOW = OutputKind("saved workflow")
RAW = OutputKind("set of generated files")
SPLIT_BINARY = OutputKind("set of split_binary files")
FEATURE_SPEC = OutputKind("set of TFRecord files")


@dataclass(frozen=True)
class Output:
    """A directory that a command is to write.

    Attributes:
      path: the directory.
      kind: of it.
      overwrite: whether one of this kind may be replaced.
      inputs: what the command reads, which the directory must keep apart from.
    """

    path: Path
    kind: OutputKind
    overwrite: bool
    inputs: tuple[Path, ...]

    def check(self) -> None:
        """Checks that it may be written.

        Raises:
          UserError: saying what is in the way.
        """
        check_directory(self.path, self.kind, overwrite=self.overwrite, inputs=self.inputs)

    @contextmanager
    def create(self) -> Iterator[Path]:
        """`core.files.atomic_directory` of it.

        Raises:
          UserError: if it may not be written, or the disk is full.
        """
        remedy = (
            "What had been written is removed. Free some space, or choose an --output elsewhere."
        )
        with (
            full_disk_explained(self.path, remedy),
            atomic_directory(
                self.path, self.kind, overwrite=self.overwrite, inputs=self.inputs
            ) as directory,
        ):
            yield directory


@contextmanager
def full_disk_explained(path: Path, remedy: str) -> Iterator[None]:
    """Turns the system's error for a full disk into one that says what to do.

    Args:
      path: what is being written.
      remedy: what becomes of it, and what to do.

    Raises:
      UserError: if the block ran out of space.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        there = next(place for place in path.absolute().parents if place.exists())
        raise UserError(
            f"No space is left for {path} ({os.strerror(error.errno or 0)}; "
            f"{megabytes(shutil.disk_usage(there).free)} are free). {remedy}"
        ) from error


def megabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**20:,.1f} MiB"
