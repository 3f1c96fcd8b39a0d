"""What a store in Redis is, and what becomes of it when the server is killed or has no room."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lookback.core.errors import UserError
from lookback.serving.store.events import read_events
from lookback.serving.store.store import HistoryStore
from tests.serving.store.plain import HEAD, drawn
from tests.serving.store.redis_server import RedisServer


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that a test may end."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    yield server
    server.kill()


@contextlib.contextmanager
def opened(server: RedisServer, *, writes: bool = True) -> Iterator[HistoryStore]:
    with contextlib.closing(HistoryStore.open(server.address(), writes=writes)) as store:
        yield store


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"appendfsync": "everysec"}, r"would lose events .*appendfsync everysec"),
        (
            {"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"},
            r"would drop histories .*maxmemory-policy allkeys-lru",
        ),
    ],
)
def test_a_server_that_would_lose_events_is_refused(
    settings: dict[str, str], said: str, own: RedisServer
) -> None:
    HistoryStore.create(own.address(), HEAD, [])
    for name, value in settings.items():
        own.client().config_set(name, value)
    with pytest.raises(UserError, match=said):
        HistoryStore.open(own.address(), writes=True)
    with opened(own, writes=False):  # reading harms nothing
        pass


def test_redis_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/0.*Connection") as raised:
        HistoryStore.open("redis://me:secret@127.0.0.1:1/0")
    assert "secret" not in str(raised.value)


def killed_while_appending(server: RedisServer, rng: random.Random, first: int) -> list[int]:
    """Appends until the server is killed at a random moment; the events it acknowledged."""
    program = (
        "import sys\n"
        "from lookback.serving.store.store import HistoryStore\n"
        "from lookback.serving.store.events import read_events\n"
        "store = HistoryStore.open(sys.argv[1], writes=True)\n"
        "for n in range(int(sys.argv[2]), 10**6):\n"
        "    events = [dict(user=f'U{(n + m) % 3}', event_id=f'e{n} {m}', timestamp=n, item_id=n,\n"
        "        category_id='c', tags=[], device='d' * (n % 3000), dwell=None) for m in (0, 1)]\n"
        "    store.append(read_events(store.head, events))\n"
        "    print(n, flush=True)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, server.address(), str(first)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(rng.random() * 0.2)  # at a random moment is the point
    server.kill()
    rest = writer.stdout.read().splitlines()
    assert writer.wait(30) == 1  # it was told, and acknowledged nothing more
    return [first, *map(int, rest)]


@pytest.mark.slow
def test_kills_of_the_server_lose_nothing_that_was_acknowledged(own: RedisServer) -> None:
    check_kills(own, 8)


def check_kills(server: RedisServer, kills: int) -> int:
    """Kills the server, and compares what is left; gives how many calls were acknowledged."""
    HistoryStore.create(server.address(), dataclasses.replace(HEAD, max_events=10**6), [])
    rng, acknowledged, following = random.Random(0), set(), 0
    for _ in range(kills):
        acknowledged |= set(killed_while_appending(server, rng, following))
        server.start()
        found: dict[str, int] = {}
        with opened(server, writes=False) as reader:
            for user in reader.users():
                history = reader.get(user)  # whole, or this raises
                assert history is not None
                columns = history.as_json()["history"]
                found |= dict(zip(columns["event_id"], columns["item_id"], strict=True))
        calls = set(found.values())
        # Of a call all events are there, or none: each is of another user.
        assert set(found) == {f"e{n} {m}" for n in calls for m in (0, 1)}
        assert acknowledged <= calls <= acknowledged | {max(acknowledged) + 1}
        acknowledged, following = calls, max(calls) + 1
    return len(acknowledged)


def test_full_memory_refuses_and_recovers(own: RedisServer) -> None:
    HistoryStore.create(own.address(), HEAD, [])
    client = own.client()
    client.config_set("maxmemory-policy", "noeviction")
    with opened(own) as histories:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + (2 << 20))
        acknowledged = append_until_full(histories)
        before = {user: len(histories.get(user) or ()) for user in histories.users()}
        assert before == dict.fromkeys(acknowledged, 1)
        with pytest.raises(OSError, match="no room"):
            histories.append(read_events(HEAD, [long(0) | {"event_id": "more"}]))
        assert len(histories.get(acknowledged[0]) or ()) == 1
        client.config_set("maxmemory", 0)
        histories.append(read_events(HEAD, [long(0) | {"event_id": "more"}]))
        assert len(histories.get(acknowledged[0]) or ()) == 2


def test_a_full_disk_refuses_and_loses_nothing(small_disk: Path) -> None:
    server = RedisServer(small_disk)
    try:
        HistoryStore.create(server.address(), HEAD, [])
        filler = small_disk / "filler"
        filler.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - (1 << 20))))
        with opened(server) as histories:
            acknowledged = append_until_full(histories)
        filler.unlink()
        server.kill()  # it ends itself, where it must write before it answers
        server.start()
        with opened(server) as histories:
            # The one under way may have been written, or not.
            assert set(acknowledged) <= set(histories.users())
            assert all(len(histories.get(user) or ()) == 1 for user in histories.users())
            histories.append(read_events(HEAD, [drawn(random.Random(0), 0) | {"user": "later"}]))
    finally:
        server.kill()


def long(number: int) -> dict[str, Any]:
    event = {"user": f"new {number}", "device": "x" * 50_000}
    return drawn(random.Random(number), number) | event


def append_until_full(histories: HistoryStore) -> list[str]:
    """The users whose events were acknowledged."""
    acknowledged: list[str] = []
    with pytest.raises((OSError, UserError)):
        for number in range(1000):
            histories.append(read_events(HEAD, [long(number)]))
            acknowledged.append(f"new {number}")
    assert len(acknowledged) > 5
    return acknowledged


if __name__ == "__main__":  # python -m tests.serving.store.test_redis DIR 50
    server = RedisServer(Path(sys.argv[1]))
    try:
        found = check_kills(server, int(sys.argv[2]))
    finally:
        server.kill()
    print(found, "calls acknowledged, none lost")
