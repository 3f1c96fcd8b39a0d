"""The layout "interactions": pairs of user and item, drawn from everybody's histories, ranked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.core.limits import MOST_NEGATIVES, MOST_WIDTH
from lookback.core.options import SET, UNSET, option
from lookback.core.world import World
from lookback.dataloading.layout import BatchOptions, Layout
from lookback.dataloading.modes import EVALUATES, INFERS, LEARNS, TRAINS
from lookback.dataloading.sampling import SamplingOptions, new_events, topk_option
from lookback.formats.dataset_info import (
    content_of,
    is_histories,
    read_histories_info,
    training_events,
)
from lookback.formats.description import is_materialised
from lookback.formats.history_columns import NEW

if TYPE_CHECKING:
    from lookback.dataloading.sources import BatchSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class InteractionsOptions(SamplingOptions):
    """Options that only models of users and items have; names and defaults are NVIDIA's."""

    test_negatives: int = option(
        100,
        help="Negatives for each positive in evaluation",
        at_least=1,
        needs=(*EVALUATES, INFERS),
        limit=MOST_NEGATIVES,
    )
    negative_samples: int = option(
        4,
        help="Negatives for each positive in training",
        at_least=1,
        continued=True,
        suits=TRAINS,
        limit=MOST_WIDTH,
    )
    exact_negatives: bool = option(
        False,
        help="Draw no training negative that the user has met; without it they are drawn from "
        "the whole catalogue (flag)",
        continued=True,
        suits=TRAINS,
    )
    topk: int = topk_option(({"metrics": UNSET}, {"threshold": SET}))
    threshold: float | None = option(
        None,
        scope="training",
        help="Stop training once an evaluation has reached this HR@K",
        above=0,
        at_most=1,
        needs=LEARNS,
    )

    @property
    def goals(self) -> Mapping[str, float]:
        """HR@K, if one is wanted."""
        return {} if self.threshold is None else {f"hr@{self.topk}": self.threshold}


class InteractionsLayout(Layout):
    """See the module."""

    options_class = InteractionsOptions
    reads = "histories"

    def found_in(self, directory: Path) -> str | None:
        """Histories that are resident: whoever draws negatives needs all that users did."""
        return self.reads if is_histories(directory) and not is_materialised(directory) else None

    def open(
        self,
        directory: Path,
        batches: BatchOptions,
        options: InteractionsOptions,
        model: object,
        world: World,
    ) -> BatchSource:
        """Opens everybody's histories.

        Raises:
          UserError: as the contract says.
        """
        from lookback.dataloading.histories.resident import Histories
        from lookback.dataloading.interactions.source import InteractionSource

        return InteractionSource(
            Histories.load(
                directory, verification=batches.verification, only_new=options.train_on == NEW
            ),
            **batches.arguments(),
            negative_samples=options.negative_samples,
            exact_negatives=options.exact_negatives,
            repeatable=options.repeatable,
            oov_rate=options.oov_rate,
            test_negatives=options.test_negatives,
            full_catalogue=options.full_catalogue,
            topk=options.topk,
        )

    def training_rows(self, directory: Path, options: InteractionsOptions, model: object) -> int:
        """Every event but those held out, or those that are new, with its negatives."""
        events = training_events(directory)
        if options.train_on == NEW:
            events = min(events, new_events(directory))
        return events * (1 + options.negative_samples)

    def identity(self, directory: Path, options: InteractionsOptions, ranks: int) -> dict[str, Any]:
        """The content."""
        return {"dataset": content_of(directory, read_histories_info(directory))}
