"""Bundles whose tables lie in files are verified: their model is built over the files' rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from lookback.formats.schema import read_schema
from lookback.models import MODELS, DINConfig, SIMConfig
from lookback.models.neumf_config import NeuMFConfig
from lookback.serving.bundle import Bundle
from lookback.serving.commands import PROGRAM
from lookback.serving.export import export_bundle
from lookback.serving.skew.offline_model import model_of

LENGTHS = {"max_seq_length": 6, "long_seq_length": 3, "embedding_dim": 4}
CONFIGS: dict[str, Any] = {
    "sim": SIMConfig(**LENGTHS, k=2, time_features=True),
    "din": DINConfig(**LENGTHS),
    "neumf": NeuMFConfig(factors=4, layers=(8, 4)),
}


def trained(name: str, dataset_dir: Path) -> Any:
    """A model of rows that are far from each other, so that a wrong one shows."""
    tf.keras.utils.set_random_seed(3)
    model = MODELS[name](read_schema(dataset_dir), CONFIGS[name])
    shapes = {"user_id": [2], "item_id": [2, 1], "category_id": [2, 1]}
    inputs = {n: tf.ones(shapes.get(n, [2, 6]), tf.int32) for n in model.body.serving_inputs}
    model(inputs)
    for variable in model.weights:
        if variable.shape.rank == 2:
            variable.assign(tf.random.stateless_normal(variable.shape, [1, 2]) / 6)
    return model


@pytest.fixture
def exported(dataset_dir: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Exports a model, and gives the words that verify it."""

    def export(name: str, table_dtype: str) -> list[str]:
        model = trained(name, dataset_dir)
        bundle = export_bundle(model, dataset_dir, tmp_path / "bundle", table_dtype=table_dtype)
        return ["verify", str(bundle), "--dataset_dir", str(dataset_dir), "--samples", "80"]

    return export


@pytest.mark.parametrize(
    ("name", "table_dtype"), [("sim", "fp32"), ("din", "fp16"), ("din", "int8"), ("neumf", "fp32")]
)
def test_a_sound_bundle_is_the_same_as_training(
    name: str, table_dtype: str, exported: Callable[..., list[str]], capsys: Any
) -> None:
    words = exported(name, table_dtype)
    assert PROGRAM.main(words) == 0
    out = capsys.readouterr().out
    assert "compared 80 scores" in out and "allowed 1e-06 (float32)" in out
    rounded = {"fp16": "float16", "int8": "int8"}.get(table_dtype)
    assert ("training's side has the tables as they were exported" in out) == (rounded is not None)
    assert rounded is None or f"({rounded})" in out


def test_no_table_is_read_for_it(exported: Callable[..., list[str]]) -> None:
    bundle = Bundle.load(exported("din", "fp32")[1])
    found = model_of(bundle)
    model: Any = found.model
    assert found.compute_dtype == "float32" and found.table_dtypes == {"float32"}
    inputs = {
        "user_id": np.int32([3]),
        **{n: np.int32([[3, 4]]) for n in ("item_id", "category_id")},
        **{f"{n}_history": np.int32([[0, 0, 5, 3, 4, 3]]) for n in ("item_id", "category_id")},
    }
    logit, _ = bundle.predict(inputs)
    np.testing.assert_allclose(model(inputs).numpy(), logit, atol=1e-6)
    # Its variables are those of a graph of it.
    graph = tf.function(model, autograph=False).get_concrete_function(inputs)
    variables = {tuple(variable.shape) for variable in graph.variables}
    tables = {table.shape for table in bundle.manifest.table_files.values()}
    assert variables and not variables & tables


def test_rows_that_a_server_takes_from_elsewhere_are_found(
    exported: Callable[..., list[str]], capsys: Any
) -> None:
    words = exported("din", "fp32")
    bundle = Path(words[1])
    said = json.loads((bundle / "bundle.json").read_text())["tables"]["item_id"]
    predict = Bundle.predict

    def elsewhere(self: Bundle, inputs: Any) -> Any:
        item = (inputs["item_id"] + 1) % said["shape"][0]
        return predict(self, {**inputs, "item_id": item})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "predict", elsewhere)
        assert PROGRAM.main(words) == 1
    assert re.search(r"DIFFERENT: 0 values of features, \d+ scores", capsys.readouterr().out)


@pytest.mark.parametrize(("name", "table_dtype"), [("sim", None), ("din", "fp32")])
def test_a_model_of_16_bits_has_their_tolerance(
    name: str,
    table_dtype: str | None,
    dataset_dir: Path,
    tmp_path: Path,
    capsys: Any,
    reset_policy: Any,
) -> None:
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = trained(name, dataset_dir)
    reset_policy()
    bundle = export_bundle(model, dataset_dir, tmp_path / "bundle", table_dtype=table_dtype)
    words = ["verify", str(bundle), "--dataset_dir", str(dataset_dir), "--samples", "80"]
    assert PROGRAM.main(words) == 0
    assert "allowed 0.02 (bfloat16)" in capsys.readouterr().out
    assert tf.keras.mixed_precision.global_policy().name == "float32"
