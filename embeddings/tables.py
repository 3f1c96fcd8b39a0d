"""Table specs from a schema. Needs merlin.schema when called, TensorFlow never."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lookback.embeddings.types import TableSpec

if TYPE_CHECKING:
    from merlin.schema import ColumnSchema, Schema

LIST_LENGTH = 100.0
"""Ids in a row of a list column whose schema sets no bound: the default of --max_seq_length, long
and short history of NVIDIA's SIM together."""


def tables_from_schema(schema: Schema, dim: int) -> tuple[list[TableSpec], dict[str, str]]:
    """Derives tables from a schema: one for each domain of its categorical columns.

    Args:
      schema: categorical columns carry an int domain; columns with one domain name share a table.
      dim: length of a row.

    Returns:
      The table specs, ordered by first use, and the table name of every column.

    Raises:
      ValueError: if a column has no domain, or two columns disagree about a domain's size.
    """
    from merlin.schema import Tags

    rows: dict[str, int] = {}
    feature_tables: dict[str, str] = {}
    for column in schema.select_by_tag(Tags.CATEGORICAL):
        domain = column.int_domain
        if domain is None or domain.max is None:
            raise ValueError(
                f"Categorical column {column.name!r} has no int domain, so its table's size is "
                "unknown. Write the dataset with `python -m workflows`, or add the domain."
            )
        table = domain.name or column.name
        size = int(domain.max) + 1
        if rows.setdefault(table, size) != size:
            raise ValueError(
                f"Column {column.name!r} gives domain {table!r} {size} rows, another gave it "
                f"{rows[table]}; columns that share a table must agree."
            )
        feature_tables[column.name] = table
    return [TableSpec(name, size, dim) for name, size in rows.items()], feature_tables


def tables_with_hotness(schema: Schema, dim: int) -> tuple[list[TableSpec], list[str]]:
    """The tables of a schema, as a planner wants to know them.

    Args:
      schema: as for `tables_from_schema`.
      dim: length of a row.

    Returns:
      The tables, with the hotness of each column that uses them: 1 for a scalar, the bound of a
      list's length, or LIST_LENGTH where the schema sets none; of bags as many times what one
      holds at most. And the names of the tables for which a length was assumed.

    Raises:
      ValueError: as `tables_from_schema`.
    """
    from lookback.formats.features import bag_size

    tables, by_column = tables_from_schema(schema, dim)
    hotness: dict[str, list[float]] = {table.name: [] for table in tables}
    assumed = []
    for column, table in by_column.items():
        length = _length(schema[column])
        values = LIST_LENGTH if length is None else length
        hotness[table].append(values * bag_size(schema[column]))
        if length is None and table not in assumed:
            assumed.append(table)
    specs = [dataclasses.replace(table, hotness=tuple(hotness[table.name])) for table in tables]
    return specs, assumed


def _length(column: ColumnSchema) -> float | None:
    """Ids of a column in a row: of a list its bound, or None if it has none."""
    if not column.is_list:
        return 1.0
    bound = column.value_count.max if column.value_count else None
    return float(bound) if bound else None
