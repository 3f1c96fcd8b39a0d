"""Explicit labels: all events of a log as impressions, beside the histories of what was clicked.

They go the way of the histories (`write`): a partition's impressions in row groups by range of
users, and then each range put together from all partitions. The histories are there by then, and
tell the number of each user's row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import nvtabular as nvt
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet, read_parquet
from lookback.formats import history_columns as names
from lookback.formats.dataset_info import SPLITS
from lookback.formats.histories import COUNT, Totals
from lookback.formats.history_columns import Column
from lookback.formats.impressions import (
    IMPRESSIONS_DIRECTORY,
    LABEL,
    POSITION,
    USER,
    impression_columns,
)
from lookback.formats.vocabulary import OUT_OF_VOCABULARY
from lookback.workflows.cluster import Runner
from lookback.workflows.histories.gather import PART
from lookback.workflows.histories.typed import Encoding
from lookback.workflows.histories.write import (
    Encoded,
    part_tasks,
    read_groups,
    write_groups,
)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImpressionEncoder:
    """Makes a partition's events to impressions; must pickle.

    Attributes:
      columns: of the dataset.
      encoding: of typed features.
      vocabulary: the workflow's fitted operator.
      vocabulary_columns: what it encodes.
      ranges: first user ids of the ranges that are written together.
      users: file of the encoded user id of each row of the histories.
      directory: to write in.
    """

    columns: tuple[Column, ...]
    encoding: Encoding
    vocabulary: Any
    vocabulary_columns: tuple[str, ...]
    ranges: tuple[int, ...]
    users: Path
    directory: Path

    def write(self, task: tuple[Path, int]) -> list[Encoded]:
        """Task: writes a partition's impressions, a file for each part of the split.

        Args:
          task: the events, and how many rows of users out of the vocabulary are before those of
            this partition.
        """
        file, unknown_before = task
        table = self.encoding.encode(read_parquet(file))
        chosen = impression_columns(self.columns)[2:-2]
        encoded = [n for n in self.vocabulary_columns if n in (names.USER_ID, *chosen)]
        frame = table.select(encoded).to_pandas(integer_object_nulls=True)
        frame = self.vocabulary.transform(nvt.ColumnSelector(encoded), frame)
        history, time = table[names.HISTORY_ID].to_numpy(), table[names.TIMESTAMP].to_numpy()
        label = table[LABEL].to_numpy()
        ids = frame[names.USER_ID].to_numpy()
        row = self._rows(history, ids, unknown_before)
        made = {USER: row, POSITION: positions(history, time, label).astype(np.int32)}
        for name in chosen:
            made[name] = frame[name].to_numpy() if name in encoded else table[name].to_numpy()
        result = pa.table({**made, names.TIMESTAMP: time, LABEL: label, PART: table[PART]})
        order = np.argsort(row, kind="stable")
        result = result.take(pa.array(order))
        group, part = np.searchsorted(self.ranges, ids[order], side="right"), table[PART].to_numpy()
        written = []
        for number, name in enumerate(SPLITS):
            of_part = part[order] == number
            rows = result.filter(pa.array(of_part)).drop([PART])
            target = self.directory / f"{name}-{file.name}"
            written.append(write_groups(rows, group[of_part], len(self.ranges) + 1, target))
        return written

    def _rows(self, history: Ints, ids: npt.NDArray[np.int32], unknown_before: int) -> Ints:
        """The row of each event's history ``[N]``: by user id, then as in the events."""
        rows = np.load(self.users, mmap_mode="r")
        begins = np.flatnonzero(np.r_[True, history[1:] != history[:-1]])
        user = ids[begins]  # of each history
        unknown = user == OUT_OF_VOCABULARY
        run = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])  # one user's are together
        which = np.arange(len(user)) - np.repeat(run, np.diff(np.r_[run, len(user)]))
        row = np.where(
            unknown,
            unknown_before + np.cumsum(unknown) - 1,
            np.searchsorted(rows, user, side="left") + which,
        )
        lengths = np.diff(np.r_[begins, len(history)])
        repeated: Ints = np.repeat(row, lengths).astype(np.int64)
        return repeated


def positions(history: Ints, time: Ints, label: npt.NDArray[np.int8]) -> Ints:
    """How many clicks of its history each event has strictly before it in time.

    Args:
      history: number of each event's history, in order. ``[N]``
      time: in order within a history. ``[N]``
      label: 1 of clicks. ``[N]``
    """
    clicks = np.r_[0, np.cumsum(label == 1)]
    new_history = np.r_[True, history[1:] != history[:-1]]
    new_moment = new_history | np.r_[True, time[1:] != time[:-1]]
    place = np.arange(len(history))
    moment = np.maximum.accumulate(np.where(new_moment, place, 0))
    begin = np.maximum.accumulate(np.where(new_history, place, 0))
    before: Ints = clicks[moment] - clicks[begin]
    return before


def write_impressions(
    events: Sequence[Path],
    histories: Sequence[Encoded],
    encoder: ImpressionEncoder,
    output: Path,
    runner: Runner,
) -> list[Path]:
    """Writes all impressions; gives their files, in order.

    Args:
      events: partitions of events.
      histories: of the same partitions.
      encoder: of each.
      output: directory of the dataset.
      runner: where the tasks run.
    """
    unknown = np.cumsum([0, *(encoded.rows[0] for encoded in histories)]).tolist()
    tasks = list(zip(events, unknown[:-1], strict=True))
    found = list(runner.map(encoder.write, tasks, label="impressions", total=len(tasks)))
    files = []
    for name, partitions in zip(SPLITS, zip(*found, strict=True), strict=True):
        directory = output / IMPRESSIONS_DIRECTORY / name
        parts = part_tasks(partitions, directory)
        if parts:
            directory.mkdir(parents=True)
        files += list(runner.map(_write_part, parts, label="writing", total=len(parts)))
    return files


def describe_impressions(
    files: Sequence[Path], columns: Sequence[Column], totals: Totals
) -> tuple[str, dict[str, npt.NDArray[Any]]]:
    """What the impressions of a dataset add up to, in one pass over them.

    Args:
      files: the parts, in order.
      columns: of the dataset.
      totals: of its histories.

    Returns:
      A digest of their values, which does not depend on how rows are spread over files; and the
      catalogue of the items that occur in them or in histories, `COUNT` being of the histories.
    """
    digests = {name: hashlib.sha256() for name in impression_columns(columns)}
    features = {name: values.copy() for name, values in totals.item_features.items()}
    shown = totals.item_counts > 0
    for file in files:
        with open_parquet(file) as parquet:
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group)
                for name, digest in digests.items():
                    values = table[name].to_numpy()
                    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
                    digest.update(little.data)
                item = table[names.ITEM_ID].to_numpy()
                shown[item] = True
                known = item != OUT_OF_VOCABULARY
                for name, of_items in features.items():
                    of_items[item[known]] = table[name].to_numpy()[known]
    text = ",".join(f"{name}={digest.hexdigest()}" for name, digest in digests.items())
    seen = np.flatnonzero(shown)
    catalogue = {
        names.ITEM_ID: seen.astype(np.int32),
        **{name: of_items[seen] for name, of_items in features.items()},
        COUNT: totals.item_counts[seen],
    }
    return hashlib.sha256(text.encode()).hexdigest(), catalogue


def _write_part(task: tuple[list[tuple[Path, int]], Path]) -> Path:
    """Task: puts one file of impressions together, by row of the histories."""
    sources, file = task
    pq.write_table(read_groups(sources, USER), file, compression="zstd")
    return file
