"""Impressions: what users were shown, with labels. The targets of a dataset of explicit labels.

    DIR/impressions/{train,validation,test}/part-00000.parquet ...   a row an impression

      user       int64, whose: the number of a row of the histories
      position   int32, how many events of that user are strictly before: the first so many are what
                 the label is predicted from
      timestamp  int64, seconds
      label      int8, 0 or 1
      and all columns of items and of the context, one value each; where the histories have `NEW`,
      that too

The histories hold what users did (the positives) alone. An impression that became one of these
events is not among the events before it, which are strictly before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from lookback.core.arrow_files import read_parquet
from lookback.core.errors import UserError
from lookback.formats.dataset_info import AGAIN
from lookback.formats.histories import values_of
from lookback.formats.history_columns import NEW, TIMESTAMP, Column

IMPRESSIONS_DIRECTORY = "impressions"
USER = "user"
POSITION = "position"
LABEL = "label"


def impression_columns(columns: Sequence[Column]) -> list[str]:
    """Names of an impression's columns.

    Args:
      columns: of the dataset.

    Raises:
      ValueError: if a feature has the name of one of them.
    """
    features = [column.name for column in columns if column.role in ("item", "context")]
    new = [column.name for column in columns if column.name == NEW]
    names = [USER, POSITION, *features, *new, TIMESTAMP, LABEL]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"an impression has columns of its own named {', '.join(repeated)}")
    return names


def impression_files(directory: Path, split: str) -> list[Path]:
    """The parts of a split's impressions, in order; none where there is no such split."""
    return sorted((directory / IMPRESSIONS_DIRECTORY / split).glob("*.parquet"))


def read_impressions(
    directory: Path, split: str, features: Sequence[str], *, new: bool = False
) -> dict[str, npt.NDArray[Any]]:
    """The impressions of a split: ``[N]`` by column, none where there is no such split.

    Args:
      directory: of the dataset.
      split: of which.
      features: of items and of the context.
      new: whether `NEW` is wanted, too.

    Raises:
      UserError: if a file cannot be read, or holds nulls.
    """
    names = [USER, POSITION, *features, *([NEW] if new else []), TIMESTAMP, LABEL]
    files = impression_files(directory, split)
    if not files:
        return {}
    try:
        table = pa.concat_tables(read_parquet(file, names) for file in files)
        return {name: values_of(table[name]) for name in names}
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"{directory / IMPRESSIONS_DIRECTORY / split} cannot be read ({error}). {AGAIN}"
        ) from error
