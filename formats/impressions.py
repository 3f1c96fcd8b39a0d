"""Impressions: what users were shown, with labels. The targets of a dataset of explicit labels.

    DIR/impressions/{train,validation,test}/part-00000.parquet ...   a row an impression

      user       int64, whose: the number of a row of the histories
      position   int32, how many events of that user are strictly before: the first so many are what
                 the label is predicted from
      timestamp  int64, seconds
      label      int8, 0 or 1
      and all columns of items and of the context, one value each

The histories hold what users did (the positives) alone. An impression that became one of these
events is not among the events before it, which are strictly before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import read_parquet
from lookback.core.errors import UserError
from lookback.formats.dataset_info import AGAIN
from lookback.formats.histories import part_name, values_of
from lookback.formats.history_columns import TIMESTAMP, Column

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
    names = [USER, POSITION, *features, TIMESTAMP, LABEL]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"an impression has columns of its own named {', '.join(repeated)}")
    return names


def impression_files(directory: Path, split: str) -> list[Path]:
    """The parts of a split's impressions, in order; none where there is no such split."""
    return sorted((directory / IMPRESSIONS_DIRECTORY / split).glob("*.parquet"))


def write_impressions(directory: Path, split: str, columns: Mapping[str, npt.NDArray[Any]]) -> str:
    """Writes the impressions of a split; gives their digest, for `histories.content_hash`.

    Args:
      directory: of the dataset.
      split: of which.
      columns: ``[N]`` each, by the names of `impression_columns`.
    """
    place = directory / IMPRESSIONS_DIRECTORY / split
    place.mkdir(parents=True)
    pq.write_table(pa.table(dict(columns)), place / part_name(0), compression="zstd")
    digest = hashlib.sha256()
    for name, values in columns.items():
        digest.update(name.encode())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def read_impressions(
    directory: Path, split: str, features: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """The impressions of a split: ``[N]`` by column, none where there is no such split.

    Args:
      directory: of the dataset.
      split: of which.
      features: of items and of the context.

    Raises:
      UserError: if a file cannot be read, or holds nulls.
    """
    names = [USER, POSITION, *features, TIMESTAMP, LABEL]
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
