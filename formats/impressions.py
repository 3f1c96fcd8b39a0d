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

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.core.arrow_files import open_parquet, read_parquet
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
    with _reading(directory, split):
        table = pa.concat_tables(read_parquet(file, names) for file in files)
        return {name: values_of(table[name]) for name in names}


class ImpressionRows:
    """The impressions of a split by row, of which any run can be read without the others.

    Attributes:
      count: how many there are.
    """

    def __init__(
        self, directory: Path, split: str, features: Sequence[str], *, new: bool = False
    ) -> None:
        """Looks up how many rows each row group has.

        Args:
          directory: of the dataset.
          split: of which.
          features: of items and of the context.
          new: whether `NEW` is wanted, too.

        Raises:
          UserError: if a file cannot be read.
        """
        self._directory, self._split = directory, split
        self._names = [USER, POSITION, *features, *([NEW] if new else []), TIMESTAMP, LABEL]
        self._groups: list[tuple[Path, int]] = []
        rows = []
        with _reading(directory, split):
            for file in impression_files(directory, split):
                with open_parquet(file) as parquet:
                    for group in range(parquet.num_row_groups):
                        self._groups.append((file, group))
                        rows.append(parquet.metadata.row_group(group).num_rows)
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._begins = self._ends - np.array(rows, np.int64)
        self.count = int(sum(rows))

    def begins(self, users: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The first row ``[K]`` of users from each of some numbers ``[K]`` on.

        Raises:
          UserError: if the rows are not in the order of users.
        """
        begins, last = np.zeros(len(users), np.int64), -1
        for number in range(len(self._groups)):
            whose = self._read(number, [USER])[USER]
            if len(whose) and (whose[0] < last or np.any(np.diff(whose) < 0)):
                raise UserError(
                    f"{self._directory}: the impressions of {self._split!r} are not in the order "
                    f"of users, so that they cannot be read with some of them. {AGAIN}"
                )
            begins += np.searchsorted(whose, users)
            last = int(whose[-1]) if len(whose) else last
        return begins

    def read(self, begin: int, end: int) -> dict[str, npt.NDArray[Any]]:
        """Rows as `read_impressions` gives them.

        Args:
          begin: the first.
          end: behind the last.

        Raises:
          UserError: likewise.
        """
        numbers = np.flatnonzero((self._begins < end) & (self._ends > begin)).tolist()
        parts = []
        for number in numbers:
            start = int(self._begins[number])
            rows = slice(max(begin - start, 0), end - start)
            columns = self._read(number, self._names)
            parts.append({name: values[rows] for name, values in columns.items()})
        if not parts:
            return {name: np.zeros(0, np.int32) for name in self._names}
        return {name: np.concatenate([part[name] for part in parts]) for name in self._names}

    def _read(self, number: int, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        file, group = self._groups[number]
        with _reading(self._directory, self._split), open_parquet(file) as parquet:
            table = parquet.read_row_group(group, columns=list(names))
            return {name: values_of(table[name]) for name in names}


@contextlib.contextmanager
def _reading(directory: Path, split: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"{directory / IMPRESSIONS_DIRECTORY / split} cannot be read ({error}). {AGAIN}"
        ) from error
