"""Which items have enough events: counted over all partitions, once or until nothing changes.

Once: items that have enough of all events. Iterated: then the events of other items are left out,
next the users who have too few of what is left, and items are counted again. What stays in the end
does not depend on the order of leaving out. The ids stay on disk, in the order of their histories;
in memory are the items' counts, and one partition.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookback.core.arrow_files import read_parquet
from lookback.core.errors import UserError
from lookback.formats import history_columns as names
from lookback.workflows.cluster import Runner
from lookback.workflows.histories.gather import (
    COMPRESSION,
    Selection,
    sort_events,
    without_repeats,
)
from lookback.workflows.histories.rules import EventRules
from lookback.workflows.histories.value_counts import COUNT, VALUE, count_values, merge_counts

Task = tuple[int, list[tuple[Path, int]]]


def frequent_items(
    tasks: Sequence[Task], selection: Selection, rules: EventRules, directory: Path, runner: Runner
) -> Path:
    """Writes the items that have `min_events_per_item` events; gives the file.

    Args:
      tasks: number of each partition, and the files and row groups that hold it.
      selection: what else is kept.
      rules: see `EventRules`.
      directory: to write in.
      runner: where the tasks run.

    Raises:
      UserError: if no item is left.
    """
    kept = directory / "kept-items.parquet"
    find = functools.partial(_ids, selection=selection, directory=directory)
    files, parts = zip(*runner.map(find, tasks, label="counting", total=len(tasks)), strict=True)
    counts, before = merge_counts(parts), 0
    while True:
        enough = counts.filter(pc.greater_equal(counts[COUNT], rules.min_events_per_item))
        if not len(enough):
            raise UserError(
                f"No item is left: none has {rules.min_events_per_item} or more events"
                f"{' once users and items with too few are left out' if rules.iterate else ''}. "
                "Lower min_events_per_item, or --min_interactions."
            )
        pq.write_table(enough.select([VALUE]).rename_columns([names.ITEM_ID]), kept)
        if not rules.iterate or len(enough) == before:
            break
        before = len(enough)
        again = functools.partial(_count_kept, kept=kept, least=selection.min_interactions)
        counts = merge_counts(list(runner.map(again, files, label="counting", total=len(files))))
    for file in files:
        file.unlink()
    return kept


def _ids(task: Task, selection: Selection, directory: Path) -> tuple[Path, pa.Table]:
    """Task: writes the ids of a partition's events; gives the counts of items."""
    number, source = task
    table, _ = without_repeats(sort_events(source, selection), selection)
    file = directory / f"ids-{number:05d}.parquet"
    pq.write_table(table.select([names.HISTORY_ID, names.ITEM_ID]), file, compression=COMPRESSION)
    return file, count_values(table[names.ITEM_ID])


def _count_kept(file: Path, kept: Path, least: int) -> pa.Table:
    """Task: counts of items over the users who have enough events of the items that are kept."""
    table = read_parquet(file)
    items = read_parquet(kept)[names.ITEM_ID].combine_chunks()
    table = table.filter(pc.is_in(table[names.ITEM_ID], value_set=items))
    history = table[names.HISTORY_ID].to_numpy()
    enough = np.bincount(history)[history] >= least if len(history) else np.zeros(0, np.bool_)
    return count_values(table[names.ITEM_ID].filter(pa.array(enough)))
