"""Triton as the engine, in its own processes: answers, what is out of reach, exchange, healing.

One server for all tests: to start it and to load a bundle takes most of the time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from lookback.core.errors import UserError
from lookback.serving.commands import PROGRAM
from lookback.serving.server.backlog import MOST_CLIENTS
from lookback.serving.server.run import ServeOptions
from lookback.serving.server.triton.engine import TritonModels, _one_ends
from lookback.serving.server.triton.installation import Installation
from lookback.serving.server.triton.repository import (
    BatchLimits,
    ModelRepository,
    StoreSource,
    source_of,
)

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "0123456789abcdef"

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("pytriton") is None
    or importlib.util.find_spec("tritonclient") is None,
    reason="Triton is not installed: its wheel needs a newer glibc, or the extra was left out",
)


class Server:
    """`serving serve --engine triton` with two names for one bundle, and a store."""

    def __init__(self, bundle: Path, dataset: Path, directory: Path) -> None:
        token, store = directory / "token", directory / "store"
        token.write_text(TOKEN)
        load = ["load-histories", str(dataset), "--store", str(store), "--bundle", str(bundle)]
        assert PROGRAM.main(load) == 0
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "serving", "serve", f"sim={bundle}", f"other={bundle}"),
                *("--engine", "triton", "--port", "0", "--grpc_port", "0", "--control_port", "0"),
                *("--admin_token_file", str(token), "--drain_seconds", "10"),
                *("--store", str(store)),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        said = [self.process.stdout.readline() for _ in range(3)]
        assert said[0].startswith("sim: sim, digest ") and said[1].startswith("other: sim")
        ports = list(map(int, re.findall(r"127\.0\.0\.1:(\d+)", said[2])))
        self.http, self.grpc, self.control = ports
        from tritonclient.grpc import InferenceServerClient

        self.client = InferenceServerClient(f"127.0.0.1:{self.grpc}")

    def call(
        self, path: str, body: Any = None, port: int | None = None, **headers: str
    ) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{port or self.http}{path}", data, headers)
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def infer(self, requests: Any, model: str = "sim", **parameters: Any) -> Any:
        """Answers, through gRPC."""
        from tritonclient.grpc import InferInput

        texts = [[json.dumps(request).encode()] for request in requests]
        tensor = InferInput("request", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, np.object_))
        answer = self.client.infer(model, [tensor], parameters=parameters or None)
        assert answer.as_numpy("answer").shape == (len(texts), 1)
        return [json.loads(text) for text in answer.as_numpy("answer")[:, 0]]

    def processes(self) -> dict[str, int]:
        """Triton's server, by that name, and those of models by the models' names."""
        found, newest = {}, {}
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            words = process.cmdline()
            if words[0].endswith("_stub"):  # of NAME/VERSION/model.py; an older one may be ending
                version, name = (Path(words[1]).parents[n].name for n in (0, 1))
                if int(version) > newest.get(name, 0):
                    found[name], newest[name] = process.pid, int(version)
            elif words[0].endswith("tritonserver"):
                found["tritonserver"] = process.pid
        return found


@pytest.fixture(scope="module")
def requests(raw: Any) -> list[dict[str, Any]]:
    return [raw.request(f"U{user:03d}", [f"B{n:03d}" for n in range(5)]) for user in range(8)]


@pytest.fixture(scope="module")
def expected(sim_bundle: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the local engine's model answers, in this process."""
    from lookback.serving.server.models import Models

    model = Models().load("sim", sim_bundle)
    scores = model.bundle.score(requests)
    return [model.answer(r, s) for r, s in zip(requests, scores, strict=True)]


@pytest.fixture(scope="module")
def server(sim_bundle: Path, dataset_dir: Path, tmp_path_factory: Any) -> Iterator[Server]:
    running = Server(sim_bundle, dataset_dir, tmp_path_factory.mktemp("triton"))
    yield running
    running.process.terminate()
    assert running.process.wait(60) == 0


def alike(answers: Any, expected: Any) -> None:
    """Equal but for the last digits of numbers."""
    assert len(answers) == len(expected)
    for answer, wanted in zip(answers, expected, strict=True):
        assert answer["user_id"] == wanted["user_id"]
        for one, other in zip(answer["candidates"], wanted["candidates"], strict=True):
            assert list(one) == list(other)
            for name, value in other.items():
                if isinstance(value, float):
                    value = pytest.approx(value, rel=1e-5, abs=1e-6)
                assert one[name] == value


def until(found: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@needs_triton
@pytest.mark.slow
def test_http_and_grpc_answer_as_the_local_engine(server, requests, expected):
    alike(server.infer(requests), expected)
    texts = [json.dumps(request) for request in requests]
    tensor = {"name": "request", "datatype": "BYTES", "shape": [8, 1], "data": texts}
    status, body = server.call("/v2/models/sim/infer", {"id": "7", "inputs": [tensor]})
    content = json.loads(body)
    assert (status, content["id"], content["outputs"][0]["shape"]) == (200, "7", [8, 1])
    alike([json.loads(text) for text in content["outputs"][0]["data"]], expected)
    curl = shutil.which("curl")
    if curl is not None:
        said = subprocess.run(
            [curl, "-s", f"127.0.0.1:{server.http}/v2/models/sim/infer", "-d", "@-"],
            input=json.dumps({"inputs": [tensor]}),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        found = json.loads(said)["outputs"][0]["data"]
        alike([json.loads(text) for text in found], expected)
    # Our own addresses, which pass on to Triton.
    status, body = server.call("/v2/models/sim/score", requests, server.control)
    alike(json.loads(body), expected)
    alike(server.infer(requests, model_variant="other"), expected)


@needs_triton
@pytest.mark.slow
def test_histories_come_from_the_store_and_events_go_into_it(server):
    authorized = {"Authorization": f"Bearer {TOKEN}"}
    path = "/v2/models/sim/users/U001"

    def stored() -> dict[str, Any]:
        history = json.loads(server.call(path, None, server.control, **authorized)[1])["history"]
        del history["event_id"]
        return history

    items = {"item_id": ["B000", "B001", "B002"]}

    def same() -> int:
        (named,) = server.infer([{"user": "U001", "candidates": items}])
        (explicit,) = server.infer([{"user_id": "U001", "history": stored(), "candidates": items}])
        count: int = named.pop("stored_events")
        alike([named], [explicit])
        return count

    before = same()
    event = {"user": "U001", "item_id": "B003", "timestamp": 1_600_000_000, "event_id": "e"}
    status, _ = server.call("/v2/models/sim/events", [event], server.control, **authorized)
    assert (status, same()) == (200, before + 1)
    assert stored()["item_id"][-1] == "B003"


@needs_triton
@pytest.mark.slow
def test_both_engines_say_the_same_of_a_model(server):
    from lookback.serving.server.wire import metadata_of

    said = json.loads(server.call("/v2/models/sim")[1])
    ours = metadata_of("sim", 1)
    for part in ("name", "versions", "inputs", "outputs"):
        assert said[part] == ours[part]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ([], "expected an object"),
        ({}, "missing"),
        ({"user_id": "U001", "history": {"item_id": []}, "candidates": {"item_id": []}}, "empty"),
    ],
)
def test_bad_requests_are_a_clients_fault(server, request_, said):
    text = json.dumps(request_)
    tensor = {"name": "request", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    status, body = server.call("/v2/models/sim/infer", {"inputs": [tensor]})
    assert status == 400 and said in json.loads(body)["error"]
    status, body = server.call("/v2/models/sim/score", request_ or [request_], server.control)
    assert status == 400 and said in json.loads(body)["error"]


@needs_triton
@pytest.mark.slow
def test_what_changes_the_server_is_refused_without_the_token(server):
    from tritonclient.utils import InferenceServerException

    for path in (
        "/v2/repository/index",
        "/v2/repository/models/sim/unload",
        "/v2/systemsharedmemory/region/x/register",
        "/v2/logging",
        "/v2/trace/setting",
    ):
        assert server.call(path, {})[0] in {403, 404}, path
    assert server.call("/v2/systemsharedmemory/status")[0] == 403
    for work in (
        lambda: server.client.unload_model("sim"),
        lambda: server.client.get_model_repository_index(),
        lambda: server.client.get_system_shared_memory_status(),
    ):
        with pytest.raises(InferenceServerException, match="restricted"):
            work()
    assert server.call("/v2/repository/index", {}, server.control)[0] == 401


@needs_triton
@pytest.mark.slow
def test_metrics_are_tritons_and_ours(server, requests):
    def value(name: str, text: str) -> float:
        return sum(map(float, re.findall(rf'^{name}{{[^}}]*"sim"[^}}]*}} (\S+)$', text, re.M)))

    def text() -> str:
        return server.call("/metrics", port=server.control)[1].decode()

    before = text()
    unknown = {"item_id": ["B000", "nobody"], "category_id": ["cat 0 ü", "cat 0 ü"]}
    server.infer([{**requests[0], "candidates": unknown}])
    after = text()
    events = len(requests[0]["history"]["item_id"])
    for name, more in {
        "nv_inference_count": 1,
        "lookback_scored_requests_total": 1,
        "lookback_items_total": 2,
        "lookback_unknown_items_total": 1,
        "lookback_history_events_total": events,
    }.items():
        # Triton's counts the requests by which the model is watched, too.
        grown = value(name, after) - value(name, before)
        assert grown == more or (name.startswith("nv_") and grown > more), name


@needs_triton
@pytest.mark.slow
def test_bundles_are_exchanged_under_load_and_bad_ones_refused(
    server, sim_bundle, requests, expected, tmp_path
):
    good, bad = tmp_path / "good", tmp_path / "bad"
    shutil.copytree(sim_bundle, good)
    shutil.copytree(sim_bundle, bad)
    (bad / "bundle.json").write_text("{}")
    stop = threading.Event()

    def ask() -> int:
        count = 0
        while not stop.is_set():
            alike(server.infer(requests[:1]), expected[:1])
            count += 1
        return count

    def load(**parameters: str) -> tuple[int, Any]:
        status, body = server.call(
            "/v2/repository/models/sim/load",
            {"parameters": parameters},
            server.control,
            Authorization=f"Bearer {TOKEN}",
        )
        return status, json.loads(body)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask) for _ in range(2)]
        try:
            assert load(path=str(good)) == (200, {"name": "sim", "version": "2", "digest": ANY})
            for parameters in ({"path": str(bad)}, {"digest": "0" * 64}):
                status, said = load(**parameters)
                assert status == 400 and "bundle.json" in said["error"]
        finally:
            stop.set()
        assert all(a.result() for a in asked)
    assert json.loads(server.call("/v2/models/sim")[1])["versions"] == ["2"]


@needs_triton
@pytest.mark.slow
def test_a_killed_model_and_a_killed_server_are_healed(server, requests, expected):
    from tritonclient.utils import InferenceServerException

    def scores() -> bool:
        with contextlib.suppress(InferenceServerException):
            alike(server.infer(requests[:1]), expected[:1])
            return True
        return False

    os.kill(server.processes()["sim"], signal.SIGKILL)
    assert not scores()
    alike(server.infer(requests[:1], "other"), expected[:1])  # the other model does not notice
    until(scores)
    os.kill(server.processes()["tritonserver"], signal.SIGKILL)
    until(lambda: not scores(), 10)
    until(scores)
    assert server.call("/v2/health/live", port=server.control)[0] == 200


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None


ANY = _Any()


@needs_triton
@pytest.mark.slow
def test_sigterm_answers_what_is_under_way(server, requests, expected):
    """The last of this server."""
    words = " ".join(psutil.Process(server.processes()["tritonserver"]).cmdline())
    (own,) = re.findall(r"shm-region-prefix-name=(\w+)", words)
    assert list(Path("/dev/shm").glob(f"{own}*"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.infer, requests * 50)
        time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        alike(answer.result(60), expected * 50)
    assert server.process.wait(60) == 0
    assert not list(Path("/dev/shm").glob(f"{own}*"))


def test_a_model_that_cannot_be_loaded_any_more_takes_no_other_down(tmp_path, monkeypatch):
    class Process:
        """A server that loads all but "bad"."""

        started = 0

        def __init__(self) -> None:
            Process.started += 1
            self.alive, self.loaded = True, []

        def reload(self, name: str) -> None:
            if name == "bad":
                raise UserError("its bundle is gone")
            self.loaded.append(name)

        def end(self, seconds: float) -> None:
            self.alive = False

    models = TritonModels(empty_repository(tmp_path, BatchLimits(16, None)), Process, None)
    models._served = {"bad": None, "good": None}
    models.heal(["bad"])
    assert not models.process.alive  # it may be the server's fault
    models.heal(["bad"])
    assert models.process.alive and models.process.loaded == ["good"]
    for _ in range(3):  # it is not
        models.heal(["bad"])
    assert (Process.started, models.process.loaded, models.dead) == (2, ["good"], {"bad"})
    monkeypatch.setattr(Process, "reload", lambda self, name: self.loaded.append(name))
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 60)
    models.heal(["bad"])
    assert (models.process.loaded, models.dead) == (["good", "bad"], set())


@needs_triton
@pytest.mark.slow
def test_a_bundle_and_its_histories_are_exchanged_together_under_load(
    dataset_dir, newer, newer_bundle, sim_bundle, tmp_path
):
    """On a server of its own: older bundles cannot be loaded beside the newer histories."""
    server = Server(sim_bundle, dataset_dir, tmp_path)
    try:
        exchange(server, newer, newer_bundle, sim_bundle)
    finally:
        server.process.terminate()
        assert server.process.wait(60) == 0


def exchange(server: Server, newer: Any, newer_bundle: Path, sim_bundle: Path) -> None:
    authorized = {"Authorization": f"Bearer {TOKEN}"}
    events = "/v2/models/sim/events"
    status, said = server.call(events, newer.sent, server.control, **authorized)
    assert (status, json.loads(said)["added"]) == (200, 4)
    ask = {"user": "U001", "candidates": {"item_id": ["B000", "B001", "B002"]}}
    stop = threading.Event()

    def asking(model: str) -> set[int]:
        found = set()
        while not stop.is_set():
            (answer,) = server.infer([ask], model)
            found.add(answer["stored_events"])
        return found

    def load(**parameters: str) -> tuple[int, Any]:
        said = {"parameters": parameters}
        path = "/v2/repository/models/other/load"
        status, body = server.call(path, said, server.control, **authorized)
        return status, json.loads(body)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(asking, model) for model in ("sim", "other")]
        try:
            status, answer = load(path=str(newer_bundle))  # the store is of the older one's
            assert status == 400 and "another vocabulary" in answer["error"]
            status, answer = load(path=str(sim_bundle), dataset_dir=str(newer.dataset))
            assert status == 400 and "another vocabulary" in answer["error"]
            status, answer = load(path=str(newer_bundle), dataset_dir=str(newer.dataset))
            assert (status, answer["version"], answer["histories"]["found"]) == (200, "2", 2)
            time.sleep(0.5)  # "sim" goes on with the newer histories
        finally:
            stop.set()
        counts = [a.result() for a in asked]
    assert counts[0] == counts[1] and len(counts[0]) == 1  # "U001" has no event but those sent


def test_the_end_of_a_process_is_noticed_at_once():
    async def ends() -> bool:
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        asyncio.get_running_loop().call_later(0.1, process.kill)
        try:
            return await _one_ends([os.getpid(), process.pid], 60)
        finally:
            process.communicate()

    assert asyncio.run(ends())
    assert not asyncio.run(_one_ends([os.getpid()], 0.05))
    assert asyncio.run(_one_ends([2**22 + 1], 60))  # beyond all numbers of processes: it has ended


def test_a_model_s_process_starts_without_merlin(sim_bundle):
    """Its schemas bring Dask along: a second of the six in which a dead model is loaded anew."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "import lookback.serving.server.triton.backend\n"
        "from lookback.serving.server.models import Models\n"
        "Models().load('sim', Path(sys.argv[1]))\n"
        "assert not {'merlin', 'dask'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(sim_bundle)], cwd=ROOT, check=True)


def test_options_of_the_other_engine_are_refused():
    with pytest.raises(UserError, match="--grpc_port: --engine local has no such option"):
        ServeOptions(bundles=("a",), grpc_port=1)
    with pytest.raises(UserError, match="--max_batch_rows: --engine triton"):
        ServeOptions(bundles=("a",), engine="triton", max_batch_rows=1)


class FakeTriton(types.ModuleType):
    """What Triton gives its models, and a call of one as its tensor."""

    class MetricFamily:
        COUNTER = "counter"

        def __init__(self, name: str, description: str, kind: str) -> None:
            self.count = 0

        def Metric(self, labels: dict[str, str]) -> Any:  # noqa: N802  # as Triton has it
            return self

        def increment(self, count: int) -> None:
            self.count += count

    class TritonError(Exception):
        UNAVAILABLE, INVALID_ARG, INTERNAL = "UNAVAILABLE", "INVALID_ARG", "INTERNAL"

    class Tensor:
        def __init__(self, name: str, values: Any) -> None:
            self.values = values

    class InferenceResponse:
        def __init__(self, tensors: Any = (), error: Any = None) -> None:
            self.tensors, self.error = tensors, error

    @staticmethod
    def get_input_tensor_by_name(call: Any, name: str) -> Any:
        return call


class FakeCall:
    """Asks with one text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def parameters(self) -> str:
        return ""

    def shape(self) -> list[int]:
        return [1, 1]

    def as_numpy(self) -> Any:
        return np.array([[self.text.encode()]], np.object_)


def said(answer: Any) -> Any:
    """An answer's JSON, or the kind of its error."""
    return answer.error.args[1] if answer.error else json.loads(answer.tensors[0].values[0, 0])


def test_a_few_calls_wait_for_each_other_and_of_a_crowd_some_are_refused(
    sim_bundle, requests, expected, tmp_path, monkeypatch
):
    from lookback.core.digests import digest_of
    from lookback.serving.server.triton.backend import TritonPythonModel

    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", FakeTriton("triton"))
    # This process is not the server's: its garbage stays the tests' matter.
    monkeypatch.setattr("lookback.serving.server.triton.backend.spare_imports", lambda: None)
    repository = empty_repository(tmp_path, BatchLimits(1024, None))
    repository.add("sim", 1, sim_bundle, digest_of(sim_bundle / "bundle.json"))
    model = TritonPythonModel()
    model.initialize({"model_repository": str(repository.models / "sim"), "model_version": "1"})

    def ask(texts: list[str]) -> list[Any]:
        return [said(answer) for answer in model.execute([FakeCall(text) for text in texts])]

    try:
        for _ in range(20):  # one after another: one client
            alike(ask([json.dumps(requests[0])]), expected[:1])
        few = ask([json.dumps(request) for request in requests] * (MOST_CLIENTS // len(requests)))
        alike(few, expected * (MOST_CLIENTS // len(requests)))
        assert ask(["no JSON", json.dumps({"x": 1})]) == ["INVALID_ARG"] * 2
        many = ask([json.dumps(requests[0])] * 500)
        taken = [answer for answer in many if answer != "UNAVAILABLE"]
        assert 0 < len(taken) < len(many)
        alike(taken, expected[:1] * len(taken))
        repository.end()
        assert ask([json.dumps(requests[0])]) == ["UNAVAILABLE"]
    finally:
        model.finalize()


def empty_repository(place: Path, limits: BatchLimits) -> ModelRepository:
    """Without a Triton."""
    for name in ("backend", "stub", "own"):
        (place / name).mkdir()
    (place / "stub" / "stub").touch()
    installation = Installation(place / "server", place, place / "backend", place / "stub" / "stub")
    return ModelRepository(place / "own", installation, limits, StoreSource(None, False))


def test_triton_is_given_no_queue_policy(tmp_path):
    """With one it lets what came while a batch was scored wait for half a second."""
    repository = empty_repository(tmp_path, BatchLimits(16, 0.25))
    repository.add("sim", 3, tmp_path, "digest")
    config = (repository.models / "sim" / "config.pbtxt").read_text()
    assert "max_batch_size: 16" in config and "dynamic_batching { }" in config
    assert "queue_policy" not in config
    source = source_of(repository.models / "sim", "3")
    assert (source.name, source.most_seconds, source.store.address) == ("sim", 0.25, None)


@pytest.mark.parametrize(
    ("engine", "given", "seconds"),
    [("local", None, None), ("triton", None, None), ("local", 50.0, 0.05), ("triton", 50.0, 0.05)],
)
def test_how_long_a_request_may_wait(engine, given, seconds):
    options = ServeOptions(bundles=("a",), engine=engine, max_wait_ms=given)
    assert options.wait_seconds == seconds


def test_where_triton_is_not_installed_the_command_says_how_to(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pytriton and tritonclient not installed.*extra `triton`"):
        Installation.find()
