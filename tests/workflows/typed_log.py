"""A log with features of every type, in memory, and a reader of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.formats.history_columns import ITEM_ID, USER_ID
from lookback.formats.transforms import canonical
from lookback.workflows.cluster import Runner
from lookback.workflows.histories import pipeline
from lookback.workflows.histories.feature_specs import FeatureSpec
from lookback.workflows.histories.gather import KnownFeatures
from lookback.workflows.histories.reader import HistoryOptions, Reader
from lookback.workflows.histories.rules import EventRules
from lookback.workflows.order import Report, WorkflowOrder
from lookback.workflows.output import DATASET, Output
from lookback.workflows.text import BadLineCounter, Block, Parsed
from lookback.workflows.times import TimeUnit

SPECS = {
    "country": FeatureSpec(of="user", type="category"),
    "age": FeatureSpec(of="user", type="number", clip=(18.0, 90.0)),
    "likes": FeatureSpec(of="user", type="categories", most=2),
    "category": FeatureSpec(of="item", type="category", min_count=40),
    "genres": FeatureSpec(of="item", type="categories", most=2, separator="|", min_count=30),
    "price": FeatureSpec(of="item", type="number", log=True),
    "year": FeatureSpec(of="item", type="buckets", quantiles=4),
    "brand": FeatureSpec(of="item", type="hash", buckets=5),
    "device": FeatureSpec(of="context", type="category"),
    "hour": FeatureSpec(of="context", type="buckets", boundaries=(6.0, 12.0, 18.0)),
    "words": FeatureSpec(of="context", type="categories", most=3, buckets=9),
    "dwell": FeatureSpec(of="event", type="number", log=True, clip=(0.0, 600.0), fill=0.0),
    "rating": FeatureSpec(of="event", type="category"),
    "seen": FeatureSpec(of="event", type="number", standardise=False, fill=-1.0),
}
NANOSECONDS = 10**9
START = 1_400_000_000
BLOCK_ROWS = 400

_TEXT = ("country", "category", "brand", "device")
_BAGS = tuple(name for name, spec in SPECS.items() if spec.is_bag)


class Log(Reader):
    """Reads what `write_log` wrote. A subclass of each test says what is asked for."""

    specs: ClassVar[Mapping[str, FeatureSpec]] = {}
    asked: ClassVar[EventRules] = EventRules()
    labels: ClassVar[bool] = False

    @property
    def feature_specs(self) -> Mapping[str, FeatureSpec]:
        return self.specs

    @property
    def rules(self) -> EventRules:
        return self.asked

    @property
    def explicit(self) -> bool:
        return self.labels

    def event_files(self, directory: Path) -> list[Path]:
        return [directory / "events.parquet"]

    def metadata_files(self, directory: Path) -> Sequence[Path]:
        return [directory / "users.parquet", directory / "items.parquet"]

    def count_events(self, paths: list[Path]) -> int:
        return sum(pq.read_metadata(path).num_rows for path in paths)

    def blocks(self, path: Path) -> Iterator[Block]:
        for start in range(0, pq.read_metadata(path).num_rows, BLOCK_ROWS):
            yield Block(path, start, start + BLOCK_ROWS, first=not start)

    def parse_block(self, block: Block, unit: TimeUnit | None = None) -> Parsed:
        table = pq.read_table(block.path).slice(block.start, block.stop - block.start)
        return Parsed(table, len(table))

    def features(
        self, directory: Path, runner: Runner, bad_lines: BadLineCounter
    ) -> tuple[list[KnownFeatures], dict[str, int]]:
        known = []
        for key, name in ((USER_ID, "users"), (ITEM_ID, "items")):
            of = {n: None for n, spec in self.specs.items() if f"{spec.of}s" == name}
            known.append(KnownFeatures(key, of, pq.read_table(directory / f"{name}.parquet")))
        return known, {}


def make_log(
    users: int = 40, items: int = 60, events: int = 1500, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Random events with ties in time, and users and items, of which some are not described."""
    random = np.random.default_rng(seed)

    def some(values: Any, missing: float = 0.1) -> list[Any]:
        gone = random.random(len(values)) < missing
        return [None if none else value for none, value in zip(gone, values, strict=True)]

    def bags(count: int, words: str, most: int = 4) -> list[str]:
        weights = np.arange(1, len(words) + 1) / sum(range(1, len(words) + 1))
        sizes = random.integers(0, most + 1, count)
        return [canonical(random.choice(list(words), n, p=weights).tolist()) for n in sizes]

    user = (random.random(events) ** 2 * users).astype(int)
    item = (random.random(events) ** 2 * items).astype(int)
    log = pd.DataFrame(
        {
            "user_id": [f"u{number:02d}" for number in user],
            "item_id": item * 7 + 100,
            "timestamp": (START + random.integers(0, 90, events) * 3600) * NANOSECONDS,
            "device": some(random.choice(["phone", "tablet", "tv"], events)),
            "hour": some(random.integers(0, 24, events).astype(float)),
            "words": some(bags(events, "vwxyz")),
            "dwell": some(np.round(random.exponential(200, events), 2)),
            "rating": some(random.integers(1, 6, events).tolist(), 0.2),
            "seen": some(random.random(events)),
            "label": (random.random(events) < 0.3).astype(np.int8),
        }
    )
    known_users = pd.DataFrame(
        {
            "user_id": [f"u{number:02d}" for number in range(users - 2)],
            "country": some(random.choice(["de", "fr", "ch"], users - 2)),
            "age": some(random.integers(10, 99, users - 2).astype(float)),
            "likes": some(bags(users - 2, "abc")),
        }
    )
    known_items = pd.DataFrame(
        {
            "item_id": np.arange(items - 3) * 7 + 100,
            "category": some(random.choice(["cd", "lp", "mc"], items - 3, p=[0.6, 0.38, 0.02])),
            "genres": some(bags(items - 3, "PQRST")),
            "price": some(np.round(random.lognormal(2, 1, items - 3), 2)),
            "year": some(random.integers(1950, 2020, items - 3).astype(float)),
            "brand": some(random.choice([f"brand {n}" for n in range(12)], items - 3)),
        }
    )
    return {"events": log, "users": known_users, "items": known_items}


def write_log(frames: Mapping[str, pd.DataFrame], directory: Path, label: bool = False) -> Path:
    """Writes a log for `Log`; gives the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame = frame.drop(columns=[] if label or "label" not in frame else ["label"])
        kinds = {
            **dict.fromkeys([*_TEXT, *_BAGS], pa.string()),
            **dict.fromkeys(["age", "price", "year", "hour", "dwell", "seen"], pa.float64()),
            "rating": pa.int64(),
            "label": pa.int8(),
        }
        columns = {
            column: pa.array(frame[column], kinds.get(column), from_pandas=True)
            for column in frame.columns
        }
        pq.write_table(pa.table(columns), directory / f"{name}.parquet")
    return directory


def order_of(
    raw: Path,
    output: Path,
    specs: Mapping[str, FeatureSpec] = SPECS,
    rules: EventRules | None = None,
    explicit: bool = False,
    **options: Any,
) -> WorkflowOrder[Any, Any]:
    """What the pipeline is asked to do with a log."""
    asked = {"specs": specs, "asked": rules or EventRules(), "labels": explicit}
    reader = type("TestLog", (Log,), asked)()
    chosen = {"min_interactions": 1 if explicit else 4, "workers": 0, **options}
    target = Output(output, DATASET, False, (raw,))
    return WorkflowOrder(
        "log", reader, HistoryOptions(**chosen), raw, target, lambda _: None, False
    )


def run_log(*args: Any, **kwargs: Any) -> Report:
    """Runs the pipeline; see `order_of`."""
    return pipeline.run(order_of(*args, **kwargs))
