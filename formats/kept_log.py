"""The log that histories were made of, as it was read: what `workflows update` goes on from.

    DIR/update/
      events-00000.parquet ...   all events, those too that are in no history: ids, time, features
                                 and label as the reader gave them, and `TRAINED`; by a hash of the
                                 user, then by time, then as they were read
      known-items.parquet        what is known of items beside their events: id and raw features
      known-users.parquet        likewise of users

Histories alone do not tell it: what a filter or a threshold left out, numbers before they were
transformed, and what is less than a second of times. Training and serving read nothing of this.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet, read_parquet
from lookback.core.errors import UserError
from lookback.formats.dataset_info import UPDATE_DIRECTORY
from lookback.formats.history_columns import ITEM_ID, USER_ID

EVENTS_PER_FILE = 1_000_000
EVENTS_PER_GROUP = 500_000  # each has its own dictionary of ids

TRAINED = "_trained"
"""Column of events: whether the histories have one, in the part that is trained on. (No feature
begins with an underscore.)"""

_KNOWN = {ITEM_ID: "known-items.parquet", USER_ID: "known-users.parquet"}


def event_files(directory: Path) -> list[Path]:
    """The files of a dataset's events, in order.

    Raises:
      UserError: if it keeps none.
    """
    files = sorted((directory / UPDATE_DIRECTORY).glob("events-*.parquet"))
    if not files:
        raise UserError(
            f"{directory} does not keep the log that it was made of ({UPDATE_DIRECTORY}/ in it): "
            "`workflows run --no_keep_log`, `workflows transform` or an earlier version wrote it. "
            "Write it once with `workflows run`, of all data; after that it can be updated."
        )
    return files


def event_file(directory: Path, number: int) -> Path:
    """One file of a dataset's events; names sort as numbers do up to 99,999."""
    return directory / UPDATE_DIRECTORY / f"events-{number:05d}.parquet"


def write_events(events: pa.Table, file: Path) -> None:
    """Writes one file of events, at most `EVENTS_PER_FILE`."""
    pq.write_table(
        events.combine_chunks(), file, compression="zstd", row_group_size=EVENTS_PER_GROUP
    )


def event_groups(file: Path) -> int:
    """How many pieces a file of events can be read in."""
    with open_parquet(file) as parquet:
        return int(parquet.num_row_groups)


def event_count(file: Path) -> int:
    """How many events a file holds."""
    with open_parquet(file) as parquet:
        return int(parquet.metadata.num_rows)


def read_events(file: Path, group: int) -> pa.Table:
    """One piece of a file of events."""
    with open_parquet(file) as parquet:
        return parquet.read_row_group(group)


def write_known(directory: Path, key: str, table: pa.Table) -> None:
    """Writes what is known of items or users.

    Args:
      directory: of the dataset.
      key: the id column.
      table: that and raw features, a row an id.
    """
    file = directory / UPDATE_DIRECTORY / _KNOWN[key]
    pq.write_table(table.combine_chunks(), file, compression="zstd")


def read_known(directory: Path) -> dict[str, pa.Table]:
    """What `write_known` wrote, by id column."""
    files = {key: directory / UPDATE_DIRECTORY / name for key, name in _KNOWN.items()}
    return {key: read_parquet(file) for key, file in files.items() if file.exists()}
