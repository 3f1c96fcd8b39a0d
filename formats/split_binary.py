"""NVIDIA's split-binary files, as its preprocessing of the Criteo data writes them: values.

What they hold, and where, `formats.feature_spec` says. NVIDIA's converter names a feature after its
file ("cat_0.bin"); the ending is dropped here, so that tables are named as in our own format and a
model trained on one can be evaluated on the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from merlin.schema import Schema

from lookback.core.errors import UserError
from lookback.core.manifests import WHOLLY, Verification
from lookback.formats.description import FEATURE_SPEC_FILE
from lookback.formats.feature_spec import LABEL_FILE, NUMERICAL_FILE, SplitBinarySpec, id_type
from lookback.formats.tabular_files import ROW_GROUP
from lookback.formats.tabular_rows import (
    Array,
    Place,
    TabularRows,
    check_ids,
    check_label,
    check_numbers,
    known_split,
)
from lookback.formats.tabular_schema import TabularFeatures, tabular_schema
from lookback.formats.verification import compare

UNNAMED, LIKE = "validation", "test"
"""A split that the specification may not name, as NVIDIA's tools refuse one that names more than
train and test. Its files are called as those of the other, in a directory of its name."""


class SplitBinaryDataset:
    """A dataset of split-binary files, read through memory maps.

    Args:
      path: its directory.
      verification: how far its files are compared with what it says of them, if it does.

    Attributes:
      schema: of a row.
      features: names of the columns by role.
      cardinalities: rows of the table of each id column, by name.

    Raises:
      UserError: if the specification or the files are not as described above.
    """

    def __init__(self, path: str | Path, verification: Verification = WHOLLY) -> None:
        self._path = Path(path)
        spec = SplitBinarySpec(self._path / FEATURE_SPEC_FILE)
        compare(self._path / FEATURE_SPEC_FILE, spec.said, verification)
        self.cardinalities = {_name(name): spec.rows(name) for name in spec.categorical}
        self.schema: Schema = tabular_schema(
            [_name(name) for name in spec.numerical], self.cardinalities, label=_name(spec.label)
        )
        self.features = TabularFeatures.from_schema(self.schema)
        self._id_types = [spec.dtype(name) for name in spec.categorical]
        self._files = {split: spec.files(split, self._path) for split in spec.splits}
        unnamed = UNNAMED not in self._files and (self._path / UNNAMED).is_dir()
        if unnamed and LIKE in self._files:
            self._files[UNNAMED] = spec.files(LIKE, self._path, UNNAMED)

    def num_rows(self, split: str) -> int:
        """Rows of a split.

        Raises:
          UserError: if there is no such split, or it has no rows.
        """
        return known_split(
            split, {name: files.rows for name, files in self._files.items()}, self._path
        )

    def has(self, split: str) -> bool:
        """Whether there are rows of a split."""
        return split in self._files and self._files[split].rows > 0

    def blocks(self, split: str) -> Sequence[int]:
        """Rows of each block: the files are cut as our own format's row groups are."""
        rows = self._files[split].rows
        return [min(ROW_GROUP, rows - begin) for begin in range(0, rows, ROW_GROUP)]

    def both_classes(self, split: str) -> bool:
        """Whether a split has labels of both classes."""
        files = self._files[split]
        seen: set[bool] = set()
        for block, rows in enumerate(self.blocks(split)):
            labels = _mapped(files.label, np.dtype(np.uint8), block * ROW_GROUP, rows)
            seen |= {bool(labels.any()), bool(labels.all())}
            if len(seen) > 1:
                return True
        return False

    def read(self, split: str, block: int, begin: int, rows: TabularRows) -> None:
        """Fills `rows` with a block's rows from number `begin` on.

        Raises:
          UserError: if a file cannot be read, or holds NaN or an id without a table row.
        """
        files = self._files[split]
        first = block * ROW_GROUP + begin
        label = _mapped(files.label, np.dtype(np.uint8), first, len(rows))
        check_label(label, self.features.label, Place(split, files.label, first))
        rows.labels[:, 0] = label
        if files.numerical is not None:
            numbers = len(self.features.numerical)
            half = _mapped(
                files.numerical, np.dtype("<f2"), first * numbers, len(rows) * numbers
            ).reshape(-1, numbers)
            rows.numerical[...] = half
            place = Place(split, files.numerical, first)
            if not np.isfinite(rows.numerical).all():  # then which column, and where
                for column, name in enumerate(self.features.numerical):
                    check_numbers(rows.numerical[:, column], name, place)
        columns = zip(self.features.categorical, files.categorical, self._id_types, strict=True)
        for column, (name, file, dtype) in enumerate(columns):
            ids = _mapped(file, dtype, first, len(rows))
            check_ids(ids, name, self.cardinalities[name], Place(split, file, first))
            rows.categorical[:, column] = ids


def write_split(
    directory: Path,
    pieces: Iterable[TabularRows],
    cardinalities: Mapping[str, int],
    *,
    numbers: bool,
) -> None:
    """Writes the files of a split.

    Args:
      directory: of the split, to create.
      pieces: its rows, some at a time.
      cardinalities: of the ids, by name.
      numbers: whether there are any: there is no file of none.

    Raises:
      UserError: if ids do not fit int32.
    """
    types = {
        name: np.dtype(id_type(rows)).newbyteorder("<") for name, rows in cardinalities.items()
    }
    directory.mkdir()
    with contextlib.ExitStack() as stack:

        def create(name: str) -> BinaryIO:
            return stack.enter_context((directory / name).open("wb"))

        label = create(LABEL_FILE)
        numerical = create(NUMERICAL_FILE) if numbers else None
        ids = [create(f"{name}.bin") for name in types]
        for rows in pieces:
            label.write(rows.labels.astype(bool).data)
            if numerical is not None:
                numerical.write(rows.numerical.astype("<f2").data)
            for column, (file, dtype) in enumerate(zip(ids, types.values(), strict=True)):
                file.write(rows.categorical[:, column].astype(dtype).data)


def _name(feature: str) -> str:
    return feature.removesuffix(".bin")


def _mapped(file: Path, dtype: np.dtype[Any], first: int, count: int) -> Array:
    """`count` values of a file from number `first` on, not copied."""
    try:
        return np.memmap(file, dtype, "r", first * dtype.itemsize, (count,))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}). It is damaged, or changed while it was read."
        ) from error
