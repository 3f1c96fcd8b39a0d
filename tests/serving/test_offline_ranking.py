"""Many users at a time, against `score` of each of them and brute force over all items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import lookback
from lookback.core.errors import UserError
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.bundle import Bundle
from lookback.serving.columns import RequestTable
from lookback.serving.export import export_bundle
from lookback.serving.offline import ranking
from lookback.serving.offline.items import catalogue_of, items_of
from lookback.serving.offline.ranking import Asked, OfflineRanking, best_of
from lookback.serving.requests import RequestError
from tests.serving.test_interactions import small_model


@pytest.fixture(scope="module")
def sim(sim_bundle: Path) -> Bundle:
    return lookback.load_bundle(sim_bundle)


@pytest.fixture(scope="module")
def neumf(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("neumf") / "export"
    return Bundle.load(export_bundle(small_model(dataset_dir), dataset_dir, directory))


@pytest.fixture(scope="module")
def items(dataset_dir: Path) -> list[str]:
    """The items that occur, by row."""
    rows = np.sort(pd.read_parquet(dataset_dir / "items.parquet")["item_id"])
    file = dataset_dir / "workflow" / "encoder" / "categories" / "unique.item_id.parquet"
    names: list[str] = pd.read_parquet(file)["item_id"][rows[rows >= FIRST_KNOWN]].tolist()
    return names


@pytest.fixture(scope="module")
def users(dataset_dir: Path) -> list[str]:
    file = dataset_dir / "workflow" / "encoder" / "categories" / "unique.user_id.parquet"
    names: list[str] = pd.read_parquet(file)["user_id"].tolist()
    return names


def history(raw: Any, user: str) -> list[str]:
    events = raw.events[raw.events["user"] == user].sort_values(["time", "item"])
    names: list[str] = events["item"].tolist()
    return names


def request_of(raw: Any, user: str, candidates: list[str] | None = None) -> dict[str, Any]:
    request: dict[str, Any] = {"user_id": user, "history": {"item_id": history(raw, user)}}
    return request if candidates is None else {**request, "candidates": {"item_id": candidates}}


def brute_force(
    bundle: Bundle, requests: list[dict[str, Any]], k: int, left_out: dict[str, list[str]]
) -> list[tuple[str, str, float, int]]:
    """The k best candidates of each request by `score`, one request at a time."""
    rows = []
    for request in requests:
        (scores,) = bundle.score([request])
        names = request["candidates"]["item_id"]
        order = np.argsort(-scores.logit, kind="stable")
        user = request["user_id"]
        kept = [i for i in order if names[i] not in left_out.get(user, ())][:k]
        rows += [(user, names[i], scores.probability[i], r) for r, i in enumerate(kept, 1)]
    return rows


def same(found: pd.DataFrame, expected: list[tuple[str, str, float, int]]) -> None:
    assert list(found.columns) == ["user_id", "item_id", "score", "rank"]
    wanted = pd.DataFrame(expected, columns=found.columns)
    assert len(found) == len(wanted)
    for name in ("user_id", "item_id", "rank"):
        assert found[name].tolist() == wanted[name].tolist()
    np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-6)


@pytest.mark.parametrize("pairs", [16384, 7])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_the_best_of_the_catalogue_are_those_of_brute_force(
    *,
    sim: Bundle,
    neumf: Bundle,
    raw: Any,
    users: list[str],
    items: list[str],
    dataset_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    pairs: int,
    exclude_seen: bool,
) -> None:
    monkeypatch.setattr(ranking, "PAIRS_A_BATCH", pairs)
    monkeypatch.setattr(ranking, "LOGITS_AT_ONCE", 3 * len(items) + 1)
    some = [users[4], users[0], users[9], users[1], users[7]]
    seen = {user: history(raw, user) for user in some} if exclude_seen else {}
    requests = [request_of(raw, user, items) for user in some]
    options: dict[str, Any] = {"k": 12, "exclude_seen": exclude_seen}
    expected = brute_force(sim, requests, 12, seen)
    same(sim.recommend(some, dataset_dir=dataset_dir, **options), expected)
    same(sim.recommend([request_of(raw, user) for user in some], **options), expected)
    for request in requests:
        del request["history"]
    expected = brute_force(neumf, requests, 12, seen)
    same(neumf.recommend(some, dataset_dir=dataset_dir, **options), expected)
    if not exclude_seen:
        same(neumf.recommend(some, k=12), expected)
    excluding = [{"user_id": user, "exclude": history(raw, user)} for user in some]
    if exclude_seen:
        same(neumf.recommend(excluding, k=12), expected)


def test_candidates_for_all_are_ranked_by_their_features(
    sim: Bundle, raw: Any, users: list[str], dataset_dir: Path
) -> None:
    """Items that the bundle does not know need their features."""
    names = ["B007", "new", "B003", "newer", "B007", "B011"]
    categories = [raw.categories.get(name, f"cat {len(name) % 4} ü") for name in names]
    frame = pd.DataFrame({"item_id": names, "category_id": categories})
    distinct = frame.drop_duplicates("item_id")
    requests = [
        {**request_of(raw, user), "candidates": distinct.to_dict("list")} for user in users[:4]
    ]
    expected = brute_force(sim, requests, 10, {})
    found = sim.recommend(users[:4], candidates=frame, dataset_dir=dataset_dir)
    same(found, expected)
    known = ["B007", "B003"]
    requests = [request_of(raw, user, known) for user in users[:4]]
    seen = {user: history(raw, user) for user in users[:4]}
    found = sim.recommend(
        [request_of(raw, user) for user in users[:4]], candidates=known, exclude_seen=True
    )
    same(found, brute_force(sim, requests, 10, seen))
    with pytest.raises(UserError, match=r"candidates\[1\]: candidates.category_id is absent, and"):
        sim.recommend(users[:1], candidates=["B007", "new"], dataset_dir=dataset_dir)
    seen_new = request_of(raw, users[0])
    seen_new["history"] = {"item_id": ["new"], "category_id": ["cat 1 ü"]}
    found = sim.recommend([seen_new], candidates=frame, exclude_seen=True)
    assert sorted(found["item_id"]) == ["B003", "B007", "B011", "newer"]


def test_own_candidates_are_scored_and_ranked_as_score_does(
    sim: Bundle, raw: Any, users: list[str], items: list[str]
) -> None:
    requests = [
        request_of(raw, user, items[number % 3 :: 1 + number % 5])
        for number, user in enumerate(users)
    ]
    table = RequestTable(pa.Table.from_pylist(requests))
    for rows in (requests, table):
        found, counts = OfflineRanking(sim, Asked()).score(rows)
        same(found.to_pandas(), brute_force(sim, requests, 1000, {}))
        pairs = sum(len(request["candidates"]["item_id"]) for request in requests)
        assert counts["pairs"] == counts["rows"] == pairs and counts["users"] == len(users)
        seen = {user: history(raw, user) for user in users}
        found, counts = OfflineRanking(sim, Asked(None, 3, exclude_seen=True)).score(rows)
        same(found.to_pandas(), brute_force(sim, requests, 3, seen))
        assert counts["without_items"] == len(users) - found["user_id"].to_pandas().nunique()


def test_what_is_unknown_is_counted(sim: Bundle, raw: Any, users: list[str]) -> None:
    request = request_of(raw, users[0], ["B001", "new", "newer"])
    request["candidates"]["category_id"] = ["cat 1 ü"] * 3
    strange = {"user_id": "nobody", "history": {"item_id": ["B001", "gone"]}}
    strange["history"]["category_id"] = [None, None]
    strange["candidates"] = {"item_id": ["B002"]}
    _, counts = OfflineRanking(sim, Asked()).score([request, strange])
    events = min(12, len(history(raw, users[0]))) + 2  # of the model's 12 slots
    assert counts == {
        **{"users": 2, "pairs": 4, "rows": 4, "without_items": 0, "events": events},
        **{"unknown_users": 1, "unknown_events": 1, "unknown_candidates": 2},
    }


def test_the_best_of_equal_scores_come_first_by_place() -> None:
    random = np.random.default_rng(0)
    logits = random.integers(-3, 3, (40, 30)).astype(np.float32)
    logits[random.random(logits.shape) < 0.2] = -np.inf
    logits[5] = -np.inf
    rows, places, scores, ranks = best_of(logits, 7, first=100)
    expected = [
        (100 + row, place, rank)
        for row, values in enumerate(logits)
        for rank, place in enumerate(np.argsort(-values, kind="stable")[:7].tolist(), 1)
        if np.isfinite(values[place])
    ]
    assert list(zip(rows.tolist(), places.tolist(), ranks.tolist(), strict=True)) == expected
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits[rows - 100, places])), atol=1e-6)


def test_what_cannot_be_ranked_is_refused(
    sim: Bundle, neumf: Bundle, raw: Any, users: list[str], dataset_dir: Path
) -> None:
    def refused(call: Callable[..., Any], text: str, *args: Any, **options: Any) -> None:
        with pytest.raises(UserError, match=text):
            call(*args, **options)

    request = request_of(raw, users[0])
    refused(sim.recommend, r"expected requests with histories, or the dataset", users[:2])
    refused(sim.recommend, "has no user 'nobody'", [users[0], "nobody"], dataset_dir=dataset_dir)
    refused(sim.recommend, "users: expected strings", [1], dataset_dir=dataset_dir)
    refused(sim.recommend, "received requests, which bring", [request], dataset_dir=dataset_dir)
    refused(sim.recommend, "k: expected at least 1, received 0", [request], k=0)
    refused(
        sim.recommend,
        r"users\[1\]: the request: 'histroy' is unknown|users\[1\]: the request",
        [request, {"user_id": "a", "histroy": {}}],
    )
    refused(sim.recommend, "users: expected one at least", [], dataset_dir=dataset_dir)
    asks = {**request, "candidates": {"item_id": ["B001"]}}
    refused(sim.recommend, r"users\[0\]: the request: 'candidates' is unknown", [asks])
    refused(sim.recommend, "expected one item at least", [request], candidates=[])
    refused(sim.recommend, r"candidates\[1\]: .*expected strings", [request], candidates=["B1", 2])
    refused(
        sim.recommend,
        r"candidates\[1\]: item_id: expected an id",
        [request],
        candidates=pd.DataFrame({"item_id": ["B001", None], "category_id": ["a", "b"]}),
    )
    refused(
        sim.recommend,
        "'price' is unknown",
        [request],
        candidates=pd.DataFrame({"item_id": ["B001"], "price": [1]}),
    )
    refused(
        neumf.recommend,
        "exclude_seen: the bundle's requests hold no histories",
        users[:1],
        exclude_seen=True,
    )
    refused(neumf.recommend, r"users\[0\]: the request: 'k' is unknown", [{"user_id": "a", "k": 3}])
    with pytest.raises(RequestError, match=r"requests\[1\]: history.item_id: expected strings"):
        OfflineRanking(sim, Asked(catalogue_of(sim.encoder), 3)).score(
            [request, {"user_id": "a", "history": {"item_id": [3]}}]
        )
    assert items_of(sim.encoder, [{"item_id": "B001"}] * 3).repeated == 2


def test_time_features_need_the_moment(
    train_sim: Callable[[bool], Any], dataset_dir: Path, raw: Any, users: list[str]
) -> None:
    bundle = Bundle.load(train_sim(True).bundle)
    with pytest.raises(UserError, match=r"does not say when its users ask.*--timestamp"):
        bundle.recommend(users[:2], dataset_dir=dataset_dir)
    now = 1_500_000_000
    requests = []
    for user in users[:3]:
        times = raw.events[raw.events["user"] == user].sort_values(["time", "item"])["time"]
        request = request_of(raw, user, ["B001", "B002", "B003"])
        request["history"]["timestamp"] = times.tolist()
        requests.append({**request, "timestamp": now})
    expected = brute_force(bundle, requests, 10, {})
    options: dict[str, Any] = {"candidates": ["B001", "B002", "B003"]}
    same(bundle.recommend(users[:3], dataset_dir=dataset_dir, timestamp=now, **options), expected)
    tables = RequestTable(pa.Table.from_pylist(requests), bundle.encoder.optional)
    same(OfflineRanking(bundle, Asked()).score(tables)[0].to_pandas(), expected)
