"""Raw text → events on disk, partitioned by user: the stage that NVTabular does not have.

Two passes, both out of core:

1. *split*: each block of text becomes one parquet file with one row group for each partition;
   a user's partition follows from a hash of the raw id.
2. *gather*: each partition takes its row groups out of all files, sorts them by user and time,
   drops what is there twice, joins what is known of users and items, and becomes one parquet file.

Blocks may disagree about a column's type: ids are integers as long as all of them are. Those
that differ from the common type are split again, as the hash is that of the final id.

Histories are ordered by (hash, raw id) of their user. Partitions are ranges of the hash, so that
order is the same however many partitions there are. Events of equal time stay in the order of the
input: blocks are taken in its order, and every sort is stable.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.formats import history_columns as names
from lookback.workflows.cluster import Runner
from lookback.workflows.histories.event_counts import EventCounts, totals
from lookback.workflows.histories.gather import (
    COMPRESSION,
    KnownFeatures,
    Selection,
    encode_column,
    gather_partition,
    hash_ids,
    store_features,
)
from lookback.workflows.histories.rare_items import frequent_items
from lookback.workflows.text import READ_HERE, BadLineCounter, Block, Parsed, Parser, summed


@dataclass(frozen=True, kw_only=True)
class Events(EventCounts):
    """The intermediate events on disk, and what was counted on the way.

    Attributes:
      files: one parquet file a partition: `history_id`, ids, features, `timestamp`. Partitions
        of which no user is kept are left out: where a `Filter` leaves nothing of a frame, the
        executor goes on with the whole frame (merlin/dag/executors.py, `_run_upstream_transforms`
        passes over empty outputs and `_append_addl_root_columns` fills in the raw input).
      schema: of the files.
      counts: what the parser counted.
      kept_logs: all that was read: files, and their rows.
    """

    files: tuple[Path, ...]
    schema: pa.Schema
    counts: Mapping[str, int]
    kept_logs: tuple[tuple[Path, int], ...] = ()


@dataclass(frozen=True)
class _Split:
    path: Path
    parsed: Parsed  # without its table
    file: Path
    rows: tuple[int, ...]  # of each partition; partitions with none have no row group


def ingest(
    paths: Sequence[Path],
    blocks: Callable[[Path], Iterator[Block]],
    parser: Parser,
    features: Sequence[KnownFeatures],
    columns: Sequence[str],
    directory: Path,
    runner: Runner,
    *,
    partitions: int,
    selection: Selection,
    bad_lines: BadLineCounter,
    keep_log: bool = False,
) -> Events:
    """Reads raw events and writes them to `directory`, partitioned by user.

    Args:
      paths: files of events.
      blocks: cuts one of them.
      parser: for a block; gives `user_id` and `item_id` (string or int64) and `timestamp` (int64
        or float64; what is less than a tick counts for the order and is then cut off).
      features: of users and of items.
      columns: names of the columns to write, in order, without those that only the pipeline needs.
      directory: an existing, empty directory.
      runner: where the tasks run.
      partitions: how many.
      selection: which events to keep.
      bad_lines: counts bad lines; `paths` must be new to it.
      keep_log: whether to write all that is read, too.

    Raises:
      UserError: if there are more bad lines than allowed, or no events.
    """
    split = functools.partial(
        _split_block, parser=parser, directory=directory, partitions=partitions
    )
    found = []
    for result in runner.map(
        split,
        (block for path in paths for block in blocks(path)),
        label="parsing",
        carries_data=any(path.suffix in READ_HERE for path in paths),
    ):
        bad_lines.add(result.path, result.parsed)
        found.append(result)
    if not any(sum(part.rows) for part in found):
        raise _no_events(paths, {**bad_lines.reasons, **summed(s.parsed.counts for s in found)})
    found = _of_one_type(found, runner, partitions)
    sources = _row_groups(found, partitions)
    tasks = [(number, source) for number, source in enumerate(sources) if source]
    typed = selection.typed
    if typed is not None and typed.rules.min_events_per_item:
        items = frequent_items(tasks, selection, typed.rules, directory, runner)
        typed = dataclasses.replace(typed, items=items)
    gather = functools.partial(
        gather_partition,
        features=store_features(features, directory),
        columns=tuple(columns),
        directory=directory,
        selection=dataclasses.replace(selection, typed=typed),
        keep_log=keep_log,
    )
    parts = list(runner.map(gather, tasks, label="sorting", total=len(tasks)))
    for part in found:
        part.file.unlink()
    return Events(
        files=tuple(part.file for part in parts if part.users_kept),
        schema=open_parquet(parts[0].file).schema_arrow,
        counts=summed(part.parsed.counts for part in found),
        kept_logs=tuple((part.kept_log, part.events) for part in parts if part.kept_log),
        **totals(parts),
    )


def _no_events(paths: Sequence[Path], left_out: Mapping[str, int]) -> UserError:
    listed = ", ".join(str(path) for path in paths)
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in left_out.items() if count)
    if reasons:
        return UserError(f"No events are left of {listed}. Left out were {reasons}.")
    return UserError(f"No events in {listed}: the input is empty. Check --input.")


def _split_block(block: Block, parser: Parser, directory: Path, partitions: int) -> _Split:
    """Task of the first pass."""
    parsed = parser(block)
    name = f"split-{abs(hash_name(block.path)):016x}-{block.start:016d}.parquet"
    file = directory / name
    rows = _write_split(parsed.table, file, partitions)
    parsed.table = parsed.table.slice(0, 0)
    return _Split(block.path, parsed, file, rows)


def _of_one_type(splits: Sequence[_Split], runner: Runner, partitions: int) -> list[_Split]:
    """Splits again what has other types than the common ones."""
    common = common_schema([split.parsed.table.schema for split in splits if any(split.rows)])
    differ = [split for split in splits if any(split.rows) and split.parsed.table.schema != common]
    if not differ:
        return list(splits)
    again = functools.partial(_split_again, schema=common, partitions=partitions)
    results = runner.map(again, differ, label="one type for all", total=len(differ))
    replaced = {split.file: split for split in results}
    return [replaced.get(split.file, split) for split in splits]


def _split_again(split: _Split, schema: pa.Schema, partitions: int) -> _Split:
    """Task between the passes."""
    table = open_parquet(split.file).read().select(schema.names)
    table = table.cast(schema, safe=False)  # int64 to float64 rounds
    return dataclasses.replace(split, rows=_write_split(table, split.file, partitions))


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The types that hold all values of tables with the same columns."""
    return pa.schema(
        (name, common_type([schema.field(name).type for schema in schemas]))
        for name in schemas[0].names
    )


def common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    """The type that holds all values: text over int64, float64 over int64, any over null."""
    for wider in (pa.string(), pa.float64()):
        if wider in types:
            return wider
    return next((kind for kind in types if not pa.types.is_null(kind)), types[0])


def _write_split(table: pa.Table, file: Path, partitions: int) -> tuple[int, ...]:
    """Writes a row group for each partition that has rows; gives the number of each one's rows."""
    users = encode_column(table[names.USER_ID])
    # Multiply and shift turns a hash into a range of equal width for each partition.
    high = hash_ids(users.dictionary) >> np.uint64(32)
    partition = (high * np.uint64(partitions) >> np.uint64(32)).astype(np.uint16)
    partition = partition[users.indices.to_numpy()]
    order = np.argsort(partition, kind="stable")
    rows = np.bincount(partition, minlength=partitions)
    table = table.take(pa.array(order))
    with pq.ParquetWriter(file, table.schema, compression=COMPRESSION) as writer:
        start = 0
        for count in rows.tolist():
            if count:
                writer.write_table(table.slice(start, count), row_group_size=count)
            start += count
    return tuple(rows.tolist())


def hash_name(path: Path) -> int:
    """A number that tells apart the files of a run."""
    return int(hash_ids(pa.array([str(path)]))[0])


def _row_groups(splits: Sequence[_Split], partitions: int) -> list[list[tuple[Path, int]]]:
    """For each partition the (file, row group) pairs that hold it."""
    sources: list[list[tuple[Path, int]]] = [[] for _ in range(partitions)]
    for split in splits:
        group = 0
        for number, count in enumerate(split.rows):
            if count:
                sources[number].append((split.file, group))
                group += 1
    return sources
