"""A newer dataset in the place of an older one: what was appended since stays, each once."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lookback.core.errors import UserError
from lookback.formats.stored_histories import NO_FLOOR, Record
from lookback.serving.store.events import read_events
from lookback.serving.store.renewal import Renewed
from lookback.serving.store.store import HistoryStore
from tests.serving.store.plain import COLUMNS, HEAD, drawn

NEWER = dataclasses.replace(
    HEAD, vocabularies={"item_id": "b" * 64}, dataset={"name": "test", "content_hash": "sha256:1"}
)
THIRD = dataclasses.replace(NEWER, vocabularies={"item_id": "c" * 64})
HASHED = dataclasses.replace(NEWER, transforms={"device": {"kind": "hash", "buckets": 5}})
UNKNOWN = -9
"""What the newer dataset has in the place of items below 0: its vocabulary left them out."""


def as_known(items: pa.Array) -> list[Any]:
    return [UNKNOWN if item < 0 else item for item in items.to_pylist()]


def record_of(events: list[dict[str, Any]], country: str) -> Record:
    """As a dataset's: its events have no ids."""
    rows = read_events(HEAD, events).rows
    ids = pa.nulls(len(events), pa.string())
    columns = [*rows.columns[:-1], ids]
    return Record({"country": country}, pa.RecordBatch.from_arrays(columns, schema=rows.schema))


@contextlib.contextmanager
def opened(address: str, *, writes: bool = True) -> Iterator[HistoryStore]:
    with contextlib.closing(HistoryStore.open(address, writes=writes)) as store:
        yield store


class Case:
    """Random users, old and new events, and what there must be in the end, by plain Python."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.old: dict[str, list[Any]] = {}
        self.appended: dict[str, list[Any]] = {}
        self.newer: dict[str, list[Any]] = {}
        self.expected: dict[str, list[Any]] = {}
        self.counts = [0, 0]  # kept, found
        number = 0
        for n in range(40):
            user, lists = f"u{n}", []
            for most in (0 if n % 5 == 3 else 4, 0 if n % 3 == 0 else 4, 3):
                lists.append([])
                for _ in range(rng.randrange(most + 1)):
                    event = drawn(rng, number) | {"user": user, "item_id": rng.randrange(-2, 3)}
                    lists[-1].append(event | {"timestamp": rng.randrange(6)})
                    number += 1
            old, appended, other = lists
            if n % 5 != 3:
                self.old[user] = sorted(old, key=lambda event: event["timestamp"])
            self.appended[user] = appended
            if n % 4 == 1:
                found = other = []
            else:
                found = [event for event in appended if rng.random() < 0.5]
                inside = [*old, *other, *found]
                inside.sort(key=lambda event: event["timestamp"])
                self.newer[user] = [e | {"item_id": self.known(e)} for e in inside]
            self.expect(user)

    @staticmethod
    def known(event: dict[str, Any]) -> int:
        return UNKNOWN if event["item_id"] < 0 else event["item_id"]

    def expect(self, user: str) -> None:
        """Of equal (time, item) as many as the larger of the two has; appended ones with ids."""
        inside = [e | {"event_id": None} for e in self.newer.get(user, ())]
        for event in self.appended[user]:
            key = event["timestamp"], self.known(event)
            same = [e for e in inside if (e["timestamp"], e["item_id"]) == key]
            if same:
                inside.remove(same[0])
                self.counts[1] += 1
        both = [*inside, *self.appended[user]]
        self.counts[0] += len(self.appended[user])
        both.sort(key=lambda event: event["timestamp"])
        if user in self.newer or self.appended[user]:
            self.expected[user] = both

    def make(self, address: str) -> None:
        HistoryStore.create(
            address, HEAD, [(u, record_of(events, "old")) for u, events in self.old.items()]
        )
        with opened(address) as store:
            for events in self.appended.values():
                if events:
                    store.append(read_events(HEAD, events))

    def users(self) -> Iterator[tuple[str, Record]]:
        return ((user, record_of(events, "new")) for user, events in self.newer.items())

    def check(self, store: HistoryStore) -> None:
        assert set(store.users()) == set(self.expected)
        for user, events in self.expected.items():
            history = store.get(user)
            assert history is not None
            columns = history.as_json()["history"]
            assert columns == {name: [event[name] for event in events] for name in COLUMNS}
            if user in self.newer:
                assert history.record.user == {"country": "new"}


@pytest.mark.parametrize("seed", range(3))
def test_appended_events_stay_and_are_there_once(address: str, seed: int) -> None:
    case = Case(seed)
    case.make(address)
    with opened(address) as store:
        before = store.get("u2")
        done = store.renew(NEWER, case.users(), as_known)
        assert (done.kept, done.found, done.too_old) == (*case.counts, 0)
        assert done.kept > done.found > 0
        case.check(store)
        assert store.get("u2") is not before  # the cache knows of it
        # Sent again, as an acknowledgement was lost: each counts once.
        again = [event for events in case.appended.values() for event in events]
        assert store.append(read_events(HEAD, again)).repeated == len(again)
    with opened(address, writes=False) as reader:
        assert reader.head == NEWER
        case.check(reader)


def test_the_newest_are_kept_and_what_was_dropped_stays_refused(address: str) -> None:
    most = HEAD.max_events
    HistoryStore.create(address, HEAD, [])
    events = [drawn(random.Random(n), n) | {"user": "a", "timestamp": n} for n in range(most + 3)]
    with opened(address) as store:
        store.append(read_events(HEAD, events))
        late = [drawn(random.Random(99), 99) | {"user": "a", "timestamp": 2}]
        assert store.append(read_events(HEAD, late)).too_old == 1
        assert store.renew(NEWER, [], as_known) == Renewed(kept=most)
        assert store.append(read_events(HEAD, late)).too_old == 1
        later = [drawn(random.Random(n), 0) | {"user": "a", "timestamp": 50 + n} for n in range(10)]
        fresh = record_of(later, "new")
        assert fresh.floor == NO_FLOOR
        assert store.renew(NEWER, [("a", fresh)], as_known) == Renewed(2, 0, most - 2)
        history = store.get("a")
        assert history is not None
        assert history.record.times.tolist() == [most + 1, most + 2, *range(50, 60)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"event_features": ()}, "event_features are"),
        ({"category": None}, "category are category_id there and None"),
        ({"kinds": {**HEAD.kinds, "dwell": "text"}}, "kinds are"),
    ],
)
def test_a_dataset_of_other_events_is_refused(
    change: dict[str, Any], said: str, address: str
) -> None:
    Case(0).make(address)
    with opened(address) as store:
        with pytest.raises(UserError, match=f"--keep: .*{said}"):
            store.renew(dataclasses.replace(NEWER, **change), [], as_known)
        assert store.head == HEAD


def test_who_reads_goes_on_with_the_new_head(address: str) -> None:
    case = Case(0)
    case.make(address)
    with opened(address, writes=False) as reader:
        assert reader.get("u2") is not None
        done(renewing(address, "NEWER"))
        reader.refresh()
        assert reader.head == NEWER
        case.check(reader)
        done(renewing(address, "compact", "THIRD", "compact"))  # meanwhile it sleeps
        case.check(reader)
        assert reader.head == THIRD
        HistoryStore.create(address, NEWER, [], overwrite=True)  # has not followed any
        for read in (reader.refresh, lambda: reader.get("u2")):
            with pytest.raises(UserError, match="become a store of other histories"):
                read()


def test_where_values_are_transformed_otherwise_readers_have_to_start_again(address: str) -> None:
    """A text that stands for a hash stands for another one there."""
    Case(0).make(address)
    with opened(address, writes=False) as reader:
        done(renewing(address, "HASHED"))
        with pytest.raises(UserError, match="become a store of other histories"):
            reader.get("u2")


def test_two_who_renew_at_once_do_not_mix(address: str) -> None:
    """LMDB has one writer; of Redis' the second finds that the first has come before it."""
    case = Case(0)
    case.make(address)
    if "://" not in address:
        pytest.skip("one writer at a time")

    def users() -> Iterator[tuple[str, Record]]:
        yield from itertools.islice(case.users(), 3)
        done(renewing(address, "NEWER"))
        yield from itertools.islice(case.users(), 3, None)

    with opened(address) as store:
        with pytest.raises(UserError, match="somebody else has replaced the store meanwhile"):
            store.renew(THIRD, users(), as_known)
        store.refresh()
        assert store.head == NEWER
        case.check(store)


def done(writer: subprocess.Popen[bytes]) -> None:
    writer.communicate()
    assert writer.returncode == 0


def renewing(address: str, *steps: str) -> subprocess.Popen[bytes]:
    """A process that renews, a user at a time, and says each; or compacts in between."""
    program = (
        "import sys, time\n"
        "from lookback.serving.store import store as module\n"
        "from tests.serving.store import test_renewal as test\n"
        "module._USERS_AT_ONCE = 1\n"
        "case = test.Case(0)\n"
        "def users():\n"
        "    for one in case.users():\n"
        "        print(one[0], flush=True)\n"
        "        yield one\n"
        "        time.sleep(0.002)\n"
        "with test.opened(sys.argv[1]) as store:\n"
        "    for step in sys.argv[2:]:\n"
        "        if step == 'compact':\n"
        "            store.compact()\n"
        "        else:\n"
        "            store.renew(getattr(test, step), users(), test.as_known)\n"
    )
    root = Path(__file__).resolve().parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", program, address, *steps], stdout=subprocess.PIPE, cwd=root
    )


def killed_while_renewing(address: str, rng: random.Random) -> None:
    """Kills such a process at a random moment."""
    writer = renewing(address, "NEWER")
    assert writer.stdout is not None
    for _ in range(rng.randrange(1, 28)):
        assert writer.stdout.readline().startswith(b"u")
    time.sleep(rng.random() * 0.003)
    writer.kill()
    writer.wait()


@pytest.mark.slow
def test_kills_lose_nothing_and_the_next_try_ends_it(address: str) -> None:
    case, rng = Case(0), random.Random(0)
    case.make(address)
    appended = {e["event_id"] for events in case.appended.values() for e in events}
    halves = 0
    for _ in range(10):
        killed_while_renewing(address, rng)
        with opened(address) as store:
            found: set[Any] = set()
            countries = set()
            for user in store.users():
                history = store.get(user)  # whole, or this raises
                assert history is not None
                found |= set(history.as_json()["history"]["event_id"])
                countries.add(history.record.user.get("country"))
            assert appended <= found
            halves += store.head == HEAD and "new" in countries
            # With the old head, too, it takes events.
            assert store.head in (HEAD, NEWER)
    assert halves > 5  # kills came in between
    with opened(address) as store:
        store.renew(NEWER, case.users(), as_known)
        case.check(store)
