"""The contract of a log of rows that is described column by column, and the options of such."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

from lookback.core.options import option
from lookback.workflows.event_reader import EventReader
from lookback.workflows.options import TimedOptions
from lookback.workflows.tabular.row_splits import RowSplit


@dataclass(frozen=True)
class RowReader(EventReader):
    """Reads one kind of raw data to rows: a label and typed features each."""

    @property
    @abc.abstractmethod
    def row_split(self) -> RowSplit:
        """Which rows are held out."""


@dataclass(frozen=True)
class RowOptions(TimedOptions):
    """Options that all such logs share."""

    seed: int = option(0, help="of the shuffle of the training rows", at_least=0)

    @property
    def content(self) -> dict[str, Any]:
        """The options that have a say in the output."""
        chosen = ("frequency_threshold", "time_unit", "years", "seed", "max_bad_lines")
        return {name: getattr(self, name) for name in chosen}
