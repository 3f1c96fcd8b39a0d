"""Histories of a store behind a bundle: what they are, and that scores of them are the same."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lookback.core.errors import UserError
from lookback.serving.requests import RequestError
from lookback.serving.store.store import HistoryStore
from tests.serving.conftest import Newer
from tests.serving.json_schema import accepts
from tests.serving.server.running import TOKEN, Running
from tests.serving.test_serving_cli import run

CANDIDATES = [f"B{n:03d}" for n in range(8)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, dataset_dir: Path, sim_bundle: Path) -> Path:
    """A store of the dataset; not to be changed."""
    from lookback.serving.commands import PROGRAM

    store = tmp_path_factory.mktemp("histories") / "store"
    options = ["--store", str(store), "--bundle", str(sim_bundle)]
    assert PROGRAM.main(["load-histories", str(dataset_dir), *options]) == 0
    return store


@pytest.fixture(scope="module")
def histories(loaded: Path) -> Iterator[HistoryStore]:
    with opened(loaded) as histories:
        yield histories


@pytest.fixture(scope="module")
def model(histories: HistoryStore, sim_bundle: Path) -> Any:
    return served(sim_bundle, histories)


@pytest.fixture
def store(histories: HistoryStore, tmp_path: Path) -> str:
    """The same, to be changed."""
    users = [(user, histories.get(user)) for user in histories.users()]
    HistoryStore.create(
        str(tmp_path / "own"),
        histories.head,
        [(user, found.record) for user, found in users if found is not None],
    )
    return str(tmp_path / "own")


@contextlib.contextmanager
def opened(store: str | Path, *, writes: bool = False) -> Iterator[HistoryStore]:
    with contextlib.closing(HistoryStore.open(str(store), writes=writes)) as histories:
        yield histories


def test_the_store_has_the_raw_events_of_every_user(histories: HistoryStore, raw: Any) -> None:
    users = set(histories.users())
    counts = raw.events["user"].value_counts()
    assert users == {user for user, count in counts.items() if count >= 5}
    for user in users:
        events = raw.events[raw.events["user"] == user]
        history = histories.get(user)
        assert history is not None
        found = history.as_json()["history"]
        assert found["timestamp"] == sorted(events["time"])
        assert sorted(zip(found["timestamp"], found["item_id"], strict=True)) == sorted(
            zip(events["time"], events["item"], strict=True)
        )
        assert found["category_id"] == [raw.categories[item] for item in found["item_id"]]
        assert set(found["event_id"]) == {None}
    assert histories.head.category == "category_id"


def served(bundle: Path, histories: HistoryStore | None, **options: Any) -> Any:
    from lookback.serving.server.models import Models

    return Models(histories, **options).load("sim", bundle)


@pytest.mark.parametrize("time_features", [False, True])
def test_scores_equal_those_of_the_explicit_request(
    time_features: bool, train_sim: Callable[[bool], Any], histories: HistoryStore
) -> None:
    model = served(train_sim(time_features).bundle, histories)
    moment = {"timestamp": 1_500_000_000} if time_features else {}
    asked, explicit = [], []
    for user in list(histories.users())[:6]:
        history = histories.get(user)
        assert history is not None
        events = history.as_json()["history"]
        del events["event_id"]
        items = {"item_id": CANDIDATES}
        explicit.append({"user_id": user, "history": events, "candidates": items, **moment})
        asked.append({"user": user, "candidates": items, **moment})
    assert max(len(request["history"]["item_id"]) for request in explicit) > 12  # T
    completed = model.histories.completed(asked)
    assert model.histories.completed(explicit) == explicit
    by_feature = [{"user_id": r["user"], **r} for r in asked]
    for request in by_feature:
        del request["user"]
    assert model.histories.completed(by_feature) == completed
    pairs = zip(model.bundle.score(completed), model.bundle.score(explicit), strict=True)
    for request, (found, expected) in zip(completed, pairs, strict=True):
        assert (found.logit == expected.logit).all()
        assert found.known == expected.known
        answer = model.answer(request, found)
        assert answer["stored_events"] == len(histories.get(answer["user_id"]) or ())


def test_a_user_whom_the_store_does_not_know_has_no_history_and_is_told(
    model: Any,
) -> None:
    items = {"item_id": CANDIDATES}
    (completed,) = model.histories.completed([{"user": "new", "candidates": items}])
    empty = {"user_id": "new", "history": {"item_id": []}, "candidates": items}
    assert completed == empty
    (found,), (expected,) = model.bundle.score([completed]), model.bundle.score([empty])
    assert (found.logit == expected.logit).all()
    assert model.answer(completed, found)["stored_events"] is None


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "'user' and 'user_id' are missing, and so is 'history'"),
        ({"user": "U001", "user_id": "U002"}, "'user' and 'user_id' name two users"),
        ({"user": 5}, "user: expected the id of a user, a text"),
        ({"user": None}, "user: expected the id of a user, a text"),
        ({"user": ["a"]}, "user: expected the id of a user, a text"),
    ],
)
def test_requests_that_name_no_user_are_refused_by_number(
    request_: dict[str, Any], said: str, model: Any
) -> None:
    good = {"user": "U001", "candidates": {"item_id": CANDIDATES}}
    with pytest.raises(RequestError, match=said) as raised:
        model.histories.completed([good, {"candidates": {}, **request_}])
    assert raised.value.index == 1


def test_a_store_of_another_vocabulary_is_refused_by_hash(
    sim_bundle: Path, histories: HistoryStore, tmp_path: Path
) -> None:
    other = {**histories.head.vocabularies, "item_id": "b" * 64}
    head = dataclasses.replace(histories.head, vocabularies=other)
    HistoryStore.create(str(tmp_path / "other"), head, [])
    said = r"another vocabulary .*ids of item_id are bbbbbbbbbbbb"
    with opened(tmp_path / "other") as others, pytest.raises(UserError, match=said):
        served(sim_bundle, others)


@pytest.fixture
def server(sim_bundle: Path, store: str) -> Iterator[Running]:
    from lookback.serving.server.models import Models

    with opened(store, writes=True) as histories:
        models = Models(histories)
        models.load("sim", sim_bundle)
        running = Running(models)
        running.site.metrics.watch_cache(histories)
        yield running
        running.close()


def test_the_server_completes_appends_tells_and_deletes(server: Running) -> None:
    admin = {"Authorization": f"Bearer {TOKEN}"}
    user = quote("new ü/1 %41", safe="")
    ask = {"user": "new ü/1 %41", "candidates": {"item_id": CANDIDATES}}
    event = {"user": "new ü/1 %41", "event_id": "1", "timestamp": 1_500_000_000, "item_id": "B001"}
    assert server.call("GET", f"/v2/models/sim/users/{user}").status == 401
    assert server.call("POST", "/v2/models/sim/events", event).status == 401
    assert server.call("GET", f"/v2/models/sim/users/{user}", **admin).status == 404
    before = server.score(ask)
    assert before.status == 200 and before.json["stored_events"] is None
    done = server.call("POST", "/v2/models/sim/events", [event, event], **admin)
    assert done.json == {"added": 1, "repeated": 1, "too_old": 0}
    after = server.score(ask)
    assert after.json["stored_events"] == 1
    schema = server.call("GET", "/v2/models/sim/schema").json
    assert accepts(schema["request"], ask) and accepts(schema["answer"], after.json)
    assert not accepts(schema["request"], {"candidates": ask["candidates"]})
    history = {"item_id": ["B001"], "category_id": ["cat 1 ü"]}
    explicit = server.score(
        {"user_id": "new ü/1 %41", "history": history, "candidates": ask["candidates"]}
    )
    assert after.json["candidates"] == explicit.json["candidates"] != before.json["candidates"]
    told = server.call("GET", f"/v2/models/sim/users/{user}", **admin)
    assert told.json["history"] == {
        **history,
        "timestamp": [1_500_000_000],
        "event_id": ["1"],
    }
    server.score(ask)
    counts = server.call("GET", "/metrics").body.decode()
    assert "lookback_history_cache_hits_total 2.0" in counts
    assert "lookback_history_cache_misses_total 1.0" in counts
    gone = server.call("DELETE", f"/v2/models/sim/users/{user}", **admin)
    assert gone.json == {"deleted": True}
    assert server.call("DELETE", f"/v2/models/sim/users/{user}", **admin).status == 404
    assert server.score(ask).json == before.json


def test_events_that_are_none_are_refused(server: Running) -> None:
    foreign = {"user": "a", "event_id": "1", "timestamp": 1, "item_id": "nobody's"}
    for body, status, said in (
        (b"{", 400, "not valid JSON"),
        ([{"user": "a"}], 400, "events[0]: 'event_id' is missing"),
        ([{}] * 10_001, 400, "at most 10,000 events"),
        (foreign, 400, "'category_id' is missing, and the catalogue does not know"),
        (b" " * ((16 << 20) + 1), 413, "at most 16,777,216 bytes"),
    ):
        answer = server.call("POST", "/v2/models/sim/events", body, Authorization=f"Bearer {TOKEN}")
        assert answer.status == status and said in answer.error


def test_a_full_disk_and_a_damaged_store_are_the_server_s_fault(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def damaged(*_: Any) -> Any:
        raise UserError("the stored history is damaged")

    admin = {"Authorization": f"Bearer {TOKEN}"}
    monkeypatch.setattr(HistoryStore, "append", full)
    answer = server.call("POST", "/v2/models/sim/events", [], **admin)
    assert answer.status == 507 and "No space left" in answer.error
    monkeypatch.setattr(HistoryStore, "get", damaged)
    assert server.call("GET", "/v2/models/sim/users/U001", **admin).status == 500
    answer = server.score({"user": "U001", "candidates": {"item_id": CANDIDATES}})
    assert answer.status == 500 and "damaged" in answer.error


def test_a_reading_server_takes_no_events_and_one_without_a_store_says_so(
    sim_bundle: Path, histories: HistoryStore, server: Running
) -> None:
    from lookback.serving.server.models import Models

    models = Models(histories)
    models.load("sim", sim_bundle)
    server.site.models = models
    server.site.token, token = None, server.site.token
    answer = server.call("POST", "/v2/models/sim/events", [])
    assert answer.status == 409 and "only reads" in answer.error
    assert server.call("DELETE", "/v2/models/sim/users/U001").status == 409
    assert server.call("GET", "/v2/models/sim/users/U001").status == 200
    server.site.names = None  # as if it listened for others
    assert server.call("GET", "/v2/models/sim/users/U001").status == 403
    server.site.token = token
    bare = Models()
    bare.load("sim", sim_bundle)
    server.site.models = bare
    admin = {"Authorization": f"Bearer {TOKEN}"}
    answer = server.call("GET", "/v2/models/sim/users/U001", **admin)
    assert answer.status == 404 and "--store" in answer.error


def test_commands_append_show_delete_and_compact(
    store: str, sim_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "events.jsonl"
    events = [
        {"user": "U999", "event_id": str(n), "timestamp": n, "item_id": f"B00{n}"} for n in range(5)
    ]
    lines.write_text("\n".join(json.dumps(event) for event in events))
    append = ("append", "--store", store, "--events", lines)
    code, _, err = run(capsys, *append)
    assert code == 2 and f"{lines}, line 1: 'category_id' is missing" in err
    code, out, err = run(capsys, *append, "--bundle", sim_bundle, "--batch_events", 2)
    assert code == 0, err
    assert [json.loads(line) for line in out.splitlines()] == [
        {"through": 2, "added": 2, "repeated": 0, "too_old": 0},
        {"through": 4, "added": 4, "repeated": 0, "too_old": 0},
        {"through": 5, "added": 5, "repeated": 0, "too_old": 0},
    ]
    code, out, err = run(capsys, *append, "--bundle", sim_bundle)
    assert json.loads(out) == {"through": 5, "added": 0, "repeated": 5, "too_old": 0}
    code, out, _ = run(capsys, "inspect", "U999", "--store", store)
    assert json.loads(out)["history"]["item_id"] == [event["item_id"] for event in events]
    code, out, _ = run(capsys, "inspect", "U999", "--store", store, "--category", "cat 3 ü")
    assert json.loads(out)["history"]["item_id"] == ["B003"]
    names = tmp_path / "names"
    names.write_text("U999\nnobody\n")
    code, out, _ = run(capsys, "delete", "--store", store, "--users_file", names)
    assert out == "1 users deleted\n1 were not there: 'nobody'\n"
    code, _, err = run(capsys, "inspect", "U999", "--store", store)
    assert code == 2 and "has no user 'U999'" in err
    code, out, _ = run(capsys, "compact", "--store", store)
    assert code == 0 and "bytes before" in out


def test_after_an_update_what_was_appended_stays(
    newer: Newer, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lookback.serving.store.vocabularies import digests_of

    lines = tmp_path / "events.jsonl"
    lines.write_text("\n".join(json.dumps(event) for event in newer.sent))
    assert run(capsys, "append", "--store", store, "--events", lines)[0] == 0
    with opened(store) as histories:
        before = {u: len(histories.get(u) or ()) for u in histories.users()}
    load = ("load-histories", newer.dataset, "--store", store)
    assert run(capsys, *load)[0] == 2  # there is a store
    assert "expected one of them" in run(capsys, *load, "--keep", "--overwrite")[2]
    for _ in range(2):  # once more changes nothing
        code, out, err = run(capsys, *load, "--keep")
        assert code == 0, err
        assert "4 events that had been appended were kept, 2 of which the dataset has, too" in out
    with opened(store) as histories:
        assert histories.head.vocabularies == digests_of(
            newer.dataset, ["user_id", "item_id", "category_id"]
        )
        after = {u: len(histories.get(u) or ()) for u in histories.users()}
        assert after == {**before, "U002": before["U002"] + 1}
        found = histories.get("U001")
        assert found is not None
        history = found.as_json()["history"]
        assert history["event_id"][-4:] == [None, "a", "b", "c"]
        assert history["item_id"][-3:] == ["B003", "B900", "B004"]


def test_a_bundle_and_its_histories_are_exchanged_together_under_load(
    server: Running, newer: Newer, newer_bundle: Path, sim_bundle: Path
) -> None:
    admin = {"Authorization": f"Bearer {TOKEN}"}
    load = "/v2/repository/models/sim/load"
    old = server.models.served["sim"]
    assert server.call("POST", "/v2/models/sim/events", newer.sent, **admin).json["added"] == 4
    ask = {"user": "U001", "candidates": {"item_id": CANDIDATES}}
    stop, appended = threading.Event(), []

    def asking() -> set[int]:
        found = set()
        while not stop.is_set():
            answer = server.score(ask)
            assert answer.status == 200, answer.error
            found.add(answer.json["stored_events"])
        return found

    def appending() -> None:
        while not stop.is_set():
            event = {"user": "meanwhile", "event_id": str(len(appended)), "item_id": "B001"}
            event["timestamp"] = 1_600_000_000 + len(appended)
            answer = server.call("POST", "/v2/models/sim/events", event, **admin)
            assert answer.json == {"added": 1, "repeated": 0, "too_old": 0}, answer.body
            appended.append(event)

    said = {"parameters": {"path": str(newer_bundle)}}
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(asking), pool.submit(asking), pool.submit(appending)]
        try:
            answer = server.call("POST", load, said, **admin)  # the store is of the older one's
            assert answer.status == 400 and "another vocabulary" in answer.error
            said["parameters"]["dataset_dir"] = str(newer.dataset)
            # A bundle of another dataset leaves the store as it was.
            wrong = {"parameters": {**said["parameters"], "path": str(sim_bundle)}}
            answer = server.call("POST", load, wrong, **admin)
            assert answer.status == 400 and "another vocabulary" in answer.error
            assert server.models.served["sim"] is old
            answer = server.call("POST", load, said, **admin)
            assert answer.status == 200, answer.error
            assert answer.json["version"] == "2"
            kept = answer.json["histories"]
            assert kept["found"] == 2 and kept["kept"] >= 4 and kept["too_old"] == 0
        finally:
            stop.set()
        counts = asked[0].result() | asked[1].result()
        asked[2].result()
    assert len(counts) == 1  # of U001 all of that was there before
    assert len(appended) > 0
    assert server.score({**ask, "user": "meanwhile"}).json["stored_events"] == len(appended)
    # What was served before goes on, as for another name of it, until it is loaded again.
    (request,) = old.histories.completed([ask])
    assert len(request["history"]["item_id"]) == 12
    assert (
        server.call("POST", load, {"parameters": {"path": str(sim_bundle)}}, **admin).status == 400
    )
    new = server.models.served["sim"]
    assert server.score(ask).json["candidates"] == [
        {
            **row,
            "logit": pytest.approx(row["logit"]),
            "probability": pytest.approx(row["probability"]),
        }
        for row in new.answer(request, new.score([request], [8])[0])["candidates"]
    ]


def test_only_who_writes_the_store_renews_it(
    newer: Newer, newer_bundle: Path, sim_bundle: Path, histories: HistoryStore
) -> None:
    from lookback.serving.server.models import Models

    for models, said in (
        (Models(), "without --store"),
        (Models(histories), "--store_read_only.*load-histories --keep"),
    ):
        with pytest.raises(UserError, match=said):
            models.load("sim", newer_bundle, dataset_dir=newer.dataset)


def test_parquet_appends_in_bulk(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pandas as pd

    rows = pd.DataFrame(
        {
            "user": ["U900", "U901"] * 300,
            "event_id": [f"e{n}" for n in range(600)],
            "timestamp": range(600),
            "item_id": [f"B{n % 40:03d}" for n in range(600)],
            "category_id": [f"cat {n % 5} ü" for n in range(600)],
        }
    )
    file = tmp_path / "events.parquet"
    rows.to_parquet(file)
    code, out, err = run(capsys, "append", "--store", store, "--events", file)
    assert code == 0, err
    assert json.loads(out.splitlines()[-1]) == {
        "through": 600,
        "added": 600,
        "repeated": 0,
        "too_old": 0,
    }
    with opened(store) as histories:
        for user, own in rows.groupby("user"):
            history = histories.get(user)
            assert history is not None
            found = history.as_json()["history"]
            assert found == own.drop(columns="user").to_dict("list")
    rows["event_id"] = [*rows["event_id"][:-1], None]
    rows.to_parquet(file)
    code, _, err = run(capsys, "append", "--store", store, "--events", file)
    assert code == 2 and "row 600: event_id: expected a value" in err
