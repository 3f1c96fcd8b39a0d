"""A user's history of a newer dataset, with the events that were appended since the older one.

An event that was appended has an id, one that came from a dataset has none. A newer dataset may
hold what was appended, too, as it went into the log: that is the event of the same time and item.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lookback.core.errors import UserError
from lookback.formats.history_columns import TIMESTAMP
from lookback.formats.stored_histories import EVENT_ID, Head, Record
from lookback.serving.store.merging import Appended, merged

AsKnown = Callable[[pa.Array], Sequence[Any]]
"""From raw ids of items to what a dataset has in their place: all unknown ones are one."""


@dataclasses.dataclass(frozen=True)
class Renewed:
    """What became of the events that a store had beside those of its dataset.

    Attributes:
      kept: that are in the store now.
      found: of these, how many the newer dataset has as well.
      too_old: that are older than the newest events that are kept of a user.
    """

    kept: int = 0
    found: int = 0
    too_old: int = 0

    def __add__(self, other: Renewed) -> Renewed:
        """Of both."""
        return Renewed(
            self.kept + other.kept, self.found + other.found, self.too_old + other.too_old
        )


def require_alike(before: Head, after: Head, place: str) -> None:
    """Checks that records of a store can be those of another head.

    Raises:
      UserError: naming what differs.
    """
    for name, (old, new) in before.differences(after).items():
        raise UserError(
            f"--keep: expected a dataset whose events are as those of the store {place}; its "
            f"{name} are {old} there and {new} in the dataset. Load the histories anew "
            "(--overwrite) and append what came since from your log."
        )


def renewed(
    head: Head, fresh: Record | None, before: Record, as_known: AsKnown
) -> tuple[Record | None, Renewed]:
    """A user's record.

    Args:
      head: of the newer dataset.
      fresh: the user's history there; None: it has none.
      before: the record of the store.
      as_known: of the newer dataset.

    Returns:
      The record; None where there is nothing of the user.
    """
    own = before.events.filter(before.events.column(EVENT_ID).is_valid())
    if fresh is None and not own.num_rows:
        return None, Renewed()
    base = fresh or Record(before.user, own.slice(0, 0))
    events, found = _without(base.events, own, head.item_features[0], as_known)
    base = dataclasses.replace(base, events=events, revision=before.revision)
    record, appended = merged(head, base, own) if own.num_rows else (base, Appended())
    # What was dropped before may be sent again, and still nobody can tell.
    record = dataclasses.replace(
        record, revision=before.revision + 1, floor=max(record.floor, before.floor)
    )
    return record, Renewed(appended.added, found, appended.too_old)


def _without(
    events: pa.RecordBatch, own: pa.RecordBatch, item_id: str, as_known: AsKnown
) -> tuple[pa.RecordBatch, int]:
    """Events of a dataset but for those that were appended, and how many these are."""
    known = as_known(own.column(item_id))
    left = collections.Counter(zip(own.column(TIMESTAMP).to_pylist(), known, strict=True))
    kept = np.ones(events.num_rows, np.bool_)
    pairs = zip(
        events.column(TIMESTAMP).to_pylist(), events.column(item_id).to_pylist(), strict=True
    )
    for place, pair in enumerate(pairs):
        if left[pair] > 0:
            left[pair] -= 1
            kept[place] = False
    return events.filter(pa.array(kept)), int((~kept).sum())
