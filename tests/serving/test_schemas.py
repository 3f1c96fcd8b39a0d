"""What the schemas of requests accept, encoders encode, and the other way round."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lookback.core.errors import UserError
from lookback.formats.features import table_rows
from lookback.serving.encoding import EncodedIds, VocabularyEncoder
from lookback.serving.layouts.base import RequestLayout
from lookback.serving.layouts.histories.export import ExportedHistories
from lookback.serving.layouts.histories.layout import HistoryRequestLayout
from lookback.serving.layouts.interactions.layout import InteractionRequestLayout
from lookback.serving.layouts.interactions.requests import InteractionsRequestEncoder
from lookback.serving.layouts.tabular.encoding import (
    EncodedNumbers,
    KeyVocabulary,
    ShiftedLogEncoder,
)
from lookback.serving.layouts.tabular.layout import TabularRequestLayout
from lookback.serving.layouts.tabular.requests import RowEncoder
from lookback.serving.manifest import HistoriesManifest
from lookback.serving.requests import RequestError
from tests.serving import typed_data
from tests.serving.json_schema import accepts, damaged, values

SLOTS = 4
quick = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)


def encodes(encoder: Any, request: Any) -> bool | None:
    """Whether an encoder takes a request; None: that depends on the catalogue."""
    try:
        encoder.check(0, request)
        encoder.encode([request])
    except RequestError as error:
        return None if "the catalogue does not know item" in str(error) else False
    return True


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("schemas") / "dataset"
    typed_data.write(typed_data.TypedLog(), directory)
    return directory


@functools.cache
def histories(dataset: Path, *, time_features: bool) -> tuple[HistoriesManifest, Any]:
    """A manifest as an export would write it, and its encoder."""
    transforms = {n: s for n, s in typed_data.SAID.items() if set(s) - {"of"} != {"type"}}
    transforms = {n: s for n, s in transforms.items() if s != {"of": s["of"], "type": "vocabulary"}}
    rows = table_rows(typed_data.schema())
    manifest = HistoriesManifest(
        model_type="din",
        options={"long_seq_length": 2},
        ids="raw",
        inputs={"item_id_history": (None, None)},
        cardinalities=rows,
        vocabularies=ExportedHistories(dataset).vocabularies_of(rows, transforms),
        dataset={},
        versions={},
        user_features=("user_id", *typed_data.NAMES["user"]),
        item_features=("item_id", *typed_data.NAMES["item"]),
        context_features=tuple(typed_data.OF_CONTEXT),
        event_features=tuple(typed_data.OF_EVENT),
        max_seq_length=SLOTS,
        time_features=time_features,
        transforms=transforms,
    )
    return manifest, HistoryRequestLayout().load_encoder(dataset, manifest)


@st.composite
def history_requests(draw: st.DrawFn, schema: dict[str, Any]) -> dict[str, Any]:
    """Requests that the schema accepts."""
    own = schema["properties"]
    lengths = {"history": draw(st.integers(0, SLOTS)), "candidates": draw(st.integers(1, 3))}
    request = {}
    for name, of in own.items():
        if name in lengths:
            request[name] = {
                column: draw(st.lists(values(c["items"]), min_size=n, max_size=n))
                for n in [lengths[name]]
                for column, c in of["properties"].items()
            }
        else:
            request[name] = draw(values(of))
    request["history"]["timestamp"].sort()
    return request


@pytest.mark.parametrize("time_features", [False, True])
@quick
@given(data=st.data())
def test_requests_of_histories(dataset: Path, time_features: bool, data: st.DataObject) -> None:
    manifest, encoder = histories(dataset, time_features=time_features)
    schema = HistoryRequestLayout().request_schema(manifest, encoder, None)
    good = data.draw(history_requests(schema))
    assert accepts(schema, good) and encodes(encoder, good)
    for _ in range(3):
        bad = data.draw(damaged(good))
        taken = encodes(encoder, bad)
        if taken is not None:
            assert accepts(schema, bad) is taken, bad


def test_the_bound_of_candidates(dataset: Path) -> None:
    manifest, encoder = histories(dataset, time_features=False)
    log = typed_data.TypedLog()
    request = log.request(log.last(next(iter(log.users)), [104, 100, 119]))
    layout = HistoryRequestLayout()
    assert accepts(layout.request_schema(manifest, encoder, 3), request)
    assert not accepts(layout.request_schema(manifest, encoder, 2), request)
    assert accepts(layout.request_schema(manifest, encoder, None), request)


def interactions() -> InteractionsRequestEncoder:
    users, items = VocabularyEncoder(pa.array(["a", "b"])), VocabularyEncoder(pa.array([5, 7, 9]))
    return InteractionsRequestEncoder("user_id", "item_id", users, items, np.int32([3, 4, 5]))


@quick
@given(data=st.data())
def test_requests_of_interactions(data: st.DataObject) -> None:
    encoder = interactions()
    schema = InteractionRequestLayout().request_schema(None, encoder, None)
    named, best = (form["properties"] for form in schema["anyOf"])
    item = named["candidates"]["properties"]["item_id"]["items"]
    assert item == best["exclude"]["items"]
    user = {"user_id": data.draw(values(named["user_id"]))}
    if data.draw(st.booleans()):
        ids = data.draw(st.lists(values(item), min_size=1, max_size=3))
        good = {**user, "candidates": {"item_id": ids}}
    else:
        good = {**user, "k": 2, "exclude": data.draw(st.lists(values(item), max_size=3))}
    assert accepts(schema, good) and encodes(encoder, good)
    for _ in range(3):
        bad = data.draw(damaged(good))
        assert accepts(schema, bad) is encodes(encoder, bad), bad


def rows() -> RowEncoder:
    encoders = {
        "n0": ShiftedLogEncoder(),
        "n1": EncodedNumbers(),
        "c0": KeyVocabulary(np.int64([1, 2]), np.int32([1, 2])),
        "c1": EncodedIds(5, lowest=0),
    }
    return RowEncoder(("n0", "n1"), ("c0", "c1"), encoders)


@quick
@given(data=st.data())
def test_requests_of_rows(data: st.DataObject) -> None:
    encoder = rows()
    schema = TabularRequestLayout().request_schema(None, encoder, None)
    _, by_name = schema["anyOf"]
    of_names = {n: data.draw(values(of)) for n, of in by_name["properties"].items()}
    lists = {"numerical": [of_names["n0"], of_names["n1"]]}
    lists["categorical"] = [of_names["c0"], of_names["c1"]]
    for good in (of_names, lists):
        assert accepts(schema, good) and encodes(encoder, good)
        for _ in range(2):
            bad = data.draw(damaged(good))
            assert accepts(schema, bad) is encodes(encoder, bad), bad


def test_a_layout_may_have_none() -> None:
    class Manifest:
        layout = "numbers"

    of: Any = RequestLayout
    for ask in (of.request_schema, of.answer_schema):
        with pytest.raises(UserError, match="'numbers' has no schema"):
            ask(None, Manifest(), *[None] * (ask.__code__.co_argcount - 2))
