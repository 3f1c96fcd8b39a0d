"""The contract of a dataset of histories: how it is read, and the options all of them share.

A `Reader` finds the raw files, parses a block of lines, and says what is known of users and items.
All else is common to all datasets: see `pipeline`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lookback.core.options import option
from lookback.formats.history_columns import Column, history_columns
from lookback.workflows.cluster import Runner
from lookback.workflows.histories.ingest import Features
from lookback.workflows.options import WHERE, DatasetOptions
from lookback.workflows.text import BadLineCounter, Block, Parsed, blocks, estimate_lines

MIN_INTERACTIONS = 20  # seed 001: `--shortest_sequence_for_user` 20
TEST_EVENTS = 1  # of each user, the last

Duplicates = Literal["keep", "first"]


@dataclass(frozen=True)
class Reader(abc.ABC):
    """Reads one kind of raw data. A subclass is a frozen dataclass; its fields are its `option`s.

    An instance must pickle: it travels to the tasks.

    Attributes:
      user_features: names of the columns about users, beside their id.
      item_features: names of the columns about items, beside their id.
      run_defaults: defaults of `HistoryOptions` that it changes.
      takes_file: whether the input may be a single file instead of a directory.
    """

    user_features: ClassVar[tuple[str, ...]] = ()
    item_features: ClassVar[tuple[str, ...]] = ()
    run_defaults: ClassVar[Mapping[str, Any]] = {}
    takes_file: ClassVar[bool] = False

    @abc.abstractmethod
    def event_files(self, directory: Path) -> list[Path]:
        """The files of events in `directory`, in order.

        Raises:
          UserError: if there are none, or it is not clear which.
        """

    def count_events(self, paths: list[Path]) -> int:
        """About how many events the files hold."""
        return estimate_lines(paths)

    def blocks(self, path: Path) -> Iterator[Block]:
        """Cuts a file to blocks, in order."""
        return blocks(path)

    @abc.abstractmethod
    def parse_block(self, block: Block) -> Parsed:
        """Parses a block.

        Returns:
          a table of `user_id`, `item_id` (string or int64) and `timestamp` (seconds, int64 or
          float64, not negative), without nulls, and the bad lines.
        """

    @abc.abstractmethod
    def features(
        self, directory: Path, runner: Runner, bad_lines: BadLineCounter
    ) -> tuple[list[Features], dict[str, int]]:
        """What is known of users and items, and counts to report."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the dataset."""
        return history_columns(self.user_features, self.item_features)


@dataclass(frozen=True)
class HistoryOptions(DatasetOptions):
    """Options that all datasets of histories share.

    A user's events with an item that they had before count for `min_interactions` whatever becomes
    of them; users who have fewer events after that than a split takes (one to train on and those
    held out) are left out as well.
    """

    min_interactions: int = option(
        MIN_INTERACTIONS, help="leave out users with fewer events", at_least=1
    )
    duplicates: Duplicates = option(
        "keep",
        help="of a user's events with the same item keep all, or the first in time alone",
    )
    validation: bool = option(
        False, help="keep the event before a user's last for validation; --no_validation: do not"
    )
    partition_events: int | None = option(
        None,
        help="events of a partition; none: follows from the memory",
        at_least=1,
        scope=WHERE,
    )

    @property
    def fewest_items(self) -> int | None:
        """Fewest different items of a user who is kept; None where repeated ones are kept."""
        return 1 + TEST_EVENTS + self.validation if self.duplicates == "first" else None

    @property
    def content(self) -> dict[str, Any]:
        """The options that have a say in the output."""
        chosen = (
            "min_interactions",
            "frequency_threshold",
            "validation",
            "duplicates",
            "max_bad_lines",
        )
        return {name: getattr(self, name) for name in chosen}
