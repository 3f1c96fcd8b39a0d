"""Histories on disk, as `python -m workflows` writes them.

    DIR/
      dataset.json      counts, split and more: `formats.dataset_info`
      schema.pbtxt      columns by tag: `formats.schema`, `formats.history_columns`
      histories/part-00000.parquet ...   one row a user, by encoded id; lists oldest event first
      items.parquet     the catalogue: each item that occurs with its features and its `count`
      bags/             of columns of several categories: `formats.bags`
      impressions/      of explicit labels: `formats.impressions`

Importing this needs nothing of Merlin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet, read_parquet
from lookback.core.errors import UserError
from lookback.formats import history_columns as names
from lookback.formats.dataset_info import AGAIN
from lookback.formats.history_columns import Column
from lookback.formats.part_files import part_name
from lookback.formats.schema import write_schema
from lookback.formats.vocabulary import OUT_OF_VOCABULARY

HISTORIES_DIRECTORY = "histories"
CATALOGUE_FILE = "items.parquet"
COUNT = "count"
"""Column of the catalogue: in how many events an item occurs."""

ROW_GROUP_USERS = 8192
"""Rows of a row group at most: what a reader that streams a large set holds at a time."""
ROW_GROUP_EVENTS = 1 << 20
"""Events of a row group at most, unless it is one user's: long histories do not make large ones,
and memory for a few of the largest is memory for many."""

QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


def history_files(directory: Path) -> list[Path]:
    """The parts of a dataset's histories, in order.

    Raises:
      UserError: if there are none.
    """
    files = sorted((directory / HISTORIES_DIRECTORY).glob("*.parquet"))
    if not files:
        raise UserError(f"{directory / HISTORIES_DIRECTORY} holds no parquet file. {AGAIN}")
    return files


def write_users(
    table: pa.Table,
    file: Path,
    row_group_users: int | None = None,
    row_group_events: int | None = None,
) -> None:
    """Writes one part: a row a user, by encoded id.

    Args:
      table: of the users.
      file: to write.
      row_group_users: rows of a row group; None: `ROW_GROUP_USERS`.
      row_group_events: likewise, `ROW_GROUP_EVENTS`.
    """
    users, events = row_group_users or ROW_GROUP_USERS, row_group_events or ROW_GROUP_EVENTS
    lists = [name for name in table.column_names if pa.types.is_list(table.schema.field(name).type)]
    behind = np.cumsum(lengths_of(table[lists[0]])) if lists else np.zeros(len(table), np.int64)
    begin, before = 0, 0
    with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        while begin < len(table):
            end = max(int(np.searchsorted(behind, before + events, "right")), begin + 1)
            end = min(end, begin + users)
            writer.write_table(table.slice(begin, end - begin))
            begin, before = end, int(behind[end - 1])


def write_histories(
    directory: Path,
    users: Mapping[str, npt.NDArray[Any]],
    offsets: npt.NDArray[Any],
    events: Mapping[str, npt.NDArray[Any]],
    files: int = 1,
    row_group_users: int | None = None,
) -> None:
    """Writes histories that are in memory.

    Args:
      directory: of the dataset.
      users: ``[U]`` by column of users.
      offsets: ``[U + 1]``; user u's events are ``offsets[u]`` up to ``offsets[u + 1]``.
      events: ``[N]`` by column of events.
      files: number of parts.
      row_group_users: as of `write_users`.
    """
    offsets = offsets.astype(np.int32)
    table = pa.table(
        {name: pa.array(values) for name, values in users.items()}
        | {name: pa.ListArray.from_arrays(offsets, values) for name, values in events.items()}
    )
    (directory / HISTORIES_DIRECTORY).mkdir(parents=True)
    step = -(-len(table) // files)
    for part in range(files):
        rows = table.slice(part * step, step)
        write_users(rows, directory / HISTORIES_DIRECTORY / part_name(part), row_group_users)


def lengths_of(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Events of each user ``[U]``, of a column of lists."""
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def values_of(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """The values of a column: ``[N]`` of one of lists, ``[U]`` of another.

    Raises:
      UserError: if one is null.
    """
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        chunks = [chunk.flatten() for chunk in column.chunks]
        column = pa.chunked_array(chunks, kind.value_type)
    if column.null_count:
        raise UserError(f"A column of the dataset holds nulls. {AGAIN}")
    values: npt.NDArray[Any] = column.to_numpy()
    return values


def write_catalogue(directory: Path, columns: Mapping[str, npt.NDArray[Any]]) -> str:
    """Writes the catalogue of the items that occur; gives its digest.

    Args:
      directory: of the dataset.
      columns: ``[I]`` by name: the item's id, its other features, `COUNT`.
    """
    pq.write_table(pa.table(dict(columns)), directory / CATALOGUE_FILE, compression="zstd")
    digest = hashlib.sha256()
    for name, values in columns.items():
        digest.update(name.encode())
        digest.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def read_catalogue(directory: Path, features: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """What the catalogue of a dataset or bundle knows of each item: ``[I]`` by feature.

    Int32 of categories (ids, or numbers of bags), float32 of numbers.

    Args:
      directory: with `CATALOGUE_FILE`.
      features: columns to read.
    """
    table = read_parquet(directory / CATALOGUE_FILE, features)
    columns = {name: values_of(table[name]) for name in features}
    return {
        name: values.astype(np.float32 if values.dtype.kind == "f" else np.int32, copy=False)
        for name, values in columns.items()
    }


@dataclass(frozen=True)
class Totals:
    """What one pass over a dataset's histories adds up to."""

    users: int
    events: int
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    item_counts: np.ndarray[Any, np.dtype[np.int64]]
    item_features: dict[str, npt.NDArray[Any]]
    unknown: dict[str, int]
    digests: dict[str, str]

    @property
    def catalogue(self) -> dict[str, npt.NDArray[Any]]:
        """What `write_catalogue` writes: the items that occur."""
        seen = np.flatnonzero(self.item_counts)
        return {
            names.ITEM_ID: seen.astype(np.int32),
            **{name: values[seen] for name, values in self.item_features.items()},
            COUNT: self.item_counts[seen],
        }


def read_totals(
    files: Sequence[Path], columns: Sequence[Column], cardinalities: dict[str, int]
) -> Totals:
    """Adds up the written histories, in one pass in their order.

    The digests are of the values alone, so they do not depend on how rows are spread over files.
    """
    items = cardinalities[names.ITEM_ID]
    counts = np.zeros(items, dtype=np.int64)
    features = {
        column.name: np.zeros(items, dtype=column.dtype)
        for column in columns
        if column.role == "item" and column.name != names.ITEM_ID
    }
    digests = {column.name: hashlib.sha256() for column in columns}
    length_digest = hashlib.sha256()
    unknown = {column.name: 0 for column in columns if column.is_categorical}
    lengths = [np.zeros(0, dtype=np.int64)]
    for file in files:
        parquet = open_parquet(file)
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            length = lengths_of(table[names.ITEM_ID])
            values = {column.name: values_of(table[column.name]) for column in columns}
            for column in columns:
                flat = values[column.name]
                little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
                digests[column.name].update(little.data)
                if column.is_categorical:
                    unknown[column.name] += int((flat == OUT_OF_VOCABULARY).sum())
            length_digest.update(length.astype("<i8", copy=False).data)
            lengths.append(length)
            item_ids = values[names.ITEM_ID]
            counts += np.bincount(item_ids, minlength=items)
            for name, of_items in features.items():
                of_items[item_ids] = values[name]
    # Many items share the index; which of their features it got would depend on the order.
    for of_items in features.values():
        of_items[OUT_OF_VOCABULARY] = OUT_OF_VOCABULARY if of_items.dtype.kind == "i" else 0
    all_lengths = np.concatenate(lengths)
    return Totals(
        users=len(all_lengths),
        events=int(all_lengths.sum()),
        lengths=all_lengths,
        item_counts=counts,
        item_features=features,
        unknown=unknown,
        digests={
            "lengths": length_digest.hexdigest(),
            **{name: digest.hexdigest() for name, digest in digests.items()},
        },
    )


def content_hash(
    columns: Sequence[Column],
    cardinalities: dict[str, int],
    totals: Totals,
    items_digest: str,
    others: Mapping[str, str] | None = None,
) -> str:
    """``sha256:<hex>`` of schema, histories and catalogue.

    Args:
      columns: of the dataset.
      cardinalities: rows of each table.
      totals: of the histories.
      items_digest: of the catalogue.
      others: digests of bags and impressions, by name, where there are any.
    """
    content = {
        **(others or {}),
        "columns": [
            [
                *(column.name, column.dtype, sorted(column.tags), column.is_list),
                *([] if column.bag is None else [column.bag]),
            ]
            for column in columns
        ],
        "cardinalities": cardinalities,
        "histories": totals.digests,
        "items": items_digest,
    }
    text = json.dumps(content, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def length_summary(lengths: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    """Smallest, quantiles, largest and mean history length. `lengths` must not be empty."""
    quantiles = {
        name: int(np.quantile(lengths, share, method="lower")) for name, share in QUANTILES
    }
    return {
        "min": int(lengths.min()),
        **quantiles,
        "max": int(lengths.max()),
        "mean": round(float(lengths.mean()), 4),
    }


def write_workflow_schema(
    schema: Any,
    columns: Sequence[Column],
    directory: Path,
    rows: Mapping[str, int] | None = None,
) -> None:
    """Writes ``schema.pbtxt``.

    Args:
      schema: output of a fitted workflow.
      columns: of the dataset.
      directory: likewise.
      rows: of the tables of categorical columns that the workflow does not have.
    """
    from merlin.schema import Schema

    from lookback.formats.features import dataset_column

    def properties(column: Column) -> Mapping[str, Any]:
        if column.name in schema.column_names:
            found: Mapping[str, Any] = schema[column.name].properties
            return found
        if not column.is_categorical:
            return {}
        return {"domain": {"min": 0, "max": (rows or {})[column.name] - 1, "name": column.name}}

    write_schema(
        Schema([dataset_column(column, properties(column)) for column in columns]), directory
    )
