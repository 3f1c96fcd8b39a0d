"""Features of every kind: raw requests score as the model does on what the data holds."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lookback.core.arrow_files import read_parquet
from lookback.core.errors import UserError
from lookback.formats.features import history_name
from lookback.formats.history_columns import TIME_GAP
from lookback.formats.transforms import Bag, Buckets, Hashed, Number
from lookback.serving.bundle import Bundle
from lookback.serving.columns import RequestTable, columns_of
from lookback.serving.commands import PROGRAM
from lookback.serving.encoding import VocabularyEncoder
from lookback.serving.feature_encoders import (
    BagEncoder,
    BucketEncoder,
    HashEncoder,
    NumberEncoder,
)
from lookback.serving.layouts.candidates_layout import CandidateRequestLayout
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.manifest import Manifest
from lookback.serving.requests import RequestError
from lookback.workflows.histories.reader import RESERVED
from tests.serving import typed_data

SLOTS = 6
CANDIDATES = [104, 100, 119]


@pytest.fixture(scope="module")
def log() -> typed_data.TypedLog:
    return typed_data.TypedLog()


@pytest.fixture(scope="module")
def dataset(log: typed_data.TypedLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("typed") / "dataset"
    typed_data.write(log, directory)
    return directory


def din(**options: Any) -> Any:
    """DIN with weights of visible size."""
    from lookback.models import MODELS
    from lookback.models.config import DINConfig

    config = DINConfig(
        max_seq_length=SLOTS, long_seq_length=2, embedding_dim=3, stage_two_mlp_dims=(4,), **options
    )
    return MODELS["din"](typed_data.schema(), config)


def visible(model: Any, batch: dict[str, Any]) -> Any:
    """The model, built, with weights of visible size."""
    import tensorflow as tf

    model({name: tf.constant(values) for name, values in batch.items()})
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return model


@pytest.fixture(scope="module")
def asked(log: typed_data.TypedLog) -> list[typed_data.Asked]:
    return [log.last(user, CANDIDATES) for user in log.users]


@pytest.fixture(scope="module")
def batch(log: typed_data.TypedLog, asked: list[Any]) -> dict[str, Any]:
    return typed_data.batch_of(log, asked, SLOTS)


@pytest.fixture(scope="module")
def model(batch: dict[str, Any]) -> Any:
    return visible(din(), batch)


@pytest.fixture(scope="module")
def bundle_dir(model: Any, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lookback.serving.export import export_bundle

    return export_bundle(model, dataset, tmp_path_factory.mktemp("typed") / "bundle")


@pytest.fixture(scope="module")
def bundle(bundle_dir: Path) -> Bundle:
    return Bundle.load(bundle_dir)


@pytest.fixture
def requests(log: typed_data.TypedLog, asked: list[Any]) -> list[dict[str, Any]]:
    return [log.request(one) for one in asked]


def logits(bundle: Bundle, requests: list[dict[str, Any]]) -> np.ndarray:
    return np.stack([scores.logit for scores in bundle.score(requests)])


def test_raw_requests_are_encoded_and_scored_as_the_data_was(
    bundle: Bundle, model: Any, batch: dict[str, Any], requests: list[dict[str, Any]]
) -> None:
    inputs = bundle.encoder.encode(requests).inputs
    assert set(inputs) == set(batch) == set(bundle.manifest.inputs)
    for name, expected in batch.items():
        assert inputs[name].dtype == expected.dtype == bundle.manifest.input_type(name), name
        np.testing.assert_allclose(inputs[name], expected, rtol=1e-6, atol=1e-7, err_msg=name)
    expected = model(batch, training=False).numpy()
    assert np.abs(expected).max() > 1 and np.ptp(expected, 1).min() > 1e-3
    np.testing.assert_allclose(logits(bundle, requests), expected, atol=1e-5)


def table_of(requests: list[dict[str, Any]]) -> pa.Table:
    """A column has one type: brands become text, of which the hash is."""
    for request in requests:
        for part in ("history", "candidates"):
            brands = request[part]["brand"]
            request[part]["brand"] = [None if b is None else str(b) for b in brands]
    return pa.Table.from_pylist(requests)


def test_a_table_of_requests_is_encoded_as_the_objects_are(
    bundle: Bundle, requests: list[dict[str, Any]]
) -> None:
    table = table_of(requests)
    expected = bundle.encoder.encode(requests)
    flat = table.flatten()
    assert "history.genres" in flat.column_names
    tags = flat.column_names.index("country")
    flat = flat.set_column(tags, "country", flat["country"].dictionary_encode())
    for given in (table, flat):
        rows = RequestTable(given, bundle.encoder.optional)
        found = bundle.encoder.encode(rows)
        assert list(found.counts) == list(expected.counts)
        for name, values in expected.inputs.items():
            np.testing.assert_array_equal(found.inputs[name], values, err_msg=name)
            assert found.inputs[name].dtype == values.dtype
        part = bundle.encoder.encode(rows[3:8]).inputs
        alone = bundle.encoder.encode(requests[3:8]).inputs
        for name, values in alone.items():
            np.testing.assert_array_equal(part[name], values, err_msg=name)
        assert rows[4]["history"].keys() == requests[4]["history"].keys()
        assert rows[4]["candidates"] == requests[4]["candidates"]


def test_users_of_a_dataset_are_encoded_as_their_requests_are(
    bundle: Bundle, bundle_dir: Path, dataset: Path, log: typed_data.TypedLog
) -> None:
    """Of a model without context, of which a dataset says nothing."""
    layout = LAYOUTS["histories"]
    assert isinstance(layout, CandidateRequestLayout)
    with pytest.raises(UserError, match="reads device, sensors, hour of the moment of a request"):
        layout.stored_users(bundle.manifest, bundle.encoder, bundle_dir, dataset, None)
    manifest: Any = bundle.manifest
    manifest = dataclasses.replace(manifest, context_features=())
    encoder: Any = bundle.encoder
    encoder = dataclasses.replace(encoder, context_features=())
    stored = layout.stored_users(manifest, encoder, bundle_dir, dataset, None)
    histories = read_parquet(dataset / "histories", list(stored.columns.values()))
    found = stored.encoder.encode_users(stored.requests(histories))
    names = ("item_id", *typed_data.OF_EVENT)
    requests = []
    for user, events in log.events.items():
        history: dict[str, Any] = {name: [event[name] for event in events] for name in names}
        history |= {
            name: [log.items[item][name] for item in history["item_id"]]
            for name in typed_data.NAMES["item"]
        }
        requests.append({"user_id": user, **log.users[user], "history": history})
    assert encoder.check_all(requests, candidates=False) == [0] * len(requests)
    expected = encoder.encode_users(columns_of(requests))
    assert found.keys() == expected.keys() and len(found) > 10
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("candidates.item_id", [100, None, 101], None),  # null is a value
        ("candidates.item_id", [], "has 3 entries and candidates.item_id 0"),
        ("candidates.item_id", None, "candidates: 'item_id' is missing"),
        ("history.item_id", None, "history: 'item_id' is missing"),
        ("history.dwell", None, "history.dwell is missing; the model reads it of every event"),
        ("history.dwell", [1.0], "history.dwell has 1 entries and history.item_id"),
        ("history.dwell", [float("nan")] * 20, "history.dwell has 20 entries"),
        ("age", float("inf"), r"age: expected finite numbers \(or null\), received \[inf\]"),
        ("interests", [None], "interests: expected lists of categories or null"),
        ("candidates.price", None, None),  # the catalogue has it
    ],
)
def test_a_faulty_row_of_a_table_is_named(
    bundle: Bundle, requests: list[dict[str, Any]], column: str, value: Any, text: str | None
) -> None:
    table = table_of(requests).flatten()
    values = table[column].to_pylist()
    values[2] = value
    place = table.column_names.index(column)
    changed = table.set_column(place, column, pa.array(values, table[column].type))
    rows = RequestTable(changed, bundle.encoder.optional)
    if text is None:
        assert len(bundle.encoder.encode(rows).counts) == len(requests)
        return
    with pytest.raises(RequestError, match=text) as caught:
        bundle.encoder.encode(rows)
    assert caught.value.index == 2
    with pytest.raises(RequestError, match=r"requests\[0\]: the request: 'contry' is unknown"):
        bundle.encoder.encode(RequestTable(table.append_column("contry", table["country"])))


def test_what_the_catalogue_knows_of_items_may_be_left_out(
    bundle: Bundle, requests: list[dict[str, Any]]
) -> None:
    expected = logits(bundle, requests)
    for request in requests:
        for name in typed_data.NAMES["item"]:
            del request["history"][name], request["candidates"][name]
    np.testing.assert_allclose(logits(bundle, requests), expected, atol=1e-6)
    for name in typed_data.NAMES["item"]:
        requests[1]["candidates"][name] = [None] * 3
    requests[1]["candidates"]["item_id"] = [100, 7, 101]
    scores = bundle.score(requests)
    assert scores[1].known == (True, False, True)
    del requests[1]["candidates"]["price"]
    text = r"requests\[1\]: candidates.price is absent, and the catalogue does not know item 7"
    with pytest.raises(RequestError, match=text):
        bundle.score(requests)


def test_every_feature_moves_the_scores(bundle: Bundle, requests: list[dict[str, Any]]) -> None:
    request = max(requests, key=lambda request: len(request["history"]["item_id"]))
    expected = logits(bundle, [request])
    other = {
        **{"country": "AT", "interests": ["art"], "age": 77, "category_id": "Mics"},
        **{"genres": ["war"], "brand": "B", "year": 1995, "price": 3.5, "device": "tv"},
        **{"sensors": ["camera"], "hour": 17, "rating": 1, "actions": ["like"], "dwell": 60},
    }
    assert set(other) == set(typed_data.SAID)
    places = [((), n) for n in (*typed_data.NAMES["user"], *typed_data.OF_CONTEXT)]
    past = (*typed_data.NAMES["item"], *typed_data.OF_CONTEXT, *typed_data.OF_EVENT)
    places += [(("history",), n) for n in past]
    places += [(("candidates",), n) for n in typed_data.NAMES["item"]]
    for path, name in places:
        changed = copy.deepcopy(request)
        part = changed[path[0]] if path else changed
        value = None if part[name] == other[name] else other[name]
        part[name] = [value] * len(part[name]) if path else value
        moved = np.abs(logits(bundle, [changed]) - expected).max()
        assert moved > 1e-6, (path, name)


def test_empty_histories_need_no_more_than_ids(bundle: Bundle, requests: list[dict]) -> None:
    requests[0]["history"] = {"item_id": []}
    inputs = bundle.encoder.encode(requests[:1]).inputs
    for name, values in inputs.items():
        if name.endswith("_history"):
            assert not values.any(), name
    assert np.isfinite(logits(bundle, requests[:1])).all()


FAULTS: list[tuple[str, Any, str]] = [
    ("age", "7", r"age: expected finite numbers \(or null\), received \['7'\]"),
    ("age", True, "age: expected finite numbers"),
    ("age", float("nan"), "age: expected finite numbers"),
    ("age", [40], "age: expected finite numbers"),
    ("hour", float("inf"), r"hour: expected finite numbers \(or null\), received \[inf\]"),
    ("hour", 10**400, "hour: expected finite numbers"),
    ("hour", 1e300, "hour: expected numbers that float32 holds"),
    ("country", ["AT"], r"country: expected strings \(or null\)"),
    ("interests", "music", "interests: expected a list of categories or null, received 'music'"),
    ("interests", [None], r"interests: expected a list of categories or null, received \[None\]"),
    ("interests", [["music"]], r"interests: expected strings or integers \(or null\)"),
    ("interests", {"music": 1}, "interests: expected a list of categories"),
    ("candidates.year", [None, 2000, "old"], "candidates.year: expected finite numbers"),
    ("candidates.brand", ["a", 1.5, "b"], "candidates.brand: expected strings or integers"),
    ("candidates.brand", ["a", True, "b"], "candidates.brand: expected strings or integers"),
    ("candidates.genres", ["war", [], None], "candidates.genres: expected a list of categories"),
    ("candidates.genres", [["war"]], "candidates.genres has 1 entries"),
    ("candidates.dwell", [1, 2, 3], "candidates: 'dwell' is unknown"),
    ("candidates.device", ["tv"] * 3, "candidates: 'device' is unknown"),
    ("dwell", 3, "'dwell' is unknown"),
    ("device", ..., "the request: 'device' is missing"),
    ("history.device", ..., "history.device is missing; the model reads it of every event"),
    ("history.dwell", ..., "history.dwell is missing"),
    ("history.hour", "noon", "history.hour: expected a list, received 'noon'"),
]


@pytest.mark.parametrize(("path", "value", "text"), FAULTS)
def test_faulty_values_are_refused_by_request_and_field(
    bundle: Bundle, requests: list[dict[str, Any]], path: str, value: Any, text: str
) -> None:
    *parents, name = path.split(".")
    part = requests[2]
    for parent in parents:
        part = part[parent]
    if value is ...:
        del part[name]
    else:
        part[name] = value
    with pytest.raises(RequestError, match=text) as caught:
        bundle.score(requests)
    assert caught.value.index == 2


def test_samples_are_encoded_as_the_dataset_is(
    bundle: Bundle, bundle_dir: Path, dataset: Path, log: typed_data.TypedLog, capsys: Any
) -> None:
    words = ("--export_dir", str(bundle_dir), "--dataset_dir", str(dataset))
    assert PROGRAM.main(["sample", *words, "--users", "12", "--candidates", "4"]) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [request["user_id"] for request in made] == list(log.users)
    assert all(request["candidates"]["item_id"][0] == log.events[u][-1]["item_id"]
               for u, request in zip(log.users, made, strict=True))  # fmt: skip
    asked = [log.last(made_of["user_id"], made_of["candidates"]["item_id"]) for made_of in made]
    assert_encoded(bundle, made, typed_data.batch_of(log, asked, SLOTS))


def assert_encoded(bundle: Bundle, requests: list[Any], expected: dict[str, Any]) -> None:
    inputs = bundle.encoder.encode(requests).inputs
    for name, values in expected.items():
        np.testing.assert_allclose(inputs[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_impressions_with_labels_are_served_as_they_were_shown(
    model: Any, log: typed_data.TypedLog, tmp_path: Path, capsys: Any
) -> None:
    from lookback.serving.export import export_bundle

    typed_data.write(log, tmp_path / "dataset", explicit=True)
    exported = export_bundle(model, tmp_path / "dataset", tmp_path / "bundle")
    bundle = Bundle.load(exported)
    requests = [log.request(log.at(shown, [shown["item_id"], 101])) for shown in log.shown]
    batch = typed_data.batch_of(
        log, [log.at(shown, [shown["item_id"], 101]) for shown in log.shown], SLOTS
    )
    assert {len(request["history"]["item_id"]) for request in requests} > {0, 1}
    np.testing.assert_allclose(
        logits(bundle, requests), model(batch, training=False).numpy(), atol=1e-5
    )
    words = ("--export_dir", str(exported), "--dataset_dir", str(tmp_path / "dataset"))
    assert PROGRAM.main(["sample", *words, "--users", "9", "--candidates", "3"]) == 0
    made = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_moment = {(shown["user"], shown["timestamp"]): shown for shown in log.shown}
    shown = [by_moment[request["user_id"], request["timestamp"]] for request in made]
    items = [request["candidates"]["item_id"] for request in made]
    assert [ids[0] for ids in items] == [impression["item_id"] for impression in shown]
    asked = [log.at(impression, ids) for impression, ids in zip(shown, items, strict=True)]
    assert_encoded(bundle, made, typed_data.batch_of(log, asked, SLOTS))
    assert PROGRAM.main(["sample", *words, "--users", "37"]) == 2
    assert "has 36 test impressions, fewer than the 37 asked for" in capsys.readouterr().err
    assert PROGRAM.main(["describe", "--export_dir", str(exported)]) == 0
    assert "of a positive label (a click), among items shown as" in capsys.readouterr().out
    verify = ["verify", str(exported), "--dataset_dir", str(tmp_path / "dataset")]
    assert PROGRAM.main(verify) == 0
    # An impression is one score: nothing is drawn beside it.
    counts = re.search(r"compared ([\d,]+) scores .* in ([\d,]+) requests", capsys.readouterr().out)
    assert counts is not None and counts[1] == counts[2] and int(counts[1]) >= 36


def test_a_bundle_says_what_it_reads(bundle_dir: Path, dataset: Path, capsys: Any) -> None:
    content = json.loads((bundle_dir / "bundle.json").read_text())
    assert content["format_version"] == 3
    manifest = Manifest.read(bundle_dir)
    shapes = {name: manifest.inputs[name] for name in ("age", "interests", "genres", "price")}
    assert shapes == {
        **{"age": (None,), "interests": (None, 2)},
        **{"genres": (None, None, 3), "price": (None, None)},
    }
    assert manifest.inputs[history_name("actions")] == (None, None, 3)
    assert set(content["transforms"]) == {
        *("interests", "age", "genres", "brand", "year", "price"),
        *("sensors", "hour", "actions", "dwell"),
    }
    assert PROGRAM.main(["describe", "--export_dir", str(bundle_dir)]) == 0
    told = capsys.readouterr().out
    assert "genres int32 [B, C, 3]" in told
    assert f"dwell_history float32 [B, {SLOTS - 1}..{SLOTS}]" in told
    assert "context     device: 5 rows" in told
    words = ["--export_dir", str(bundle_dir), "--batch_sizes", "2", "--steps", "1"]
    assert PROGRAM.main(["benchmark", *words, "--warmup_steps", "0"]) == 0


def test_no_feature_can_be_called_as_what_requests_and_answers_have_beside(
    bundle: Bundle, requests: list[dict[str, Any]]
) -> None:
    (scores,) = bundle.score(requests[:1])
    answer = LAYOUTS["histories"].answer(requests[0], bundle.manifest, scores)
    ranked = answer["candidates"][0]
    keys = {*requests[0], *requests[0]["history"], *answer, *ranked} - {*typed_data.SAID}
    assert {"history", "candidates", "known", "logit", "probability", "timestamp"} < keys
    assert {*keys, TIME_GAP} <= {*RESERVED}


def test_the_bundle_of_some_features_asks_for_no_others(
    dataset: Path, log: typed_data.TypedLog, batch: dict[str, Any], tmp_path: Path
) -> None:
    from lookback.serving.export import export_bundle

    features = ("genres", "dwell", "country")
    parts = {"user_id", "item_id", "item_id_history", "genres", "genres_history", "country"}
    some = {name: batch[name] for name in (*parts, "dwell_history")}
    model = visible(din(features=features), some)
    tables = {table.name for table in model.body.embeddings.tables}
    assert tables == {"user_id", "item_id", "genres", "country"}
    bundle = Bundle.load(export_bundle(model, dataset, tmp_path / "bundle"))
    requests = [log.request(log.last(user, CANDIDATES)) for user in log.users]
    with pytest.raises(RequestError, match="'interests' is unknown"):
        bundle.score(requests)
    wanted = {"user_id", "item_id", *features}
    for request in requests:
        for part in (request, request["history"], request["candidates"]):
            for name in set(typed_data.SAID) - wanted:
                part.pop(name, None)
    np.testing.assert_allclose(
        logits(bundle, requests), model(some, training=False).numpy(), atol=1e-5
    )


def test_transformations_that_the_dataset_does_not_tell_are_asked_for(
    model: Any,
    dataset: Path,
    without_digests: Callable[[Path], Path],
    bundle_dir: Path,
    tmp_path: Path,
) -> None:
    import shutil

    from lookback.serving.export import export_bundle

    other = without_digests(shutil.copytree(dataset, tmp_path / "other"))
    path = other / "dataset.json"
    info = json.loads(path.read_text())
    info["features"]["hour"]["mean"] = 11.0
    path.write_text(json.dumps(info))
    words = ["--export_dir", str(bundle_dir), "--dataset_dir", str(other), "--no_verify"]
    assert PROGRAM.main(["sample", *words]) == 2
    del info["features"]["hour"]
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"does not say how the values of \['hour'\] were transf"):
        export_bundle(model, other, tmp_path / "export")
    info["features"] = {**typed_data.SAID, "year": {"type": "buckets", "boundaries": [1.0]}}
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"transformation of 'year' needs 5 rows, .* has 6"):
        export_bundle(model, other, tmp_path / "export")


def test_decoded_values_are_encoded_to_the_same() -> None:
    numbers = np.array([-3.5, 0, 0.25, 7], np.float32)
    for transform in (
        Number(fill=0.0),
        Number(fill=1.0, log=True, mean=2.0, scale=0.5),
        Number(fill=0.0, clip=(-1e6, 1e9), mean=-4.0, scale=30.0),
    ):
        encoder = NumberEncoder(transform)
        found = encoder.encode(encoder.decode(numbers))
        np.testing.assert_allclose(found, numbers, rtol=1e-6, atol=1e-6)
    for boundaries in ((), (2.0,), (-1e17, 0.0, 5.5)):
        buckets = BucketEncoder(Buckets(boundaries))
        ids = np.arange(buckets.transform.rows - 3, dtype=np.int32) + 3
        ids = np.r_[1, ids].astype(np.int32)
        np.testing.assert_array_equal(buckets.encode(buckets.decode(ids)), ids)
    hashes = HashEncoder(Hashed(1000))
    ids = np.array([1, 3, 1002, 500, 3], np.int32)
    np.testing.assert_array_equal(hashes.encode(hashes.decode(ids)), ids)
    import pyarrow as pa

    vocabulary = VocabularyEncoder(pa.array(["a", "b", "c", "d"]))
    for elements in (vocabulary, HashEncoder(Hashed(9))):
        bags = BagEncoder(Bag(3, elements=Hashed(9)), elements)
        ids = np.array([[3, 5, 0], [0, 0, 0], [3, 4, 6], [4, 0, 0]], np.int32)
        np.testing.assert_array_equal(bags.encode(bags.decode(ids)), ids)


@pytest.mark.usefixtures("eagerly")
def test_verify_compares_it_with_training(
    bundle_dir: Path, dataset: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["verify", str(bundle_dir), "--dataset_dir", str(dataset), "--samples", "60"]
    assert PROGRAM.main(words) == 0
    assert "compared 60 scores and their features, in 15 requests" in capsys.readouterr().out
    keep = Bag.keep
    monkeypatch.setattr(Bag, "keep", lambda bag, ids, ends: keep(bag, ids[::-1].copy(), ends))
    assert PROGRAM.main(words) == 1
    assert re.search(r"  U\d\d +\d* +genres\[\d\] ", capsys.readouterr().out)
