"""Histories with a category, a bag and a number of every role, as random data in memory.

`write_dataset` of conftest.py writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from merlin.schema import Schema

from lookback.dataloading.histories.impressions import Impressions
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.splits import LeaveLastOut, Split
from lookback.formats.dataset_info import SPLITS
from lookback.formats.features import HistoryFeatures, dataset_column
from lookback.formats.history_columns import Role, category, number, typed_columns
from lookback.formats.impressions import IMPRESSIONS_DIRECTORY
from lookback.formats.part_files import part_name
from lookback.formats.vocabulary import FIRST_KNOWN

ROWS = {"user_id": 30, "item_id": 40, "country": 5, "category_id": 6}
ROWS |= {"interests": 9, "genres": 7, "device": 5, "sensors": 6, "rating": 8, "actions": 7}
"""Rows of the tables."""

BAGS = 9
"""How many different bags a column has, the reserved ones among them."""

SECONDS = 1000
"""Times are below."""

COLUMNS = typed_columns(
    [
        *(category("country", "user"), category("interests", "user", 3), number("age", "user")),
        *(category("category_id", "item"), category("genres", "item", 2), number("price", "item")),
        *(category("device", "context"), category("sensors", "context", 2)),
        number("hour", "context"),
        *(category("rating", "event"), category("actions", "event", 3), number("dwell", "event")),
    ]
)


def typed_schema() -> Schema:
    """Of `COLUMNS`."""
    domains = {n: {"domain": {"min": 0, "max": rows - 1, "name": n}} for n, rows in ROWS.items()}
    return Schema([dataset_column(column, domains.get(column.name, {})) for column in COLUMNS])


def typed_histories(
    lengths: Sequence[int] = (20, 7, 3, 3, 12),
    *,
    split: Split | None = None,
    impressions: Sequence[int] | None = None,
    seed: int = 0,
) -> Histories:
    """Makes them.

    Args:
      lengths: events of each user; 0 is allowed where labels are explicit.
      split: what is held out; None: the last event.
      impressions: how many of each split, where labels are explicit; None: they are not.
      seed: of the data.
    """
    rng = np.random.default_rng(seed)
    schema = typed_schema()
    features = HistoryFeatures.from_schema(schema)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    users, events = len(lengths), int(offsets[-1])

    def drawn(name: str, size: int) -> np.ndarray:
        if name in features.numbers:
            return rng.normal(size=size).astype(np.float32)
        rows = BAGS if name in features.bags else ROWS[name]
        return rng.integers(1, rows, size).astype(np.int32)

    def of(role: Role, size: int) -> dict[str, np.ndarray]:
        return {name: drawn(name, size) for name in features.of(role)}

    catalogue = of("item", ROWS["item_id"]) | {"item_id": np.arange(ROWS["item_id"], dtype="i4")}
    item = (FIRST_KNOWN + rng.random(events) ** 2 * (ROWS["item_id"] - FIRST_KNOWN)).astype("i4")
    stamps = [np.sort(rng.integers(0, SECONDS, length)) for length in lengths]
    times = np.concatenate([np.zeros(0, np.int64), *stamps])
    shown = None
    if impressions is not None:
        shown = {}
        for name, size in zip(SPLITS, impressions, strict=True):
            user = rng.integers(0, users, size).astype(np.int32)
            time = rng.integers(0, SECONDS, size)
            if events:  # some at the very time of an event, as of the click on them
                time = np.where(rng.random(size) < 0.3, rng.choice(times, size), time)
            shown[name] = Impressions(
                users=user,
                positions=np.array(
                    [(stamps[u] < t).sum() for u, t in zip(user, time, strict=True)], np.int32
                ),
                features={
                    **{n: v[rng.integers(1, 40, size)] for n, v in catalogue.items()},
                    **of("context", size),
                },
                timestamps=time,
                labels=rng.integers(0, 2, size).astype(np.int8),
            )
    distinct = np.unique(item)
    return Histories(
        schema=schema,
        user_features={**of("user", users), "user_id": np.arange(1, users + 1, dtype=np.int32)},
        offsets=offsets,
        item_features={name: values[item] for name, values in catalogue.items()},
        timestamps=times,
        catalogue={name: values[distinct] for name, values in catalogue.items()},
        split=LeaveLastOut() if split is None else split,
        event_features={**of("context", events), **of("event", events)},
        bags={name: _bags(rng, ROWS[name], most) for name, most in features.bags.items()},
        impressions=shown,
    )


def write_impressions(directory: Path, split: str, shown: Impressions) -> None:
    """Writes the impressions of a split into the directory of a dataset, a file."""
    own = {"user": shown.users.astype(np.int64), "position": shown.positions}
    own |= {"timestamp": shown.timestamps, "label": shown.labels}
    place = directory / IMPRESSIONS_DIRECTORY / split
    place.mkdir(parents=True)
    pq.write_table(pa.table({**own, **shown.features}), place / part_name(0))


def _bags(rng: np.random.Generator, rows: int, most: int) -> np.ndarray:
    """Bags ``[R, M]``, the reserved ones and one more of them empty."""
    table = np.zeros((BAGS, most), np.int32)
    for bag in table[FIRST_KNOWN + 1 :]:
        size = rng.integers(1, most + 1)
        bag[:size] = np.sort(rng.choice(np.arange(1, rows), size, replace=False))
    return table
