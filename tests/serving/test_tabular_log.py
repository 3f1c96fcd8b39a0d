"""Bundles of rows described column by column: raw values score as the rows of the dataset do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.serving.bundle import Bundle
from lookback.serving.export import check_export_target, export_bundle
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.manifest import Manifest, TabularManifest
from lookback.serving.requests import RequestError
from lookback.workflows.commands import PROGRAM
from tests.serving.tabular_data import rows_to_test, small_model
from tests.workflows.row_log import BY_TIME, START, YAML, write_rows

NUMERICAL = ["price", "dwell"]
CATEGORICAL = ["user_id", "item_id", "kind", "device", "level", "ad"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A dataset, and the raw rows of its test in their order."""
    directory = tmp_path_factory.mktemp("rows")
    frame = write_rows(directory / "raw")
    config = directory / "raw/my.yaml"
    config.write_text(YAML.format(ending="csv", split=BY_TIME))
    words = ["run", "--config", str(config), "--output", str(directory / "dataset")]
    assert PROGRAM.main(words) == 0
    return directory / "dataset", frame[frame["ts"] >= START + 350]


@pytest.fixture(scope="module")
def exported(
    raw: tuple[Path, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    model = small_model(raw[0])
    check_export_target(tmp_path_factory.mktemp("no") / "export", raw[0])
    return export_bundle(model, raw[0], tmp_path_factory.mktemp("bundle") / "export"), model


def _requests(frame: pd.DataFrame) -> list[dict[str, Any]]:
    columns = {"user_id": "who", "item_id": "what", "level": "dwell"}
    found = []
    for row in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        found.append({name: row[columns.get(name, name)] for name in [*NUMERICAL, *CATEGORICAL]})
    return found


def test_raw_rows_score_as_the_model_scores_the_datasets_rows(
    raw: tuple[Path, pd.DataFrame], exported: tuple[Path, Any]
) -> None:
    inputs = rows_to_test(raw[0])
    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    expected = exported[1](tensors, training=False).numpy()[:, 0]
    bundle = Bundle.load(exported[0])
    requests = _requests(raw[1])
    assert len(requests) == len(expected) > 30
    encoded = bundle.encoder.encode(requests).inputs
    np.testing.assert_array_equal(encoded["categorical"], inputs["categorical"])
    np.testing.assert_allclose(encoded["numerical"], inputs["numerical"], rtol=1e-6)
    found = np.array([scores.logit[0] for scores in bundle.score(requests)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(found) > 1e-2
    unknown = {**requests[0], "user_id": "nobody", "kind": None, "dwell": None}
    assert bundle.encoder.encode([unknown]).inputs["categorical"][0, [0, 2]].tolist() == [2, 1]


def test_the_bundle_says_how_values_are_transformed(
    raw: tuple[Path, pd.DataFrame], exported: tuple[Path, Any]
) -> None:
    manifest = Manifest.read(exported[0])
    assert isinstance(manifest, TabularManifest) and manifest.ids == "raw"
    assert list(manifest.numerical) == NUMERICAL and list(manifest.categorical) == CATEGORICAL
    info = json.loads((raw[0] / "dataset.json").read_text())
    assert manifest.transforms == info["features"]
    assert set(manifest.vocabularies) == {"user_id", "item_id", "kind", "device"}
    content = json.loads((exported[0] / "bundle.json").read_text())
    assert content["format_version"] == 3  # a version that knows no transforms reads it wrongly


def test_sampled_requests_are_encoded_to_the_rows_that_they_are_of(
    raw: tuple[Path, pd.DataFrame], exported: tuple[Path, Any]
) -> None:
    bundle, inputs = Bundle.load(exported[0]), rows_to_test(raw[0])
    rows = len(inputs["numerical"])
    layout = LAYOUTS["tabular"]
    manifest: Any = bundle.manifest
    requests = list(layout.sample(manifest, exported[0], raw[0], seed=0, rows=rows))
    encoded = bundle.encoder.encode(json.loads(json.dumps(requests))).inputs
    np.testing.assert_array_equal(encoded["categorical"], inputs["categorical"])
    np.testing.assert_allclose(encoded["numerical"], inputs["numerical"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"user_id": 7}, r"user_id: expected strings .*received \[7\]"),
        ({"item_id": "7"}, r"item_id: expected integers .*received \['7'\]"),
        ({"dwell": "much"}, r"dwell: expected finite numbers \(or null\), received \['much'\]"),
        ({"level": float("nan")}, "level: expected finite numbers"),
        ({"ad": 0.5}, "ad: expected strings or integers"),
        ({"label": 1}, "the request: 'label' is unknown"),
    ],
)
def test_a_faulty_request_is_refused_by_number_and_field(
    raw: tuple[Path, pd.DataFrame], exported: tuple[Path, Any], change: Any, text: str
) -> None:
    first, *_ = _requests(raw[1])
    with pytest.raises(RequestError, match=rf"requests\[1\]: {text}"):
        Bundle.load(exported[0]).encoder.encode([first, {**first, **change}])


def test_a_dataset_whose_parts_contradict_each_other_makes_no_bundle(
    raw: tuple[Path, pd.DataFrame], exported: tuple[Path, Any], tmp_path: Path, without_digests: Any
) -> None:
    import shutil

    mixed = without_digests(shutil.copytree(raw[0], tmp_path / "mixed"))
    info = json.loads((mixed / "dataset.json").read_text())
    info["features"]["ad"]["buckets"] = 15
    (mixed / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"transformation of .ad. needs 18 rows, .* has 19"):
        export_bundle(exported[1], mixed, tmp_path / "export")
    shutil.rmtree(mixed / "workflow/encoder")
    with pytest.raises(UserError, match="has no workflow/encoder/categories, which a bundle needs"):
        check_export_target(tmp_path / "export", mixed)
