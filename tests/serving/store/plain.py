"""A history store as plain Python has it: what ours is compared with."""

from __future__ import annotations

import random
from typing import Any

from lookback.formats.stored_histories import Head

HEAD = Head(
    user_id="user_id",
    user_features=("country",),
    item_features=("item_id", "category_id", "tags"),
    context_features=("device",),
    event_features=("dwell",),
    kinds={
        "user_id": "text",
        "country": "text",
        "item_id": "integer",
        "category_id": "text",
        "tags": "texts",
        "device": "text",
        "dwell": "number",
    },
    category="category_id",
    max_events=12,
    vocabularies={"item_id": "a" * 64},
    transforms={},
    dataset={"name": "test", "content_hash": "sha256:0"},
)
FEATURES = HEAD.of_events
COLUMNS = (*FEATURES, "timestamp", "event_id")


class Oracle:
    """The store as plain Python has it: a list of events a user, and the floor below it."""

    def __init__(self, most: int = HEAD.max_events) -> None:
        self.most = most
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.floors: dict[str, int] = {}

    def append(self, events: list[dict[str, Any]]) -> dict[str, int]:
        """All in order; the floor is that of before, for all events of the call."""
        done = {"added": 0, "repeated": 0, "too_old": 0}
        floors = dict(self.floors)
        fresh: set[int] = set()
        ids: set[tuple[str, str]] = set()
        for event in events:
            user = event["user"]
            own = self.events.setdefault(user, [])
            known = {other["event_id"] for other in own}
            if event["event_id"] in known or (user, event["event_id"]) in ids:
                done["repeated"] += 1
            elif event["timestamp"] <= floors.get(user, -(10**18)):
                done["too_old"] += 1
            else:
                own.append(event)
                fresh.add(id(event))
                done["added"] += 1
            ids.add((user, event["event_id"]))
        for user, own in self.events.items():
            own.sort(key=lambda event: event["timestamp"])
            while len(own) > self.most:
                gone = own.pop(0)
                self.floors[user] = gone["timestamp"]
                if id(gone) in fresh:
                    done["added"] -= 1
                    done["too_old"] += 1
        return done

    def columns(self, user: str) -> dict[str, list[Any]]:
        """As `History.as_json` has the events."""
        return {name: [event[name] for event in self.events[user]] for name in COLUMNS}


def drawn(rng: random.Random, number: int, users: int = 3) -> dict[str, Any]:
    """A random event; times repeat, and come out of order."""
    return {
        "user": f"U{rng.randrange(users)} ü",
        "event_id": f"e{number}",
        "timestamp": rng.randrange(40),
        "item_id": rng.randrange(-5, 1 << 40),
        "category_id": rng.choice(["Cables", "Mics", "ü", "", None]),
        "tags": rng.choice([None, [], ["usb"], ["usb", "black ü"]]),
        "device": rng.choice(["phone", None]),
        "dwell": rng.choice([None, 0.0, 12.25, -1e300]),
    }
