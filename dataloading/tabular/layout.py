"""The layout "tabular": rows of numbers and ids with one label, in our format or in NVIDIA's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.core.options import option
from lookback.core.world import World
from lookback.dataloading.layout import BatchOptions, ClickOptions, Layout, file_sizes
from lookback.dataloading.modes import TRAINS
from lookback.formats.dataset_info import content_of, is_tabular, read_tabular_info
from lookback.formats.description import is_split_binary

if TYPE_CHECKING:
    from lookback.dataloading.sources import BatchSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class TabularLayoutOptions(ClickOptions):
    """Options that only models over rows have; names and defaults are NVIDIA's."""

    dataset_subset: float | None = option(
        None,
        help="Train on the first part of the training set, from 0 to 1; none: all of it",
        above=0,
        at_most=1,
        continued=True,
        suits=TRAINS,
    )
    shuffle_batch_order: bool = option(
        False,
        help="Shuffle training data anew in each epoch, as histories always are; without it, it "
        "is read as it lies on disk (flag)",
        continued=True,
        suits=TRAINS,
    )


class TabularLayout(Layout):
    """See the module."""

    options_class = TabularLayoutOptions
    reads = "rows of numbers and ids (tabular data)"

    def found_in(self, directory: Path) -> str | None:
        """Rows, by their description or specification."""
        return self.reads if is_tabular(directory) or is_split_binary(directory) else None

    def open(
        self,
        directory: Path,
        batches: BatchOptions,
        options: TabularLayoutOptions,
        model: object,
        world: World,
    ) -> BatchSource:
        """Opens the rows.

        Raises:
          UserError: as the contract says.
        """
        from lookback.dataloading.tabular.source import TabularSource, open_tabular

        return TabularSource(
            open_tabular(directory, batches.verification),
            **batches.arguments(),
            prefetch_train=options.prefetch_train_size,
            prefetch_test=options.prefetch_test_size,
            shuffle=options.shuffle_batch_order,
            subset=options.dataset_subset,
        )

    def training_rows(self, directory: Path, options: TabularLayoutOptions, model: object) -> int:
        """Those of the training set, or of the part of it that is wanted."""
        from lookback.dataloading.tabular.source import open_tabular

        return int(open_tabular(directory).num_rows("train") * (options.dataset_subset or 1))

    def identity(
        self, directory: Path, options: TabularLayoutOptions, ranks: int
    ) -> dict[str, Any]:
        """The content, or of files without a hash their sizes."""
        if is_tabular(directory):
            return {"dataset": content_of(directory, read_tabular_info(directory))}
        return {"dataset": file_sizes(directory, "*/*.bin")}
