"""NVIDIA's split-binary files, as its preprocessing of the Criteo data writes them: values.

    DIR/
      feature_spec.yaml        `formats.feature_spec`; which chunks a dataset must have, see below
      train/  label.bin        bool ``[n]``
              numerical.bin    float16 ``[n, N]``; not there if N is 0
              cat_0.bin ...    int8, int16 or int32 ``[n]`` each
      test/   ...
      validation/              (ours; the specification may or may not name it)

Values only, without headers, so the files' sizes must agree. NVIDIA's reader gives each categorical
feature the smallest type for its cardinality (DLRM_and_DCNv2/dataloading/feature_spec.py,
`get_categorical_feature_type`), knows the splits ``train`` and ``test`` alone, and refuses others
in the specification. NVIDIA's converter names a feature after its file ("cat_0.bin"); the ending is
dropped here, so that tables are named as in our own format and a model trained on one can be
evaluated on the other.

Other specifications that hold DLRM's channels (several files a feature, other types of values or
chunks) are imported: `python -m workflows import-feature-spec`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from merlin.schema import Schema

from lookback.core.errors import UserError, shown
from lookback.core.manifests import WHOLLY, Verification
from lookback.core.options.nested import Problems
from lookback.formats.description import FEATURE_SPEC_FILE
from lookback.formats.feature_channels import channels_of, ids_rows
from lookback.formats.feature_spec import (
    LABEL_FILE,
    NUMERICAL_FILE,
    SPLIT_BINARY,
    Chunk,
    FeatureSpecification,
    id_type,
    read_feature_spec,
)
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

_ID_TYPES = ("int8", "int16", "int32")
_IMPORT = "`python -m workflows import-feature-spec` reads what else a specification may describe."


class SplitFiles(NamedTuple):
    """The files of a split: label, numbers (None without any) and ids, in the schema's order."""

    label: Path
    numerical: Path | None
    categorical: tuple[Path, ...]
    rows: int


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
        spec = with_unnamed(read_feature_spec(self._path / FEATURE_SPEC_FILE))
        compare(spec.file, spec.facts, verification)
        channels = channels_of(spec)
        if not isinstance(channels, TabularFeatures):
            raise UserError(f"{spec.file} describes samples of histories, no rows. {_IMPORT}")
        self.cardinalities = {
            plain_name(name): ids_rows(spec, name) for name in channels.categorical
        }
        self.schema: Schema = tabular_schema(
            [plain_name(name) for name in channels.numerical],
            self.cardinalities,
            label=plain_name(channels.label),
        )
        self.features = TabularFeatures.from_schema(self.schema)
        self._id_types = [
            spec.features[name].dtype.newbyteorder("<") for name in channels.categorical
        ]
        self._files = _split_files(spec, channels)

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
            labels = mapped(files.label, np.dtype(np.uint8), block * ROW_GROUP, rows)
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
        label = mapped(files.label, np.dtype(np.uint8), first, len(rows))
        check_label(label, self.features.label, Place(split, files.label, first))
        rows.labels[:, 0] = label
        if files.numerical is not None:
            numbers = len(self.features.numerical)
            half = mapped(
                files.numerical, np.dtype("<f2"), first * numbers, len(rows) * numbers
            ).reshape(-1, numbers)
            rows.numerical[...] = half
            place = Place(split, files.numerical, first)
            if not np.isfinite(rows.numerical).all():  # then which column, and where
                for column, name in enumerate(self.features.numerical):
                    check_numbers(rows.numerical[:, column], name, place)
        columns = zip(self.features.categorical, files.categorical, self._id_types, strict=True)
        for column, (name, file, dtype) in enumerate(columns):
            ids = mapped(file, dtype, first, len(rows))
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
                numerical.write(_half(rows.numerical).data)
            for column, (file, dtype) in enumerate(zip(ids, types.values(), strict=True)):
                file.write(rows.categorical[:, column].astype(dtype).data)


def split_binary_chunks(split: str, features: TabularFeatures) -> list[Chunk]:
    """The chunks of a split that `write_split` wrote."""
    # NVIDIA's own files name the features cat_0.bin; any name is allowed, so ours stay.
    files: list[tuple[tuple[str, ...], str]] = [((features.label,), LABEL_FILE)]
    files += [((name,), f"{name}.bin") for name in features.categorical]
    files += [(features.numerical, NUMERICAL_FILE)] if features.numerical else []
    return [Chunk(SPLIT_BINARY, names, (Path(split, file),)) for names, file in files]


def _half(numbers: Array) -> Array:
    """Numbers as NVIDIA's reader takes them."""
    most = float(np.finfo(np.float16).max)
    if numbers.size and (numbers.max() > most or numbers.min() < -most):
        raise UserError(
            f"A number is {numbers.flat[np.abs(numbers).argmax()]:g}. Expected {most:,.0f} at "
            "most: split_binary holds numbers as float16. Scale the column (the workflow of criteo "
            "takes logarithms), and write the dataset again."
        )
    return numbers.astype("<f2")


def plain_name(feature: str) -> str:
    """What we call a feature that NVIDIA's converter named."""
    return feature.removesuffix(".bin")


def with_unnamed(spec: FeatureSpecification) -> FeatureSpecification:
    """A specification that names the validation rows, too, where they lie beside the others."""
    directory = spec.file.parent / UNNAMED
    like = spec.mappings.get(LIKE, ())
    binary = all(chunk.type == SPLIT_BINARY for chunk in like)
    if UNNAMED in spec.mappings or not (like and binary and directory.is_dir()):
        return spec
    chunks = (
        chunk._replace(files=tuple(directory / file.name for file in chunk.files)) for chunk in like
    )
    return dataclasses.replace(spec, mappings={**spec.mappings, UNNAMED: tuple(chunks)})


def _split_files(spec: FeatureSpecification, channels: TabularFeatures) -> dict[str, SplitFiles]:
    """The files of each split, which must be as large as the dtypes and each other say."""
    problems = spec.problems()
    _check_types(spec, channels, problems)
    expected: list[tuple[str, ...]] = [(channels.label,)]
    expected += [(name,) for name in channels.categorical]
    expected += [channels.numerical] if channels.numerical else []
    by_features = {}
    for split, chunks in spec.mappings.items():
        by_features[split] = _files_by_features(spec, split, chunks, problems)
        for names in expected:
            if names not in by_features[split]:
                problems.add(
                    spec.mapping_place(split),
                    f"names no file for {shown(list(names))}. Expected one with the label, one "
                    "with all numerical features in the channel's order, and one with each "
                    f"categorical feature. {_IMPORT}",
                )
    problems.raise_any()
    return {split: _sized(spec, channels, files, expected) for split, files in by_features.items()}


def _check_types(spec: FeatureSpecification, channels: TabularFeatures, problems: Problems) -> None:
    allowed: dict[str, tuple[str, ...]] = dict.fromkeys(channels.categorical, _ID_TYPES)
    allowed |= dict.fromkeys(channels.numerical, ("float16",))
    allowed |= {channels.label: ("bool",)}
    for name, kinds in allowed.items():
        if spec.features[name].dtype.name not in kinds:
            problems.add(
                spec.feature_place(name),
                f"{spec.features[name].dtype.name}. Expected {' or '.join(kinds)}. {_IMPORT}",
            )


def _files_by_features(
    spec: FeatureSpecification, split: str, chunks: Sequence[Chunk], problems: Problems
) -> dict[tuple[str, ...], Path]:
    found = {}
    for number, chunk in enumerate(chunks):
        if chunk.type != SPLIT_BINARY:
            problems.add(
                spec.chunk_place(split, number, "type"),
                f"{chunk.type}. Expected {SPLIT_BINARY}. {_IMPORT}",
            )
        if len(chunk.files) != 1:
            problems.add(
                spec.chunk_place(split, number, "files"),
                f"{len(chunk.files)} files. Expected one file. {_IMPORT}",
            )
        found[chunk.features] = chunk.files[0]
    return found


def _sized(
    spec: FeatureSpecification,
    channels: TabularFeatures,
    files: Mapping[tuple[str, ...], Path],
    expected: Sequence[tuple[str, ...]],
) -> SplitFiles:
    rows = {
        files[names]: rows_of(files[names], sum(spec.features[n].dtype.itemsize for n in names))
        for names in expected
    }
    label = files[(channels.label,)]
    for file, count in rows.items():
        if count != rows[label]:
            raise UserError(
                f"{file} holds {count} rows, {label} {rows[label]}. The files of a split must "
                "have as many; one of them is cut off or not of this dataset."
            )
    return SplitFiles(
        label,
        files[channels.numerical] if channels.numerical else None,
        tuple(files[(name,)] for name in channels.categorical),
        rows[label],
    )


def rows_of(file: Path, bytes_a_row: int) -> int:
    """Rows of a file of values.

    Raises:
      UserError: if it is not there, or does not end with a row.
    """
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


def mapped(file: Path, dtype: np.dtype[Any], first: int, count: int) -> Array:
    """`count` values of a file from number `first` on, not copied.

    Raises:
      UserError: if they are not there.
    """
    try:
        return np.memmap(file, dtype, "r", first * dtype.itemsize, (count,))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}). It is damaged, or changed while it was read."
        ) from error
