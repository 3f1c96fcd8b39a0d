"""The contract of a tabular dataset: who finds its files, and the options all of them share."""

from __future__ import annotations

import abc
import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lookback.core.errors import UserError

FREQUENCY_THRESHOLD = 15  # seed 004: "categorical values that exist fewer than 15 times"
BLOCK_BYTES = 64 << 20
"""About 250,000 lines of Criteo's width: a shuffle of some breadth, and four row groups."""

Vocabulary = Literal["all", "train"]


@dataclass(frozen=True)
class RawFiles:
    """Input in the order of time.

    Attributes:
      paths: text files, ``.gz`` or plain.
      last_day: the last day is the last 1 / `last_day` of the rows of the last file; the first
        half of it is for validation and the second for test.
    """

    paths: tuple[Path, ...]
    last_day: int


@dataclass(frozen=True)
class TabularReader(abc.ABC):
    """Finds one kind of raw data. A subclass is a frozen dataclass; its fields are its options.

    Attributes:
      numerical: N, integers of a line.
      categorical: M, categorical values of a line.
    """

    numerical: int
    categorical: int

    def __post_init__(self) -> None:
        for name in ("numerical", "categorical"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} must be 0 or more, not {getattr(self, name)}.")
        if not self.numerical + self.categorical:
            raise UserError("--numerical and --categorical are both 0: no column is left to learn.")

    @staticmethod
    @abc.abstractmethod
    def add_arguments(parser: argparse._ArgumentGroup, defaults: Mapping[str, object]) -> None:
        """Adds an option for each field of the dataclass, under its name."""

    @abc.abstractmethod
    def files(self, directory: Path) -> RawFiles:
        """The text files in `directory`.

        Raises:
          UserError: if there are none, some are missing, or it is not clear which.
        """


@dataclass(frozen=True)
class TabularOptions:
    """Options that all tabular datasets share.

    Attributes:
      frequency_threshold: values of a categorical column that occur less often share id 0.
      vocabulary: count them over `all` rows (as seed 004 does), or those to `train` on.
      seed: of the shuffle of the training rows.
      block_size: bytes of text that are read, shuffled and written as one part.
      max_bad_lines: how many lines that are not what they should be to leave out.
      workers: threads; None chooses by the input's size, 0 means the calling thread alone.
      scheduler: address of a Dask cluster to use.
      memory_limit: bytes to stay within; None takes what is free.
      progress: show progress bars where the error stream is a terminal.
    """

    frequency_threshold: int = FREQUENCY_THRESHOLD
    vocabulary: Vocabulary = "all"
    seed: int = 0
    block_size: int = BLOCK_BYTES
    max_bad_lines: int = 0
    workers: int | None = None
    scheduler: str | None = None
    memory_limit: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        least = {"frequency_threshold": 0, "seed": 0, "block_size": 1, "max_bad_lines": 0}
        for name, bound in {**least, "workers": 0}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"--{name} must be {bound} or more, not {value}.")
        if self.vocabulary not in get_args(Vocabulary):
            raise UserError(f"--vocabulary must be all or train, not {self.vocabulary!r}.")

    @property
    def content(self) -> dict[str, Any]:
        """The options that have a say in the output; bad lines have theirs by being there."""
        chosen = ("frequency_threshold", "vocabulary", "seed", "block_size")
        return {name: getattr(self, name) for name in chosen}
