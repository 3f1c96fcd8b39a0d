"""The page: what its addresses say, and that a browser shows it and lets people change it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.serving.commands import PROGRAM
from lookback.serving.server.demo.addresses import attention_of
from lookback.serving.server.demo.data import DemoUsers
from lookback.serving.store.store import HistoryStore
from tests.serving.server.browser import CHROMIUM, Browser
from tests.serving.server.running import Running
from tests.serving.server.test_server import alike

HOSTILE = '<img src=x onerror=alert(1)>"&%41'


@pytest.fixture(scope="module")
def trained(train_sim: Callable[[bool], Any]) -> Path:
    return train_sim(True).bundle


@pytest.fixture(scope="module")
def server(trained: Path, dataset_dir: Path) -> Iterator[Running]:
    from lookback.serving.server.models import Models

    models = Models()
    bundle = models.load("sim", trained).bundle
    users = DemoUsers.of_dataset(bundle, dataset_dir)
    # A user whose name and past are markup, if anybody takes them for it.
    (first, *_) = users.requests
    request = users.requests[first]
    hostile = json.loads(json.dumps({**request, "user_id": HOSTILE}))
    for part in ("history", "candidates"):
        hostile[part]["item_id"][0] = HOSTILE
        hostile[part]["category_id"][0] = HOSTILE
    users.requests = {**users.requests, HOSTILE: hostile}
    running = Running(models, users={"sim": users})
    yield running
    running.close()


def get(server: Running, path: str) -> Any:
    answer = server.call("GET", path)
    assert answer.status == 200, answer.error
    return answer.json


def test_files_have_a_policy_and_ask_for_nothing_from_elsewhere(server):
    kinds = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
    kinds["icon.svg"] = "image/svg+xml"
    for name, kind in kinds.items():
        answer = server.call("GET", f"/demo/{name}")
        assert answer.status == 200 and answer.headers["Content-Type"].startswith(kind)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        text = answer.body.decode()
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in text and "style=" not in text and "onclick=" not in text
    assert server.call("GET", "/demo/../app.py").status == 404
    assert server.call("GET", "/demo/", Host="evil.example").status == 403


def test_users_are_the_dataset_s(server, raw):
    (model,) = get(server, "/demo/models")["models"]
    assert model["roles"]["item"] == ["item_id", "category_id"] and model["window"] == 12
    told = get(server, "/demo/models/sim/users")
    assert set(told["items"]["item_id"]) <= set(raw.categories)
    for item, category in zip(*told["items"].values(), strict=True):
        assert raw.categories[item] == category
    for one in told["users"][:5]:
        request = get(server, f"/demo/models/sim/users/{one['user']}")
        expected = raw.request(one["user"], [])
        assert request["history"] == expected["history"]
        assert one["events"] == len(expected["history"]["item_id"])
    assert server.call("GET", "/demo/models/sim/users/nobody").status == 404
    assert server.call("GET", "/demo/models/other/users").status == 404


def test_attention_is_the_model_s(server, trained):
    import tensorflow as tf

    from lookback.serving.export import load_model

    bundle = server.models.served["sim"].bundle
    (name, *_) = [u["user"] for u in get(server, "/demo/models/sim/users")["users"]]
    request = get(server, f"/demo/models/sim/users/{name}")
    answer = server.call("POST", "/demo/models/sim/explain", request).json
    alike(answer["answer"], server.score(request).json)
    inputs = bundle.encoder.encode([request]).inputs
    body = load_model(trained, bundle.manifest).body
    attended = body.attended({name: tf.constant(values) for name, values in inputs.items()})
    T = inputs["item_id_history"].shape[1]
    exist = np.arange(T) >= T - min(T, len(request["history"]["item_id"]))  # on the right
    weights, found = np.zeros((8, T)), np.zeros((8, T), bool)
    weights[:, attended.slots] = attended.weights.numpy()[0]
    found[:, attended.slots] = attended.found.numpy()[0]
    np.testing.assert_allclose(answer["attention"]["weights"], weights[:, exist], atol=2e-6)
    expected = [np.flatnonzero(row[exist]).tolist() for row in found]
    assert answer["attention"]["found"] == expected
    assert max(map(len, expected)) == 3  # k
    read = np.flatnonzero((np.arange(T) < T - 4)[exist])  # all but the short sequence
    assert answer["attention"]["read"] == read.tolist()
    for row in answer["attention"]["weights"]:
        assert sum(row) == pytest.approx(1, abs=1e-5)


def test_models_that_attend_to_nothing_say_so(server):
    class Silent:
        encoder = server.models.served["sim"].bundle.encoder

        def attend(self, inputs: Any) -> None:
            return None

    request = get(server, "/demo/models/sim/users")["users"][0]["user"]
    silent: Any = Silent()
    assert attention_of(silent, get(server, f"/demo/models/sim/users/{request}")) is None


def test_bad_requests_are_refused_with_a_sentence(server):
    for body, said in ((b"{", "not valid JSON"), ({}, "is missing"), ([], "expected an object")):
        answer = server.call("POST", "/demo/models/sim/explain", body)
        assert answer.status == 400 and said in answer.error


def test_the_page_needs_users_and_this_machine(trained, dataset_dir, tmp_path, capsys):
    words = ["serve", str(trained), "--port", "0"]
    users = ["--demo_ui", "--demo_dataset", str(dataset_dir)]
    for wrong, said in (
        ([*words, "--demo_ui"], "(--demo_dataset), or of a history store (--store)"),
        ([*words, "--demo_ui", "--store", "s", "--engine", "triton"], "no such option"),
        ([*words, *users[1:]], "--demo_ui"),
        ([*words, *users, "--host", "0.0.0.0"], "only on this machine"),
    ):
        assert PROGRAM.main(wrong) == 2
        assert said in capsys.readouterr().err


def test_only_models_over_histories_are_shown(tmp_path):
    class Other:
        manifest = type("Manifest", (), {"layout": "tabular"})()
        encoder, directory = None, Path("bundle")

    other: Any = Other()
    with pytest.raises(UserError, match=r"expected a model over histories.*reads tabular"):
        DemoUsers.of_dataset(other, tmp_path)


READY = "document.querySelector('main[aria-busy=false]') !== null"
NAMES = "[...document.querySelectorAll('#ranking .name')].map((one) => one.textContent)"
EVENTS = "document.querySelectorAll('#line g.event').length"
SAID = "document.getElementById('history-said').textContent"
SCORES = "[...document.querySelectorAll('#ranking .score')].map((one) => one.textContent)"


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_in_a_browser(server, artefacts):
    browser = Browser()
    try:
        browser.open(f"http://127.0.0.1:{server.port}/demo/")
        browser.until(f"{READY} && {NAMES}.length > 0")
        _changes_are_seen(browser, server)
        browser.screenshot(artefacts / "demo-page.png")
        browser.size(390, 844, dark=True)
        assert browser.js("document.documentElement.scrollWidth <= 390")
        browser.screenshot(artefacts / "demo-page-small-dark.png")
        browser.size(1280, 1000)
        _markup_is_text(browser)
        assert browser.faults == []
    finally:
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
@pytest.mark.parametrize("source", ["dataset", "store"])
def test_with_a_store_what_happens_goes_there(source, stored, trained, dataset_dir):
    from lookback.serving.server.models import Models

    histories = stored
    with contextlib.ExitStack() as stack:
        models = Models(histories)
        bundle = models.load("sim", trained).bundle
        if source == "store":
            users = DemoUsers.of_store(bundle, histories)
        else:
            users = DemoUsers.of_dataset(bundle, dataset_dir)
        running = Running(models, users={"sim": users})
        stack.callback(running.close)
        running.site.token = None  # as of a server of this machine alone
        browser = Browser()
        stack.callback(browser.close)
        browser.open(f"http://127.0.0.1:{running.port}/demo/")
        browser.until(f"{READY} && {NAMES}.length > 0")
        user = browser.js("document.getElementById('user').value")
        before = histories.get(user)
        assert before is not None and browser.js(EVENTS) == len(before)
        assert "kept in the server's store" in browser.js(SAID)
        assert browser.js("document.querySelectorAll('#ranking .mark').length") == 0
        first = browser.js(NAMES)[0]
        browser.js("document.querySelector('#ranking .acts button').click()")
        browser.until(f"{READY} && {EVENTS} === {len(before) + 1}")
        after = histories.get(user)
        assert after is not None and after.as_json()["history"]["item_id"][-1] == first
        assert browser.faults == []


@pytest.fixture
def stored(trained: Path, dataset_dir: Path, tmp_path: Path) -> Iterator[HistoryStore]:
    store = ["--store", str(tmp_path / "store"), "--bundle", str(trained)]
    assert PROGRAM.main(["load-histories", str(dataset_dir), *store]) == 0
    with contextlib.closing(HistoryStore.open(str(tmp_path / "store"), writes=True)) as found:
        yield found


def test_users_of_a_store_need_no_dataset(stored, trained, raw):
    from lookback.serving.server.models import Models

    bundle = Models(stored).load("sim", trained).bundle
    users = DemoUsers.of_store(bundle, stored)
    assert list(users.requests) == sorted(stored.users())
    for name, request in users.requests.items():
        expected = raw.request(name, [])
        assert users.ids[name] == request["user_id"] == name
        # Events of one moment are in the dataset's order, so items are compared as sets.
        assert request["history"]["timestamp"] == expected["history"]["timestamp"]
        assert request["timestamp"] == expected["timestamp"]
        items = request["candidates"]["item_id"]
        assert len(items) == 8 and set(items) <= set(raw.categories)
        assert items[0] in raw.events[raw.events["user"] == name]["item"].to_numpy()
        assert request["candidates"]["category_id"] == [raw.categories[i] for i in items]
    bundle.score(list(users.requests.values()))


def test_what_a_store_cannot_show_is_said(stored, trained, tmp_path):
    from lookback.serving.bundle import Bundle

    bundle = Bundle.load(trained)
    HistoryStore.create(str(tmp_path / "empty"), stored.head, [])
    said = pytest.raises(UserError, match=r"no user to show.*--demo_dataset")
    with contextlib.closing(HistoryStore.open(str(tmp_path / "empty"))) as empty, said:
        DemoUsers.of_store(bundle, empty)
    encoded: Any = Bundle.__new__(Bundle)
    encoded.manifest, encoded.directory = bundle.manifest, trained
    encoded.encoder = dataclasses.replace(bundle.encoder, catalogue=None)
    with pytest.raises(UserError, match="knows no items to choose from"):
        DemoUsers.of_store(encoded, stored)


def _changes_are_seen(browser: Browser, server: Running) -> None:
    user = browser.js("document.getElementById('user').value")
    request = get(server, f"/demo/models/sim/users/{user}")
    ranked = [one["item_id"] for one in server.score(request).json["candidates"]]
    assert browser.js(NAMES) == ranked
    events = len(request["history"]["item_id"])
    assert browser.js(EVENTS) == events
    # An event happens.
    before = browser.js(SCORES)
    browser.js("document.querySelector('#ranking .acts button').click()")
    browser.until(f"{READY} && {EVENTS} === {events + 1}")
    assert browser.js(SCORES) != before
    moment = request["timestamp"]
    request["history"]["item_id"].append(ranked[0])
    place = request["candidates"]["item_id"].index(ranked[0])
    request["history"]["category_id"].append(request["candidates"]["category_id"][place])
    moment = max(request["history"]["timestamp"][-1] + 86400, moment)
    request["history"]["timestamp"].append(moment)
    expected = server.score({**request, "timestamp": moment + 1}).json["candidates"]
    assert browser.js(NAMES) == [one["item_id"] for one in expected]
    # Another candidate comes in, and is chosen; one goes.
    other = browser.js("document.querySelector('#items option:last-child').value")
    browser.js(f"document.getElementById('item').value = '{other}'")
    browser.js("document.querySelector('#add button').click()")
    browser.until(f"{READY} && {NAMES}.includes('{other}')")
    assert browser.js("document.getElementById('found-title').textContent").endswith(f" {other}")
    count = len(browser.js(NAMES))
    browser.js("document.querySelector('#ranking tr:last-child .acts button:last-child').click()")
    browser.until(f"{READY} && {NAMES}.length === {count - 1}")
    # By keyboard: the next candidate is chosen with an arrow.
    browser.js("document.querySelector('#ranking input').focus()")
    browser.press("ArrowDown", 40)
    chosen = browser.js("document.querySelector('#ranking input:checked').value")
    assert chosen == "1"
    second = browser.js(NAMES)[1]
    assert browser.js("document.getElementById('found-title').textContent").endswith(f" {second}")
    browser.js("document.getElementById('reset').click()")
    browser.until(f"{READY} && {EVENTS} === {events}")


def _markup_is_text(browser: Browser) -> None:
    browser.js(
        f"""(() => {{
            const user = document.getElementById("user");
            user.value = {json.dumps(HOSTILE)};
            user.dispatchEvent(new Event("change"));
        }})()"""
    )
    title = "document.getElementById('history-title').textContent"
    browser.until(f"{READY} && {title}.includes('onerror')")
    assert browser.js(title) == f"History of {HOSTILE}"
    assert HOSTILE in browser.js(NAMES)
    assert browser.js("document.querySelectorAll('main img').length") == 0
