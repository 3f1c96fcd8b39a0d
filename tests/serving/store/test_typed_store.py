"""Features of every kind, from a dataset through a store into what a model reads."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookback.core.errors import UserError
from lookback.formats.features import HistoryFeatures, table_rows
from lookback.formats.raw_ids import ID_DIRECTORY
from lookback.formats.vocabulary import id_file
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.manifest import HistoriesManifest
from lookback.serving.store.completion import StoredHistories
from lookback.serving.store.datasets import StoredDataset
from lookback.serving.store.store import HistoryStore
from lookback.serving.store.vocabularies import require_bundle
from tests.serving import typed_data

SLOTS, LONG = 6, 2
CANDIDATES = [104, 100, 119]


@pytest.fixture(scope="module")
def log() -> typed_data.TypedLog:
    return typed_data.TypedLog()


@pytest.fixture(scope="module")
def dataset(log: typed_data.TypedLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("typed") / "dataset"
    typed_data.write(log, directory)
    return directory


@pytest.fixture(scope="module")
def manifest() -> HistoriesManifest:
    """Of a model of all features, whose bundle would have the dataset's files."""
    features = HistoryFeatures.from_schema(typed_data.schema())
    said = typed_data.SAID
    return HistoriesManifest(
        model_type="sim",
        options={"gsu": "hard", "long_seq_length": LONG, "category_feature": None},
        ids="raw",
        inputs={"item_id_history": (None, SLOTS)},
        cardinalities=table_rows(typed_data.schema()),
        vocabularies={name: f"{ID_DIRECTORY}/{id_file(name)}" for name in typed_data.KNOWN},
        dataset={},
        versions={},
        user_features=features.of("user"),
        item_features=features.of("item"),
        context_features=features.of("context"),
        event_features=features.of("event"),
        max_seq_length=SLOTS,
        time_features=False,
        transforms={n: entry for n, entry in said.items() if set(entry) != {"of", "type"}},
    )


@pytest.fixture(scope="module")
def store(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HistoryStore]:
    address = str(tmp_path_factory.mktemp("typed") / "store")
    loaded = StoredDataset(dataset, None, 1000)
    assert loaded.hashed == ["genres", "brand"]
    HistoryStore.create(address, loaded.head, loaded.users())
    with contextlib.closing(HistoryStore.open(address)) as histories:
        yield histories


def stored(store: HistoryStore, manifest: HistoriesManifest, dataset: Path, **more: Any) -> Any:
    encoder: Any = LAYOUTS["histories"].load_encoder(dataset, manifest)
    return StoredHistories(store, manifest, dataset, encoder, **more), encoder


def test_what_is_stored_encodes_to_what_the_dataset_has(
    log: typed_data.TypedLog, store: HistoryStore, manifest: HistoriesManifest, dataset: Path
) -> None:
    histories, encoder = stored(store, manifest, dataset)
    asked, requests = [], []
    for user, events in log.events.items():
        asked.append(typed_data.Asked(user, events, events[-1], CANDIDATES))
        moment = {name: events[-1][name] for name in typed_data.OF_CONTEXT}
        requests.append({"user": user, **moment, "candidates": {"item_id": CANDIDATES}})
    inputs = encoder.encode(histories.completed(requests)).inputs
    for name, expected in typed_data.batch_of(log, asked, SLOTS).items():
        np.testing.assert_allclose(inputs[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("given", [True, False])
def test_hard_search_finds_events_of_its_categories_however_old(
    given: bool,
    log: typed_data.TypedLog,
    store: HistoryStore,
    manifest: HistoriesManifest,
    dataset: Path,
) -> None:
    histories, _ = stored(store, manifest, dataset, beyond_window=True)
    others = 0
    for user, events in log.events.items():
        candidates: dict[str, Any] = {"item_id": CANDIDATES[:2]}
        wanted = {log.items[item]["category_id"] for item in candidates["item_id"]}
        if given:
            candidates["category_id"] = ["ü", None]
            wanted = {"ü", None}
        (completed,) = histories.completed([{"user": user, "candidates": candidates}])
        older, newest = events[: -(SLOTS - LONG)], events[-(SLOTS - LONG) :]
        found = [e for e in older if log.items[e["item_id"]]["category_id"] in wanted][-LONG:]
        expected = [*found, *newest] if len(events) > SLOTS else events
        others += expected != events[-SLOTS:]
        history = completed["history"]
        assert history["item_id"] == [event["item_id"] for event in expected]
        assert history["device"] == [event["device"] for event in expected]
        assert completed.stored_events == len(events)
    assert others > 1  # or the test would tell nothing


def test_hard_search_by_another_category_than_the_store_s_is_refused(
    store: HistoryStore, manifest: HistoriesManifest, dataset: Path
) -> None:
    other = dataclasses.replace(manifest, options={**manifest.options, "category_feature": "brand"})
    with pytest.raises(UserError, match=r"searches by brand, .* finds events by category_id"):
        stored(store, other, dataset, beyond_window=True)


def test_what_a_store_lacks_or_transforms_otherwise_is_refused(
    store: HistoryStore, manifest: HistoriesManifest, dataset: Path
) -> None:
    more = dataclasses.replace(manifest, event_features=(*manifest.event_features, "mood"))
    with pytest.raises(UserError, match="has no mood"):
        require_bundle(store.head, "there", more, dataset)
    age = {**manifest.transforms["age"], "mean": 41.0}
    other = dataclasses.replace(manifest, transforms={**manifest.transforms, "age": age})
    with pytest.raises(UserError, match="whose age was transformed otherwise"):
        require_bundle(store.head, "there", other, dataset)


def test_the_newest_events_are_loaded_and_the_rest_counted(
    log: typed_data.TypedLog, dataset: Path
) -> None:
    loaded = StoredDataset(dataset, "brand", 3)
    users = dict(loaded.users())
    assert loaded.head.category == "brand"
    total = 0
    for user, events in log.events.items():
        times = [event["timestamp"] for event in events]
        assert users[user].times.tolist() == times[-3:]
        if len(times) > 3:
            assert users[user].floor == times[-4]
        total += len(times)
    kept = sum(min(3, len(events)) for events in log.events.values())
    assert (loaded.loaded.users, loaded.loaded.events) == (len(users), kept)
    assert loaded.loaded.dropped == total - kept
    with pytest.raises(UserError, match=r"expected a feature of items .* received 'genres'"):
        StoredDataset(dataset, "genres", 3)
