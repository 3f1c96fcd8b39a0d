"""The contract of a tabular dataset: who finds its files, and the options all of them share."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lookback.core.errors import UserError
from lookback.core.limits import MOST_BYTES
from lookback.core.options import check_options, option
from lookback.workflows.options import DatasetOptions

FREQUENCY_THRESHOLD = 15  # NVIDIA's DLRM: "categorical values that exist fewer than 15 times"
BLOCK_BYTES = 64 << 20
"""About 250,000 lines of Criteo's width: a shuffle of some breadth, and four row groups."""

VocabularyDays = Literal["all", "train"]


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
    """Finds one kind of raw data. A subclass is a frozen dataclass; its fields are its `option`s.

    Attributes:
      numerical: N, integers of a line.
      categorical: M, categorical values of a line.
    """

    numerical: int
    categorical: int

    def __post_init__(self) -> None:
        check_options(self)
        if not self.numerical + self.categorical:
            raise UserError("--numerical and --categorical are both 0: no column is left to learn.")

    @abc.abstractmethod
    def files(self, directory: Path) -> RawFiles:
        """The text files in `directory`.

        Raises:
          UserError: if there are none, some are missing, or it is not clear which.
        """

    def inputs(self, directory: Path) -> tuple[Path, ...]:
        """What the output must keep apart from."""
        return (directory,)


@dataclass(frozen=True)
class TabularDatasetOptions(DatasetOptions):
    """Options that all tabular datasets share."""

    frequency_threshold: int = option(
        FREQUENCY_THRESHOLD,
        help="values of a categorical column that occur less often share id 0",
        at_least=0,
        continued=True,
    )
    vocabulary: VocabularyDays = option(
        "all",
        help="rows to count the values of: all (as NVIDIA's recipe does), or those to train on",
        continued=True,
    )
    seed: int = option(0, help="of the shuffle of the training rows", at_least=0)
    block_size: int = option(
        BLOCK_BYTES,
        help="text that is read, shuffled and written as one part",
        unit="bytes",
        at_least=1,
        limit=MOST_BYTES,
    )

    @property
    def content(self) -> dict[str, Any]:
        """The options that have a say in the output; bad lines have theirs by being there."""
        chosen = ("frequency_threshold", "vocabulary", "seed", "block_size")
        return {name: getattr(self, name) for name in chosen}
