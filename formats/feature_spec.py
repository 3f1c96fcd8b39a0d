"""``feature_spec.yaml``: what split-binary files hold, as NVIDIA's tools write and read it.

    DIR/
      feature_spec.yaml   feature_spec:  dtype (and cardinality: the table's rows) of each feature
                          channel_spec:  names of the numerical and categorical features, the label
                          source_spec:   for each split, which file holds which features
      train/  label.bin        bool ``[n]``
              numerical.bin    float16 ``[n, N]``; not there if N is 0
              cat_0.bin ...    int8, int16 or int32 ``[n]`` each
      test/   ...
      validation/              (ours; the specification may or may not name it)

Values only, without headers, so the files' sizes must agree. NVIDIA's reader gives each categorical
feature the smallest type for its cardinality (DLRM_and_DCNv2/dataloading/feature_spec.py,
`get_categorical_feature_type`), knows the splits ``train`` and ``test`` alone, and refuses others
in the specification. Nothing here needs Merlin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from lookback.core.errors import UserError, shown
from lookback.core.manifests import FILES, entries_of, visible_files
from lookback.formats.dataset_info import VOCABULARIES
from lookback.formats.description import FEATURE_SPEC_FILE, described, read_specification
from lookback.formats.tabular_files import LABEL

LABEL_FILE = "label.bin"
NUMERICAL_FILE = "numerical.bin"
NAMED_SPLITS = ("train", "test")
"""Those that NVIDIA's tools know."""

_SECTIONS = ("feature_spec", "source_spec", "channel_spec")
_ID_TYPES = ("int8", "int16", "int32")
_TYPE = "split_binary"


class SplitFiles(NamedTuple):
    """The files of a split: label, numbers (None without any) and ids, in the schema's order."""

    label: Path
    numerical: Path | None
    categorical: tuple[Path, ...]
    rows: int


class SplitBinarySpec:
    """What a feature_spec.yaml says, checked.

    Args:
      file: to read.

    Attributes:
      numerical: names of the numbers, in their order in a row of their file.
      categorical: names of the ids.
      label: name of the label.
      said: of the files and vocabularies, if we wrote them.

    Raises:
      UserError: naming what of it is not as described above.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        given, self.said = read_specification(file)
        content = _sections(file, given)
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

    def files(self, split: str, directory: Path, instead: str | None = None) -> SplitFiles:
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
        return SplitFiles(
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


def _sections(file: Path, content: Any) -> dict[str, Mapping[str, Any]]:
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


def id_type(cardinality: int) -> str:
    """NumPy dtype of a categorical file, by NVIDIA's rule.

    Raises:
      UserError: if the ids do not fit int32.
    """
    for bits in (8, 16, 32):
        if cardinality < 2 ** (bits - 1) - 1:
            return f"int{bits}"
    raise UserError(
        f"split_binary has no type for {cardinality:,} ids. Use a larger --frequency_threshold."
    )


def write_feature_spec(
    directory: Path,
    nums: Sequence[str],
    cardinalities: Mapping[str, int],
    vocabularies: Mapping[str, str],
) -> None:
    """Writes the specification of split-binary files, with their sizes and digests.

    Args:
      directory: where they are, all of them; it is ours to write in.
      nums: names of the features in `NUMERICAL_FILE`.
      cardinalities: of each categorical feature, by name; its file is called after it.
      vocabularies: what its ids stand for, where that is known.

    Raises:
      UserError: if ids do not fit int32.
    """
    # NVIDIA's own files name the features cat_0.bin; any name is allowed, so ours stay.
    features: dict[str, dict[str, Any]] = {
        name: {"cardinality": rows, "dtype": id_type(rows)} for name, rows in cardinalities.items()
    }
    features.update({name: {"dtype": "float16"} for name in nums})
    features[LABEL] = {"dtype": "bool"}

    def chunk(split: str, names: list[str], file: str) -> dict[str, Any]:
        return {"type": _TYPE, "features": names, "files": [f"{split}/{file}"]}

    source = {
        split: [
            *([chunk(split, list(nums), NUMERICAL_FILE)] if nums else []),
            chunk(split, [LABEL], LABEL_FILE),
            *(chunk(split, [name], f"{name}.bin") for name in cardinalities),
        ]
        for split in NAMED_SPLITS
    }
    channels = {"categorical": list(cardinalities), "numerical": list(nums), "label": [LABEL]}
    sections = {"feature_spec": features, "source_spec": source, "channel_spec": channels}
    files = entries_of(directory, visible_files(directory))
    content = described(sections, {FILES: files, VOCABULARIES: dict(vocabularies)})
    (directory / FEATURE_SPEC_FILE).write_text(yaml.safe_dump(content))


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
