"""Any log, as one YAML file describes it: ``run --config FILE.yaml``; see `workflows.log`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.options import check_options, option
from lookback.core.options.nested import dotted
from lookback.workflows.histories.reader import Reader
from lookback.workflows.histories.rules import EventRules
from lookback.workflows.log.description import (
    Filters,
    Labels,
    Sessions,
    wrong_of_histories,
)
from lookback.workflows.log.files import came
from lookback.workflows.log.reader import DescribedFiles
from lookback.workflows.log.splits import SplitRule


@dataclasses.dataclass(frozen=True)
class LogReader(DescribedFiles, Reader):
    """A log that a YAML file describes; its parts are options that only a file can give."""

    says_where = ("events", "items", "users")
    scope = "options of log (in the YAML of --config: `workflows schema`)"

    labels: Labels = option(
        "sampled",
        help="`sampled`: every row is a positive, negatives are drawn; `explicit`: rows are "
        "impressions, with clicks among them",
    )
    filters: Filters = option(
        Filters(), help="rare items to leave out (of users: --min_interactions)"
    )
    sessions: Sessions | None = option(None, help="cut histories where nothing happens for a while")
    split: SplitRule = option(
        SplitRule(), help="what is held out: the last events of each user, by time, or by users"
    )

    def __post_init__(self) -> None:
        check_options(self)
        super().__post_init__()
        if self.filters.min_events_per_user is not None:
            raise UserError("filters.min_events_per_user: pass it as the option min_interactions.")
        wrong = wrong_of_histories(self._events, self.items, self.users, self.labels, self.split)
        for place, sentence in wrong:
            raise UserError(f"{dotted(place)}: {sentence}")

    def of_new(self, directory: Path) -> tuple[Reader, tuple[str, ...]]:
        """See `Reader.of_new`; a single file is one of events, of whatever name."""
        parts = {"items": self.items, "users": self.users}
        alone = directory.is_file()
        lacks = tuple(
            part
            for part, files in parts.items()
            if files is not None and (alone or not came(directory, files.files, f"{part}.files"))
        )
        changes: dict[str, Any] = dict.fromkeys(lacks)
        if alone:
            changes["events"] = dataclasses.replace(self._events, files=(directory.name,))
        return dataclasses.replace(self, **changes), lacks

    @property
    def positives_alone(self) -> bool:
        """See `DescribedFiles.positives_alone`."""
        return self.labels == "sampled"

    @property
    def explicit(self) -> bool:
        """See `Reader.explicit`."""
        return self.labels == "explicit"

    @property
    def rules(self) -> EventRules:
        """See `Reader.rules`."""
        return EventRules(
            min_events_per_item=self.filters.min_events_per_item,
            iterate=self.filters.iterate,
            session_gap=None if self.sessions is None else self.sessions.seconds,
            split=self.split.rule,
        )
