"""Bad requests by the thousand: each is answered with 4xx and a sentence, none takes memory."""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tests.serving.server.running import Running

SCORE, INFER = "/v2/models/sim/score", "/v2/models/sim/infer"
VALUES = (
    *(None, True, -1, 10**400, 1e308, "", "x" * 10_000, "\x00", "\U0001f600", [], {}, [[]], [None]),
    *({"a": {}}, [1, "a"], 2**63, -(2**63) - 1, 0.5, [{}], ["B000", 7], {"item_id": None}),
)
"""Of the wrong kind in most places."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values in a request."""
    if path:
        yield path
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, held in inner:
            yield from places(held, (*path, key))


def mutated(draw: random.Random, request: dict[str, Any]) -> Any:
    """The request with one value replaced, left out or repeated; it may be as good as before."""
    changed = json.loads(json.dumps(request))
    *way, last = draw.choice(list(places(changed)))
    holder = changed
    for key in way:
        holder = holder[key]
    kind = draw.randrange(3)
    if kind == 0:
        holder[last] = draw.choice(VALUES)
    elif kind == 1:
        del holder[last]
    elif isinstance(holder, dict):
        holder[f"{last}\u200b"] = holder[last]
    else:
        holder.append(draw.choice(VALUES))
    return changed


def broken(draw: random.Random, body: bytes) -> bytes:
    """Bytes that are no JSON, or say something else."""
    place = draw.randrange(len(body))
    return draw.choice(
        (
            lambda: body[:place],
            lambda: body[:place] + bytes([draw.randrange(256)]) + body[place:],
            lambda: body[:place] + b"NaN" + body[place + 1 :],
            lambda: body.replace(b"1", b"1" * 5000, 1),
            lambda: b"[" * draw.randrange(1, 20_000),
            lambda: b'{"a":' * draw.randrange(1, 3000),
            lambda: draw.randbytes(draw.randrange(200)),
            lambda: body.decode("latin-1").encode("utf-16"),
            lambda: b"",
        )
    )()


def tensor_of(draw: random.Random, texts: list[str]) -> tuple[bytes, dict[str, str]]:
    """A body of `infer` with one fault in its tensor or its binary part."""
    packed = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    tensor: dict[str, Any] = {"name": "request", "datatype": "BYTES", "shape": [len(texts), 1]}
    binary = draw.random() < 0.5
    if binary:
        tensor["parameters"] = {"binary_data_size": len(packed)}
    else:
        tensor["data"] = texts
    call: dict[str, Any] = {"inputs": [tensor]}
    fault = draw.randrange(8)
    if fault == 0:
        tensor[draw.choice(list(tensor))] = draw.choice(VALUES)
    elif fault == 1:
        call[draw.choice(("inputs", "outputs", "id", "parameters"))] = draw.choice(VALUES[1:])
    elif fault == 2:
        packed = packed[: draw.randrange(len(packed))]
    elif fault == 3:
        packed = struct.pack("<I", draw.randrange(1 << 32)) + packed[4:]
    elif fault == 4:
        call["parameters"] = {"model_variant": draw.choice(("nobody", *VALUES[1:]))}
    elif fault == 5:
        tensor["shape"] = draw.choice(([1 << 62], [-1, 1], [], [1.5], ["1"], [len(texts), 2]))
    elif fault == 6:
        packed += b"\0"
    header = json.dumps(call).encode()
    if not binary and fault not in (2, 3, 6):
        return header, {}
    length = draw.choice(
        (str(len(header)), *("-1", "x", "1e3", "9" * 30, "0"))[: 1 + 5 * (fault == 7)]
    )
    return header + packed, {"Inference-Header-Content-Length": length}


def drawn(draw: random.Random, good: dict[str, Any]) -> tuple[str, bytes, dict[str, str]]:
    """An address, a body and headers."""
    kind = draw.randrange(6)
    if kind <= 1:
        requests = [mutated(draw, good) for _ in range(draw.randrange(1, 3))]
        return SCORE, json.dumps(requests if len(requests) > 1 else requests[0]).encode(), {}
    if kind == 2:
        return SCORE, broken(draw, json.dumps(good).encode()), {}
    if kind == 3:
        return INFER, *tensor_of(draw, [json.dumps(mutated(draw, good))])
    if kind == 4:
        return INFER, broken(draw, tensor_of(draw, ["{}"])[0]), {}
    words = (
        "nobody",
        "sim/versions/9",
        "sim%00",
        "..%2f",
        "\u00fc".encode().hex(),
        "sim/versions/x",
    )
    return f"/v2/models/{draw.choice(words)}/score", json.dumps(good).encode(), {}


def fuzz(server: Running, good: dict[str, Any], seed: int, count: int) -> dict[int, int]:
    """Sends bad requests; how many were answered with which status."""
    draw, statuses = random.Random(seed), dict[int, int]()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for _ in range(count):
        path, body, headers = drawn(draw, good)
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        said = f"{path} {body[:300]!r}: {answer.status} {content[:300]!r}"
        assert answer.status in {200, 400, 404}, said
        if answer.status != 200:
            assert 0 < len(json.loads(content)["error"]) <= 2000, said
            assert b"Traceback" not in content, said
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
    connection.close()
    return statuses


@pytest.fixture(scope="module")
def server(sim_bundle: Any) -> Iterator[Running]:
    from lookback.serving.server.models import Models

    models = Models()
    models.load("sim", sim_bundle)
    running = Running(models)
    yield running
    running.close()


@pytest.fixture
def good(raw: Any) -> dict[str, Any]:
    request: dict[str, Any] = raw.request("U001", ["B000", "B001"])
    return request


def test_bad_requests_are_refused_with_a_sentence(server: Running, good: dict[str, Any]) -> None:
    statuses = fuzz(server, good, seed=0, count=300)
    assert statuses[400] > 150 and statuses[404] > 20
    assert server.score(good).status == 200


@pytest.mark.slow
def test_ten_thousand_bad_requests_take_no_memory(server: Running, good: dict[str, Any]) -> None:
    fuzz(server, good, seed=1, count=1000)
    before = psutil.Process().memory_info().rss
    statuses = fuzz(server, good, seed=2, count=9000)
    assert statuses[400] > 5000
    assert psutil.Process().memory_info().rss - before < 64 << 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["candidates"]["item_id"].extend(["B000"] * 5000), "at most 5,000"),
        (lambda r: r["history"]["item_id"].extend(["B000"] * 60_000), "at most 50,000"),
    ],
)
def test_lists_that_are_too_long_are_refused(
    server: Running, good: dict[str, Any], change: Callable[[Any], None], said: str
) -> None:
    change(good)
    for part in ("candidates", "history"):
        lists = good[part]
        lists["category_id"] += ["cat 0 ü"] * (len(lists["item_id"]) - len(lists["category_id"]))
        if "timestamp" in lists:
            more = len(lists["item_id"]) - len(lists["timestamp"])
            lists["timestamp"] += [lists["timestamp"][-1]] * more
    answer = server.score(good)
    assert answer.status == 400 and said in answer.error


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: -1\r\n", 400),
        (b"Content-Length: 5, 6\r\n", 400),
        (b"Content-Length: x\r\n", 400),
        (b"Content-Length: 99999999999\r\n", 400),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"Transfer-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"X" * 100_000 + b": 1\r\n", 431),
    ],
)
def test_what_is_no_http_is_refused(server: Running, head: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"POST " + SCORE.encode() + b" HTTP/1.1\r\nHost: localhost\r\n")
        try:
            connection.sendall(head + b"\r\n")
            answer = connection.recv(1000)
        except ConnectionError:
            answer = b""
    # The connection ends without an answer, or with a client's fault.
    assert not answer or answer.split()[1].startswith(b"4"), answer
    assert server.call("GET", "/v2/health/ready").status == 200
