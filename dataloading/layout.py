"""The contract of a layout: what a model makes of its data, and the options that only that has.

Pure Python: command lines ask layouts for their options, and must answer at once. What opens data
is imported when a layout is asked to.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lookback.core.limits import MOST_PARTS
from lookback.core.manifests import WHOLLY, Verification
from lookback.core.options import check_options, option
from lookback.core.world import World
from lookback.dataloading.modes import LEARNS, TRAINS
from lookback.formats.description import RESIDENT

if TYPE_CHECKING:
    from lookback.dataloading.parts import Part
    from lookback.dataloading.sources import BatchSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How a run cuts its data into batches, whatever the data is.

    Attributes:
      seed: of shuffling, and of what is drawn for training.
      batch_size: rows (labels) of a training batch, all processes together.
      eval_batch_size: of an evaluation batch.
      drop_remainder: leave out a last training batch that is not full.
      repeat_count: passes over the training set in one epoch.
      part: this process's.
      micro_batches: parts into which a process's share of a training batch is cut; None: it is not.
      verification: how far the dataset's files are compared with what it says of them.
    """

    seed: int
    batch_size: int
    eval_batch_size: int
    drop_remainder: bool
    repeat_count: int
    part: Part
    micro_batches: int | None
    verification: Verification = WHOLLY

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that every source takes."""
        cut = {name: value for name, value in vars(self).items() if name != "verification"}
        return {**cut, "micro_batches": self.micro_batches or 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """Options of one layout; a subclass adds them as fields."""

    scope: ClassVar[str] = "datasets"

    def __post_init__(self) -> None:
        """Validates.

        Raises:
          UserError: naming the option, what it may be and what came.
        """
        check_options(self)

    @property
    def goals(self) -> Mapping[str, float]:
        """Figures of an evaluation, by name, at which training may stop."""
        return {}

    @property
    def bound_to_ranks(self) -> tuple[str, ...]:
        """The options given that tie a run to the number of processes it began with."""
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClickOptions(LayoutOptions):
    """Of layouts that are evaluated click by click, and read ahead what lies in rows on disk."""

    auc_threshold: float | None = option(
        None,
        scope="training",
        help="Stop training once an evaluation has reached this AUC",
        above=0,
        at_most=1,
        needs=LEARNS,
    )
    prefetch_train_size: int | None = option(
        10,
        scope="training",
        help="Batches to read ahead in training (materialised samples and tabular data); none (or "
        "-1): the reader decides",
        at_least=0,
        none=(-1,),
        unserved={RESIDENT: "lie in memory, where nothing is read ahead"},
        suits=TRAINS,
        limit=MOST_PARTS,
    )
    prefetch_test_size: int | None = option(
        2,
        scope="training",
        help="Batches to read ahead in evaluation (materialised samples and tabular data); none "
        "(or -1): the reader decides",
        at_least=0,
        none=(-1,),
        unserved={RESIDENT: "lie in memory, where nothing is read ahead"},
        limit=MOST_PARTS,
    )

    @property
    def goals(self) -> Mapping[str, float]:
        """The AUC, if one is wanted."""
        return {} if self.auc_threshold is None else {"auc": self.auc_threshold}


class Layout(abc.ABC):
    """One way to read data. What it says of options is of an instance of `options_class`.

    Attributes:
      options_class: dataclass of the options that only this layout has.
      reads: what its directories hold, in words.
    """

    options_class: ClassVar[type[LayoutOptions]]
    reads: ClassVar[str]

    @abc.abstractmethod
    def found_in(self, directory: Path) -> str | None:
        """What a directory holds that this layout can open, in words; None if nothing."""

    @abc.abstractmethod
    def open(
        self, directory: Path, batches: BatchOptions, options: Any, model: Any, world: World
    ) -> BatchSource:
        """Opens a dataset, or this process's part of it.

        Args:
          directory: of the dataset.
          batches: how to cut it.
          options: of the layout.
          model: options of the model, which say what it reads of a sample.
          world: the processes that train together.

        Raises:
          UserError: if the directory is no dataset, or does not suit the options.
        """

    @abc.abstractmethod
    def training_rows(self, directory: Path, options: Any, model: Any) -> int:
        """About how many rows (labels) an epoch of a dataset has, before it is opened.

        Args:
          directory: of the dataset.
          options: of the layout.
          model: options of the model.

        Raises:
          UserError: if the directory is no dataset.
        """

    @abc.abstractmethod
    def identity(self, directory: Path, options: Any, ranks: int) -> dict[str, Any]:
        """What tells data apart, for checkpoints: "dataset", and what else a batch depends on.

        Args:
          directory: of the dataset.
          options: of the layout.
          ranks: how many processes train together.
        """

    def unread(self, directory: Path, model: Any) -> tuple[str, ...]:
        """Features of a dataset that a model is told to leave alone, by name.

        Args:
          directory: of the dataset.
          model: options of the model.
        """
        del directory, model
        return ()


def file_sizes(directory: Path, pattern: str) -> dict[str, int]:
    """Sizes of files by name: what there is to tell data without a hash of its content apart."""
    return {
        str(f.relative_to(directory)): f.stat().st_size for f in sorted(directory.glob(pattern))
    }
