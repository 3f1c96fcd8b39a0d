"""Bundles of models over interactions: requests, rankings and faults against the model itself."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import merlin.models.tf as mm
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import lookback.serving.bundle
from lookback.core.errors import UserError
from lookback.dataloading.histories.resident import Histories
from lookback.models import MODELS
from lookback.models.neumf_config import NeuMFConfig
from lookback.serving.bundle import Bundle
from lookback.serving.commands import PROGRAM
from lookback.serving.encoding import VocabularyEncoder
from lookback.serving.export import export_bundle
from lookback.serving.manifest import Manifest
from lookback.serving.requests import RequestError
from lookback.serving.server.models import Models
from lookback.serving.store.completion import StoredSeen
from lookback.serving.store.store import HistoryStore
from tests.serving.json_schema import accepts
from tests.serving.tabular_data import write_dataset
from tests.serving.test_serving_cli import run, sample

SMALL: dict[str, Any] = {"factors": 4, "layers": (8, 6, 4)}
UNKNOWN, NULL = 2, 1


class Exported(NamedTuple):
    """A model, its bundle, and the ids that the workflow gave to raw ones."""

    model: mm.Model
    bundle: Bundle
    directory: Path
    users: dict[str, int]
    items: dict[str, int]

    def expected(self, user: str | None, items: list[Any]) -> np.ndarray:
        """The model's logits, in process."""
        inputs = {
            "user_id": tf.constant([encoded(self.users, user)], tf.int32),
            "item_id": tf.constant([[encoded(self.items, item) for item in items]], tf.int32),
        }
        logits: np.ndarray = self.model(inputs, training=False).numpy()[0]
        return logits


def encoded(ids: dict[str, int], raw: str | None) -> int:
    return NULL if raw is None else ids.get(raw, UNKNOWN)


def small_model(dataset_dir: Path, options: dict[str, Any] = SMALL) -> mm.Model:
    """NeuMF of random weights, so that every input has a say."""
    model = MODELS["neumf"](Histories.load(dataset_dir).schema, NeuMFConfig(**options))
    model({"user_id": tf.constant([3, 4]), "item_id": tf.constant([[3, 4], [5, 6]])})
    random = np.random.default_rng(1)
    for weight in model.variables:
        if weight.dtype.is_floating:
            weight.assign(random.normal(0, 0.5, weight.shape))
    return model


@pytest.fixture(scope="module")
def exported(dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = small_model(dataset_dir)
    directory = export_bundle(model, dataset_dir, tmp_path_factory.mktemp("bundle") / "export")
    known = []
    for name in ("user_id", "item_id"):
        file = dataset_dir / "workflow" / "encoder" / "categories" / f"unique.{name}.parquet"
        column = pd.read_parquet(file)[name]
        known.append({raw: int(number) for number, raw in column.items()})
    return Exported(model, Bundle.load(directory), directory, *known)


def test_scores_are_the_model_s(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [*exported.items, "new", None]
    requests: list[dict[str, Any]] = [
        {"user_id": user, "candidates": {"item_id": items[number % 3 :: 1 + number % 7]}}
        for number, user in enumerate([*exported.users, "someone new", None])
    ]
    assert len(requests) > 20 and len({len(r["candidates"]["item_id"]) for r in requests}) > 5
    expected = [exported.expected(r["user_id"], r["candidates"]["item_id"]) for r in requests]
    assert np.ptp(np.concatenate(expected)) > 1
    for rows in (4096, 50, 1):  # one batch of all; of several; pieces of a request's candidates
        monkeypatch.setattr(lookback.serving.bundle, "ROWS_A_BATCH", rows)
        for scores, logit in zip(exported.bundle.score(requests), expected, strict=True):
            np.testing.assert_allclose(scores.logit, logit, atol=1e-6)
            np.testing.assert_allclose(scores.probability, 1 / (1 + np.exp(-logit)), atol=1e-6)
            assert scores.items is None
    assert exported.bundle.score([]) == []
    one = {"user_id": "U001", "candidates": {"item_id": np.array(["B001"])}}
    (scores,) = exported.bundle.score([one])
    np.testing.assert_allclose(scores.logit, exported.expected("U001", ["B001"]), atol=1e-6)


def test_tables_in_files_score_as_those_in_the_graph(
    exported: Exported, dataset_dir: Path, tmp_path: Path
) -> None:
    beside = export_bundle(exported.model, dataset_dir, tmp_path / "export", table_dtype="fp32")
    inputs = {
        "user_id": np.array([3, 4], np.int32),
        "item_id": np.array([[3, 4], [5, 6]], np.int32),
    }
    for found, expected in zip(
        Bundle.load(beside).predict(inputs), exported.bundle.predict(inputs), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("rows", [4096, 7])
def test_without_candidates_the_catalogue_is_ranked(
    exported: Exported, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookback.serving.bundle, "ROWS_A_BATCH", rows)
    items, everyone = list(exported.items), list(exported.users)
    excluded = [items[3], "new", None, *items[10:30], items[3]]
    requests: list[dict[str, Any]] = [
        {"user_id": everyone[0]},
        {"user_id": everyone[1], "k": 3},
        {"user_id": everyone[1], "k": np.int64(1000), "exclude": []},
        {"user_id": everyone[1], "candidates": {"item_id": items[:2]}},
        {"user_id": everyone[2], "exclude": excluded},
        {"user_id": "someone new", "k": 1},
        {"user_id": everyone[3], "exclude": items},
    ]
    sizes = []
    predict = exported.bundle.predict

    def recorded(inputs: Any) -> Any:
        sizes.append(inputs["item_id"].size)
        return predict(inputs)

    monkeypatch.setattr(exported.bundle, "predict", recorded)
    found = exported.bundle.score(requests)
    assert max(sizes) <= rows and sum(sizes) >= 4 * len(items)
    assert found[3].items is None and len(found[3].logit) == 2
    for request, scores in zip(requests, found, strict=True):
        if "candidates" in request:
            continue
        left = [item for item in items if item not in request.get("exclude", ())]
        logits = dict(zip(left, exported.expected(request["user_id"], left), strict=True))
        best = sorted(left, key=logits.__getitem__, reverse=True)[: request.get("k", 10)]
        assert scores.items == tuple(best)
        np.testing.assert_allclose(scores.logit, [logits[item] for item in best], atol=1e-6)
        sigmoid = 1 / (1 + np.exp(-scores.logit))
        np.testing.assert_allclose(scores.probability, sigmoid, atol=1e-6)
    counts = [len(scores.logit) for scores in found]
    assert counts == [10, 3, len(items), 2, 10, 1, 0]
    (alone,) = exported.bundle.score(requests[-1:])
    assert alone.items == ()


@pytest.mark.slow
def test_equal_scores_keep_their_order(dataset_dir: Path, tmp_path: Path) -> None:
    model = small_model(dataset_dir)
    for weight in model.variables:
        weight.assign(tf.zeros_like(weight))
    bundle = Bundle.load(export_bundle(model, dataset_dir, tmp_path / "export"))
    (scores,) = bundle.score([{"user_id": "U001", "k": 5}])
    catalogue = pd.read_parquet(dataset_dir / "items.parquet")["item_id"]
    file = dataset_dir / "workflow" / "encoder" / "categories" / "unique.item_id.parquet"
    names = pd.read_parquet(file)["item_id"]
    assert scores.items == tuple(names[catalogue[catalogue > UNKNOWN]][:5])
    assert scores.probability.tolist() == [0.5] * 5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"user_id": ...}, "the request: 'user_id' is missing. Expected user_id, optionally candi"),
        ({"history": {}}, "the request: 'history' is unknown"),
        ({"user_id": 7}, r"user_id: expected strings \(or null\).*received \[7\]"),
        ({"user_id": ["U001"]}, "user_id: expected strings"),
        ({"candidates": []}, r"candidates: expected an object, received \[\]"),
        ({"candidates": {}}, "candidates: 'item_id' is missing"),
        ({"candidates": {"item_id": []}}, "candidates.item_id is empty; expected at least one"),
        ({"candidates": {"item_id": "B001"}}, "candidates.item_id: expected a list, received 'B"),
        ({"candidates": {"item_id": ["B001", 5]}}, "candidates.item_id: expected strings"),
        (
            {"candidates": {"item_id": ["B001"], "category_id": ["cat"]}},
            "candidates: 'category_id' is unknown. Expected item_id.",
        ),
        ({"k": 3}, "k: only for a request without candidates, which ranks the whole catalogue"),
        ({"exclude": []}, "exclude: only for a request without candidates"),
        ({"candidates": ..., "k": 0}, "k: expected a whole number of at least 1, received 0"),
        ({"candidates": ..., "k": True}, "k: expected a whole number .*received True"),
        ({"candidates": ..., "k": 1.0}, r"k: expected a whole number .*received 1\.0"),
        ({"candidates": ..., "k": None}, "k: expected a whole number .*received None"),
        ({"candidates": ..., "exclude": "B001"}, "exclude: expected a list, received 'B001'"),
        ({"candidates": ..., "exclude": None}, "exclude: expected a list, received None"),
        ({"candidates": ..., "exclude": [1]}, "exclude: expected strings"),
    ],
)
def test_a_faulty_request_is_refused_by_number_and_field(
    exported: Exported, change: dict[str, Any], text: str
) -> None:
    good: dict[str, Any] = {"user_id": "U001", "candidates": {"item_id": ["B001", "B002"]}}
    faulty = {name: value for name, value in {**good, **change}.items() if value is not ...}
    with pytest.raises(RequestError, match=text) as caught:
        exported.bundle.score([good, {"user_id": "U002"}, faulty, good])
    assert caught.value.index == 2


def test_a_request_must_be_an_object(exported: Exported) -> None:
    with pytest.raises(RequestError, match=r"requests\[0\]: the request: expected an object"):
        exported.bundle.score(["U001"])


def test_a_bundle_describes_itself(exported: Exported, dataset_dir: Path) -> None:
    manifest = Manifest.read(exported.directory)
    assert (manifest.layout, manifest.model_type, manifest.ids) == ("interactions", "neumf", "raw")
    assert manifest.inputs == {"user_id": (None,), "item_id": (None, None)}
    assert manifest.options["layers"] == list(SMALL["layers"])
    rows = {"user_id": len(exported.users) + 3, "item_id": len(exported.items) + 3}
    assert manifest.cardinalities == rows
    assert manifest.dataset["items"] == len(exported.items)
    assert set(manifest.vocabularies) == set(rows)
    for name in ("dataset.json", "items.parquet", "workflow/workflow.pkl"):
        assert (exported.directory / name).read_bytes() == (dataset_dir / name).read_bytes()


def test_the_saved_model_is_a_merlin_model_without_optimizer(exported: Exported) -> None:
    model = mm.Model.load(str(exported.directory / "model"))
    assert type(model).__name__ == "ClickModel"
    assert model.optimizer is None
    batch = {"user_id": tf.constant([3, 4, 2]), "item_id": tf.constant([[3, 4], [5, 0], [2, 2]])}
    expected = exported.model(batch).numpy()
    np.testing.assert_allclose(model(batch).numpy(), expected, atol=1e-6)
    inputs = {name: value.numpy() for name, value in batch.items()}
    np.testing.assert_allclose(exported.bundle.predict(inputs)[0], expected, atol=1e-6)
    stored = tf.train.list_variables(str(exported.directory / "model/variables/variables"))
    weights = [name for name, _ in stored if name.endswith("VARIABLE_VALUE")]
    assert len(weights) == len(model.variables)


@pytest.mark.parametrize(
    "options", [{"branches": "mf", "factors": 4}, {"branches": "mlp", "layers": (8, 6, 4)}]
)
def test_one_branch_scores_alike(
    options: dict[str, Any], dataset_dir: Path, tmp_path: Path
) -> None:
    model = small_model(dataset_dir, options)
    batch = {"user_id": np.int32([3, 2]), "item_id": np.int32([[3, 4, 5], [6, 2, 7]])}
    expected = model({name: tf.constant(ids) for name, ids in batch.items()}).numpy()
    bundle = Bundle.load(export_bundle(model, dataset_dir, tmp_path / "export"))
    np.testing.assert_allclose(bundle.predict(batch)[0], expected, atol=1e-6)


def test_trained_in_bf16_it_still_gives_float32(
    dataset_dir: Path, tmp_path: Path, reset_policy: Callable[[], None]
) -> None:
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = small_model(dataset_dir)
    batch = {"user_id": np.int32([3, 2]), "item_id": np.int32([[3, 4, 5], [6, 2, 7]])}
    expected = model({name: tf.constant(ids) for name, ids in batch.items()}).numpy()
    reset_policy()
    bundle = Bundle.load(export_bundle(model, dataset_dir, tmp_path / "export"))
    logit, _ = bundle.predict(batch)
    assert logit.dtype == np.float32
    np.testing.assert_allclose(logit, expected, atol=1e-6)


def test_what_does_not_belong_together_is_refused(
    dataset_dir: Path, without_digests: Callable[[Path], Path], tmp_path: Path
) -> None:
    model, export = small_model(dataset_dir), tmp_path / "export"
    text = "reads data of layout 'interactions'; .* is of layout"
    with pytest.raises(UserError, match=f"{text} 'tabular'"):
        export_bundle(model, write_dataset(tmp_path / "rows"), export)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "metadata.json").write_text('{"cardinalities": []}')
    with pytest.raises(UserError, match=f"{text} 'histories'"):
        export_bundle(model, tmp_path / "samples", export)
    other = without_digests(shutil.copytree(dataset_dir, tmp_path / "other"))
    schema = (other / "schema.pbtxt").read_text()
    rows = Histories.load(dataset_dir).schema["user_id"].int_domain.max
    changed = re.sub(rf"max: {rows}\n", f"max: {rows + 1}\n", schema)
    assert changed != schema
    (other / "schema.pbtxt").write_text(changed)
    with pytest.raises(UserError, match="it was not made for this dataset"):
        export_bundle(model, other, export)
    assert not export.exists()


def test_samples_are_users_of_the_raw_data(
    exported: Exported, dataset_dir: Path, raw: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_user(request: dict[str, Any]) -> list[str]:
        events = raw.events[raw.events["user"] == request["user_id"]]
        return events.sort_values(["time", "item"])["item"].tolist()

    arguments = (capsys, exported.directory, dataset_dir)
    found = sample(*arguments, "--users", 5, "--candidates", 4)
    assert len({request["user_id"] for request in found}) == 5
    for request in found:
        assert set(request) == {"user_id", "candidates"}
        (items,) = request["candidates"].values()
        assert items[0] == of_user(request)[-1]
        assert len(items) == 4 and set(items) <= set(exported.items)
    assert sample(*arguments, "--users", 5, "--candidates", 4) == found
    assert sample(*arguments, "--users", 5, "--candidates", 4, "--seed", 1) != found
    for request in sample(*arguments, "--candidates", 0):
        assert set(request) == {"user_id", "exclude"}
        *earlier, last = of_user(request)
        assert sorted(request["exclude"]) == sorted(set(earlier) - {last})


def test_samples_that_cannot_be_made_are_refused(
    exported: Exported,
    dataset_dir: Path,
    without_digests: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(data: Path, *more: object) -> str:
        arguments = ("--export_dir", exported.directory, "--dataset_dir", data, *more)
        code, _, err = run(capsys, "sample", *arguments)
        assert code == 2
        return err

    assert "the options are --users, --candidates." in refused(dataset_dir, "--rows", 3)
    assert "users, fewer than the 1000 asked for" in refused(dataset_dir, "--users", 1000)
    assert "at least 1 user and 0 candidates, received 0, 5" in refused(dataset_dir, "--users", 0)
    assert "does not exist" in refused(tmp_path)
    other = without_digests(shutil.copytree(dataset_dir, tmp_path / "other"))
    file = other / "workflow" / "encoder" / "categories" / "unique.item_id.parquet"
    file.write_bytes(b"another")
    assert "was not written with the workflow in" in refused(other)


def test_requests_are_answered_as_lines_and_as_tables(
    exported: Exported, dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (capsys, exported.directory, dataset_dir)
    requests: list[dict[str, Any]] = [
        *sample(*arguments, "--users", 2, "--candidates", 3),
        *({**request, "k": 4} for request in sample(*arguments, "--users", 2, "--candidates", 0)),
        {"user_id": "U001", "exclude": list(exported.items)},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    score = ("score", "--export_dir", exported.directory, "--requests", path)
    code, out, _ = run(capsys, *score)
    assert code == 0
    answers = [json.loads(line) for line in out.splitlines()]
    for request, answer in zip(requests, answers, strict=True):
        assert answer["user_id"] == request["user_id"]
        items = [candidate["item_id"] for candidate in answer["candidates"]]
        logits = [candidate["logit"] for candidate in answer["candidates"]]
        assert logits == sorted(logits, reverse=True)
        if "candidates" in request:
            assert sorted(items) == sorted(request["candidates"]["item_id"])
        else:
            assert not set(items) & set(request["exclude"])
        if items:
            expected = exported.expected(request["user_id"], items)
            np.testing.assert_allclose(logits, expected, atol=1e-6)
            probabilities = [candidate["probability"] for candidate in answer["candidates"]]
            np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-expected)), atol=1e-6)
    assert [len(answer["candidates"]) for answer in answers] == [3, 3, 4, 4, 0]
    code, table, _ = run(capsys, *score, "--format", "table")
    assert code == 0
    users = [line for line in table.splitlines() if line.startswith("user_id")]
    excluded = len(requests[2]["exclude"])
    assert users[0] == f"user_id {requests[0]['user_id']}  (3 candidates)"
    assert users[2] == f"user_id {requests[2]['user_id']}  (of all items but {excluded})"
    best = answers[2]["candidates"][0]
    assert f"     1  {best['item_id']:<7}  {best['probability']:11.4f}" in table
    path.write_text(json.dumps(requests[0]) + '\n\n{"user_id": "U001", "k": -1}')
    code, out, err = run(capsys, *score)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path}, line 3: k: expected a whole number of at least 1")


def test_a_bundle_is_described_and_measured(
    exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "describe", "--export_dir", exported.directory)
    assert code == 0
    for text in (
        *("model       neumf", "factors = 4", "raw (encoded by the bundle)", "user_id int32 [B]"),
        *(f"item        item_id: {len(exported.items) + 3} rows", "item_id int32 [B, C]"),
    ):
        assert text in out
    options = ("--batch_sizes", "1,7", "--steps", 5, "--warmup_steps", 1, "--format", "json")
    code, out, _ = run(capsys, "benchmark", "--export_dir", exported.directory, *options)
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["batch_size"] for row in rows] == [1, 7]
    assert all(row["throughput"] > 0 for row in rows)


def test_verify_compares_it_with_training(
    exported: Exported, dataset_dir: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["verify", str(exported.directory), "--dataset_dir", str(dataset_dir)]
    assert PROGRAM.main([*words, "--samples", "100"]) == 0
    # Each user has three negatives beside the target.
    assert "compared 100 scores and their features, in 25 requests" in capsys.readouterr().out
    encode = VocabularyEncoder.encode

    def others(self: VocabularyEncoder, ids: Any) -> Any:
        found = encode(self, ids)
        return np.where(found == 5, 6, found).astype(np.int32)

    monkeypatch.setattr(VocabularyEncoder, "encode", others)
    assert PROGRAM.main([*words, "--samples", "400"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"  \S+ +B\d{3} +item_id +5 +6\n", out)
    assert "logit (of item_id)" in out


@pytest.fixture(scope="module")
def histories(
    exported: Exported, dataset_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HistoryStore]:
    store = tmp_path_factory.mktemp("histories") / "store"
    words = ["load-histories", dataset_dir, "--store", store, "--bundle", exported.directory]
    assert PROGRAM.main([*map(str, words)]) == 0
    with contextlib.closing(HistoryStore.open(str(store))) as found:
        yield found


def test_what_a_stored_user_has_is_left_out_of_the_best(
    exported: Exported, histories: HistoryStore, raw: Any
) -> None:
    model = Models(histories).load("neumf", exported.directory)
    assert model.histories is not None
    user = "U003"
    seen = set(raw.events[raw.events["user"] == user]["item"])
    asked = [
        {"user": user, "k": 40},
        {"user": user, "k": 5, "exclude": ["B001"]},
        {"user": user, "candidates": {"item_id": [*sorted(seen)[:2], "B001"]}},
        {"user": "new", "k": 3},
        {"user_id": user, "k": 40},
    ]
    completed = model.histories.completed(asked)
    assert {**completed[0], "exclude": None} == {"user_id": user, "k": 40, "exclude": None}
    assert set(completed[0]["exclude"]) == seen
    for place in (1, 2):
        rest = {name: value for name, value in asked[place].items() if name != "user"}
        assert completed[place] == {"user_id": user, **rest}
    assert completed[3] == {"user_id": "new", "k": 3} and completed[4] == asked[4]
    answers = [
        model.answer(request, found)
        for request, found in zip(completed, model.bundle.score(completed), strict=True)
    ]
    best, everything = (
        [one["item_id"] for one in answers[place]["candidates"]] for place in (0, 4)
    )
    assert best == [item for item in everything if item not in seen] and set(best) < set(everything)
    events = int((raw.events["user"] == user).sum())
    stored = [answer.get("stored_events", "unsaid") for answer in answers]
    assert stored == [events, events, events, None, "unsaid"]
    said = model.schema
    assert all(accepts(said["request"], request) for request in asked)
    assert all(accepts(said["answer"], answer) for answer in answers)
    assert not accepts(said["request"], {"user": user, "user_id": user, "k": 4})


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"user": "U003", "user_id": "U004", "k": 3}, "'user' and 'user_id' name two users"),
        ({"user": 5, "k": 3}, "user: expected the id of a user, a text"),
    ],
)
def test_requests_that_name_no_stored_user_are_refused_by_number(
    request_: dict[str, Any], said: str, exported: Exported, histories: HistoryStore
) -> None:
    seen = StoredSeen(histories, exported.bundle.manifest, exported.directory)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=said) as raised:
        seen.completed([{"user": "U003", "k": 1}, request_])
    assert raised.value.index == 1


def test_a_store_of_other_ids_is_refused(
    exported: Exported, histories: HistoryStore, tmp_path: Path
) -> None:
    other = {**histories.head.vocabularies, "user_id": "b" * 64}
    head = dataclasses.replace(histories.head, vocabularies=other)
    HistoryStore.create(str(tmp_path / "other"), head, [])
    said = pytest.raises(UserError, match=r"another vocabulary .*ids of user_id")
    with contextlib.closing(HistoryStore.open(str(tmp_path / "other"))) as others, said:
        Models(others).load("neumf", exported.directory)
