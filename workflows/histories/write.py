"""Encoded histories → a dataset on disk.

Partitions come out of the workflow in the order of their users' hash; the dataset is ordered by
encoded user id. So each partition is written with one row group for each range of user ids, and
then each range is put together from all partitions. Only one range is in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet
from lookback.formats import schema as schema_file
from lookback.formats.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY
from lookback.workflows import columns as names
from lookback.workflows.columns import Column

EVENTS_PER_FILE = 2_000_000
ROW_GROUP_USERS = 8192
"""Rows of a row group: what a reader that streams a large set holds at a time."""

QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


@dataclass(frozen=True)
class Encoded:
    """One partition of encoded histories: its file, and the rows of each row group.

    Row group 0 holds users out of the vocabulary, in the order of the events; group g the users
    of range g - 1, by id. An empty group is not in the file.
    """

    file: Path
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Totals:
    """What one pass over a dataset's histories adds up to."""

    users: int
    events: int
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    item_counts: np.ndarray[Any, np.dtype[np.int64]]
    item_features: dict[str, np.ndarray[Any, np.dtype[np.int32]]]
    unknown: dict[str, int]
    digests: dict[str, str]


def user_ranges(event_counts: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[int, ...]:
    """First user ids of the ranges that become a file each, from the users' numbers of events."""
    total = np.cumsum(event_counts)
    cuts = np.arange(EVENTS_PER_FILE, int(total[-1]) if len(total) else 0, EVENTS_PER_FILE)
    firsts = np.searchsorted(total, cuts) + FIRST_KNOWN + 1
    return (FIRST_KNOWN, *sorted(set(firsts.tolist())))


def write_encoded(
    frame: Any, file: Path, columns: Sequence[Column], ranges: Sequence[int]
) -> Encoded:
    """Task: writes a partition that the workflow gave.

    Args:
      frame: one row a history (pandas; a cuDF frame is brought to the host).
      file: to write.
      columns: of the dataset.
      ranges: see `user_ranges`.
    """
    if hasattr(frame, "to_pandas"):
        frame = frame.to_pandas()
    table = pa.table(
        {column.name: _to_arrow(frame[column.name].to_numpy(), column) for column in columns}
    )
    users = table[names.USER_ID].to_numpy()
    group = np.searchsorted(np.asarray(ranges), users, side="right")
    order = np.lexsort((np.where(group > 0, users, 0), group))  # stable where out of vocabulary
    rows = np.bincount(group, minlength=len(ranges) + 1)
    table = _take_rows(table, order)
    start = 0
    with pq.ParquetWriter(file, table.schema, compression="lz4") as writer:
        for count in rows.tolist():
            if count:
                writer.write_table(table.slice(start, count), row_group_size=count)
            start += count
    return Encoded(file, tuple(rows.tolist()))


def write_part(task: tuple[list[tuple[Path, int]], Path]) -> Path:
    """Task: puts one file of the dataset together, by user id."""
    sources, file = task
    table = pa.concat_tables(
        [open_parquet(source).read_row_group(group) for source, group in sources]
    ).combine_chunks()
    if len(sources) > 1:  # one source is in order
        order = np.argsort(table[names.USER_ID].to_numpy(), kind="stable")
        table = _take_rows(table, order)
    pq.write_table(table, file, compression="zstd", row_group_size=ROW_GROUP_USERS)
    return file


def part_tasks(
    partitions: Sequence[Encoded], directory: Path
) -> list[tuple[list[tuple[Path, int]], Path]]:
    """The tasks for `write_part`, in the order of the dataset.

    Users out of the vocabulary come first, as their id is the smallest. They need no sorting, and
    each partition's make a file: new data may hold nobody else.
    """
    groups: dict[int, list[tuple[Path, int]]] = {}
    unknown = []
    for partition in partitions:
        place = 0
        for number, rows in enumerate(partition.rows):
            if not rows:
                continue
            if number:
                groups.setdefault(number, []).append((partition.file, place))
            else:
                unknown.append([(partition.file, place)])
            place += 1
    sources = [*unknown, *(groups[number] for number in sorted(groups))]
    return [
        (source, directory / f"part-{number:05d}.parquet") for number, source in enumerate(sources)
    ]


def read_totals(
    files: Sequence[Path], columns: Sequence[Column], cardinalities: dict[str, int]
) -> Totals:
    """Adds up the written histories, in one pass in their order.

    The digests are of the values alone, so they do not depend on how rows are spread over files.
    """
    items = cardinalities[names.ITEM_ID]
    item_features = [
        column.name
        for column in columns
        if column.is_list and column.is_categorical and column.name != names.ITEM_ID
    ]
    counts = np.zeros(items, dtype=np.int64)
    features = {name: np.zeros(items, dtype=np.int32) for name in item_features}
    digests = {column.name: hashlib.sha256() for column in columns}
    length_digest = hashlib.sha256()
    unknown = {column.name: 0 for column in columns if column.is_categorical}
    lengths = [np.zeros(0, dtype=np.int64)]
    for file in files:
        parquet = open_parquet(file)
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group)
            values = {}
            for column in columns:
                array = table[column.name].combine_chunks()
                if isinstance(array, pa.ChunkedArray):
                    array = array.chunk(0)
                if column.name == names.ITEM_ID:
                    length = pc.list_value_length(array).to_numpy().astype(np.int64)
                flat = (array.flatten() if column.is_list else array).to_numpy()
                values[column.name] = flat
                digests[column.name].update(
                    np.ascontiguousarray(flat)
                    .astype(f"<{column.dtype[0]}{'4' if column.dtype == 'int32' else '8'}")
                    .tobytes()
                )
                if column.is_categorical:
                    unknown[column.name] += int((flat == OUT_OF_VOCABULARY).sum())
            length_digest.update(length.astype("<i8").tobytes())
            lengths.append(length)
            item_ids = values[names.ITEM_ID]
            counts += np.bincount(item_ids, minlength=items)
            for name in item_features:
                features[name][item_ids] = values[name]
    # Many items share the index; which of their features it got would depend on the order.
    for name in item_features:
        features[name][OUT_OF_VOCABULARY] = OUT_OF_VOCABULARY
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


def write_items(totals: Totals, file: Path) -> str:
    """Writes the catalogue of the items that occur; gives its digest."""
    seen = np.flatnonzero(totals.item_counts)
    values = {
        names.ITEM_ID: seen.astype("<i4"),
        **{name: array[seen].astype("<i4") for name, array in totals.item_features.items()},
        "count": totals.item_counts[seen].astype("<i8"),
    }
    pq.write_table(pa.table(values), file, compression="zstd")
    digest = hashlib.sha256()
    for name, array in values.items():
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def content_hash(
    columns: Sequence[Column], cardinalities: dict[str, int], totals: Totals, items_digest: str
) -> str:
    """``sha256:<hex>`` of schema, histories and catalogue."""
    content = {
        "columns": [
            [column.name, column.dtype, sorted(column.tags), column.is_list] for column in columns
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


def write_schema(schema: Any, columns: Sequence[Column], directory: Path) -> None:
    """Writes ``schema.pbtxt`` from a fitted workflow's output schema."""
    from merlin.schema import Schema

    fixed = []
    for column in columns:
        found = schema[column.name]
        found = type(found)(
            column.name,
            dtype=np.dtype(column.dtype),
            tags=list(column.tags),
            properties=found.properties,
            is_list=column.is_list,
            is_ragged=column.is_list,
        )
        fixed.append(found)
    schema_file.write_schema(Schema(fixed), directory)


def _to_arrow(values: np.ndarray[Any, Any], column: Column) -> pa.Array:
    dtype = pa.int32() if column.dtype == "int32" else pa.int64()
    if not column.is_list:
        return pa.array(values.astype(column.dtype), dtype)
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in values], out=offsets[1:])
    flat = np.concatenate(values) if len(values) else np.zeros(0)
    return pa.ListArray.from_arrays(offsets, pa.array(flat.astype(column.dtype), dtype))


def _take_rows(table: pa.Table, order: np.ndarray[Any, Any]) -> pa.Table:
    if len(order) and (np.diff(order) == 1).all():
        return table
    return table.take(pa.array(order))
