"""NVIDIA's split-binary files, as its preprocessing of the Criteo data writes them.

    DIR/
      feature_spec.yaml   feature_spec:  dtype (and cardinality: the table's rows) of each feature
                          channel_spec:  names of the numerical and categorical features, the label
                          source_spec:   for each split, which file holds which features
      train/  label.bin        bool ``[n]``
              numerical.bin    float16 ``[n, N]``
              cat_0.bin ...    int8, int16 or int32 ``[n]`` each
      test/   ...
      validation/              (ours; the specification may or may not name it)

Values only, without headers, so the files' sizes must agree. NVIDIA's converter names a feature
after its file ("cat_0.bin"); the ending is dropped here, so that tables are named as in our own
format and a model trained on one can be evaluated on the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from merlin.schema import Schema

from lookback.core.errors import UserError, shown
from lookback.core.yaml_files import read_yaml
from lookback.formats.description import FEATURE_SPEC_FILE
from lookback.formats.tabular_files import ROW_GROUP
from lookback.formats.tabular_rows import (
    Array,
    Place,
    Rows,
    check_ids,
    check_label,
    check_numbers,
    known_split,
)
from lookback.formats.tabular_schema import TabularFeatures, tabular_schema

UNNAMED, LIKE = "validation", "test"
"""A split that the specification may not name, as NVIDIA's tools refuse one that names more than
train and test. Its files are called as those of the other, in a directory of its name."""

_SECTIONS = ("feature_spec", "source_spec", "channel_spec")
_ID_TYPES = ("int8", "int16", "int32")
_TYPE = "split_binary"


class _Files(NamedTuple):
    """The files of a split: label, numbers (None without any) and ids, in the schema's order."""

    label: Path
    numerical: Path | None
    categorical: tuple[Path, ...]
    rows: int


class SplitBinaryDataset:
    """A dataset of split-binary files, read through memory maps.

    Args:
      path: its directory.

    Attributes:
      schema: of a row.
      features: names of the columns by role.
      cardinalities: rows of the table of each id column, by name.

    Raises:
      UserError: if the specification or the files are not as described above.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        spec = _Specification(self._path / FEATURE_SPEC_FILE)
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

    def blocks(self, split: str) -> Sequence[int]:
        """Rows of each block: the files are cut as our own format's row groups are."""
        rows = self._files[split].rows
        return [min(ROW_GROUP, rows - begin) for begin in range(0, rows, ROW_GROUP)]

    def read(self, split: str, block: int, begin: int, rows: Rows) -> None:
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


class _Specification:
    """What feature_spec.yaml says, checked."""

    def __init__(self, file: Path) -> None:
        self._file = file
        content = _load(file)
        self._features: Mapping[str, Any] = content["feature_spec"]
        self._sources: Mapping[str, Any] = content["source_spec"]
        channels = content["channel_spec"]
        self.numerical = self._channel(channels, "numerical")
        self.categorical = self._channel(channels, "categorical")
        labels = self._channel(channels, "label")
        if len(labels) != 1:
            raise self._error(
                f"the channel 'label' has {shown(list(labels))}. Expected one feature."
            )
        self.label = labels[0]
        for name in (self.label, *self.numerical, *self.categorical):
            self.dtype(name)
        if not self._sources:
            raise self._error("source_spec names no split. Expected 'train' and 'test'.")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._sources)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of a feature's values, which its channel must allow."""
        feature = self._features.get(name)
        found = feature.get("dtype") if isinstance(feature, Mapping) else None
        allowed: tuple[str, ...] = _ID_TYPES
        if name in self.numerical:
            allowed = ("float16",)
        elif name == self.label:
            allowed = ("bool",)
        if found not in allowed:
            raise self._error(
                f"feature {shown(name)} has the dtype {shown(found)}. "
                f"Expected {' or '.join(allowed)}."
            )
        return np.dtype(found).newbyteorder("<")

    def rows(self, name: str) -> int:
        """Rows of a categorical feature's table."""
        found = self._features[name].get("cardinality")
        if type(found) is not int or found < 1:
            raise self._error(
                f"feature {shown(name)} has the cardinality {shown(found)}. "
                "Expected the rows of its table."
            )
        return found

    def files(self, split: str, directory: Path, instead: str | None = None) -> _Files:
        """The files of a split, which must be as large as the dtypes and each other say.

        Args:
          split: that the specification names.
          directory: of the dataset.
          instead: the files of the same names in this directory.
        """
        by_feature: dict[tuple[str, ...], Path] = {}
        for chunk in self._chunks(split):
            names = tuple(chunk["features"])
            if names in by_feature:
                raise self._error(
                    f"split {shown(split)} names files for {shown(list(names))} twice."
                )
            file = Path(chunk["files"][0])
            by_feature[names] = directory / (file if instead is None else instead / Path(file.name))
        expected: list[tuple[str, ...]] = [(self.label,)]
        expected += [(name,) for name in self.categorical]
        expected += [self.numerical] if self.numerical else []
        for names in expected:
            if names not in by_feature:
                raise self._error(
                    f"split {shown(split)} names no file for {shown(list(names))}. "
                    "Expected one file with the label, one with all numerical "
                    "features in the channel's order, and one with each categorical feature."
                )
        rows = {
            by_feature[names]: _rows_of(
                by_feature[names], sum(self.dtype(name).itemsize for name in names)
            )
            for names in expected
        }
        label = by_feature[(self.label,)]
        for file, count in rows.items():
            if count != rows[label]:
                raise UserError(
                    f"{file} holds {count} rows, {label} {rows[label]}. The files of a split must "
                    "have as many; one of them is cut off or not of this dataset."
                )
        return _Files(
            label,
            by_feature[self.numerical] if self.numerical else None,
            tuple(by_feature[(name,)] for name in self.categorical),
            rows[label],
        )

    def _chunks(self, split: str) -> list[Mapping[str, Any]]:
        chunks = self._sources[split]
        for chunk in chunks if isinstance(chunks, list) else [None]:
            known = chunk if isinstance(chunk, Mapping) else {}
            if known.get("type") != _TYPE:
                raise self._error(
                    f"split {shown(split)} has an entry of type {shown(known.get('type'))}. "
                    f"Expected a list of entries of type {_TYPE!r}."
                )
            if not _is_names(known.get("features")) or not _is_names(known.get("files")):
                raise self._error(
                    f"split {shown(split)} has the entry {shown(dict(known))}. "
                    "Expected lists of names in 'features' and 'files'."
                )
            if len(known["files"]) != 1:
                raise self._error(
                    f"split {shown(split)} has the files {shown(known['files'])} for "
                    f"{shown(known['features'])}. Expected one file."
                )
        return list(chunks)

    def _channel(self, channels: Mapping[str, Any], channel: str) -> tuple[str, ...]:
        names = channels.get(channel, [])
        if not _is_names(names):
            raise self._error(
                f"the channel {channel!r} is {shown(names)}. Expected a list of names."
            )
        unknown = [name for name in names if name not in self._features]
        if unknown:
            raise self._error(
                f"the channel {channel!r} has {shown(unknown)}, unknown to feature_spec."
            )
        return tuple(names)

    def _error(self, text: str) -> UserError:
        return UserError(f"{self._file}: {text}")


def _load(file: Path) -> dict[str, Mapping[str, Any]]:
    content = read_yaml(file, shared_lists=True)  # NVIDIA's tools dump a list of names twice
    known = content if isinstance(content, Mapping) else {}
    for section in _SECTIONS:
        if not isinstance(known.get(section), Mapping):
            raise UserError(
                f"{file} has no section {section!r}. Expected the sections {list(_SECTIONS)}, as "
                "NVIDIA's preprocessing of Criteo writes them."
            )
    return {section: known[section] for section in _SECTIONS}


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _name(feature: str) -> str:
    return feature.removesuffix(".bin")


def _rows_of(file: Path, bytes_a_row: int) -> int:
    try:
        size = file.stat().st_size
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}). {FEATURE_SPEC_FILE} names it."
        ) from error
    rows, left = divmod(size, bytes_a_row)
    if left:
        raise UserError(
            f"{file} has {size} bytes, which is not a whole number of rows of {bytes_a_row} bytes. "
            "It is cut off, or its dtype in the specification is wrong."
        )
    return rows


def _mapped(file: Path, dtype: np.dtype[Any], first: int, count: int) -> Array:
    """`count` values of a file from number `first` on, not copied."""
    try:
        return np.memmap(file, dtype, "r", first * dtype.itemsize, (count,))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}). It is damaged, or changed while it was read."
        ) from error
