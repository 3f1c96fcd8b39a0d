"""What the values of a dataset's columns may be: ids of a table, numbers of bags, or numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from merlin.schema import Schema

from lookback.core.errors import UserError
from lookback.formats.bags import read_bags
from lookback.formats.dataset_info import AGAIN
from lookback.formats.features import HistoryFeatures, table_rows

Int32 = npt.NDArray[np.int32]
Values = npt.NDArray[np.int32] | npt.NDArray[np.float32]
"""Of a feature: int32 of a category or a bag, float32 of a number."""


@dataclasses.dataclass(frozen=True)
class FeatureChecks:
    """Checks values of features against the dataset's schema.

    Attributes:
      directory: of the dataset, for errors.
      features: its columns by role.
      rows: of the tables that ids index, and of bags, by feature.
      bags: ``[R, M]`` by feature.
    """

    directory: Path
    features: HistoryFeatures
    rows: Mapping[str, int]
    bags: Mapping[str, Int32]

    @classmethod
    def of(cls, directory: Path, schema: Schema) -> FeatureChecks:
        """Reads the bags of a dataset.

        Raises:
          UserError: if they are missing or damaged, or the schema leaves a table's size open.
        """
        features, rows = HistoryFeatures.from_schema(schema), table_rows(schema)
        bags = {n: read_bags(directory, n, most, rows[n]) for n, most in features.bags.items()}
        return cls(directory, features, {**rows, **{n: len(b) for n, b in bags.items()}}, bags)

    def checked(
        self, columns: Mapping[str, npt.NDArray[Any]], names: Iterable[str]
    ) -> dict[str, Values]:
        """Values of some features, which must be possible.

        Args:
          columns: ``[N]`` by name.
          names: of the features.

        Raises:
          UserError: naming the feature.
        """
        return {name: self._checked(name, columns[name]) for name in names}

    def _checked(self, name: str, values: npt.NDArray[Any]) -> Values:
        if name in self.features.numbers:
            numbers: npt.NDArray[np.float32] = values.astype(np.float32, copy=False)
            if not np.isfinite(numbers).all():
                raise UserError(
                    f"{self.directory}: numbers of {name!r} must be finite, found NaN or infinity. "
                    f"{AGAIN}"
                )
            return numbers
        ids: Int32 = values.astype(np.int32, copy=False)
        largest = self.rows[name] - 1
        if len(ids) and not 0 < int(ids.min()) <= int(ids.max()) <= largest:
            what = "bags" if name in self.bags else "ids"
            raise UserError(
                f"{self.directory}: {what} of {name!r} must lie in [1, {largest}] (0 is padding), "
                f"found [{ids.min()}, {ids.max()}]. Schema and data do not belong together; run "
                "the workflow again."
            )
        return ids
