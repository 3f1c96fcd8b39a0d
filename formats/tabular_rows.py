"""Rows of tabular data as matrices, where they come from, and what must hold of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from merlin.schema import Schema

from lookback.core.errors import UserError
from lookback.formats.tabular_schema import TabularFeatures

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class TabularRows:
    """B rows.

    Attributes:
      labels: ``[B, 1]`` float32.
      numerical: ``[B, N]`` float32.
      categorical: ``[B, M]`` int32.
    """

    labels: Array
    numerical: Array
    categorical: Array

    @classmethod
    def empty(cls, rows: int, features: TabularFeatures) -> TabularRows:
        """Room for `rows` rows, their values undefined."""
        return cls(
            np.empty((rows, 1), np.float32),
            np.empty((rows, len(features.numerical)), np.float32),
            np.empty((rows, len(features.categorical)), np.int32),
        )

    def __len__(self) -> int:
        return len(self.labels)

    def between(self, begin: int, end: int) -> TabularRows:
        """Rows begin to end, not copied."""
        return TabularRows(*(part[begin:end] for part in self._parts()))

    def take(self, index: Array) -> TabularRows:
        """The rows of an index ``[B']``, copied."""
        return TabularRows(*(part.take(index, axis=0) for part in self._parts()))

    def fill(self, begin: int, rows: TabularRows) -> None:
        """Copies `rows` here, from row `begin` on."""
        for own, other in zip(self._parts(), rows._parts(), strict=True):
            own[begin : begin + len(rows)] = other

    def _parts(self) -> tuple[Array, Array, Array]:
        return self.labels, self.numerical, self.categorical


class TabularData(Protocol):
    """A dataset on disk, whatever its files are.

    A split is a sequence of blocks: what is shuffled, and skipped on resuming, as a whole. Another
    reader (say Merlin's, on a machine with cuDF) is another implementation of this, chosen in
    `dataloading.tabular.source.open_tabular`.
    """

    @property
    def schema(self) -> Schema:
        """Of a row: see `formats.tabular_schema`."""

    @property
    def features(self) -> TabularFeatures:
        """Names of the columns by role."""

    def num_rows(self, split: str) -> int:
        """Rows of a split; a UserError if there is no such split."""

    def has(self, split: str) -> bool:
        """Whether there are rows of a split."""

    def blocks(self, split: str) -> Sequence[int]:
        """Rows of each block of a split, in file order."""

    def both_classes(self, split: str) -> bool:
        """Whether a split has labels of both classes; reads no further than it must to know."""

    def read(self, split: str, block: int, begin: int, rows: TabularRows) -> None:
        """Fills `rows` with a block's rows from number `begin` on; called by several threads.

        Raises:
          UserError: if the files cannot be read or hold what they must not.
        """


@dataclasses.dataclass(frozen=True)
class Place:
    """Where values were read, for errors.

    Attributes:
      split: of the dataset.
      file: which.
      row: of the file, to which the first value belongs.
    """

    split: str
    file: Path
    row: int

    def error(self, index: int, text: str) -> UserError:
        """What to raise about value number `index`."""
        return UserError(f"{self.file}, row {self.row + index} ({self.split}): {text}")


def check_label(values: Array, name: str, place: Place) -> None:
    """Raises unless labels ``[n]`` are 0 or 1."""
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        index = int(wrong.argmax())
        raise place.error(
            index,
            f"label {values[index]:g} in column {name!r}. Expected 0 or 1. Write the dataset "
            "again.",
        )


def check_numbers(values: Array, name: str, place: Place) -> None:
    """Raises unless numbers ``[n]`` are finite.

    Least and largest show it in two vectorised passes: NaN spreads to both.
    """
    if not len(values) or (np.isfinite(values.min()) and np.isfinite(values.max())):
        return
    index = int(np.argmin(np.isfinite(values)))
    raise place.error(
        index,
        f"{values[index]} in the numerical column {name!r}. Expected a finite number: one NaN "
        "makes every weight NaN. Fill missing values (the workflow writes 0) and write the "
        "dataset again.",
    )


def check_ids(values: Array, name: str, rows: int, place: Place) -> None:
    """Raises unless ids ``[n]`` (signed integers) lie in [0, rows)."""
    # Seen as unsigned, a negative id is larger than any table: one pass instead of two.
    unsigned = values.view(values.dtype.str.replace("i", "u"))
    if not len(values) or int(unsigned.max()) < rows:
        return
    index = int(np.argmax((values < 0) | (values >= rows)))
    raise place.error(
        index,
        f"id {values[index]} in column {name!r} is out of range: expected 0 to {rows - 1}, as the "
        f"column's table has {rows} rows. Correct the column's cardinality, or encode it again.",
    )


def known_split(split: str, counts: Mapping[str, int], path: Path) -> int:
    """The number of rows of a split, which must be one of `counts`.

    Raises:
      UserError: if it is not there or has none.
    """
    if not counts.get(split):
        there = ", ".join(name for name, rows in counts.items() if rows)
        raise UserError(f"{path} has no rows in a split {split!r}. It has: {there or 'none'}.")
    return counts[split]
