"""New events in a user's history: in order of time, each once, the newest kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookback.formats.history_columns import TIMESTAMP
from lookback.formats.stored_histories import EVENT_ID, Head, Record


@dataclasses.dataclass(frozen=True)
class Appended:
    """What became of events.

    Attributes:
      added: that are in the histories now.
      repeated: whose ids were there already.
      too_old: that are older than what their users' histories still hold.
    """

    added: int = 0
    repeated: int = 0
    too_old: int = 0

    def __add__(self, other: Appended) -> Appended:
        """Of both."""
        return Appended(
            self.added + other.added,
            self.repeated + other.repeated,
            self.too_old + other.too_old,
        )


def merged(head: Head, before: Record | None, rows: pa.RecordBatch) -> tuple[Record, Appended]:
    """A history with more events.

    It has the `head.max_events` newest, by time and then by arrival. Once some were dropped, what
    is not newer than they were is refused: nobody can tell any more whether it was among them.

    Args:
      head: of the store.
      before: the history; None: the user has none.
      rows: events in the order in which they came, see `Head.event_schema`.
    """
    before = before or Record({}, pa.RecordBatch.from_pylist([], head.event_schema), revision=0)
    new = _unseen(before.events.column(EVENT_ID), rows.column(EVENT_ID))
    late = new & (rows.column(TIMESTAMP).to_numpy() <= before.floor)
    taken = new & ~late
    events = _joined(before.events, rows if taken.all() else rows.filter(pa.array(taken)))
    times = events.column(TIMESTAMP).to_numpy()
    order = np.argsort(times, kind="stable")
    floor, dropped = before.floor, order[: max(0, len(order) - head.max_events)]
    if len(dropped):
        floor = int(times[dropped[-1]])
        order = order[len(dropped) :]
    if (np.diff(order) == 1).all():  # nothing came late: no need to copy
        events = events.slice(int(order[0]) if len(order) else 0, len(order))
    else:
        events = events.take(pa.array(order))
    gone = int((dropped >= before.events.num_rows).sum())  # of the new ones, none of which stays
    too_old = int(late.sum()) + gone
    appended = Appended(int(new.sum()) - too_old, int((~new).sum()), too_old)
    return Record(before.user, events, before.revision + 1, floor), appended


def _unseen(stored: pa.Array, ids: pa.Array) -> npt.NDArray[np.bool_]:
    """Which ids ``[N]`` are neither stored nor came before among these; null ones all are."""
    seen = set(ids.filter(pc.is_in(ids, stored)).to_pylist()) - {None}
    new = []
    for name in ids.to_pylist():
        new.append(name not in seen)
        if name is not None:
            seen.add(name)
    return np.array(new, np.bool_)


def _joined(before: pa.RecordBatch, after: pa.RecordBatch) -> pa.RecordBatch:
    if not after.num_rows:
        return before
    columns = [pa.concat_arrays([a, b]) for a, b in zip(before, after, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=before.schema)
