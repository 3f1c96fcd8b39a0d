"""A tiny log with features of every kind, raw; and a dataset of it, encoded by code of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from merlin.schema import Schema

from lookback.formats.bags import write_bags
from lookback.formats.dataset_info import (
    EXPLICIT,
    FEATURES,
    HISTORIES,
    LABELS,
    impression_count,
    write_info,
)
from lookback.formats.features import HistoryFeatures, dataset_column, history_name
from lookback.formats.histories import write_catalogue, write_histories
from lookback.formats.history_columns import category, number, typed_columns
from lookback.formats.impressions import IMPRESSIONS_DIRECTORY
from lookback.formats.part_files import part_name
from lookback.formats.raw_ids import ID_DIRECTORY
from lookback.formats.schema import write_schema
from lookback.formats.vocabulary import HASHED, hashed_key, id_file

USERS, ITEMS = 12, 20

KNOWN: dict[str, list[Any]] = {
    "user_id": [f"U{n:02d}" for n in range(USERS)],
    "item_id": list(range(100, 100 + ITEMS)),
    "country": ["AT", "DE", "CH"],
    "interests": ["music", "sports", "news", "art"],
    "category_id": ["Cables", "Mics", "ü"],
    "device": ["phone", "tv"],
    "sensors": ["gps", "camera"],
    "rating": [5, 3, 1],
    "actions": ["save", "share", "like"],
}
"""Vocabularies: raw values in the order of their ids, from 3 on."""

SAID: dict[str, dict[str, Any]] = {
    "country": {"of": "user", "type": "vocabulary"},
    "interests": {"of": "user", "type": "vocabulary", "bag": {"most": 2, "separator": None}},
    "age": {
        **{"of": "user", "type": "number", "fill": 40.0, "log": False, "clip": [18, 90]},
        **{"mean": 40.0, "scale": 12.5},
    },
    "category_id": {"of": "item", "type": "vocabulary"},
    "genres": {"of": "item", "type": "hash", "buckets": 6, "bag": {"most": 3, "separator": "|"}},
    "brand": {"of": "item", "type": "hash", "buckets": 5},
    "year": {"of": "item", "type": "buckets", "boundaries": [1990.0, 2000.0]},
    "price": {
        **{"of": "item", "type": "number", "fill": 0.0, "log": True, "clip": None},
        **{"mean": 2.0, "scale": 0.5},
    },
    "device": {"of": "context", "type": "vocabulary"},
    "sensors": {"of": "context", "type": "vocabulary", "bag": {"most": 2, "separator": None}},
    "hour": {
        **{"of": "context", "type": "number", "fill": 12.0, "log": False, "clip": None},
        **{"mean": 12.0, "scale": 7.0},
    },
    "rating": {"of": "event", "type": "vocabulary"},
    "actions": {"of": "event", "type": "vocabulary", "bag": {"most": 3, "separator": None}},
    "dwell": {
        **{"of": "event", "type": "number", "fill": 0.0, "log": True, "clip": [0, 600]},
        **{"mean": 3.0, "scale": 2.0},
    },
}
"""``features`` of dataset.json."""

NAMES = {role: [n for n, s in SAID.items() if s["of"] == role] for role in ("user", "item")}
OF_CONTEXT = [n for n, s in SAID.items() if s["of"] == "context"]
OF_EVENT = [n for n, s in SAID.items() if s["of"] == "event"]


class Asked(NamedTuple):
    """Whose moment it is, the events before it, what it is like, and the candidates."""

    user: str
    past: list[dict[str, Any]]
    moment: dict[str, Any]
    items: list[Any]


class TypedLog:
    """Raw values: dictionaries of users and items by id, lists of events by user.

    Each event is a dictionary of its item, features and timestamp.
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def one(name: str, *more: Any) -> Any:
            values = [*KNOWN[name], None, *more]
            return values[rng.integers(len(values))]

        def some(values: list[str]) -> list[str] | None:
            count = rng.integers(-1, len(values) + 1)
            return None if count < 0 else rng.permutation(values)[:count].tolist()

        def amount(*choices: float | None) -> float | None:
            return choices[rng.integers(len(choices))]

        self.users = {
            user: {
                "country": one("country"),
                "interests": some(KNOWN["interests"]),
                "age": amount(None, 15, 33.5, 70, 99),
            }
            for user in KNOWN["user_id"]
        }
        self.items = {
            item: {
                "category_id": one("category_id"),
                "genres": some(["drama", "comedy", "horror", "romance", "war"]),
                "brand": amount(None, 7) if rng.random() < 0.3 else str(one("category_id")),
                "year": amount(None, 1989, 1990, 1999.5, 2000, 2020),
                "price": amount(None, 0, 7.5, 19.99, 1200),
            }
            for item in KNOWN["item_id"]
        }
        self.events: dict[str, list[dict[str, Any]]] = {}
        for user in self.users:
            times = 1_600_000_000 + np.cumsum(rng.integers(1, 10**6, rng.integers(2, 12)))
            self.events[user] = [
                {
                    "item_id": KNOWN["item_id"][rng.integers(ITEMS)],
                    "device": one("device"),
                    "sensors": some(KNOWN["sensors"]),
                    "hour": amount(None, 0, 6.5, 23),
                    "rating": one("rating"),
                    "actions": some(KNOWN["actions"]),
                    "dwell": amount(None, 0, 12.25, 599, 5000),
                    "timestamp": int(time),
                }
                for time in times
            ]

        self.shown = []
        for user in self.users:
            for time in rng.integers(1_600_000_000, 1_600_000_000 + 5 * 10**6, 3).tolist():
                like = self.events[user][rng.integers(len(self.events[user]))]
                label = int(rng.integers(2))
                self.shown.append({**like, "user": user, "timestamp": time, "label": label})

    def last(self, user: str, items: list[Any]) -> Asked:
        """The moment of the user's last event."""
        *past, last = self.events[user]
        return Asked(user, past, last, items)

    def at(self, impression: dict[str, Any], items: list[Any]) -> Asked:
        """The moment of an impression of `shown`."""
        user, now = impression["user"], impression["timestamp"]
        past = [event for event in self.events[user] if event["timestamp"] < now]
        return Asked(user, past, impression, items)

    def request(self, asked: Asked) -> dict[str, Any]:
        """As one would write it who knows the raw data alone."""
        user, past, last, items = asked
        history = {n: [event[n] for event in past] for n in self.events[user][0]}
        history |= {n: [self.items[i][n] for i in history["item_id"]] for n in NAMES["item"]}
        return {
            "user_id": user,
            **self.users[user],
            **{name: last[name] for name in OF_CONTEXT},
            "history": history,
            "candidates": {
                "item_id": items,
                **{name: [self.items[i][name] for i in items] for name in NAMES["item"]},
            },
            "timestamp": last["timestamp"],
        }


def encoded(name: str, value: Any) -> Any:
    """What the model reads of a raw value: an id, M ids of a bag, or a number."""
    said = SAID.get(name, {"type": "vocabulary"})
    if "bag" in said:
        ids = sorted({_id(name, said, element) for element in value or ()})
        return [*ids, *[0] * said["bag"]["most"]][: said["bag"]["most"]]
    if said["type"] == "number":
        x = said["fill"] if value is None else value
        low, high = said["clip"] or (-math.inf, math.inf)
        x = min(max(x, low), high)
        x = math.log1p(x) if said["log"] else x
        return np.float32((x - said["mean"]) / said["scale"])
    if said["type"] == "buckets":
        return 1 if value is None else 3 + sum(value >= bound for bound in said["boundaries"])
    return _id(name, said, value)


def _id(name: str, said: dict[str, Any], value: Any) -> int:
    if value is None:
        return 1
    if said["type"] == "hash":
        data = str(value).encode()
        return 3 + (hashed_key(data, 0, len(data), int) & (HASHED - 1)) % said["buckets"]
    return 3 + KNOWN[name].index(value)


def schema() -> Schema:
    """Of the dataset."""
    columns = [
        number(name, said["of"])
        if said["type"] == "number"
        else category(name, said["of"], said["bag"]["most"] if "bag" in said else None)
        for name, said in SAID.items()
    ]
    rows = {name: 3 + len(known) for name, known in KNOWN.items()}
    rows |= {name: 3 + SAID[name]["buckets"] for name in ("genres", "brand")} | {"year": 6}
    return Schema(
        [
            dataset_column(
                column,
                {"domain": {"min": 0, "max": rows[column.name] - 1, "name": column.name}}
                if column.is_categorical
                else {},
            )
            for column in typed_columns(columns)
        ]
    )


def batch_of(log: TypedLog, asked: list[Asked], slots: int) -> dict[str, Any]:
    """What the model reads of what is asked: without time gaps.

    Args:
      log: of the users.
      asked: with equally many candidates each.
      slots: T.
    """
    features = HistoryFeatures.from_schema(schema())
    batch: dict[str, list[Any]] = {}

    def value(event: dict[str, Any], name: str) -> Any:
        raw = event[name] if name in event else log.items[event["item_id"]][name]
        return encoded(name, raw)

    for user, past, last, items in asked:
        for name in features.of("user"):
            raw = user if name == "user_id" else log.users[user][name]
            batch.setdefault(name, []).append(encoded(name, raw))
        for name in features.of("context"):
            batch.setdefault(name, []).append(value(last, name))
        for name in features.of("item"):
            batch.setdefault(name, []).append([value({"item_id": i}, name) for i in items])
        for name in features.of("item", "context", "event"):
            events = [value(event, name) for event in past[-slots:]]
            padding = np.zeros_like(value(log.events[user][0], name)).tolist()
            batch.setdefault(history_name(name), []).append(
                [padding] * (slots - len(events)) + events
            )
    numbers = {n for name in features.numbers for n in (name, history_name(name))}
    return {n: np.array(v, np.float32 if n in numbers else np.int32) for n, v in batch.items()}


def write(log: TypedLog, directory: Path, *, explicit: bool = False) -> None:
    """Writes the dataset; with explicit labels, those of the impressions."""
    features = HistoryFeatures.from_schema(schema())
    categories = directory / ID_DIRECTORY
    categories.mkdir(parents=True)
    for name, known in KNOWN.items():
        frame = pd.DataFrame({name: known, f"{name}_size": 1})
        frame.index = pd.RangeIndex(3, 3 + len(known))
        frame.to_parquet(categories / id_file(name))
    events = [event for user in log.users for event in log.events[user]]
    raw: dict[str, list[Any]] = {name: [e[name] for e in events] for name in events[0]}
    raw |= {n: [log.items[i][n] for i in raw["item_id"]] for n in NAMES["item"]}
    raw |= {n: [user[n] for user in log.users.values()] for n in NAMES["user"]}
    raw["user_id"] = list(log.users)
    items = {"item_id": list(log.items)}
    items |= {n: [item[n] for item in log.items.values()] for n in NAMES["item"]}
    bags: dict[str, dict[tuple[int, ...], int]] = {}

    def column(name: str, values: list[Any]) -> np.ndarray:
        if name == "timestamp":
            return np.array(values, np.int64)
        found = [encoded(name, value) for value in values]
        if name not in features.bags:
            return np.array(found, np.float32 if name in features.numbers else np.int32)
        numbers = bags.setdefault(name, {(): 1})
        contents = [tuple(i for i in ids if i) for ids in found]
        return np.array([numbers.setdefault(c, 2 + len(numbers)) for c in contents], np.int32)

    users = {n: column(n, raw[n]) for n in features.of("user")}
    lists = (*features.of("item", "context", "event"), "timestamp")
    offsets = np.cumsum([0, *(len(of) for of in log.events.values())])
    write_histories(directory, users, offsets, {n: column(n, raw[n]) for n in lists}, files=2)
    counts = pd.Series(raw["item_id"]).value_counts().reindex(items["item_id"], fill_value=1)
    catalogue = {n: column(n, items[n]) for n in features.of("item")}
    write_catalogue(directory, {**catalogue, "count": counts.to_numpy()})
    shown = log.shown if explicit else []
    for split in ("train", "test") if explicit else ():
        item_of = [log.items[impression["item_id"]] | impression for impression in shown]
        own = {"user": np.array([list(log.users).index(row["user"]) for row in shown])}
        own["position"] = np.array([len(log.at(row, []).past) for row in shown], np.int32)
        own |= {n: column(n, [r[n] for r in item_of]) for n in features.of("item", "context")}
        own["timestamp"] = column("timestamp", [row["timestamp"] for row in shown])
        own["label"] = np.array([row["label"] for row in shown], np.int8)
        place = directory / IMPRESSIONS_DIRECTORY / split
        place.mkdir(parents=True)
        pq.write_table(pa.table(own), place / part_name(0))
    for name, numbers in bags.items():
        contents = [(), (), *numbers]  # padding, missing, unknown
        lengths = np.array([len(content) for content in contents])
        write_bags(directory, name, lengths, np.array([i for c in contents for i in c], np.int32))
    write_schema(schema(), directory)
    counts_said = {"users": len(log.users), "events": len(events), "items": len(items["item_id"])}
    counts_said |= {impression_count(name): len(shown) for name in ("train", "test") if shown}
    content = {
        **({LABELS: EXPLICIT} if explicit else {}),
        **{"dataset": "log", "content_hash": "sha256:0", "counts": counts_said},
        **{"split": {"rule": "leave_last_out", "test": 1, "validation": 0}, FEATURES: SAID},
    }
    write_info(directory, HISTORIES, json.loads(json.dumps(content)))
