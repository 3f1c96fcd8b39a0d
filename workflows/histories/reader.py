"""The contract of a dataset of histories: how it is read, and the options all of them share.

A `Reader` finds the raw files, parses a block of lines, and says what is known of users and items.
All else is common to all datasets: see `pipeline`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lookback.core.errors import UserError
from lookback.core.options import option
from lookback.formats import history_columns as names
from lookback.formats.histories import COUNT
from lookback.formats.history_columns import Column, category, typed_columns
from lookback.formats.impressions import LABEL, POSITION, USER
from lookback.workflows.event_reader import EventReader
from lookback.workflows.histories.gather import PART, Selection, Ties, TypedSelection
from lookback.workflows.histories.rules import EventRules, LeaveLast, UserSplit
from lookback.workflows.options import WHERE, Device, TimedOptions

MIN_INTERACTIONS = 20  # NVIDIA's SIM: `--shortest_sequence_for_user` 20

RESERVED = (
    names.USER_ID,
    names.ITEM_ID,
    names.TIMESTAMP,
    names.HISTORY_ID,
    names.SPLIT,
    names.NEW,
    names.TIME_GAP,
    *names.OF_REQUESTS,
    LABEL,
    PART,
    USER,
    POSITION,
    COUNT,
)
"""Columns of the pipeline and of its files that are no features, and what has such names later."""

Duplicates = Literal["keep", "first", "all"]


@dataclass(frozen=True)
class Reader(EventReader):
    """Reads one kind of raw data to histories.

    Attributes:
      user_features: names of the columns about users, beside their id.
      item_features: names of the columns about items, beside their id.
      takes_file: whether the input may be a single file instead of a directory.
      says_where: options that say where in files things stand: new files may have it otherwise.
    """

    user_features: ClassVar[tuple[str, ...]] = ()
    item_features: ClassVar[tuple[str, ...]] = ()
    takes_file: ClassVar[bool] = False
    says_where: ClassVar[tuple[str, ...]] = ()

    def of_new(self, directory: Path) -> tuple[Reader, tuple[str, ...]]:
        """The reader of what came since a dataset was written, without files that did not come.

        Args:
          directory: what came.

        Returns:
          The reader, and of what no file came: "items", "users".
        """
        return self, ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the dataset."""
        features = [spec.column(name) for name, spec in self.feature_specs.items()] or [
            *(category(name, "user") for name in self.user_features),
            *(category(name, "item") for name in self.item_features),
        ]
        return typed_columns(features, split=isinstance(self.rules.split, UserSplit))

    @property
    def explicit(self) -> bool:
        """Whether events are impressions with labels, rather than positives alone."""
        return False

    @property
    def rules(self) -> EventRules:
        """Sessions, rare items and the split, as far as `HistoryOptions` do not say."""
        return EventRules()


@dataclass(frozen=True)
class HistoryOptions(TimedOptions):
    """Options that all datasets of histories share.

    Exact repeats (user, item and time the same) are one event, and are dropped before anything is
    counted but with `--duplicates all`. A user's other events with an item that they had before
    count for `min_interactions` whatever becomes of them; users who have fewer events after that
    than a split takes (one to train on and those held out) are left out as well.

    Attributes:
      says_where: see `Reader`.
    """

    says_where: ClassVar[tuple[str, ...]] = ("time_unit", "years", "max_bad_lines", "keep_log")

    min_interactions: int = option(
        MIN_INTERACTIONS, help="leave out users with fewer events", at_least=1
    )
    duplicates: Duplicates = option(
        "keep",
        help="of a user's events with the same item `keep` those of different times, the `first` "
        "in time alone, or `all`, exact repeats too",
    )
    ties: Ties = option(
        "file",
        help="order of a user's events of the same time: as in the input (`file`), or by raw item "
        "id (`item`, NVIDIA's), which puts an order into the data that was not there",
    )
    validation: bool = option(
        True,
        help="keep the event before a user's last for validation; --no_validation: train on it",
    )
    keep_log: bool = option(
        True,
        help="keep what was read beside the histories, in update/, so that `workflows update` can "
        "go on from it; --no_keep_log: save the space",
    )
    device: Device = option(
        "auto",
        help="cpu, gpu (NVIDIA's cuDF), or auto: gpu where that is installed and there is one",
        scope=WHERE,
    )
    partition_events: int | None = option(
        None,
        help="events of a partition; none: follows from the memory",
        at_least=1,
        scope=WHERE,
    )

    def selection(self, reader: Reader) -> Selection:
        """Which events of a reader's are kept, in which order.

        Raises:
          UserError: if the reader asks for what the options exclude.
        """
        rules = reader.rules
        self._check(reader)
        split = LeaveLast(self.validation) if rules.split is None else rules.split
        specs, typed = reader.feature_specs, None
        if specs or reader.explicit or rules != EventRules():
            typed = TypedSelection(
                rules=rules,
                features=tuple(specs),
                explicit=reader.explicit,
                of_events=tuple(name for name, spec in specs.items() if spec.of == "event"),
            )
        return Selection(
            min_interactions=self.min_interactions,
            fewest_items=1 + split.held_out if self.duplicates == "first" else None,
            exact_repeats=self.duplicates == "all",
            ties=self.ties,
            split=split,
            ticks=self.ticks,
            typed=typed,
        )

    def _check(self, reader: Reader) -> None:
        if reader.rules.split is not None and not self.validation:
            raise UserError(
                "--no_validation: expected with a split that leaves the last events out, received "
                f"it with {reader.rules.split}, which says itself what is for validation. Leave "
                "it out."
            )
        if reader.explicit and reader.rules.split is None:
            raise UserError(
                "Explicit labels: expected a split by time or by users, as impressions shown "
                "together belong to one part, received one that leaves the last events out. Add "
                "the split."
            )
        if reader.explicit and self.duplicates == "first":
            raise UserError(
                "--duplicates first: expected keep or all where labels are explicit, as an item "
                "may be shown again, received first. Leave it out."
            )
        reserved = sorted(set(RESERVED) & set(reader.feature_specs))
        if reserved:
            raise UserError(
                f"Feature {reserved[0]!r}: expected a name that is not one of ours "
                f"({', '.join(RESERVED)}). Name it otherwise."
            )

    @property
    def content(self) -> dict[str, Any]:
        """The options that have a say in the output."""
        chosen = (
            "min_interactions",
            "frequency_threshold",
            "validation",
            "duplicates",
            "ties",
            "time_unit",
            "years",
            "max_bad_lines",
        )
        return {name: getattr(self, name) for name in chosen}
