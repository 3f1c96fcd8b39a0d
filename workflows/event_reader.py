"""The contract of whoever reads events: files of them, and what is known of their users and items.

Datasets of histories (`histories.reader.Reader`) and of rows (`tabular.row_reader.RowReader`) read
the same files of the same logs.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lookback.workflows.cluster import Runner
from lookback.workflows.histories.feature_specs import FeatureSpec
from lookback.workflows.histories.gather import KnownFeatures
from lookback.workflows.passed_over import files_not_read
from lookback.workflows.text import BadLineCounter, Block, Parsed, blocks, estimate_lines
from lookback.workflows.times import TimeUnit


@dataclass(frozen=True)
class EventReader(abc.ABC):
    """Reads one kind of raw data. A subclass is a frozen dataclass; its fields are its `option`s.

    An instance must pickle: it travels to the tasks.
    """

    @abc.abstractmethod
    def event_files(self, directory: Path) -> list[Path]:
        """The files of events in `directory`, in order.

        Raises:
          UserError: if there are none, or it is not clear which.
        """

    def inputs(self, directory: Path) -> tuple[Path, ...]:
        """What the output must keep apart from."""
        return (directory,)

    def count_events(self, paths: list[Path]) -> int:
        """About how many events the files hold."""
        return estimate_lines(paths)

    def blocks(self, path: Path) -> Iterator[Block]:
        """Cuts a file to blocks, in order."""
        return blocks(path)

    @abc.abstractmethod
    def parse_block(self, block: Block, unit: TimeUnit | None = None) -> Parsed:
        """Parses a block.

        Args:
          block: what `blocks` gave.
          unit: of times that are numbers; None: the publisher's.

        Returns:
          a table of `user_id`, `item_id` (string or int64) and `timestamp` (see
          `workflows.times.read_numbers`), without nulls, and the bad lines. With them come the raw
          columns of the features of events, of which null is missing: numbers as float64,
          categories as string or int64, lists of them as `formats.transforms.canonical` text; and
          where labels are explicit `label`, int8: 1 of a click, else 0. (Of rows, users, items and
          times are there where they are described.)
        """

    @abc.abstractmethod
    def features(
        self, directory: Path, runner: Runner, bad_lines: BadLineCounter
    ) -> tuple[list[KnownFeatures], dict[str, int]]:
        """What is known of users and items, and counts to report."""

    def metadata_files(self, directory: Path) -> Sequence[Path]:
        """The files in `directory` that `features` reads."""
        return ()

    def remarks(self, paths: Sequence[Path]) -> list[str]:
        """What of the files of events is not read, and other things to say before the work."""
        return []

    def unknown(self, directory: Path) -> list[str]:
        """What is not known of items and users as their files are missing, a line each."""
        return []

    def passed_over(self, directory: Path, paths: Sequence[Path]) -> list[str]:
        """What of the input is not read, a line each: files, and what `remarks` says.

        Args:
          directory: the input.
          paths: its files of events.
        """
        read = {*paths, *self.metadata_files(directory)}
        said = [*files_not_read(directory, read), *self.remarks(paths)]
        return [*said, *self.unknown(directory)]

    @property
    def feature_specs(self) -> Mapping[str, FeatureSpec]:
        """What is asked for of each feature beside the ids; empty: all are vocabularies."""
        return {}
