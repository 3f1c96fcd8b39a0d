"""Rows with labels, as one YAML file of ``layout: tabular`` describes them; see `workflows.log`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from lookback.core.errors import UserError
from lookback.core.options import check_options, option
from lookback.core.options.nested import dotted
from lookback.formats import history_columns as names
from lookback.formats.history_columns import Role
from lookback.workflows.histories.feature_specs import FeatureSpec
from lookback.workflows.log.description import EventFiles, wrong_of_rows
from lookback.workflows.log.reader import DescribedFiles
from lookback.workflows.log.splits import SplitRule
from lookback.workflows.tabular.row_reader import RowReader
from lookback.workflows.tabular.row_splits import RowSplit


@dataclasses.dataclass(frozen=True)
class TabularLogReader(DescribedFiles, RowReader):
    """A log that a YAML file describes, of which each row is learned from by itself.

    The ids of users and items are features, where they are told; those of users not with a split by
    users, of which nobody in the test is known.
    """

    scope = "options of tabular_log (in the YAML of --config: `workflows schema`)"

    split: SplitRule = option(
        SplitRule(), help="what is held out: by time, by users, by rows, or the last rows"
    )

    def __post_init__(self) -> None:
        check_options(self)
        super().__post_init__()
        for place, sentence in wrong_of_rows(super()._events, self.items, self.users, self.split):
            raise UserError(f"{dotted(place)}: {sentence}")

    @property
    def feature_specs(self) -> Mapping[str, FeatureSpec]:
        """See `EventReader.feature_specs`."""
        ids: dict[str, tuple[Role, bool]] = {
            names.USER_ID: ("user", self._events.user is not None and self.split.by != "users"),
            names.ITEM_ID: ("item", self._events.item is not None),
        }
        specs = {
            name: FeatureSpec(of=of, type="category") for name, (of, used) in ids.items() if used
        }
        for name, spec in super().feature_specs.items():
            # All that a row says is known when its label is predicted.
            specs[name] = dataclasses.replace(spec, of="context") if spec.of == "event" else spec
        return specs

    @property
    def row_split(self) -> RowSplit:
        """See `RowReader.row_split`."""
        return self.split.row_rule

    def passed_over(self, directory: Path, paths: Sequence[Path]) -> list[str]:
        """Columns that are not read, and ids and times that are no features."""
        said = super().passed_over(directory, paths)
        if super()._events.time is not None and self.split.by != "time":
            said.append(f"events.time is not read: the split is by {self.split.by}")
        if self._events.user is not None and self.split.by == "users":
            said.append("events.user is no feature: the split is by users, so the test has others")
        return said

    @property
    def _events(self) -> EventFiles:
        """Without times that nobody asks for."""
        events = super()._events
        return events if self.split.by == "time" else dataclasses.replace(events, time=None)
