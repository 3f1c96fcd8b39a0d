from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lookback.serving.bundle
from lookback.core.errors import UserError
from lookback.serving.bundle import Bundle
from lookback.serving.requests import RequestError


@pytest.fixture(scope="module")
def bundle(sim_bundle: Path) -> Bundle:
    return Bundle.load(sim_bundle)


@pytest.fixture
def request_of(raw: Any) -> Callable[..., dict[str, Any]]:
    def make(user: str = "U001", candidates: int = 3) -> dict[str, Any]:
        return raw.request(user, [f"B{number:03d}" for number in range(candidates)])

    return make


def logits(bundle: Bundle, *requests: dict[str, Any]) -> list[np.ndarray]:
    return [scores.logit for scores in bundle.score(requests)]


def test_a_batch_of_mixed_lengths_scores_as_each_alone(
    bundle: Bundle, request_of: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [request_of(f"U{user:03d}", 1 + user % 4) for user in range(30)]
    together = logits(bundle, *requests)
    assert [len(found) for found in together] == [1 + user % 4 for user in range(30)]
    for request, found in zip(requests, together, strict=True):
        np.testing.assert_allclose(found, logits(bundle, request)[0], atol=1e-6)
    monkeypatch.setattr(lookback.serving.bundle, "ROWS_A_BATCH", 7)  # of batches of 1 to 7 requests
    for found, expected in zip(logits(bundle, *requests), together, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_newest_events_count(bundle: Bundle, raw: Any, request_of: Callable) -> None:
    counts = raw.events["user"].value_counts()
    user = counts.index[0]
    assert counts.iloc[0] > 20
    request = request_of(user)
    newest = copy.deepcopy(request)
    newest["history"] = {name: values[-12:] for name, values in request["history"].items()}
    np.testing.assert_array_equal(logits(bundle, request), logits(bundle, newest))
    # SIM looks at the newest event in any case, and at the others only if the search finds them.
    newest["history"] = {name: values[:-1] for name, values in request["history"].items()}
    assert not np.allclose(logits(bundle, request), logits(bundle, newest), atol=1e-7)


def test_an_empty_history_is_scored(bundle: Bundle, request_of: Callable) -> None:
    request = request_of()
    request["history"] = {"item_id": []}
    (found,) = logits(bundle, request)
    assert np.isfinite(found).all()
    inputs = bundle.encoder.encode([request]).inputs
    assert not inputs["item_id_history"].any() and not inputs["category_id_history"].any()
    assert bundle.score([]) == []


def test_all_unknown_ids_score_alike(bundle: Bundle, request_of: Callable) -> None:
    request = request_of()
    request["user_id"] = "someone new"
    request["candidates"] = {"item_id": ["new", "newer"], "category_id": ["what", None]}
    request["history"]["item_id"][-1] = "new"
    inputs = bundle.encoder.encode([request]).inputs
    assert inputs["user_id"].tolist() == [2]
    assert inputs["item_id"].tolist() == [[2, 2]]
    assert inputs["category_id"].tolist() == [[2, 1]]
    assert inputs["item_id_history"][0, -1] == 2
    assert np.isfinite(logits(bundle, request)[0]).all()


def test_a_new_items_features_tell_it_from_other_new_items(
    bundle: Bundle, raw: Any, request_of: Callable
) -> None:
    request, known = request_of(), sorted(set(raw.categories.values()))
    request["candidates"] = {
        "item_id": ["new", "newer", "newest", "B000"],
        "category_id": [known[0], known[1], known[0], known[0]],
    }
    (found,) = bundle.score([request])
    assert found.known == (False, False, False, True)
    assert found.logit[0] == pytest.approx(found.logit[2], abs=1e-6)
    assert abs(found.logit[0] - found.logit[1]) > 1e-6
    assert abs(found.logit[0] - found.logit[3]) > 1e-6


def test_other_item_features_come_from_the_catalogue(bundle: Bundle, request_of: Callable) -> None:
    request = request_of()
    short = copy.deepcopy(request)
    del short["candidates"]["category_id"], short["history"]["category_id"]
    del short["history"]["timestamp"], short["timestamp"]
    # In one batch with a request that brings them.
    found = logits(bundle, short, request)
    np.testing.assert_array_equal(found[0], found[1])
    short["candidates"]["item_id"][1] = "B999"
    with pytest.raises(
        RequestError, match=r"requests\[1\]: candidates.category_id is absent, and "
    ):
        bundle.score([request, short])


def change(path: str, value: Any) -> Callable[[dict], None]:
    def apply(request: dict) -> None:
        *parents, last = path.split(".")
        for name in parents:
            request = request[name]
        if value is None:
            del request[last]
        else:
            request[last] = value

    return apply


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (change("user_id", None), "the request: 'user_id' is missing. Expected user_id, history, "),
        (change("histroy", {}), "'histroy' is unknown"),
        (change("history", None), "'history' is missing"),
        (change("history", []), r"history: expected an object, received \[\]"),
        (change("history.item_id", None), "history: 'item_id' is missing"),
        (change("history.item_id", "B001"), "history.item_id: expected a list, received 'B001'"),
        (change("history.price", [1]), "history: 'price' is unknown. Expected item_id, optionally"),
        (change("candidates.item_id", []), "has 3 entries and candidates.item_id 0"),
        (change("candidates", {"item_id": []}), "candidates.item_id is empty"),
        (change("candidates.category_id", ["a"]), "candidates.category_id has 1 entries and "),
        (change("candidates.timestamp", [1]), "candidates: 'timestamp' is unknown"),
        (change("user_id", 7), r"user_id: expected strings \(or null\).*received \[7\]"),
        (change("candidates.item_id", ["B001", 5, "B002"]), "candidates.item_id: expected strings"),
        (change("history.category_id", None), None),
    ],
)
def test_a_faulty_request_is_refused_by_number_and_field(
    bundle: Bundle, request_of: Callable, fault: Callable, text: str | None
) -> None:
    request = request_of()
    fault(request)
    if text is None:
        bundle.score([request])
        return
    with pytest.raises(RequestError, match=text) as caught:
        bundle.score([request_of(), request, request_of()])
    assert caught.value.index == 1


def test_a_request_must_be_an_object(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match=r"requests\[0\]: the request: expected an object"):
        bundle.score(["U001"])


@pytest.mark.slow
def test_time_features_need_times(train_sim: Callable[[bool], Any], request_of: Callable) -> None:
    bundle = Bundle.load(train_sim(True).bundle)
    request = request_of()
    (expected,) = logits(bundle, request)
    later = {**request, "timestamp": request["timestamp"] + 10**8}
    assert not np.allclose(logits(bundle, later)[0], expected, atol=1e-7)
    empty = {**request, "history": {"item_id": []}}
    del empty["timestamp"]
    assert np.isfinite(logits(bundle, empty)[0]).all()
    for fault, text in (
        (change("timestamp", None), r"timestamp \(seconds\) is missing; the model has time"),
        (change("history.timestamp", None), r"history.timestamp \(seconds\) is missing"),
        (
            change("timestamp", 1.5),
            r"timestamp: expected whole seconds, at most [\d,]+, received \[1.5\]",
        ),
        (change("timestamp", [1]), "timestamp: expected whole seconds"),
    ):
        wrong = copy.deepcopy(request)
        fault(wrong)
        with pytest.raises(RequestError, match=text):
            bundle.score([wrong])
    request["history"]["timestamp"].reverse()
    with pytest.raises(RequestError, match=r"history.timestamp decreases; histories are oldest"):
        bundle.score([request])


@pytest.mark.parametrize(
    "name",
    [
        "model/saved_model.pb",
        "model/variables/variables.data-00000-of-00001",
        "workflow/encoder/categories/unique.item_id.parquet",
        "workflow/workflow.pkl",
        "items.parquet",
        "schema.pbtxt",
        "dataset.json",
    ],
)
def test_a_damaged_file_is_refused_by_name(sim_bundle: Path, tmp_path: Path, name: str) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(sim_bundle, damaged)
    path = damaged / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"damaged: the content of {name} is not what was written"):
        Bundle.load(damaged)
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=f"damaged: {name} has {len(content) - 1} bytes instead of"):
        Bundle.load(damaged)
    path.unlink()
    with pytest.raises(UserError, match=f"damaged: {name} is missing"):
        Bundle.load(damaged)


def test_a_damaged_or_foreign_manifest_is_refused(sim_bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(sim_bundle, damaged)
    path = damaged / "bundle.json"
    text = path.read_text()
    for wrong, message in (
        (text.replace('"max_seq_length": 12', '"max_seq_length": 13'), "content of bundle.json is"),
        (text[:100], "bundle.json is not valid JSON"),
        ("[]", "bundle.json: expected a JSON object, found a list"),
        (
            text.replace('"format_version": 2', '"format_version": 9'),
            "version 1 to 4, found .* version 9",
        ),
    ):
        path.write_text(wrong)
        with pytest.raises(UserError, match=message):
            Bundle.load(damaged)
    path.unlink()  # what an interrupted export leaves, under whatever name
    with pytest.raises(UserError, match=r"is not an exported bundle: there is no bundle.json"):
        Bundle.load(damaged)
    with pytest.raises(UserError, match="is not an exported bundle"):
        Bundle.load(tmp_path / "nowhere")


def with_changes(bundle: Path, copy: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a bundle whose manifest is changed, and consistent."""
    shutil.copytree(bundle, copy)
    content = json.loads((copy / "bundle.json").read_text())
    del content["sha256"]
    change(content)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (copy / "bundle.json").write_text(json.dumps({**content, "sha256": digest}))
    return copy


def test_a_bundle_of_the_first_version_is_one_of_histories(
    sim_bundle: Path, tmp_path: Path, raw: Any
) -> None:
    def to_first(content: dict[str, Any]) -> None:
        del content["layout"]
        content["format_version"] = 1

    first = with_changes(sim_bundle, tmp_path / "bundle", to_first)
    request = raw.request("U001", ["B001", "B002"])
    (found,), (expected,) = (logits(Bundle.load(path), request) for path in (first, sim_bundle))
    np.testing.assert_array_equal(found, expected)


def test_an_unknown_layout_is_refused(sim_bundle: Path, tmp_path: Path) -> None:
    later = with_changes(
        sim_bundle, tmp_path / "bundle", lambda content: content.update(layout="graphs")
    )
    with pytest.raises(UserError, match="layout 'graphs' is unknown; expected histories or tabul"):
        Bundle.load(later)
