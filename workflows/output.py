"""What the commands write: which kind of directory, and where.

With --overwrite, each kind replaces its own kind alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from lookback.core.files import atomic_directory
from lookback.core.outputs import Kind, check_directory

DATASET = Kind("dataset")
WORKFLOW = Kind("saved workflow")
RAW = Kind("set of generated files")
SPLIT_BINARY = Kind("set of split_binary files")


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
    kind: Kind
    overwrite: bool
    inputs: tuple[Path, ...]

    def check(self) -> None:
        """Checks that it may be written.

        Raises:
          UserError: saying what is in the way.
        """
        check_directory(self.path, self.kind, overwrite=self.overwrite, inputs=self.inputs)

    def create(self) -> AbstractContextManager[Path]:
        """`core.files.atomic_directory` of it."""
        return atomic_directory(self.path, self.kind, overwrite=self.overwrite, inputs=self.inputs)
