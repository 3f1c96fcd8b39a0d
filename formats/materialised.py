"""The files of materialised samples: what metadata.json, footers and column order say.

See `dataloading.histories.materialised` for the format and the reader. Here are also the writer,
and what must hold of padding.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from merlin.schema import ColumnSchema, Schema, Tags

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError, shown
from lookback.core.json_files import read_json
from lookback.core.paths import refuse_address
from lookback.formats.description import METADATA_FILE

SPLITS = ("train", "test")

ROWS_A_GROUP = 16_384
"""Rows of a row group that we write: 4 lists of 100 in 26 MB before compression."""

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class RowGroup:
    """A row group: where it is, and the number of its first row in the file."""

    file: Path
    index: int
    first_row: int
    rows: int


@dataclasses.dataclass(frozen=True)
class Columns:
    """Column names of the files by role, in the order of the features they belong to."""

    label: str
    user: tuple[str, ...]
    target: tuple[str, ...]
    history: tuple[str, ...]
    negatives: tuple[str, ...]

    def every(self) -> tuple[str, ...]:
        """All of them, as they stand in the files."""
        return (self.label, *self.user, *self.target, *self.history, *self.negatives)


class MaterialisedWriter:
    """Writes the samples of one split, as one file.

    The enclosing directory should be one of `atomic_directory`: the file may be half written.

    Args:
      directory: of the dataset; the split's own is created.
      split: a name of `SPLITS`.
      compression: of the columns.
      part: number of the file.
    """

    def __init__(
        self, directory: Path, split: str, compression: str = "snappy", part: int = 0
    ) -> None:
        self._file = directory / split / f"part.{part}.parquet"
        self._compression = compression
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self._waiting = self._rows = 0

    def write(self, columns: Mapping[str, Array]) -> None:
        """Appends rows.

        Args:
          columns: integers ``[n]``, or ``[n, T]`` of lists, by name, in the order that gives them
            their meaning.
        """
        table = _table(columns)
        self._pending.append(table)
        self._waiting += table.num_rows
        if self._waiting >= ROWS_A_GROUP:
            self._flush()

    def close(self) -> int:
        """Writes what is left; gives the number of rows."""
        if self._waiting:
            self._flush()
        if self._writer is not None:
            self._writer.close()
        return self._rows

    def _flush(self) -> None:
        table = pa.concat_tables(self._pending)
        if self._writer is None:
            self._file.parent.mkdir(exist_ok=True)
            self._writer = pq.ParquetWriter(self._file, table.schema, compression=self._compression)
        self._writer.write_table(table, row_group_size=self._waiting)
        self._rows += self._waiting
        self._pending, self._waiting = [], 0


def write_cardinalities(directory: Path, cardinalities: Mapping[str, int]) -> None:
    """Writes metadata.json, which makes the directory a dataset of materialised samples.

    Args:
      directory: of the dataset, which is ours to write in.
      cardinalities: by feature: those of the user, then those of the item.
    """
    entries = [{"name": name, "value": value} for name, value in cardinalities.items()]
    (directory / METADATA_FILE).write_text(json.dumps({"cardinalities": entries}) + "\n")


def read_cardinalities(path: Path, user_features: int) -> dict[str, int]:
    """Cardinality by feature name, in the order of metadata.json."""
    refuse_address(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a directory. Expected one with metadata.json, train, test.")
    file = path / METADATA_FILE
    expected = '{"cardinalities": [{"name": "uid", "value": 105925}, ...]}'
    if not file.is_file():
        raise UserError(f"{file} is missing. Expected a file like {expected}.")
    try:
        entries = read_json(file, f"Expected {expected}.")["cardinalities"]
        cardinalities = {entry["name"]: entry["value"] for entry in entries}
    except (TypeError, KeyError) as error:
        raise UserError(f"{file} is malformed ({error!r}). Expected {expected}.") from error
    for name, value in cardinalities.items():
        if not isinstance(name, str) or type(value) is not int or not 0 < value < 2**31 - 1:
            raise UserError(
                f"{file}: entry {shown(name)} has the value {shown(value)}. Expected a name "
                "and a positive 32-bit integer."
            )
    if len(cardinalities) != len(entries):
        raise UserError(f"{file} names a feature twice. Every feature needs a name of its own.")
    if len(cardinalities) <= user_features:
        raise UserError(
            f"{file} has {len(cardinalities)} entries, which leaves no item feature after "
            f"{user_features} user features. Add the missing entries or correct user_features."
        )
    return cardinalities


def read_footers(path: Path, split: str) -> tuple[list[RowGroup], pa.Schema]:
    """All row groups of a split in file order, and the schema its files share."""
    directory = path / split
    if not directory.is_dir():
        raise UserError(f"{directory} is missing. Expected a directory of *.parquet files.")
    files = sorted(directory.glob("*.parquet"), key=_natural_key)
    if not files:
        raise UserError(f"{directory} holds no *.parquet file. Expected part.0.parquet and so on.")
    groups: list[RowGroup] = []
    schema = None
    for file in files:
        try:
            with open_parquet(file) as parquet:
                metadata, found = parquet.metadata, parquet.schema_arrow.remove_metadata()
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file} cannot be read as parquet ({error}). Write it again, or remove it."
            ) from error
        if schema is not None and found != schema:
            raise UserError(
                f"{file} has other columns or types than {files[0].name}: {_describe(found)} "
                f"instead of {_describe(schema)}. Write all files of a split alike."
            )
        schema = found
        row = 0
        for index in range(metadata.num_row_groups):
            rows = metadata.row_group(index).num_rows
            if rows:
                groups.append(RowGroup(file, index, row, rows))
            row += rows
    if not groups:
        raise UserError(f"{directory} holds no rows. Expected at least one sample.")
    return groups, schema


def user_features_of(path: Path, columns: list[str], features: int) -> int:
    """How many of the features are of users, by the number of columns: 1 + U + 3 (features - U).

    Raises:
      UserError: if no number would do.
    """
    twice = 1 + 3 * features - len(columns)
    if twice % 2 or not 0 <= twice // 2 < features:
        raise UserError(
            f"{path}: {len(columns)} columns are there for the {features} features of "
            f"{METADATA_FILE}: {shown(columns)}. Expected the label, each user feature once and "
            "each item feature three times (target, positive and negative history)."
        )
    return twice // 2


def longest_list(groups: Sequence[RowGroup], column: str) -> int:
    """Entries of the longest list of a column; only this column is read."""
    longest = 0
    for group in groups:
        with open_parquet(group.file) as file:
            lists = file.read_row_group(group.index, columns=[column]).column(0)
        longest = max(longest, int(pc.max(pc.list_value_length(lists)).as_py() or 0))
    return longest


def assign_columns(
    path: Path, columns: list[str], user: tuple[str, ...], item: tuple[str, ...]
) -> Columns:
    """Gives each column its meaning by its place, and refuses names that contradict it."""
    expected = 1 + len(user) + 3 * len(item)
    if len(columns) != expected:
        index = [name for name in columns if name.startswith("__index_level_")]
        hint = f" Columns {index} are a pandas index: write with index=False." if index else ""
        raise UserError(
            f"{path}: expected {expected} columns (label, {len(user)} user features {list(user)}, "
            f"and target, positive history and negative history of {len(item)} item features "
            f"{list(item)}), found {len(columns)}: {columns}. Correct user_features, "
            f"metadata.json or the files.{hint}"
        )
    parts = iter(columns)

    def take(count: int) -> tuple[str, ...]:
        return tuple(itertools.islice(parts, count))

    assigned = Columns(
        take(1)[0], take(len(user)), take(len(item)), take(len(item)), take(len(item))
    )
    features = [*user, *item]
    scalars = (*assigned.user, *assigned.target)
    for feature, name in zip(features, scalars, strict=True):
        if name != feature and (name in features or feature in scalars):
            raise _order_error(path, columns, name, feature)
    for role in (assigned.history, assigned.negatives):
        for feature, name in zip(item, role, strict=True):
            named = [
                other for other in item if re.search(rf"(^|[\W_]){re.escape(other)}([\W_]|$)", name)
            ]
            if named and feature != max(named, key=len):
                raise _order_error(path, columns, name, f"the lists of {feature}")
    negative = re.compile("neg", re.IGNORECASE)
    if all(map(negative.search, assigned.history)) and not any(
        map(negative.search, assigned.negatives)
    ):
        raise _order_error(path, columns, assigned.history[0], "the positive history")
    return assigned


def check_types(directory: Path, schema: pa.Schema, names: Columns) -> None:
    """Raises unless scalars are integers, lists hold integers, and the label is a number."""
    label = schema.field(names.label).type
    if not (
        pa.types.is_integer(label) or pa.types.is_boolean(label) or pa.types.is_floating(label)
    ):
        raise UserError(
            f"{directory}: the label column {names.label!r} is {label}. Expected 0 and 1."
        )
    for name in (*names.user, *names.target):
        if not pa.types.is_integer(schema.field(name).type):
            raise UserError(
                f"{directory}: column {name!r} is {schema.field(name).type}. Expected an integer: "
                "ids from 1 to the cardinality."
            )
    for name in (*names.history, *names.negatives):
        found = schema.field(name).type
        is_list = (
            pa.types.is_list(found)
            or pa.types.is_large_list(found)
            or pa.types.is_fixed_size_list(found)
        )
        if not (is_list and pa.types.is_integer(found.value_type)):
            raise UserError(
                f"{directory}: column {name!r} is {found}. Expected a list of integers: ids from 1 "
                "to the cardinality, 0 for padding."
            )


def dataset_schema(
    cardinalities: dict[str, int], user: tuple[str, ...], item: tuple[str, ...]
) -> Schema:
    """A schema like that of a dataset of histories; a table has cardinality + 1 rows."""
    columns = []
    for name, cardinality in cardinalities.items():
        domain = {"min": 0, "max": cardinality, "name": name}
        if name in user:
            tags = [Tags.USER, Tags.CATEGORICAL]
            tags += [Tags.USER_ID, Tags.ID] if name == user[0] else []
            columns.append(
                ColumnSchema(name, tags=tags, dtype="int32", properties={"domain": domain})
            )
        else:
            tags = [Tags.ITEM, Tags.SEQUENCE, Tags.LIST, Tags.CATEGORICAL]
            tags += [Tags.ITEM_ID, Tags.ID] if name == item[0] else []
            columns.append(
                ColumnSchema(
                    name,
                    tags=tags,
                    dtype="int32",
                    dims=(None, (0, None)),
                    properties={"domain": domain},
                )
            )
    return Schema(columns)


def _natural_key(file: Path) -> list[tuple[int, int | str]]:
    """Sorts part.2 before part.10."""
    parts = re.split(r"(\d+)", file.name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _order_error(path: Path, columns: list[str], found: str, expected: str) -> UserError:
    return UserError(
        f"{path}: column {found!r} stands where {expected} should. The order of columns gives "
        "their meaning: label, user features, target item features, positive histories, negative "
        f"histories, each in the order of metadata.json. Found {columns}."
    )


def list_offsets(column: pa.Array) -> Array:
    """Where each row's list starts among a list column's values; one more entry than rows."""
    if pa.types.is_fixed_size_list(column.type):
        return np.arange(len(column) + 1, dtype=np.int64) * column.type.list_size
    offsets: Array = column.offsets.to_numpy()
    return offsets - offsets[0]


def pad_left(values: Array, offsets: Array, slots: int) -> Array:
    """The newest `slots` entries of each list as ``[B, slots]`` int32, 0 before shorter ones.

    Args:
      values: all lists, one after the other.
      offsets: ``[B + 1]``, where each starts; from 0.
      slots: width of the result.
    """
    rows = len(offsets) - 1
    length = int(offsets[1]) if rows else 0
    if length == 0 or not np.array_equal(offsets, np.arange(rows + 1) * length):
        # Slot j of a row is entry `end - slots + j` of the values, if the row's list is that long.
        index = offsets[1:, np.newaxis] + np.arange(-slots, 0)
        valid = index >= offsets[:-1, np.newaxis]
        padded = np.zeros((rows, slots), np.int32)
        padded[valid] = values[index[valid]]
        return padded
    dense = values.reshape(rows, length)
    if length >= slots:
        return dense[:, length - slots :].astype(np.int32, copy=False)
    padded = np.zeros((rows, slots), np.int32)
    padded[:, slots - length :] = dense
    return padded


def check_padding(
    histories: Mapping[str, Array],
    negatives: Mapping[str, Array],
    error: Callable[[int, str], UserError],
) -> Array:
    """Raises unless zeros stand on the left only, alike in all features of a history.

    Args:
      histories: ``[B, T]`` by column.
      negatives: ``[B, S]`` by column, of the last S slots: each event needs one.
      error: of a row's number and a text: what to raise.

    Returns:
      which slots are events, ``[B, T]``.
    """
    (first, ids), *others = histories.items()
    mask: Array = ids > 0  # [B, T]
    gap = mask[:, :-1] & ~mask[:, 1:]
    if gap.any():
        raise error(
            int(gap.any(axis=1).argmax()),
            f"column {first!r} has a 0 after an id. Histories are padded with 0 on the left, the "
            "newest event last.",
        )
    for name, values in others:
        differs = (values > 0) != mask
        if differs.any():
            raise error(
                int(differs.any(axis=1).argmax()),
                f"columns {first!r} and {name!r} have their padding (0) in different places. Every "
                "event needs an id in every feature.",
            )
    for name, values in negatives.items():
        missing = mask[:, -values.shape[1] :] & (values == 0)
        if missing.any():
            raise error(
                int(missing.any(axis=1).argmax()),
                f"column {name!r} has a 0 where the positive history has an event. Every event "
                "needs its negative.",
            )
    return mask


def _table(columns: Mapping[str, Array]) -> pa.Table:
    """Rows without nulls, and said so: else Parquet stores and decodes a level for each entry."""
    arrays, fields = [], []
    for name, values in columns.items():
        array = pa.array(values.reshape(-1))
        if values.ndim > 1:
            rows, slots = values.shape
            entries = pa.list_(pa.field("element", array.type, nullable=False))
            offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * slots)
            array = pa.ListArray.from_arrays(offsets, array, type=entries)
        arrays.append(array)
        fields.append(pa.field(name, array.type, nullable=False))
    return pa.table(arrays, schema=pa.schema(fields))
