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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet, read_parquet
from lookback.core.errors import UserError
from lookback.formats import history_columns as names
from lookback.workflows.cluster import Runner
from lookback.workflows.text import READ_HERE, BadLineCounter, Block, Parsed, Parser

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ties = Literal["file", "item"]

COMPRESSION = "lz4"  # of files that live for minutes: speed before size


@dataclass(frozen=True)
class KnownFeatures:
    """What is known of users or of items beside their ids.

    Attributes:
      key: the id column.
      defaults: for each feature the value where nothing is known.
      table: the id column and the features, one row an id; None if nothing is known of any.
    """

    key: str
    defaults: Mapping[str, str]
    table: pa.Table | None = None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which events are kept, in which order.

    Attributes:
      min_interactions: fewest events of a user who is kept; only counted with, none is left out.
      fewest_items: likewise; see `workflows.histories.ops.build_workflow`.
      exact_repeats: whether to keep events of which user, item and time are those of another one.
      ties: order of a user's events of equal time: that of the input, or of the raw item ids.
      held_out: events at the end of a history that are not for training.
      ticks: units of the parsed times in one of the time that is written.
    """

    min_interactions: int
    fewest_items: int | None = None
    exact_repeats: bool = False
    ties: Ties = "file"
    held_out: int = 1
    ticks: int = 1


@dataclass(frozen=True)
class Events:
    """The intermediate events on disk, and what was counted on the way.

    Attributes:
      files: one parquet file a partition: `history_id`, ids, features, `timestamp`. Partitions
        of which no user is kept are left out: where a `Filter` leaves nothing of a frame, the
        executor goes on with the whole frame (merlin/dag/executors.py, `_run_upstream_transforms`
        passes over empty outputs and `_append_addl_root_columns` fills in the raw input).
      schema: of the files.
      events: number of events.
      users: number of users.
      users_with_one_event: how many of them have a single event.
      users_kept: how many are kept.
      events_kept: events of the kept users, without the repeated ones.
      exact_repeats: events that were dropped because another is the same.
      events_repeated: events of the kept users with an item that they had before; 0 where these
        are kept, too.
      held_out_ties: held-out events of the kept users that have the time of the event before
        them: something else than time says which of the two is held out.
      users_short: users who have `min_interactions` events or more, but of too few items.
      longest: length of the longest history.
      without_features: events whose id the feature table does not have, by feature.
      counts: what the parser counted.
    """

    files: tuple[Path, ...]
    schema: pa.Schema
    events: int
    users: int
    users_with_one_event: int
    users_kept: int
    events_kept: int
    exact_repeats: int
    events_repeated: int
    held_out_ties: int
    users_short: int
    longest: int
    without_features: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Split:
    path: Path
    parsed: Parsed  # without its table
    file: Path
    rows: tuple[int, ...]  # of each partition; partitions with none have no row group


@dataclass(frozen=True)
class _Gathered:
    file: Path
    events: int
    users: int
    users_with_one_event: int
    users_kept: int
    events_kept: int
    exact_repeats: int
    events_repeated: int
    held_out_ties: int
    users_short: int
    longest: int
    without_features: dict[str, int]


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
) -> Events:
    """Reads raw events and writes them to `directory`, partitioned by user.

    Args:
      paths: files of events.
      blocks: cuts one of them.
      parser: for a block; gives `user_id` and `item_id` (string or int64) and `timestamp` (int64
        or float64; what is less than a tick counts for the order and is then cut off).
      features: of users and of items.
      columns: names of the columns to write, in order, without `history_id`.
      directory: an existing, empty directory.
      runner: where the tasks run.
      partitions: how many.
      selection: which events to keep.
      bad_lines: counts bad lines; `paths` must be new to it.

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
        raise _no_events(paths, {**bad_lines.reasons, **_summed(s.parsed.counts for s in found)})
    found = _of_one_type(found, runner, partitions)
    sources = _row_groups(found, partitions)
    gather = functools.partial(
        _gather_partition,
        features=_store(features, directory),
        columns=tuple(columns),
        directory=directory,
        selection=selection,
    )
    tasks = [(number, source) for number, source in enumerate(sources) if source]
    parts = list(runner.map(gather, tasks, label="sorting", total=len(tasks)))
    for part in found:
        part.file.unlink()
    return Events(
        files=tuple(part.file for part in parts if part.users_kept),
        schema=open_parquet(parts[0].file).schema_arrow,
        events=sum(part.events for part in parts),
        users=sum(part.users for part in parts),
        users_with_one_event=sum(part.users_with_one_event for part in parts),
        users_kept=sum(part.users_kept for part in parts),
        events_kept=sum(part.events_kept for part in parts),
        exact_repeats=sum(part.exact_repeats for part in parts),
        held_out_ties=sum(part.held_out_ties for part in parts),
        events_repeated=sum(part.events_repeated for part in parts),
        users_short=sum(part.users_short for part in parts),
        longest=max(part.longest for part in parts),
        without_features=_summed(part.without_features for part in parts),
        counts=_summed(part.parsed.counts for part in found),
    )


def hash_ids(ids: pa.Array) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A 64-bit hash of each id, the same on every run and machine.

    Args:
      ids: strings or integers, without nulls. [N]

    Returns:
      [N]
    """
    from pandas.util import hash_array

    values = ids.to_numpy(zero_copy_only=False)
    return hash_array(values, categorize=False)


def first_of_each(table: pa.Table, key: str) -> tuple[pa.Table, int]:
    """The first row of each value of `key`, and how many further rows there were."""
    codes = encode_column(table[key]).indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]
    return table.take(pa.array(np.sort(first))), len(table) - len(first)


def first_events(
    history: Ints, time: np.ndarray[Any, Any], item: Ints
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which events are the first in time of their history with their item.

    Args:
      history: number of each event's history. [N]
      time: [N]
      item: a number for each item, from 0 on. [N]

    Returns:
      [N]
    """
    from pandas import Series

    key = history * (int(item.max(initial=0)) + 1) + item
    same = history[1:] == history[:-1]
    in_order = (history[1:] >= history[:-1]) & ~(same & (time[1:] < time[:-1]))
    if in_order.all():  # as ingest leaves them
        return ~Series(key).duplicated().to_numpy()
    order = np.lexsort((time, history))
    first = np.empty(len(key), dtype=np.bool_)
    first[order] = ~Series(key[order]).duplicated().to_numpy()
    return first


def exact_repeats(history: Ints, time: np.ndarray[Any, Any], items: pa.ChunkedArray) -> Bools:
    """Which events have history, time and item of an earlier one.

    Args:
      history: number of each event's history, in order. [N]
      time: in order within a history. [N]
      items: [N]

    Returns:
      [N]
    """
    from pandas import Series

    repeated = np.zeros(len(history), dtype=np.bool_)
    same = _as_before(history, time)
    if same.any():  # in most logs few events are tied, and only they are compared
        tied = np.flatnonzero(same | np.r_[same[1:], False])
        item = encode_column(items.take(pa.array(tied))).indices.to_numpy().astype(np.int64)
        moment = np.cumsum(~same)[tied]
        repeated[tied] = Series(moment * (int(item.max()) + 1) + item).duplicated().to_numpy()
    return repeated


def held_out_ties(history: Ints, time: np.ndarray[Any, Any], held_out: int) -> int:
    """How many of the last events of each history have the time of the event before them.

    Args:
      history: number of each event's history, in order. [N]
      time: in order within a history. [N]
      held_out: number of last events.
    """
    if not len(history):
        return 0
    tied = _as_before(history, time)
    from_last = np.flatnonzero(np.r_[history[1:] != history[:-1], True])
    first = np.r_[0, from_last[:-1] + 1]
    places = from_last[:, np.newaxis] - np.arange(held_out)
    return int((tied[places] & (places > first[:, np.newaxis])).sum())


def _as_before(history: Ints, time: np.ndarray[Any, Any]) -> Bools:
    """Which events have history and time of the one before them, [N]."""
    same = (history[1:] == history[:-1]) & (time[1:] == time[:-1])
    return np.r_[np.zeros(min(len(history), 1), np.bool_), same]


def _no_events(paths: Sequence[Path], left_out: Mapping[str, int]) -> UserError:
    listed = ", ".join(str(path) for path in paths)
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in left_out.items() if count)
    if reasons:
        return UserError(f"No events are left of {listed}. Left out were {reasons}.")
    return UserError(f"No events in {listed}: the input is empty. Check --input.")


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in counts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return total


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
    schemas = [split.parsed.table.schema for split in splits if any(split.rows)]
    common = pa.schema(
        (name, _common_type([schema.field(name).type for schema in schemas]))
        for name in schemas[0].names
    )
    differ = [split for split in splits if any(split.rows) and split.parsed.table.schema != common]
    if not differ:
        return list(splits)
    again = functools.partial(_split_again, schema=common, partitions=partitions)
    results = runner.map(again, differ, label="one type for all", total=len(differ))
    replaced = {split.file: split for split in results}
    return [replaced.get(split.file, split) for split in splits]


def _split_again(split: _Split, schema: pa.Schema, partitions: int) -> _Split:
    """Task between the passes."""
    table = open_parquet(split.file).read().cast(schema, safe=False)  # int64 to float64 rounds
    return dataclasses.replace(split, rows=_write_split(table, split.file, partitions))


def _common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    """The type that holds all values: text over int64, float64 over int64."""
    for wider in (pa.string(), pa.float64()):
        if wider in types:
            return wider
    return types[0]


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


def _gather_partition(
    task: tuple[int, list[tuple[Path, int]]],
    features: Sequence[tuple[str, Mapping[str, str], Path | None]],
    columns: Sequence[str],
    directory: Path,
    selection: Selection,
) -> _Gathered:
    """Task of the second pass."""
    number, source = task
    table = pa.concat_tables([open_parquet(file).read_row_group(group) for file, group in source])
    read = len(table)
    table = _sort_events(table, selection)
    history, time = table[names.HISTORY_ID].to_numpy(), table[names.TIMESTAMP].to_numpy()
    lengths = left = np.bincount(history)
    kept = enough = lengths >= selection.min_interactions
    first = np.ones(len(table), np.bool_)
    if selection.fewest_items is not None:
        items = encode_column(table[names.ITEM_ID]).indices.to_numpy()
        first = first_events(history, time, items)
        left = np.bincount(history[first], minlength=len(lengths))
        kept = enough & (left >= selection.fewest_items)
    stay = kept[history] & first
    ties = held_out_ties(history[stay], time[stay], selection.held_out)
    table = _in_ticks(table, time, selection.ticks)
    without = {}
    for key, defaults, path in features:
        table, missing = _join(table, key, defaults, path)
        if path is not None:
            without.update(dict.fromkeys(defaults, missing))
    table = table.select([names.HISTORY_ID, *columns])
    file = directory / f"events-{number:05d}.parquet"
    pq.write_table(table, file, compression=COMPRESSION)
    return _Gathered(
        file=file,
        events=read,
        users=len(lengths),
        users_with_one_event=int((lengths == 1).sum()),
        users_kept=int(kept.sum()),
        events_kept=int(left[kept].sum()),
        exact_repeats=read - len(table),
        events_repeated=int((lengths - left)[kept].sum()),
        held_out_ties=ties,
        users_short=int((enough & ~kept).sum()),
        longest=int(lengths.max()),
        without_features=without,
    )


def _sort_events(table: pa.Table, selection: Selection) -> pa.Table:
    """Sorts by user and time; numbers the histories; leaves exact repeats out."""
    users = encode_column(table[names.USER_ID])
    user_rank = np.lexsort((_ranks(users.dictionary), hash_ids(users.dictionary)))
    history = _inverse(user_rank)[users.indices.to_numpy()]
    keys = [table[names.TIMESTAMP].to_numpy(), history]  # the last is the first to sort by
    if selection.ties == "item":
        items = encode_column(table[names.ITEM_ID])
        keys.insert(0, _ranks(items.dictionary)[items.indices.to_numpy()])
    order = np.lexsort(keys)  # stable
    table = table.append_column(names.HISTORY_ID, pa.array(history, pa.int64()))
    table = table.take(pa.array(order))
    if selection.exact_repeats:
        return table
    time = table[names.TIMESTAMP].to_numpy()
    repeated = exact_repeats(history[order], time, table[names.ITEM_ID])
    return table.filter(pa.array(~repeated)) if repeated.any() else table


def _in_ticks(table: pa.Table, time: np.ndarray[Any, Any], ticks: int) -> pa.Table:
    """Whole ticks in place of the times."""
    whole = np.floor(time).astype(np.int64) if time.dtype.kind == "f" else time
    place = table.column_names.index(names.TIMESTAMP)
    return table.set_column(place, names.TIMESTAMP, pa.array(whole // ticks))


def _join(
    table: pa.Table, key: str, defaults: Mapping[str, str], path: Path | None
) -> tuple[pa.Table, int]:
    """Adds the features of each row's id; also gives the number of rows whose id has none."""
    ids = encode_column(table[key])
    known = None if path is None else _read_features(path, path.stat().st_mtime_ns)
    missing = 0
    if known is not None:
        found = pc.index_in(ids.dictionary, value_set=known[key].combine_chunks())
        missing = int(pc.sum(found.is_null().take(ids.indices)).as_py() or 0)
    for name, default in defaults.items():
        if known is None:
            values = pa.array([default] * len(ids.dictionary), pa.string())
        else:
            values = known[name].combine_chunks().take(found).fill_null(default)
        table = table.append_column(name, values.take(ids.indices))
    return table, missing


def _store(
    features: Sequence[KnownFeatures], directory: Path
) -> list[tuple[str, Mapping[str, str], Path | None]]:
    """Writes the feature tables for the tasks to read."""
    stored: list[tuple[str, Mapping[str, str], Path | None]] = []
    for feature in features:
        path = None
        if feature.table is not None and len(feature.table):
            path = directory / f"features-{feature.key}.parquet"
            pq.write_table(feature.table.combine_chunks(), path, compression=COMPRESSION)
        stored.append((feature.key, dict(feature.defaults), path))
    return stored


@functools.lru_cache(maxsize=2)
def _read_features(path: Path, modified: int) -> pa.Table:
    """`modified` is part of the cache's key: the next run to an output has files of these names."""
    return read_parquet(path).combine_chunks()


def encode_column(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Indices into the distinct values of a column."""
    encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = (
            encoded.chunk(0)
            if encoded.num_chunks
            else pa.array([], column.type).dictionary_encode()
        )
    return encoded


def _ranks(values: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The place of each of some distinct values in their order (strings: by UTF-8 bytes)."""
    return _inverse(pc.array_sort_indices(values).to_numpy().astype(np.int64))


def _inverse(order: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return places
