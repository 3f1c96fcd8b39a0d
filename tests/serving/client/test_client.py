"""The client against servers of a test's own: what it tries again, gives up, and keeps."""

from __future__ import annotations

import http.server
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lookback.core.errors import UserError
from lookback.serving.client.answers import RowScore, ScoredItem, UserRanking
from lookback.serving.client.client import Client, RefusedError, UnavailableError

Reply = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body; None: the connection is cut."""


class Scripted:
    """Replies one after another, and keeps what it was asked."""

    def __init__(self, replies: Iterator[Reply]) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.connections = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                outer.asked.append((self.path, self.rfile.read(length)))
                reply = next(replies)
                if reply is None:
                    self.close_connection = True
                    return
                status, headers, body = reply
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                if headers.get("X-Then") == "close":  # without a word of it
                    self.close_connection = True

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    servers = []

    def start(*replies: Reply) -> Scripted:
        servers.append(Scripted(iter(replies)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def good(*answers: Any, **headers: str) -> Reply:
    return 200, headers, json.dumps(list(answers)).encode()


def busy(after: str | None = None) -> Reply:
    return 503, {} if after is None else {"Retry-After": after}, b'{"error": "too much waits"}'


ROW = {"probability": 0.5, "logit": 0.0}


def test_answers_are_types(scripted):
    ranking = {
        "user_id": "U1",
        "candidates": [
            {"item_id": "B", "price": None, "probability": 0.75, "logit": 1.1, "known": False},
            {"item_id": "A", "probability": 0.25, "logit": -1.1},
        ],
    }
    server = scripted(good(ranking, ROW))
    with Client(server.address + "/") as client:
        found = client.score("a model/é", [{"user_id": "U1"}, {"x": 1}])
    first, second = (
        ScoredItem({"item_id": "B", "price": None}, 0.75, 1.1, False),
        ScoredItem({"item_id": "A"}, 0.25, -1.1),
    )
    assert found == [UserRanking({"user_id": "U1"}, (first, second)), RowScore(0.5, 0.0)]
    ((path, body),) = server.asked
    assert path == "/v2/models/a%20model%2F%C3%A9/score"
    assert json.loads(body) == [{"user_id": "U1"}, {"x": 1}]


def test_one_connection_serves_many_calls_and_a_closed_one_is_replaced(
    scripted,
):
    server = scripted(good(ROW), good(ROW), good(ROW, **{"X-Then": "close"}), good(ROW))
    waits: list[float] = []
    with Client(server.address, sleep=waits.append) as client:
        for _ in range(3):
            client.score("m", [{}])
        assert server.connections == 1
        client.score("m", [{}])
    assert server.connections == 2 and waits == []  # nothing was wrong


def test_what_may_pass_is_tried_again_and_longer_each_time(scripted):
    server = scripted(None, busy(), busy("3"), busy(), good(ROW))
    waits: list[float] = []
    with Client(server.address, sleep=waits.append) as client:
        assert client.score("m", [{}]) == [RowScore(0.5, 0.0)]
    assert len(server.asked) == 5 and len(waits) == 4
    assert 0.05 <= waits[0] <= 0.1 <= waits[1] <= 0.2 and waits[2] == 3.0
    assert 0.4 <= waits[3] <= 0.8


@pytest.mark.parametrize("status", [400, 404, 413, 500])
def test_what_is_refused_is_not_tried_again(scripted, status):
    server = scripted((status, {}, b'{"error": "no such thing"}'), good(ROW))
    with Client(server.address) as client, pytest.raises(RefusedError, match="no such thing") as e:
        client.score("m", [{}])
    assert e.value.status == status and len(server.asked) == 1


def test_it_gives_up(scripted):
    server = scripted(*itertools.repeat(busy(), 3))
    with (
        Client(server.address, retries=2, sleep=lambda _: None) as client,
        pytest.raises(UnavailableError, match="3 times: too much waits"),
    ):
        client.score("m", [{}])
    assert len(server.asked) == 3
    server = scripted(busy("60"))  # longer than it may take
    with (
        Client(server.address, timeout=5, sleep=lambda _: pytest.fail("waited")) as client,
        pytest.raises(UnavailableError, match="for at most 5 s"),
    ):
        client.score("m", [{}])
    server.close()
    with (
        Client(server.address, sleep=lambda _: None) as client,
        pytest.raises(UnavailableError, match=r"refused.*lookback serving serve"),
    ):
        client.score("m", [{}])
    assert not client.ready()


def test_a_server_that_says_nothing_is_not_waited_for_longer_than_said():
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2) as client,
        pytest.raises(UnavailableError, match="no answer came"),
    ):
        client.score("m", [{}])


def test_many_requests_go_in_several_calls_and_errors_count_all_of_them(scripted):
    server = scripted(
        good(*[ROW] * 256), (400, {}, b'{"error": "requests[2]: user_id: expected text."}')
    )
    with (
        Client(server.address) as client,
        pytest.raises(RefusedError, match=r"^requests\[258\]: user_id: expected text\.$"),
    ):
        client.score("m", [{"number": n} for n in range(300)])
    assert [len(json.loads(body)) for _, body in server.asked] == [256, 44]


def test_large_requests_go_in_calls_of_bounded_size(scripted):
    text = "é" * (3 << 19)  # 3 MiB of UTF-8
    server = scripted(good(ROW, ROW), good(ROW, ROW), good(ROW))
    with Client(server.address) as client:
        assert len(client.score("m", [{"x": text}] * 5)) == 5
    assert [len(json.loads(body)) for _, body in server.asked] == [2, 2, 1]


@pytest.mark.parametrize(
    "server", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:p", "http://x?y"]
)
def test_addresses(server):
    with pytest.raises(UserError, match=r"server: expected an address such as http://127"):
        Client(server)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800"])
def test_what_json_cannot_say_is_not_sent(scripted, value):
    server = scripted()
    with Client(server.address) as client, pytest.raises(UserError, match=r"requests\[1\]"):
        client.score("m", [{}, {"x": value}])
    assert server.asked == []


def test_what_is_no_answer_is_an_error(scripted):
    server = scripted((200, {}, b"<html>"), (502, {}, b"<html>Bad gateway"))
    with Client(server.address) as client:
        with pytest.raises(UserError, match=r"the answer of http://.* is not valid JSON"):
            client.score("m", [{}])
        with pytest.raises(RefusedError, match="HTTP status 502, b'<html>Bad gateway'"):
            client.score("m", [{}])
