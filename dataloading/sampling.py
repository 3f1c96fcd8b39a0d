"""Options of layouts that draw negatives for what users did."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from lookback.core.errors import UserError
from lookback.core.limits import MOST_NEGATIVES, MOST_ROWS
from lookback.core.options import option
from lookback.core.options.needs import Needs
from lookback.dataloading.layout import LayoutOptions
from lookback.dataloading.modes import EVALUATES, INFERS, TRAINS
from lookback.formats.dataset_info import is_explicit
from lookback.formats.description import IMPRESSIONS, MATERIALISED, WITHOUT_AUXILIARY_LOSS
from lookback.formats.history_columns import NEW


def nothing_new(directory: Path) -> UserError:
    """The error of a dataset that does not say what is new."""
    return UserError(
        f"train_on: new needs a dataset that `python -m workflows update` wrote; {directory} does "
        "not say what is new. Leave --train_on out."
    )


def new_events(directory: Path) -> int:
    """How many events of histories, or impressions of training, are new, whether held out or not.

    Args:
      directory: of the dataset.

    Raises:
      UserError: if it does not say, or cannot be read.
    """
    from lookback.core.arrow_files import open_parquet
    from lookback.formats.histories import history_files, values_of
    from lookback.formats.impressions import impression_files

    explicit, count = is_explicit(directory), 0
    for file in impression_files(directory, "train") if explicit else history_files(directory):
        with open_parquet(file) as parquet:
            if NEW not in parquet.schema_arrow.names:
                raise nothing_new(directory)
            count += int(values_of(parquet.read([NEW])[NEW]).sum())
    return count


def topk_option(needs: Needs) -> Any:
    """The field `topk` of a layout, which has an effect where `needs` hold."""
    return option(
        10,
        scope="training",
        help="K of HR@K and NDCG@K where --metrics names none",
        at_least=1,
        unserved={IMPRESSIONS: "have labels of their own, so that nothing is ranked"},
        limit=MOST_ROWS,
        needs=needs,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions(LayoutOptions):
    """Options of every such layout."""

    test_negatives: int = option(
        1,
        help="Negatives for each positive in evaluation",
        at_least=1,
        unserved={
            MATERIALISED: "bring their negatives along",
            IMPRESSIONS: "have labels of their own, so that no candidates are drawn",
        },
        needs=(*EVALUATES, INFERS),
        limit=MOST_NEGATIVES,
    )
    full_catalogue: bool = option(
        False,
        help="Rank the held-out item among all items that the user has not met, too (flag)",
        unserved={
            MATERIALISED: "hold no catalogue",
            IMPRESSIONS: "have labels of their own, so that nothing is ranked",
        },
        needs=EVALUATES,
    )
    train_on: Literal["all", "new"] = option(
        "all",
        help="Targets to train on: all, or (of a dataset that `python -m workflows update` wrote) "
        "those that are new, with all that came before them in the histories",
        continued=True,
        younger=True,
        unserved={MATERIALISED: "do not say what is new"},
        suits=TRAINS,
    )
    oov_rate: float = option(
        0.0,
        help="Share of (sample, item) and (sample, user) of which training hides the id, so that "
        "the row of unknown ids learns to stand for new items and users by their features",
        at_least=0,
        below=1,
        continued=True,
        younger=True,
        unserved={MATERIALISED: "are trained on as they are"},
        suits=TRAINS,
    )
    repeatable: bool = option(
        False,
        help="Draw the same training negatives in every epoch, not fresh ones (flag)",
        continued=True,
        unserved={
            MATERIALISED: "bring their negatives along",
            WITHOUT_AUXILIARY_LOSS: "need no negatives",
        },
        suits=TRAINS,
    )
