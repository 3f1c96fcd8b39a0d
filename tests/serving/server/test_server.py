"""The server over real connections: its protocol, its limits, and what is exchanged under load."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import http.client
import json
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.serving.commands import PROGRAM
from lookback.serving.requests import RequestError
from lookback.serving.scores import Scores
from lookback.serving.server.backlog import MOST_CLIENTS
from lookback.serving.server.run import named_bundles
from tests.serving.json_schema import accepts
from tests.serving.server.running import TOKEN, Running


@pytest.fixture(scope="module")
def bundle(train_sim: Callable[[bool], Any]) -> Path:
    return train_sim(False).bundle


@pytest.fixture(scope="module")
def requests(bundle: Path, raw: Any) -> list[dict[str, Any]]:
    return [raw.request(f"U{user:03d}", [f"B{n:03d}" for n in range(5)]) for user in range(8)]


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    from lookback.serving.server.models import Models

    models = Models()
    models.load("sim", bundle)
    running = Running(models)
    yield running
    running.close()


@pytest.fixture(scope="module")
def expected(bundle: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the command `score` answers."""
    from lookback.serving.bundle import Bundle
    from lookback.serving.layouts.registry import LAYOUTS

    loaded = Bundle.load(bundle)
    layout = LAYOUTS[loaded.manifest.layout]
    scores = loaded.score(requests)
    return [
        layout.answer(request, loaded.manifest, found)
        for request, found in zip(requests, scores, strict=True)
    ]


def alike(answer: Any, expected: Any) -> None:
    """Equal but for the last digits of numbers, which depend on what is scored together."""
    if isinstance(expected, dict):
        assert list(answer) == list(expected)
        for name, value in expected.items():
            alike(answer[name], value)
    elif isinstance(expected, list):
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected, strict=True):
            alike(one, other)
    elif isinstance(expected, float):
        assert answer == pytest.approx(expected, rel=1e-5, abs=1e-6)
    else:
        assert answer == expected


def test_answers_are_those_of_the_command(server, requests, expected):
    alike(server.score(requests[0]).json, expected[0])
    alike(server.score(requests).json, expected)


def test_each_request_is_checked_once(server, requests, expected, monkeypatch):
    kind = type(server.models.served["sim"].bundle.encoder)
    check, seen = kind.check, []

    def counted(self: Any, index: int, request: Any, **how: Any) -> int:
        seen.append(index)
        return check(self, index, request, **how)

    monkeypatch.setattr(kind, "check", counted)
    alike(server.score(requests).json, expected)
    assert seen == list(range(len(requests)))


def test_tensors_of_text_as_triton_has_them(server, requests, expected):
    tensor = {"name": "request", "datatype": "BYTES", "shape": [8]}
    texts = [json.dumps(request) for request in requests]
    body = {"id": "7", "inputs": [{**tensor, "data": texts}]}
    answer = server.call("POST", "/v2/models/sim/infer", body).json
    (output,) = answer.pop("outputs")
    assert answer == {"model_name": "sim", "model_version": "1", "id": "7"}
    assert (output["name"], output["datatype"], output["shape"]) == ("answer", "BYTES", [8])
    alike([json.loads(text) for text in output["data"]], expected)

    packed = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    header = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": len(packed)}}],
            "outputs": [{"name": "answer", "parameters": {"binary_data": True}}],
        }
    ).encode()
    length = {"Inference_Header_Content_Length": str(len(header))}
    answer = server.call("POST", "/v2/models/sim/versions/1/infer", header + packed, **length)
    end = int(answer.headers["Inference-Header-Content-Length"])
    said, rest = json.loads(answer.body[:end]), answer.body[end:]
    assert said["outputs"][0]["parameters"] == {"binary_data_size": len(rest)}
    found = []
    while rest:
        (size,) = struct.unpack_from("<I", rest)
        found.append(json.loads(rest[4 : 4 + size]))
        rest = rest[4 + size :]
    alike(found, expected)


def test_what_a_server_says_of_itself(server):
    assert server.call("GET", "/v2/models/sim").json["model_type"] == "sim"
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/sim/ready", "/v2"):
        assert server.call("GET", path).status == 200
    text = server.call("GET", "/metrics").body.decode()
    assert 'lookback_requests_total{model="sim",status="200"}' in text
    assert "lookback_batch_rows_bucket" in text


def test_schemas(server, requests):
    assert server.call("GET", "/v2/models").json == {"models": ["sim"]}
    said = server.call("GET", "/v2/models/sim/versions/1/schema").json
    assert said["roles"] == {"user": ["user_id"], "item": ["item_id", "category_id"]}
    assert said["digest"] == server.models.served["sim"].digest
    assert all(accepts(said["request"], request) for request in requests)
    assert all(accepts(said["answer"], a) for a in server.score(requests).json)
    many = {n: values * 1001 for n, values in requests[0]["candidates"].items()}
    assert not accepts(said["request"], {**requests[0], "candidates": many})
    assert server.call("GET", "/v2/models/other/schema").status == 404


def test_schemas_read_no_vocabularies_again(server, bundle, monkeypatch):
    from lookback.serving.layouts.histories.layout import HistoryRequestLayout
    from lookback.serving.server.models import Served

    own = server.models.served["sim"]
    read, load = [], HistoryRequestLayout.load_encoder

    def counted(*given: Any) -> Any:
        read.append(given)
        return load(*given)

    monkeypatch.setattr(HistoryRequestLayout, "load_encoder", counted)
    said = server.call("GET", "/v2/models/sim/schema").json
    assert read == []
    elsewhere = Served("sim", 1, bundle, own.digest, own.manifest, None, None)  # as of Triton
    assert elsewhere.schema == elsewhere.schema == said
    assert len(read) == 1


def test_query(server, requests, expected, tmp_path, capsys):
    words = ["query", "sim", "--server", f"http://127.0.0.1:{server.port}"]
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(json.dumps(request) for request in requests))
    capsys.readouterr()
    assert PROGRAM.main([*words, "--requests", str(path)]) == 0
    alike([json.loads(line) for line in capsys.readouterr().out.splitlines()], expected)

    one = ["--user", "U003", "--history", "B001,B002", "--candidates", "B005,B007"]
    assert PROGRAM.main([*words, *one]) == 0
    answer = json.loads(capsys.readouterr().out)
    request = {"user_id": "U003", "history": {"item_id": ["B001", "B002"]}}
    alike(answer, server.score({**request, "candidates": {"item_id": ["B005", "B007"]}}).json)

    path.write_text(f"{json.dumps(requests[0])}\n\n{{}}\n")
    assert PROGRAM.main([*words, "--requests", str(path)]) == 2
    assert f"{path}, line 3: the request: 'user_id' is missing" in capsys.readouterr().err
    for wrong, said in (
        (["--history", "B001"], "--history: expected with --user"),
        (["--requests", str(tmp_path / "none")], "No such file"),
        (["--user", "U1", "--timeout", "0"], "--timeout: expected a number, above 0"),
    ):
        assert PROGRAM.main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_verify(server, bundle, dataset_dir, capsys):
    address = f"http://127.0.0.1:{server.port}"
    words = ["verify", str(bundle), "--dataset_dir", str(dataset_dir), "--server", address]
    assert PROGRAM.main([*words, "--model", "sim", "--samples", "100"]) == 0
    assert f"in 25 requests: training's against those of {address}" in capsys.readouterr().out
    assert PROGRAM.main(words) == 2
    assert "There is no model 'export'. Those that are served: sim." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 5000, "nested too deeply"),
        (b'{"user_id": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "twice"),
        ({}, "is missing"),
        ([1], "expected an object"),
        ({"user_id": 10**400, "history": {}, "candidates": {}}, "requests[0]"),
        ([{"user_id": "U001"}] * 1025, "at most 1,024 requests"),
    ],
    ids=lambda value: repr(value)[:20] if isinstance(value, bytes) else "",
)
def test_bad_bodies_are_refused_with_a_sentence(server, body, said):
    answer = server.score(body)
    assert answer.status == 400
    assert said in answer.error and len(answer.error) <= 2000 and "Traceback" not in answer.error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": []}, "one tensor"),
        ({"inputs": 3}, "one tensor"),
        ({"more": 1}, "'more' is unknown"),
        ({"outputs": [{"name": "scores"}]}, "'answer'"),
        ({"id": 3}, "id: expected text"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}, "'request' of BYTES"),
        (
            {"inputs": [{"name": "request", "datatype": "BYTES", "shape": [9], "data": ["{}"]}]},
            "[1, 1]",
        ),
        (
            {"inputs": [{"name": "request", "datatype": "BYTES", "shape": [1], "data": [3]}]},
            "texts",
        ),
    ],
)
def test_bad_tensors_are_refused_with_a_sentence(server, change, said):
    good = {"inputs": [{"name": "request", "datatype": "BYTES", "shape": [1], "data": ["{}"]}]}
    answer = server.call("POST", "/v2/models/sim/infer", {**good, **change})
    assert answer.status == 400 and said in answer.error


def test_limits(server, requests):
    many = {name: values * 1001 for name, values in requests[0]["candidates"].items()}
    answer = server.score({**requests[0], "candidates": many})
    assert answer.status == 400 and "at most 5,000" in answer.error
    answer = server.score(b" " * ((16 << 20) + 1))
    assert answer.status == 413 and "16,777,216 bytes" in answer.error
    for path in ("/v2/models/other/score", "/v2/models/sim/versions/2/score"):
        assert server.call("POST", path, requests[0]).status == 404
    assert "GET /v2" in server.call("GET", "/").error
    wrong = server.call("PUT", "/v2/models/sim/score", {})
    assert (wrong.status, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.error == "Expected POST, received PUT."


def test_pages_of_other_sites_are_refused(server, requests):
    """A browser on this machine would carry out what they want."""
    path = "/v2/models/sim/score"
    assert server.call("POST", path, requests[0], Origin="http://evil.example").status == 403
    assert server.call("POST", path, requests[0], Host="evil.example").status == 403
    own = f"http://localhost:{server.port}"
    host = f"localhost:{server.port}"
    assert server.call("POST", path, requests[0], Origin=own, Host=host).status == 200


class Slow:
    """A model that takes its time, and whose requests are numbers."""

    name, version, histories = "slow", 1, None
    answer = staticmethod(lambda request, scores: {"is": float(scores.logit[0])})

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches: list[int] = []

    def rows(self, index: int, request: Any) -> int:
        return 1

    def score(self, requests: Any, counts: Any) -> list[Scores]:
        assert counts == [1] * len(requests)
        time.sleep(self.seconds)
        self.batches.append(len(requests))
        for index, request in enumerate(requests):
            if request == "broken":
                raise RuntimeError("of the model")
            if not isinstance(request, int):
                raise RequestError(index, "no number")
        return [Scores(np.float32([request]), np.float32([0])) for request in requests]


class Holding:
    """As `Models`, of one."""

    def __init__(self, model: Any) -> None:
        self.served = {model.name: model}


def test_what_waits_is_scored_together_and_a_fault_is_its_callers_alone():
    model = Slow(0.05)
    running = Running(Holding(model), rows=16)
    bodies = [*range(20), "no", "broken"]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(lambda body: running.score(body, "slow"), bodies))
    running.close()
    assert [answer.json for answer in answers[:20]] == [{"is": float(n)} for n in range(20)]
    assert answers[20].status == 400 and "no number" in answers[20].error
    assert answers[21].status == 500 and "RuntimeError" in answers[21].error
    assert max(model.batches) > 1 and max(model.batches) <= 16


def test_what_would_wait_too_long_is_refused_at_once():
    model = Slow(0.2)
    running = Running(Holding(model), rows=2, wait_seconds=0.1)
    assert running.score(0, "slow").status == 200  # a row takes 0.2 s
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda body: running.score(body, "slow"), range(30)))
    running.close()
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert len(refused) + sum(answer.status == 200 for answer in answers) == 30
    assert 20 <= len(refused) < 30


def test_who_is_refused_is_so_before_the_body_is_read_and_keeps_the_connection():
    running = Running(Holding(Slow(0.3)), rows=1, wait_seconds=0.1)
    running.score(0, "slow")  # a row takes 0.3 s
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)

    def ask(body: bytes) -> tuple[int, str | None, dict[str, Any]]:
        connection.request("POST", "/v2/models/slow/score", body)
        answer = connection.getresponse()
        return answer.status, answer.headers["Retry-After"], json.loads(answer.read())

    try:
        with contextlib.closing(connection), concurrent.futures.ThreadPoolExecutor(2) as pool:
            waiting = []
            for number in range(2):  # one is scored, one waits
                waiting.append(pool.submit(running.score, number, "slow"))
                time.sleep(0.05)
            status, after, said = ask(b"no JSON" * 100_000)
            assert (status, after) == (503, "1") and "Try again in 1 s" in said["error"]
            assert [answer.result().status for answer in waiting] == [200, 200]
            first = connection.sock
            assert ask(b"3")[::2] == (200, {"is": 3.0})
            assert connection.sock is first
        counts = running.call("GET", "/metrics").body.decode()
        assert 'lookback_requests_total{model="slow",status="503"} 1.0' in counts
    finally:
        running.close()


def test_sixteen_clients_are_served_and_of_a_crowd_what_is_soon_answered():
    model = Slow(0.02)
    running = Running(Holding(model), rows=4, wait_seconds=None)

    def client(calls: int) -> list[int]:
        """The statuses of calls of one connection, each as soon as the one before is answered."""
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        statuses = []
        with contextlib.closing(connection):
            for number in range(calls):
                connection.request("POST", "/v2/models/slow/score", json.dumps(number))
                answer = connection.getresponse()
                answer.read()
                statuses.append(answer.status)
        return statuses

    def clients(count: int) -> set[int]:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            found = list(pool.map(client, [10] * count))
        return {status for statuses in found for status in statuses}

    try:
        for _ in range(2):  # connections that have ended are no clients any more
            assert clients(16) == {200}
        assert clients(MOST_CLIENTS + 16) == {200, 503}
    finally:
        running.close()


def test_bundles_are_exchanged_under_load_and_bad_ones_refused(
    server, bundle, requests, expected, tmp_path
):
    good, bad = tmp_path / "good", tmp_path / "bad"
    shutil.copytree(bundle, good)
    shutil.copytree(bundle, bad)
    (bad / "bundle.json").write_text("{}")
    token = {"Authorization": f"Bearer {TOKEN}"}
    load = "/v2/repository/models/sim/load"
    stop = threading.Event()

    def ask() -> list[int]:
        statuses = []
        while not stop.is_set():
            answer = server.score(requests[0])
            alike(answer.json, expected[0])
            statuses.append(answer.status)
        return statuses

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask) for _ in range(2)]
        before = server.models.served["sim"].version
        answer = server.call("POST", load, {"parameters": {"path": str(good)}}, **token)
        assert answer.json["version"] == str(before + 1)
        answer = server.call("POST", load, {"parameters": {"path": str(bad)}}, **token)
        assert answer.status == 400 and str(bad) in answer.error
        answer = server.call("POST", load, {"parameters": {"digest": "0" * 64}}, **token)
        assert answer.status == 400 and "digest" in answer.error
        stop.set()
        assert all(statuses and set(statuses) == {200} for statuses in (a.result() for a in asked))
    (listed,) = server.call("POST", "/v2/repository/index", {}, **token).json
    assert (listed["name"], listed["path"]) == ("sim", str(good))
    assert server.call("POST", load, {}).status == 401
    assert server.call("POST", load, {}, Authorization="Bearer x").status == 401


def test_a_server_looks_for_garbage_among_what_is_new_alone():
    from lookback.serving.server.models import spare_imports

    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.set_threshold(50_000)  # as commands have it
    try:
        new = [[] for _ in range(1000)]
        spare_imports()
        assert gc.get_freeze_count() >= frozen + len(new)
        assert gc.get_threshold()[0] < 1000
    finally:
        gc.set_threshold(*before)


def test_names_of_bundles(tmp_path):
    assert named_bundles(["a=x", str(tmp_path / "b")]) == {"a": Path("x"), "b": tmp_path / "b"}
    for words in (["a=x", "a=y"], ["a/b=x"], ["=x"]):
        with pytest.raises(UserError, match="bundles"):
            named_bundles(words)


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert PROGRAM.main(["serve", str(tmp_path), "--port", port]) == 2
    assert f"port {port}: cannot listen there" in capsys.readouterr().err


@pytest.mark.slow
def test_sigterm_answers_what_is_under_way(bundle, requests, expected, tmp_path):
    command = [sys.executable, "-m", "serving", "serve", f"sim={bundle}", "--port", "0"]
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("sim: sim, digest ")
        port = int(process.stdout.readline().rsplit(":", 1)[1].removesuffix("/v2\n"))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v2/models/sim/score", json.dumps(requests * 50))
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        assert answer.status == 200
        alike(json.loads(answer.read()), expected * 50)
        assert process.wait(30) == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
