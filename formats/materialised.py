"""The files of materialised samples: what metadata.json, footers and column order say.

See `dataloading.histories.materialised` for the format and the reader.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import pyarrow as pa
from merlin.schema import ColumnSchema, Schema, Tags

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError, shown
from lookback.core.json_files import read_json
from lookback.core.paths import refuse_address
from lookback.formats.description import METADATA_FILE

SPLITS = ("train", "test")


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
