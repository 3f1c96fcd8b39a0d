"""What a store keeps: the same as lists in a dictionary, in LMDB and in Redis."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookback.core.errors import UserError
from lookback.formats.stored_histories import (
    HEAD_FILE,
    HEADER_BYTES,
    Record,
    decode_record,
    encode_record,
)
from lookback.serving.store.events import EventError, read_event_table, read_events
from lookback.serving.store.lmdb_records import LmdbRecords
from lookback.serving.store.store import HistoryStore
from tests.serving.store.plain import HEAD, Oracle, drawn


@contextlib.contextmanager
def opened(address: str, *, writes: bool = True) -> Iterator[HistoryStore]:
    with contextlib.closing(HistoryStore.open(address, writes=writes)) as store:
        yield store


def make(address: str, users: list[tuple[Any, Record]] | None = None, **options: Any) -> None:
    HistoryStore.create(address, HEAD, users or [], **options)


def test_random_events_leave_what_lists_in_a_dictionary_have(address: str) -> None:
    make(address)
    rng, oracle = random.Random(0), Oracle()
    sent: list[dict[str, Any]] = []
    with opened(address) as store:
        for _ in range(40):
            call = [drawn(rng, len(sent) + n) for n in range(rng.randrange(1, 8))]
            call += rng.sample(sent, min(len(sent), rng.randrange(3)))
            sent += call
            done = store.append(read_events(HEAD, call))
            assert dataclasses.asdict(done) == oracle.append(call)
            for user, events in oracle.events.items():
                history = store.get(user)
                assert history is not None
                assert history.as_json()["history"] == oracle.columns(user)
                categories = {event["category_id"] for event in events}
                for category in categories:
                    places = history.record.of_category(category).tolist()
                    assert places == [
                        n for n, event in enumerate(events) if event["category_id"] == category
                    ]
                assert history.record.of_category("nobody's").tolist() == []
                newest = history.newest(["item_id"], 5)["item_id"]
                assert newest == oracle.columns(user)["item_id"][-5:]
        assert sorted(store.users()) == sorted(oracle.events)
        assert store.get("nobody") is None
    with opened(address, writes=False) as again:
        for user in oracle.events:
            history = again.get(user)
            assert history is not None and history.as_json()["history"] == oracle.columns(user)


def test_a_table_appends_what_its_rows_do_as_objects(tmp_path: Path) -> None:
    rng = random.Random(1)
    events = [drawn(rng, n) for n in range(30)]
    schema = pa.schema([pa.field("user", pa.string()), *HEAD.event_schema])
    table = pa.Table.from_pylist(events, schema)
    by_objects, by_rows = read_events(HEAD, events), read_event_table(HEAD, table)
    assert by_rows.rows.equals(by_objects.rows)
    assert by_rows.users == by_objects.users


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": 5}, "user: expected the id of a user, a text"),
        ({"user": ""}, "user: expected"),
        ({"user": "x" * 501}, "user: expected"),
        ({"user": "\ud800"}, "user: expected"),
        ({"event_id": 7}, "event_id: expected a text"),
        ({"event_id": ""}, "event_id: expected a text"),
        ({"timestamp": 1.5}, "timestamp: expected whole seconds"),
        ({"timestamp": True}, "timestamp: expected whole seconds"),
        ({"timestamp": 1 << 62}, "timestamp: expected whole seconds"),
        ({"item_id": None}, "item_id: expected an item"),
        ({"item_id": "5"}, "item_id: expected an integer"),
        ({"item_id": 1 << 63}, "item_id: expected an integer"),
        ({"category_id": 5}, "category_id: expected a text"),
        ({"tags": "usb"}, "tags: expected a list of texts"),
        ({"tags": ["usb", None]}, "tags: expected a list of texts"),
        ({"dwell": float("nan")}, "dwell: expected a finite number"),
        ({"dwell": 10**400}, "dwell: expected a finite number"),
        ({"dwell": True}, "dwell: expected a finite number"),
        ({"more": 1}, "'more' is unknown"),
    ],
)
def test_what_is_no_event_is_refused_by_number_and_field(change: dict[str, Any], said: str) -> None:
    events = [drawn(random.Random(0), n) for n in range(3)]
    events[1] |= change
    with pytest.raises(EventError, match=said) as raised:
        read_events(HEAD, events)
    assert raised.value.index == 1


@pytest.mark.parametrize("name", ["user", "event_id", "timestamp", "item_id", "device", "dwell"])
def test_what_is_missing_is_named(name: str) -> None:
    event = drawn(random.Random(0), 0)
    del event[name]
    with pytest.raises(EventError, match=f"{name!r} is missing"):
        read_events(HEAD, [event])


def test_items_features_are_looked_up_where_they_are_left_out() -> None:
    class Items:
        def look_up(self, items: list[Any], feature: str) -> list[Any] | None:
            return [f"of {item}" for item in items] if items != [2] else None

    events = [drawn(random.Random(0), n) | {"item_id": n} for n in range(3)]
    del events[1]["category_id"], events[2]["category_id"]
    with pytest.raises(EventError, match="'category_id' is missing") as raised:
        read_events(HEAD, events)
    assert raised.value.index == 1
    with pytest.raises(EventError, match="the catalogue does not know 2") as raised:
        read_events(HEAD, events, Items())
    assert raised.value.index == 2
    found = read_events(HEAD, events[:2], Items()).rows.column("category_id").to_pylist()
    assert found == [events[0]["category_id"], "of 1"]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array(["1"]), "column item_id: expected integers, found string"),
        (pa.array([None], pa.int64()), "item_id: expected a value"),
    ],
)
def test_tables_of_other_columns_are_refused(column: pa.Array, said: str) -> None:
    schema = pa.schema([pa.field("user", pa.string()), *HEAD.event_schema])
    table = pa.Table.from_pylist([drawn(random.Random(0), 0)], schema)
    place = table.column_names.index("item_id")
    with pytest.raises(UserError, match=said):
        read_event_table(HEAD, table.set_column(place, "item_id", column))
    with pytest.raises(UserError, match="item_id is missing"):
        read_event_table(HEAD, table.drop(["item_id"]))


def record_of(count: int) -> Record:
    events = [drawn(random.Random(n), n) | {"timestamp": n} for n in range(count)]
    return Record({"country": "AT"}, read_events(HEAD, events).rows)


def test_every_changed_byte_of_a_record_is_found() -> None:
    data = encode_record(HEAD, record_of(3))
    assert decode_record(HEAD, data, "x").events.num_rows == 3
    rng = np.random.default_rng(0)
    for place in [*range(HEADER_BYTES), *rng.integers(len(data), size=200).tolist()]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(UserError, match=r"damaged|expected a history of version"):
            decode_record(HEAD, bytes(damaged), "x")
    for length in (0, 3, HEADER_BYTES, len(data) - 1):
        with pytest.raises(UserError, match="damaged"):
            decode_record(HEAD, data[:length], "x")


def test_histories_are_cached_until_they_change(address: str) -> None:
    make(address, [("a", record_of(3)), ("b", record_of(2))])
    rng = random.Random(0)
    with opened(address) as store:
        first = store.get("a")
        assert store.get("a") is first and (store.hits, store.misses) == (1, 1)
        store.append(read_events(HEAD, [drawn(rng, 99) | {"user": "a", "timestamp": 50}]))
        again = store.get("a")
        assert again is not None and first is not None and again is not first
        assert len(again) == len(first) + 1 and again.record.user == {"country": "AT"}
        assert (store.hits, store.misses) == (1, 2)


def test_the_cache_is_bounded(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lookback.serving.store import store as module

    monkeypatch.setattr(module, "MOST_CACHED_EVENTS", 7)
    make(address, [(name, record_of(3)) for name in "abc"])
    with opened(address, writes=False) as store:
        for name in "abaca":  # b goes when c comes: a was asked for since
            store.get(name)
        assert (store.hits, store.misses) == (2, 3)
        store.get("b")
        assert (store.hits, store.misses) == (2, 4)


def test_what_was_deleted_is_nowhere_in_the_files(address: str, request: Any) -> None:
    def secret(n: int) -> dict[str, Any]:
        return drawn(random.Random(n), n) | {"user": "gone-7f3c91", "device": f"secret-{n}-55aa"}

    make(address, [(f"u{n}", record_of(5)) for n in range(50)])
    with opened(address) as store:
        for n in range(20):  # leaves pages behind
            store.append(read_events(HEAD, [secret(n) | {"timestamp": n}]))
            store.append(read_events(HEAD, [drawn(random.Random(n), 100 + n) | {"user": "u1"}]))
        files = Path(address)
        if address.startswith("redis"):
            files = request.getfixturevalue("redis").directory
        assert any(b"secret-" in data for data in contents(files))
        before = {user: store.get(user) for user in store.users() if user != "gone-7f3c91"}
        assert store.delete(["gone-7f3c91", "never"]) == ["never"]
        for data in contents(files):
            assert b"secret-" not in data and b"gone-7f3c91" not in data
        assert store.get("gone-7f3c91") is None
        assert set(store.users()) == set(before)
        for user, history in before.items():
            now = store.get(user)
            assert now is not None and history is not None and now.as_json() == history.as_json()
        store.append(read_events(HEAD, [secret(99)]))  # may come back
        assert len(store.get("gone-7f3c91") or ()) == 1


def contents(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in directory.rglob("*") if path.is_file()]


def test_a_store_is_replaced_only_on_demand(address: str) -> None:
    make(address, [("a", record_of(3))])
    with pytest.raises(UserError, match="--overwrite"):
        make(address, [("b", record_of(2))])
    with opened(address, writes=False) as store:
        assert list(store.users()) == ["a"]
    make(address, [("b", record_of(2))], overwrite=True)
    with opened(address, writes=False) as store:
        assert list(store.users()) == ["b"]


def test_what_was_half_written_is_no_store(address: str) -> None:
    def users() -> Iterator[tuple[str, Record]]:
        yield "a", record_of(3)
        raise UserError("stopped")

    with pytest.raises(UserError, match="stopped"):
        HistoryStore.create(address, HEAD, users())
    with pytest.raises(UserError, match="load-histories"):
        HistoryStore.open(address)
    make(address, [("b", record_of(2))])
    with opened(address, writes=False) as store:
        assert list(store.users()) == ["b"]


def test_what_a_killed_compaction_left_goes_with_the_next_writer(tmp_path: Path) -> None:
    store = tmp_path / "store"
    make(str(store), [("a", record_of(3))])
    left = store / "histories-01234567.mdb"
    left.write_bytes(b"of somebody who is deleted")
    (store / f".{HEAD_FILE}.abc_1234.tmp").write_text("{")
    (store / "notes.txt").write_text("somebody's")
    with opened(str(store), writes=False):
        assert left.exists()
    with opened(str(store)) as histories:
        assert len(histories.get("a") or ()) == 3
        file = json.loads((store / HEAD_FILE).read_text())["file"]
        assert sorted(path.name for path in store.iterdir()) == sorted(
            [file, f"{file}-lock", "notes.txt", HEAD_FILE]
        )
    with pytest.raises(UserError, match=r"did not write notes\.txt"):
        make(str(store), overwrite=True)


def test_a_full_disk_refuses_to_open_rather_than_crash(small_disk: Path) -> None:
    """LMDB's table of readers is mapped: a page without room ends the process."""
    store = small_disk / "store"
    make(str(store), [("a", record_of(3))])
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free // 4096 * 4096))
    with pytest.raises(OSError, match="No space left"):
        HistoryStore.open(str(store))
    (small_disk / "filler").unlink()
    with opened(str(store), writes=False) as histories:
        assert len(histories.get("a") or ()) == 3


@pytest.fixture
def damaged(tmp_path: Path) -> Iterator[tuple[Path, list[Any]]]:
    """The file of a store's records, which a test may damage, and the users' histories."""
    store = tmp_path / "store"
    make(str(store), [(f"user{n}", record_of(60 * n)) for n in range(1, 7)])
    (file,) = store.glob("*.mdb")
    yield file, histories_in(store)


def histories_in(store: Path) -> list[Any]:
    with opened(str(store), writes=False) as histories:
        return [histories.get(f"user{n}").as_json() for n in range(1, 7)]


def test_a_file_that_is_cut_off_is_refused(damaged: tuple[Path, list[Any]]) -> None:
    """LMDB maps it, and a page that is not there is the end of the process."""
    file, before = damaged
    whole = file.read_bytes()
    assert len(whole) > 50_000
    for size in (0, 1, 4096, 9000, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused = pytest.raises(UserError, match=r"is (cut off|damaged).* load the histories again")
        with refused:
            HistoryStore.open(str(file.parent), writes=False)
        # Who writes may mend it, where no record is missing.
        with refused if size < len(whole) - 1 else contextlib.nullcontext():
            HistoryStore.open(str(file.parent), writes=True).close()
            assert histories_in(file.parent) == before
    file.write_bytes(whole)
    assert histories_in(file.parent) == before


def test_a_file_that_lacks_unused_pages_is_whole_to_who_writes(tmp_path: Path) -> None:
    """LMDB never writes pages that a transaction took at the end and gave back."""
    store, many = str(tmp_path / "store"), [f"user{n}" for n in range(10, 400)]
    make(store, [(f"user{n}", record_of(60 * n)) for n in range(1, 7)])
    records = LmdbRecords(Path(store), writes=True)
    data = encode_record(HEAD, record_of(4))
    for after in (data, None):
        records.update({user.encode(): lambda _, after=after: after for user in many})
    records.close()
    before = histories_in(tmp_path / "store")
    (file,) = (tmp_path / "store").glob("*.mdb")
    size = file.stat().st_size
    os.truncate(file, size - 3 * 4096)
    with pytest.raises(UserError, match="is cut off"):
        HistoryStore.open(store, writes=False)
    HistoryStore.open(store, writes=True).close()
    assert file.stat().st_size == size
    assert histories_in(tmp_path / "store") == before


def test_a_file_is_never_shorter_than_its_pages(tmp_path: Path) -> None:
    """Seed 377 leaves four pages that LMDB does not write, with version 0.9 of it."""
    data = [encode_record(HEAD, record_of(n)) for n in range(12)]
    for seed in (377, 84):
        rng, store = random.Random(seed), tmp_path / str(seed)
        keys = [f"u{n}".encode() for n in range(rng.choice([50, 200, 400]))]
        LmdbRecords.create(
            store, HEAD, [(key, rng.choice(data)) for key in sorted(keys)], overwrite=False
        )
        records = LmdbRecords(store, writes=True)
        for _ in range(rng.randrange(1, 6)):
            some = rng.sample(keys, rng.randrange(1, len(keys)))
            there = [key for key in some if records.get(key) is not None]
            after = {key: rng.choice([None, None, rng.choice(data)]) for key in there}
            records.update({key: lambda _, value=after[key]: value for key in there})
        records.close()
        LmdbRecords(store, writes=False).close()


def test_flipped_bytes_of_records_are_refused_or_without_effect(
    damaged: tuple[Path, list[Any]],
) -> None:
    file, before = damaged
    whole, rng, refused = file.read_bytes(), random.Random(3), 0
    for _ in range(50):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= rng.randrange(1, 256)
        file.write_bytes(changed)
        try:
            assert histories_in(file.parent) == before
        except UserError as error:
            assert str(file.parent) in str(error)
            refused += 1
    assert refused > 9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("item_id", "item_ix"), "damaged"),
        (lambda text: text[:-9], "not valid JSON"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 9'), "version 9"),
        (lambda text: "[]", "store.json"),
    ],
)
def test_a_head_that_is_none_is_refused(
    change: Callable[[str], str], said: str, tmp_path: Path
) -> None:
    make(str(tmp_path / "store"))
    head = tmp_path / "store" / HEAD_FILE
    head.write_text(change(head.read_text()))
    with pytest.raises(UserError, match=said):
        HistoryStore.open(str(tmp_path / "store"))


def test_where_there_is_no_store_it_is_said(address: str) -> None:
    with pytest.raises(UserError, match="load-histories"):
        HistoryStore.open(address)


def test_a_second_writer_is_refused_and_readers_see_what_the_first_writes(tmp_path: Path) -> None:
    """The writer is another process; its lock goes with it."""
    store = tmp_path / "store"
    make(str(store), [("a", record_of(3))])
    program = (
        "import sys, random, json\n"
        "from lookback.serving.store.store import HistoryStore\n"
        "from lookback.serving.store.events import read_events\n"
        "store = HistoryStore.open(sys.argv[1], writes=True)\n"
        "for line in sys.stdin:\n"
        "    task = json.loads(line)\n"
        "    if task == 'compact': store.compact()\n"
        "    else: store.append(read_events(store.head, [task]))\n"
        "    print('done', flush=True)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(task: Any) -> None:
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdin.write(json.dumps(task) + "\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "done\n"

    event = drawn(random.Random(0), 7) | {"user": "a", "timestamp": 50}
    try:
        ask(event)
        with opened(str(store), writes=False) as reader:
            assert len(reader.get("a") or ()) == 4
            with pytest.raises(UserError, match="another run is writing"):
                HistoryStore.open(str(store), writes=True)
            with pytest.raises(UserError, match="another run is writing"):
                make(str(store), overwrite=True)
            ask(event | {"event_id": "next"})
            assert len(reader.get("a") or ()) == 5
            ask("compact")
            assert len(reader.get("a") or ()) == 5
            ask(event | {"event_id": "after it"})
            assert len(reader.get("a") or ()) == 6
    finally:
        writer.kill()
        writer.wait()
    with opened(str(store)) as own:
        assert len(own.get("a") or ()) == 6


def test_readers_notice_another_store_in_its_place(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    make(store, [("a", record_of(3))])
    with opened(store, writes=False) as reader:
        make(store, [("a", record_of(2))], overwrite=True)
        assert len(reader.get("a") or ()) == 2
        other = dataclasses.replace(HEAD, vocabularies={"item_id": "b" * 64})
        HistoryStore.create(store, other, [], overwrite=True)
        with pytest.raises(UserError, match="become a store of other histories"):
            reader.get("a")


def test_a_full_disk_refuses_and_recovers(small_disk: Path) -> None:
    store = small_disk / "store"
    make(str(store), [(f"u{n}", record_of(5)) for n in range(20)])
    filler = small_disk / "filler"
    with opened(str(store)) as histories:
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free // 4096 * 4096))
        acknowledged = 0
        with pytest.raises(OSError, match="No space left"):
            for n in range(1000):
                long = {"user": f"new {n}", "device": "x" * 50_000}
                histories.append(read_events(HEAD, [drawn(random.Random(n), n) | long]))
                acknowledged += 1
        with pytest.raises(OSError, match="No space left"):
            histories.compact()
        users = set(histories.users())
        assert len(users) == 20 + acknowledged
        assert sorted(path.name for path in store.iterdir() if path.suffix == ".mdb") == [
            json.loads((store / HEAD_FILE).read_text())["file"]
        ]
        filler.unlink()
        histories.append(read_events(HEAD, [drawn(random.Random(0), 0) | {"user": "later"}]))
        histories.compact()
        assert set(histories.users()) == users | {"later"}


def killed_while_appending(store: Path, rng: random.Random, number: int) -> list[int]:
    """Appends in a process that is killed at a random moment; the events that it acknowledged."""
    program = (
        "import sys\n"
        "from lookback.serving.store.store import HistoryStore\n"
        "from lookback.serving.store.events import read_events\n"
        "store = HistoryStore.open(sys.argv[1], writes=True)\n"
        "first = int(sys.argv[2])\n"
        "for n in range(first, first + 100000):\n"
        "    event = dict(user=f'U{n % 3}', event_id=f'e{n}', timestamp=n, item_id=n,\n"
        "        category_id='c', tags=[], device='d' * (n % 3000), dwell=None)\n"
        "    store.append(read_events(store.head, [event]))\n"
        "    print(n, flush=True)\n"
        "    if n % 20 == 19:\n"
        "        store.compact()\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(store), str(number)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(rng.random() * 0.2)  # at a random moment is the point
    writer.kill()
    rest = writer.stdout.read().splitlines(keepends=True)
    writer.wait()
    return [number, *(int(line) for line in rest if line.endswith("\n"))]


@pytest.mark.slow
def test_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    check_kills(tmp_path / "store", 8)


def check_kills(store: Path, kills: int) -> int:
    """Kills writers, and compares what is left; gives how many events were acknowledged."""
    head = dataclasses.replace(HEAD, max_events=10**6)
    HistoryStore.create(str(store), head, [])
    rng, acknowledged, next_event = random.Random(0), set(), 0
    for _ in range(kills):
        acknowledged |= set(killed_while_appending(store, rng, next_event))
        with opened(str(store), writes=False) as reader:
            found = set()
            for user in reader.users():
                history = reader.get(user)  # whole, or this raises
                assert history is not None
                columns = history.as_json()["history"]
                items = columns["item_id"]
                assert (
                    columns["event_id"]
                    == [f"e{n}" for n in items]
                    == [f"e{t}" for t in columns["timestamp"]]
                )
                assert [len(text) for text in columns["device"]] == [n % 3000 for n in items]
                found |= set(items)
        assert acknowledged <= found
        # At most the one that was under way, whose acknowledgement was lost.
        assert found <= acknowledged | {max(acknowledged) + 1}
        acknowledged, next_event = found, max(found) + 1
    return len(acknowledged)


if __name__ == "__main__":  # python -m tests.serving.store.test_store DIR 50
    print(check_kills(Path(sys.argv[1]), int(sys.argv[2])), "events acknowledged, none lost")
