"""Data for the benchmarks: generated histories, and the materialised form of a dataset.

The histories imitate Amazon Books in what speed and size depend on: history lengths, Zipf
popularity, cardinalities. There is nothing in them to learn; `python -m workflows generate` makes
data that can be learned from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.core.errors import UserError
from lookback.core.files import atomic_directory
from lookback.formats.dataset_info import HISTORIES, write_info
from lookback.formats.histories import (
    COUNT,
    HISTORIES_DIRECTORY,
    write_catalogue,
    write_histories,
    write_users,
)
from lookback.formats.part_files import part_name
from lookback.formats.schema import write_schema
from lookback.formats.vocabulary import FIRST_KNOWN

if TYPE_CHECKING:
    from merlin.schema import Schema

    from lookback.dataloading.histories.resident import Histories

# Users to a partition in NVIDIA's preprocessing (DASK_TRAIN_DATASET_CHUNKSIZE), hence to a file.
_USERS_PER_FILE = 15_000
# Samples that are made at once, of four lists each.
_SAMPLES_AT_ONCE = 16_384
USERS_PER_PART = 1 << 16  # of many histories

Array = npt.NDArray[Any]


def cached(kind: str, options: Mapping[str, Any], cache_dir: Path | None = None) -> Path:
    """Where to keep generated data between runs: a path in the temporary directory.

    Args:
      kind: what it is.
      options: what it depends on; other options, another path.
      cache_dir: instead of the temporary directory.
    """
    root = cache_dir or Path(tempfile.gettempdir()) / f"lookback-benchmarks-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps([kind, options], sort_keys=True, default=str).encode())
    return root / f"{kind}-{digest.hexdigest()[:12]}"


def generate_criteo_rows(
    rows: int, scale: float, cache_dir: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Writes a tabular dataset of T15's shape, once.

    Args:
      rows: of all splits together.
      scale: of the table sizes.
      cache_dir: see `cached`.

    Returns:
      The dataset, and what its generator knows of it (oracle.json).
    """
    from lookback.workflows.generators.criteo_tables import ROWS
    from lookback.workflows.generators.synthetic_criteo import (
        SyntheticCriteoConfig,
        generate_criteo,
        scaled,
    )
    from lookback.workflows.generators.synthetic_criteo_law import CriteoLawConfig

    # Ids as popular as here are seen often enough to be learnt from some million rows.
    law = CriteoLawConfig(scaled(ROWS["t15"], scale), exponents=(1.2,))
    directory = cached("criteo_rows", {"law": dataclasses.asdict(law), "rows": rows}, cache_dir)
    if not (directory / "oracle.json").is_file():
        generate_criteo(SyntheticCriteoConfig(law, rows=rows, days=10), directory, format="parquet")
    oracle: dict[str, Any] = json.loads((directory / "oracle.json").read_text())
    return directory, oracle


def generate_histories(
    directory: Path,
    *,
    users: int,
    items: int = 1_209_081,
    categories: int = 2_330,
    min_length: int = 20,
    mean_length: float = 58.0,
    seed: int = 0,
) -> Path:
    """Writes a dataset of histories in the format of `python -m workflows`, once.

    Args:
      directory: to write; left alone if it is there already.
      users: rows.
      items: size of the catalogue that items are drawn from (Amazon Books: 1,209,081).
      categories: each item has one of them (Amazon Books: 2,330).
      min_length: of a history (NVIDIA's filter).
      mean_length: of a history. NVIDIA's 12 M samples of 105,925 users, two a training event, make
        58 events a user.
      seed: of everything.

    Returns:
      `directory`.
    """
    if directory.exists():
        return directory

    rng = np.random.default_rng(seed)
    offsets = _offsets(rng, users, min_length, mean_length)
    lengths, events = np.diff(offsets), int(offsets[-1])
    item = zipf(rng, items, events) + FIRST_KNOWN
    category_of = zipf(rng, categories, items + FIRST_KNOWN) + FIRST_KNOWN
    # Sixteen years of seconds, sorted within each user.
    times = rng.integers(0, 16 * 365 * 86_400, events)
    user_of = np.repeat(np.arange(users), lengths)
    times = times[np.lexsort((times, user_of))] + 900_000_000
    with atomic_directory(directory) as temporary:
        events_of = {
            "item_id": item.astype(np.int32),
            "category_id": category_of[item].astype(np.int32),
            "timestamp": times.astype(np.int64),
        }
        users_of = {"user_id": np.arange(users, dtype=np.int32) + FIRST_KNOWN}
        write_histories(temporary, users_of, offsets, events_of)
        distinct, counts = np.unique(events_of["item_id"], return_counts=True)
        catalogue = {
            "item_id": distinct,
            "category_id": category_of[distinct].astype(np.int32),
            COUNT: counts,
        }
        write_catalogue(temporary, catalogue)
        cardinalities = {
            "user_id": users + FIRST_KNOWN,
            "item_id": items + FIRST_KNOWN,
            "category_id": categories + FIRST_KNOWN,
        }
        write_schema(_schema(cardinalities, times=True), temporary)
        info = {
            "dataset": "benchmark",
            "counts": {"users": users, "events": events, "items": len(distinct)},
            "cardinalities": cardinalities,
            "split": {"rule": "leave_last_out", "test": 1, "validation": 0},
        }
        write_info(temporary, HISTORIES, info)
    return directory


def generate_many_histories(
    directory: Path,
    *,
    users: int,
    items: int = 500_000,
    categories: int = 1_000,
    min_length: int = 20,
    mean_length: float = 100.0,
    seed: int = 0,
) -> Path:
    """Writes histories as `generate_histories` does, part by part: memory holds one part.

    Args:
      directory: to write; left alone if it is there already.
      users: rows.
      items: size of the catalogue.
      categories: each item has one of them.
      min_length: of a history.
      mean_length: of a history.
      seed: of everything.

    Returns:
      `directory`.
    """
    if directory.exists():
        return directory
    rng = np.random.default_rng(seed)
    names = rng.permutation(items) + FIRST_KNOWN
    popularity = np.cumsum(1 / np.arange(1.0, items + 1))
    category_of = (zipf(rng, categories, items + FIRST_KNOWN) + FIRST_KNOWN).astype(np.int32)
    counts, events = np.zeros(items + FIRST_KNOWN, np.int64), 0
    with atomic_directory(directory) as temporary:
        (temporary / HISTORIES_DIRECTORY).mkdir()
        for number, first in enumerate(range(0, users, USERS_PER_PART)):
            rng = np.random.default_rng([seed, number])
            size = min(USERS_PER_PART, users - first)
            offsets = _offsets(rng, size, min_length, mean_length).astype(np.int32)
            ranks = np.searchsorted(popularity, rng.random(offsets[-1]) * popularity[-1])
            item = names[ranks].astype(np.int32)
            steps = rng.integers(0, 86_400, len(item), np.int64).cumsum()
            times = 900_000_000 + steps - np.repeat(steps[offsets[:-1]], np.diff(offsets))
            lists = {"item_id": item, "category_id": category_of[item], "timestamp": times}
            user = np.arange(first, first + size, dtype=np.int32) + FIRST_KNOWN
            columns = {name: pa.ListArray.from_arrays(offsets, v) for name, v in lists.items()}
            table = pa.table({"user_id": user, **columns})
            write_users(table, temporary / HISTORIES_DIRECTORY / part_name(number))
            counts += np.bincount(item, minlength=len(counts))
            events += len(item)
        seen = np.flatnonzero(counts)
        catalogue = {"item_id": seen.astype(np.int32), "category_id": category_of[seen]}
        write_catalogue(temporary, {**catalogue, COUNT: counts[seen]})
        cardinalities = {
            "user_id": users + FIRST_KNOWN,
            "item_id": items + FIRST_KNOWN,
            "category_id": categories + FIRST_KNOWN,
        }
        write_schema(_schema(cardinalities, times=True), temporary)
        info = {
            "dataset": "benchmark",
            "content_hash": f"generated:{users},{items},{categories},{seed}",
            "counts": {"users": users, "events": events, "items": len(seen)},
            "cardinalities": cardinalities,
            "split": {"rule": "leave_last_out", "test": 1, "validation": 0},
        }
        write_info(temporary, HISTORIES, info)
    return directory


def resident_interactions(
    *, users: int, items: int, events: int, min_length: int = 20, seed: int = 0
) -> Histories:
    """Histories of items and nothing else, in memory alone; as those of `generate_histories`.

    Args:
      users: U.
      items: I, each of which is in the catalogue.
      events: N, about.
      min_length: of a history (NVIDIA's filter).
      seed: of everything.
    """
    from lookback.dataloading.histories.resident import Histories

    rng = np.random.default_rng(seed)
    offsets = _offsets(rng, users, min_length, max(events / users, min_length))
    return Histories(
        schema=_schema(
            {"user_id": users + FIRST_KNOWN, "item_id": items + FIRST_KNOWN}, times=False
        ),
        user_features={"user_id": np.arange(users, dtype=np.int32) + FIRST_KNOWN},
        offsets=offsets,
        item_features={
            "item_id": (zipf(rng, items, int(offsets[-1])) + FIRST_KNOWN).astype(np.int32)
        },
        timestamps=None,
        catalogue={"item_id": np.arange(items, dtype=np.int32) + FIRST_KNOWN},
    )


def equal_histories(
    *, users: int, events: int, items: int, item_rows: int | None = None, seed: int = 0
) -> Histories:
    """Histories of one length in memory alone, of items that lie anywhere in a table.

    Args:
      users: U.
      events: of each history.
      items: distinct ones, drawn by popularity as in `generate_histories`.
      item_rows: of the items' table, over which they are spread evenly and in order; None: as few
        as hold them.
      seed: of everything.

    Raises:
      UserError: if the table has too few rows.
    """
    from lookback.dataloading.histories.resident import Histories

    rows = items + FIRST_KNOWN if item_rows is None else item_rows
    if rows < items + FIRST_KNOWN:
        raise UserError(
            f"expected at least {items + FIRST_KNOWN:,} rows, of {items:,} distinct items and "
            f"{FIRST_KNOWN} reserved ones, got {rows:,}. Ask for larger tables or fewer items."
        )
    rng = np.random.default_rng(seed)
    ids = np.linspace(FIRST_KNOWN, rows - 1, items).astype(np.int32)
    categories = min(items, 100)
    category_of = (rng.integers(0, categories, items) + FIRST_KNOWN).astype(np.int32)
    drawn = zipf(rng, items, users * events)
    seen = np.unique(drawn)
    cardinalities = {
        "user_id": users + FIRST_KNOWN,
        "item_id": rows,
        "category_id": categories + FIRST_KNOWN,
    }
    return Histories(
        schema=_schema(cardinalities, times=False),
        user_features={"user_id": np.arange(users, dtype=np.int32) + FIRST_KNOWN},
        offsets=np.arange(users + 1, dtype=np.int64) * events,
        item_features={"item_id": ids[drawn], "category_id": category_of[drawn]},
        timestamps=None,
        catalogue={"item_id": ids[seen], "category_id": category_of[seen]},
    )


def materialise(
    histories: Histories,
    directory: Path,
    *,
    max_seq_length: int = 100,
    max_rows: int | None = None,
    compression: str = "snappy",
    seed: int = 0,
) -> Path:
    """Writes the samples of a dataset as NVIDIA's preprocessing does, once.

    Every prefix of a history is a row with the event after it as the target, and a second row has
    a target drawn by popularity; the last event of each user goes to test. Histories and their
    negatives (one for each event, by popularity) are padded on the left.

    Args:
      histories: to write the samples of.
      directory: to write; left alone if it is there already.
      max_seq_length: of the histories (NVIDIA's `max_sequence_length`).
      max_rows: stop after the user with whom train reaches so many rows.
      compression: of the parquet files; snappy is cudf's default, hence NVIDIA's.
      seed: of the negatives.

    Returns:
      `directory`.
    """
    if directory.exists():
        return directory
    from lookback.formats.materialised import MaterialisedWriter, write_cardinalities

    rng = np.random.default_rng(seed)
    targets = np.maximum(histories.targets["train"][1] - 1, 0)
    users = histories.num_users
    if max_rows is not None:
        users = min(users, int(np.searchsorted(np.cumsum(2 * targets), max_rows)) + 1)
    with atomic_directory(directory) as temporary:
        for split in ("train", "test"):
            for part, first in enumerate(range(0, users, _USERS_PER_FILE)):
                chosen = np.arange(first, min(first + _USERS_PER_FILE, users))
                writer = MaterialisedWriter(temporary, split, compression, part)
                for samples in _samples(histories, split, chosen, max_seq_length, rng):
                    writer.write(samples)
                writer.close()
        names = (*histories.features.user, *histories.features.item)
        cardinalities = {name: int(histories.schema[name].int_domain.max) for name in names}
        write_cardinalities(temporary, cardinalities)
    return directory


def zipf(rng: np.random.Generator, size: int, count: int, exponent: float = 1.0) -> Array:
    """Draws `count` numbers below `size`; number r has weight ``(r + 1) ** -exponent``, shuffled.

    Shuffled: a number's size says nothing about its weight, as with encoded ids it need not.
    """
    cumulative = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(cumulative, rng.random(count) * cumulative[-1])
    return rng.permutation(size)[ranks]


def _offsets(rng: np.random.Generator, users: int, min_length: int, mean_length: float) -> Array:
    """Offsets ``[U + 1]`` of histories, long tailed as real ones: an exponential distribution."""
    lengths = min_length + rng.exponential(mean_length - min_length, users).astype(np.int64)
    return np.concatenate([[0], np.cumsum(lengths)])


def _samples(
    histories: Histories, split: str, users: Array, slots: int, rng: np.random.Generator
) -> Iterator[dict[str, Array]]:
    """Some thousand samples at a time of some users, sorted by user, by column."""
    lengths = np.diff(histories.offsets)[users]
    if split == "train":
        counts = np.maximum(histories.targets["train"][1][users] - 1, 0)
        first = np.ones_like(lengths)  # the first event has no history
    else:
        counts, first = np.ones_like(lengths), lengths - 1
    user = np.repeat(users, counts)
    within = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = histories.offsets[user]
    target = begin + np.repeat(first, counts) + within
    step = _SAMPLES_AT_ONCE // 2
    for start in range(0, len(user), step):
        part = slice(start, start + step)
        yield _samples_of(histories, user[part], begin[part], target[part], slots, rng)


def _samples_of(
    histories: Histories,
    user: Array,
    begin: Array,
    target: Array,
    slots: int,
    rng: np.random.Generator,
) -> dict[str, Array]:
    """The positive and the negative row of each target, in this order: user, then label 1, 0."""
    user, begin, target = (np.repeat(values, 2) for values in (user, begin, target))
    rows = len(user)
    label = np.tile(np.array([1, 0], np.int8), rows // 2)
    events = target[:, np.newaxis] + np.arange(-slots, 0)  # [B, T]
    valid = events >= begin[:, np.newaxis]
    events = np.maximum(events, 0)
    # An event drawn uniformly is an item drawn by popularity.
    candidate = np.where(label == 1, target, rng.integers(0, histories.num_events, rows))
    drawn = rng.integers(0, histories.num_events, (rows, slots))
    columns: dict[str, Array] = {"label": label}
    for name in histories.features.user:
        columns[name] = histories.user_features[name][user].astype(np.int64)
    items = {name: histories.item_features[name] for name in histories.features.item}
    for name, values in items.items():
        columns[name] = values[candidate]
    for prefix, chosen in (("", events), ("neg_", drawn)):
        for name, values in items.items():
            padded = np.where(valid, values[chosen], 0).astype(np.int32)
            columns[f"{prefix}{name}_sequence"] = padded
    return columns


def _schema(cardinalities: Mapping[str, int], *, times: bool) -> Schema:
    from merlin.schema import ColumnSchema, Schema, Tags

    item = [Tags.ITEM, Tags.SEQUENCE, Tags.LIST, Tags.CATEGORICAL]
    tags_of = {
        "user_id": [Tags.USER_ID, Tags.USER, Tags.CATEGORICAL, Tags.ID],
        "item_id": [Tags.ITEM_ID, *item, Tags.ID],
        "category_id": item,
    }
    columns = []
    for name, rows in cardinalities.items():
        domain = {"domain": {"min": 0, "max": rows - 1, "name": name}}
        dims = (None,) if name == "user_id" else (None, (0, None))
        columns.append(
            ColumnSchema(name, tags=tags_of[name], dtype="int32", dims=dims, properties=domain)
        )
    if times:
        tags = [Tags.TIME, Tags.SEQUENCE, Tags.LIST]
        columns.append(ColumnSchema("timestamp", tags=tags, dtype="int64", dims=(None, (0, None))))
    return Schema(columns)
