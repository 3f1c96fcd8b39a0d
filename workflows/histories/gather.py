"""Events of one partition → sorted, selected and joined with what is known of users and items.

The second pass of `ingest`. Every function works on what one partition holds, and is the same
whatever the partitions are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet, read_parquet
from lookback.formats import history_columns as names
from lookback.formats.dataset_info import SPLITS
from lookback.formats.impressions import LABEL
from lookback.formats.kept_log import TRAINED
from lookback.workflows.histories.event_counts import EventCounts
from lookback.workflows.histories.rules import TRAIN, EventRules, LeaveLast, Parts, Split

Ints = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Ties = Literal["file", "item"]

OLD, UNTRAINED, CAME = range(3)
"""Values of `NEW` on the way: of events of the dataset before that it trained on, of its others,
and of those that came since."""

ROWS_READ_AT_ONCE = 1 << 16  # row groups of the log on its way to where it is kept

PART = "part"
"""Of events with typed features: to which part of the split one belongs."""

COMPRESSION = "lz4"  # of files that live for minutes: speed before size

_LAST = LeaveLast()


@dataclass(frozen=True)
class KnownFeatures:
    """What is known of users or of items beside their ids.

    Attributes:
      key: the id column.
      defaults: for each feature the value where nothing is known; None: null, a missing one.
      table: the id column and the features, one row an id; None if nothing is known of any.
    """

    key: str
    defaults: Mapping[str, str | None]
    table: pa.Table | None = None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which events are kept, in which order.

    Attributes:
      min_interactions: fewest events of a user who is kept; only counted with, none is left out.
      fewest_items: likewise; see `workflows.histories.ops.build_workflow`.
      exact_repeats: whether to keep events of which user, item and time are those of another one.
      ties: order of a user's events of equal time: that of the input, or of the raw item ids.
      split: which events are not for training.
      ticks: units of the parsed times in one of the time that is written.
      typed: None: the workflow drops what is not kept, and makes vocabularies of all columns. Else
        it is dropped here, and each event has its `PART`.
    """

    min_interactions: int
    fewest_items: int | None = None
    exact_repeats: bool = False
    ties: Ties = "file"
    split: Split = _LAST
    ticks: int = 1
    typed: TypedSelection | None = None


@dataclass(frozen=True, kw_only=True)
class TypedSelection:
    """What there is to select of events with typed features.

    Attributes:
      rules: rare items and sessions.
      features: names of all features.
      explicit: whether all events are impressions, those of `LABEL` 1 clicks, which are what
        happened; features of events are known of clicks alone.
      of_events: names of these features.
      items: file of the items that are kept, column `ITEM_ID`; None: all are.
    """

    rules: EventRules
    features: tuple[str, ...]
    explicit: bool
    of_events: tuple[str, ...]
    items: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Gathered(EventCounts):
    """One partition of events on disk, and what was counted.

    Attributes:
      file: of those that are kept.
      kept_log: of all that was read, if that is kept.
    """

    file: Path
    kept_log: Path | None


def gather_partition(
    task: tuple[int, list[tuple[Path, int]]],
    features: Sequence[tuple[str, Mapping[str, str | None], Path | None]],
    columns: Sequence[str],
    directory: Path,
    selection: Selection,
    keep_log: bool = False,
) -> Gathered:
    """Task of the second pass; with `keep_log`, also writes all that was read."""
    number, source = task
    every = sort_events(source, selection)
    histories = int(every[names.HISTORY_ID][-1].as_py()) + 1
    table, place = without_repeats(every, selection)
    repeats, before = len(every) - len(table), len(table)
    typed = selection.typed
    if typed is not None and typed.items is not None:
        table, place = _of_items(table, place, typed.items)
    rare = before - len(table)
    history, time = table[names.HISTORY_ID].to_numpy(), table[names.TIMESTAMP].to_numpy()
    lengths = left = np.bincount(history, minlength=histories)
    kept = enough = lengths >= selection.min_interactions
    first = np.ones(len(table), np.bool_)
    if selection.fewest_items is not None:
        item = encode_column(table[names.ITEM_ID]).indices.to_numpy()
        first = first_events(history, time, item)
        left = np.bincount(history[first], minlength=histories)
        kept = enough & (left >= selection.fewest_items)
    stay = kept[history] & first
    ties = held_out_ties(history[stay], time[stay], selection.split.held_out)
    table = in_ticks(table, selection.ticks)
    part = _parts(table, stay, selection.split)
    log = directory / f"log-{number:05d}.parquet"
    if keep_log:
        _write_log(every, place[stay][part == TRAIN], log)
    if typed is not None:
        table, stay = table.filter(pa.array(stay)), np.ones(len(part), np.bool_)
    without = {}
    for key, defaults, path in features:
        table, missing = join_features(table, key, defaults, path)
        if path is not None:
            without.update(dict.fromkeys(defaults, missing))
    written = [names.HISTORY_ID, *columns]
    counted: dict[str, Any] = {}
    if typed is not None:
        table, counted = _typed(table.append_column(PART, pa.array(part)), typed)
        written += [PART, *([LABEL] if typed.explicit else [])]
    if names.NEW in columns:
        table, new = _new(table, stay, part == TRAIN)
        counted |= {**new, "seen_again": seen_again(every, selection)}
    file = directory / f"events-{number:05d}.parquet"
    pq.write_table(table.select(written), file, compression=COMPRESSION)
    return Gathered(
        file=file,
        events=len(every),
        users=histories,
        users_with_one_event=int((lengths == 1).sum()),
        users_kept=int(kept.sum()),
        events_kept=int(left[kept].sum()),
        exact_repeats=repeats,
        events_repeated=int((lengths - left)[kept].sum()),
        held_out_ties=ties,
        users_short=int((enough & ~kept).sum()),
        longest=int(lengths.max()),
        without_features=without,
        rare_events=rare,
        kept_log=log if keep_log else None,
        **counted,
    )


def sort_events(source: Sequence[tuple[Path, int]], selection: Selection) -> pa.Table:
    """All events of a partition by user and time, with the numbers of their histories.

    Args:
      source: files and the row group of each that belong to the partition.
      selection: says in which order, and what a history is.
    """
    table = pa.concat_tables([open_parquet(file).read_row_group(group) for file, group in source])
    users = encode_column(table[names.USER_ID])
    user_rank = np.lexsort((_ranks(users.dictionary), hash_ids(users.dictionary)))
    history = _inverse(user_rank)[users.indices.to_numpy()]
    keys = [table[names.TIMESTAMP].to_numpy(), history]  # the last is the first to sort by
    if selection.ties == "item":
        items = encode_column(table[names.ITEM_ID])
        keys.insert(0, _ranks(items.dictionary)[items.indices.to_numpy()])
    order = np.lexsort(keys)  # stable
    table, history = table.take(pa.array(order)), history[order]
    typed = selection.typed
    if typed is not None and typed.rules.session_gap is not None:
        time = table[names.TIMESTAMP].to_numpy()
        history = sessions(history, time, typed.rules.session_gap * selection.ticks)
    return table.append_column(names.HISTORY_ID, pa.array(history, pa.int64()))


def without_repeats(table: pa.Table, selection: Selection) -> tuple[pa.Table, Ints]:
    """Leaves exact repeats out, but where they are kept; also gives the places of what is left.

    Args:
      table: see `sort_events`.
      selection: what to keep.
    """
    if selection.exact_repeats:
        return table, np.arange(len(table))
    repeated = exact_repeats(*_compared(table, selection))
    return table.filter(pa.array(~repeated)) if repeated.any() else table, np.flatnonzero(~repeated)


def _of_items(table: pa.Table, place: Ints, file: Path) -> tuple[pa.Table, Ints]:
    """Events ``[N]`` of those items that a file lists, and their places ``[N]``."""
    items = read_parquet(file)[names.ITEM_ID].combine_chunks()
    kept = pc.is_in(table[names.ITEM_ID], value_set=items)
    return table.filter(kept), place[kept.to_numpy()]


def seen_again(table: pa.Table, selection: Selection) -> int:
    """How many of the events that came since are exact repeats of those of the dataset before.

    Args:
      table: see `sort_events`; of equal events those of the dataset come first.
      selection: what else there is to tell events by.
    """
    came = table[names.NEW].to_numpy() == CAME
    tied, key = _tied(*_compared(table, selection))
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    return int((came[tied] & ~came[tied][first][which]).sum())


def _compared(table: pa.Table, selection: Selection) -> tuple[Ints, Any, pa.Table]:
    """What events are compared by: their histories and times ``[N]``, and the rest."""
    typed = selection.typed
    rest = [names.ITEM_ID, *([LABEL] if typed is not None and typed.explicit else [])]
    history, time = table[names.HISTORY_ID].to_numpy(), table[names.TIMESTAMP].to_numpy()
    return history, time, table.select(rest)


def _new(table: pa.Table, stay: Bools, training: Bools) -> tuple[pa.Table, dict[str, int]]:
    """Puts 0 and 1 into `NEW`; counts which of the events that stay came since.

    Args:
      table: ``[N]``
      stay: ``[N]``
      training: which of those that stay are to train on.
    """
    new = table[names.NEW].to_numpy()
    came = (new == CAME) & stay
    clicked = table[LABEL].to_numpy() == 1 if LABEL in table.column_names else came
    place = table.column_names.index(names.NEW)
    table = table.set_column(place, names.NEW, pa.array(np.minimum(new, 1)))
    return table, {
        "new_events": int((came & clicked).sum()),
        "new_impressions": int(came.sum()),
        "new_training": int(((new[stay] > OLD) & training).sum()),
    }


def _write_log(every: pa.Table, trained: Ints, file: Path) -> None:
    """Writes all events as they were read, and which of them are to train on."""
    flags = np.zeros(len(every), np.bool_)
    flags[trained] = True
    own = {names.HISTORY_ID, names.NEW} & {*every.column_names}
    every = every.drop(sorted(own)).append_column(TRAINED, pa.array(flags))
    pq.write_table(every, file, compression=COMPRESSION, row_group_size=ROWS_READ_AT_ONCE)


def sessions(history: Ints, time: np.ndarray[Any, Any], gap: int) -> Ints:
    """Numbers each history's sessions: one ends where the next event is more than `gap` later.

    Args:
      history: number of each event's history, in order. [N]
      time: in order within a history. [N]
      gap: in the unit of `time`.

    Returns:
      numbers from 0 on. [N]
    """
    begins = (history[1:] != history[:-1]) | (time[1:] - time[:-1] > gap)
    return np.r_[np.zeros(min(len(history), 1), np.int64), np.cumsum(begins)]


def _parts(table: pa.Table, stay: Bools, split: Split) -> Parts:
    """To which part of the split those events belong that stay; times are those that are written.

    Args:
      table: ``[N]``
      stay: ``[N]``
      split: says it.
    """
    table = table.select([names.HISTORY_ID, names.TIMESTAMP, names.USER_ID]).filter(pa.array(stay))
    history, time = table[names.HISTORY_ID].to_numpy(), table[names.TIMESTAMP].to_numpy()
    return split.parts(history, time, table[names.USER_ID])


def _typed(table: pa.Table, typed: TypedSelection) -> tuple[pa.Table, dict[str, Any]]:
    """Hides what is known of clicks alone; counts what is missing and what each part has."""
    part = table[PART].to_numpy()
    happened = np.ones(len(table), np.bool_)
    impressions = (0,) * len(SPLITS)
    if typed.explicit:
        clicked = pc.equal(table[LABEL], 1)
        happened = clicked.to_numpy()
        impressions = _by_part(part)
        for name in typed.of_events:
            place = table.column_names.index(name)
            known = pc.if_else(clicked, table[name], pa.scalar(None, table[name].type))
            table = table.set_column(place, name, known)
    missing = {name: table[name].null_count for name in typed.features}
    for name in typed.of_events:
        missing[name] -= int((~happened).sum())
    return table, {
        "people_kept": len(table[names.USER_ID].unique()),
        "missing": missing,
        "parts": _by_part(part[happened]),
        "impressions": impressions,
    }


def _by_part(part: np.ndarray[Any, Any]) -> tuple[int, ...]:
    return tuple(np.bincount(part, minlength=len(SPLITS)).tolist())


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


def exact_repeats(history: Ints, time: np.ndarray[Any, Any], items: pa.Table) -> Bools:
    """Which events have history, time and item of an earlier one.

    Args:
      history: number of each event's history, in order. [N]
      time: in order within a history. [N]
      items: what events of equal time are compared by. [N]

    Returns:
      [N]
    """
    from pandas import Series

    repeated = np.zeros(len(history), dtype=np.bool_)
    tied, key = _tied(history, time, items)
    repeated[tied] = Series(key).duplicated().to_numpy()
    return repeated


def _tied(history: Ints, time: np.ndarray[Any, Any], items: pa.Table) -> tuple[Ints, Ints]:
    """Places of the events that others tie with in time; equal numbers for equal events of them.

    In most logs they are few, and only they are compared.
    """
    same = _as_before(history, time)
    tied = np.flatnonzero(same | np.r_[same[1:], False])
    key: Ints = np.cumsum(~same, dtype=np.int64)[tied]
    for column in items.take(pa.array(tied)).columns:
        code = encode_column(column).indices.to_numpy().astype(np.int64)
        key = key * (int(code.max(initial=0)) + 1) + code
    return tied, key


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


def in_ticks(table: pa.Table, ticks: int) -> pa.Table:
    """Whole ticks in place of the times."""
    time = table[names.TIMESTAMP].to_numpy()
    whole = np.floor(time).astype(np.int64) if time.dtype.kind == "f" else time
    place = table.column_names.index(names.TIMESTAMP)
    return table.set_column(place, names.TIMESTAMP, pa.array(whole // ticks))


def join_features(
    table: pa.Table, key: str, defaults: Mapping[str, str | None], path: Path | None
) -> tuple[pa.Table, int]:
    """Adds the features of each row's id; also gives the number of rows whose id has none."""
    ids = encode_column(table[key])
    known = None if path is None else _read_features(path, path.stat().st_mtime_ns)
    missing = 0
    if known is not None:
        asked, values = ids.dictionary, known[key].combine_chunks()
        if asked.type != values.type:  # whole numbers of one file are text of another
            asked, values = asked.cast(pa.string()), values.cast(pa.string())
        found = pc.index_in(asked, value_set=values)
        missing = int(pc.sum(found.is_null().take(ids.indices)).as_py() or 0)
    for name, default in defaults.items():
        if known is None:
            values = pa.array([default] * len(ids.dictionary), pa.string())
        else:
            values = known[name].combine_chunks().take(found)
            values = values if default is None else values.fill_null(default)
        table = table.append_column(name, values.take(ids.indices))
    return table, missing


def store_features(
    features: Sequence[KnownFeatures], directory: Path
) -> list[tuple[str, Mapping[str, str | None], Path | None]]:
    """Writes the feature tables for the tasks to read."""
    stored: list[tuple[str, Mapping[str, str | None], Path | None]] = []
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
