"""What every model over tabular rows must bear: a new one is tested by being registered."""

from __future__ import annotations

import dataclasses
from typing import Any

import merlin.models.tf as mm
import numpy as np
import pytest
import tensorflow as tf

from lookback.formats.tabular_schema import tabular_schema
from lookback.models import MODELS
from lookback.models.click_model import ClickModel
from lookback.models.config import HistoryModelConfig
from lookback.models.tabular_body import TabularBody
from lookback.models.tabular_config import TabularModelConfig
from lookback.training.config import RunConfig

EACH = pytest.mark.parametrize(
    "name", [name for name, entry in MODELS.items() if entry.config_class.layout == "tabular"]
)
ROWS = {"cat_0": 40, "cat_1": 3, "cat_2": 1}
SCHEMA = tabular_schema(4, ROWS)
SMALL: dict[str, Any] = {
    "embedding_dim": 6,
    "bottom_mlp_sizes": (8, 6),
    "top_mlp_sizes": (9, 5, 1),
    "cross_layer_projection_dim": 4,
}


def config_of(name: str, **changes: Any) -> Any:
    names = {field.name for field in dataclasses.fields(MODELS[name].config_class)}
    options = {n: v for n, v in SMALL.items() if n in names}
    return MODELS[name].config_class(**{**options, **changes})


def batch_of(rows: int, seed: int = 0) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, count, rows) for count in ROWS.values()]
    return {
        "numerical": tf.constant(rng.normal(size=(rows, 4)), tf.float32),
        "categorical": tf.constant(np.stack(ids, 1), tf.int32),
    }


def built(name: str, **changes: Any) -> ClickModel:
    tf.keras.utils.set_random_seed(2)
    model = MODELS[name](SCHEMA, config_of(name, **changes))
    model(batch_of(3))
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    return model


@EACH
def test_is_a_merlin_model_of_the_documented_options(name):
    model = built(name)
    assert isinstance(model, mm.Model)
    assert isinstance(model.body, TabularBody)
    assert len(model.model_outputs) == 1
    config_class = MODELS[name].config_class
    assert issubclass(config_class, TabularModelConfig)
    config_class()  # every option has a default
    assert all("help" in field.metadata for field in dataclasses.fields(config_class))


@EACH
def test_the_defaults_that_it_brings_are_options_of_a_run(name):
    config_class = MODELS[name].config_class
    for defaults in (config_class.run_defaults, config_class.recipes["nvidia"]):
        assert defaults
        run = RunConfig(model_type=name, dataset_dir="d", **defaults)
        assert {option: getattr(run, option) for option in defaults} == defaults


@EACH
def test_float32_logits_of_each_row_that_depend_on_no_other(name):
    model, batch = built(name), batch_of(7)
    logits = model(batch)
    assert logits.shape == [7, 1]
    assert logits.dtype == tf.float32
    alone = [model({k: v[i : i + 1] for k, v in batch.items()}).numpy() for i in range(7)]
    np.testing.assert_allclose(logits, np.concatenate(alone), rtol=1e-4, atol=1e-5)


@EACH
def test_every_feature_matters(name):
    model, batch = built(name), batch_of(5)
    before = model(batch).numpy()
    for column in range(4):
        changed = batch["numerical"].numpy()
        changed[:, column] += 1
        assert np.abs(model({**batch, "numerical": changed}).numpy() - before).max() > 1e-4
    for column in range(2):  # the third table has one row
        changed = batch["categorical"].numpy()
        changed[:, column] = (changed[:, column] + 1) % list(ROWS.values())[column]
        assert np.abs(model({**batch, "categorical": changed}).numpy() - before).max() > 1e-4


@EACH
def test_every_weight_learns_and_each_table_has_one_sparse_gradient(name):
    model, batch = built(name), batch_of(64)
    (output,) = model.model_outputs
    labels = tf.constant(np.random.default_rng(3).integers(0, 2, (64, 1)), tf.float32)
    with tf.GradientTape() as tape:
        loss = output.default_loss(labels, model(batch, training=True))
    gradients = tape.gradient(loss, model.trainable_weights)
    tables = {id(v) for v in model.body.embeddings.table_variables.values()}
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        sparse = isinstance(gradient, tf.IndexedSlices)
        assert sparse == (id(weight) in tables), weight.name
        assert np.abs((gradient.values if sparse else gradient).numpy()).max() > 0, weight.name


@EACH
def test_a_batch_of_no_rows_has_no_logits_and_finite_gradients(name):
    model = built(name)
    with tf.GradientTape() as tape:
        logits = model(batch_of(0), training=True)
        loss = tf.reduce_sum(logits)
    assert logits.shape == [0, 1]
    for gradient in tape.gradient(loss, model.trainable_weights):
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        assert np.isfinite(values.numpy()).all()


@EACH
@pytest.mark.parametrize("hashed", [False, True])
def test_the_ids_of_a_batch_are_those_that_a_call_looks_up(name, hashed):
    model = built(name, hash_indices=hashed)
    batch = batch_of(6)
    if hashed:
        batch["categorical"] += 1000
    route = model.body.embeddings.route(model.body.lookups(batch))
    expected = model(batch).numpy()
    with model.body.embeddings.ahead(route):
        np.testing.assert_array_equal(model(batch), expected)


@EACH
def test_tables_are_known_before_the_model_is_built(name):
    for changes in ({}, {"hash_indices": True, "max_table_size": 10}):
        config = config_of(name, **changes)
        tables = MODELS[name].tables(SCHEMA, config)
        assert tuple(tables) == MODELS[name](SCHEMA, config).body.embeddings.tables
        most = changes.get("max_table_size", 1000)
        assert {t.name: t.rows for t in tables} == {n: min(r, most) for n, r in ROWS.items()}
    with pytest.raises(TypeError, match=r"takes a .*Config, received a HistoryModelConfig"):
        MODELS[name].tables(SCHEMA, HistoryModelConfig())


@EACH
def test_unknown_numbers_of_rows(name):
    model = built(name)
    specs = {
        "numerical": tf.TensorSpec([None, 4]),
        "categorical": tf.TensorSpec([None, 3], tf.int32),
    }
    call = tf.function(lambda batch: model(batch), input_signature=[specs], autograph=False)
    for rows in (1, 5, 0):
        np.testing.assert_allclose(call(batch_of(rows)), model(batch_of(rows)), rtol=1e-5)


@EACH
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(name, policy):
    exact = built(name)
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        half = MODELS[name](SCHEMA, config_of(name))
        half(batch_of(2))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    for weight, value in zip(half.trainable_weights, exact.trainable_weights, strict=True):
        assert weight.dtype == tf.float32
        weight.assign(value)
    logits = half(batch_of(50))
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, exact(batch_of(50)), atol=0.3, rtol=0.2)


@pytest.mark.slow
@EACH
def test_keras_fit_learns_and_what_is_saved_predicts_the_same(name, without_autograph, tmp_path):
    tf.keras.utils.set_random_seed(5)
    model, batch = MODELS[name](SCHEMA, config_of(name)), batch_of(512)
    labels = tf.cast(batch["categorical"][:, 1:2] == 1, tf.float32)
    model.compile(optimizer=tf.keras.optimizers.Adam(0.02))
    data = tf.data.Dataset.from_tensor_slices((batch, labels)).batch(64)
    with without_autograph():
        history = model.fit(data, epochs=12, verbose=0).history
        model.save(tmp_path / "saved")
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    loaded = mm.Model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(loaded(batch), model(batch), rtol=1e-5, atol=1e-6)


@EACH
def test_config_round_trip(name):
    model = built(name)
    body = type(model.body).from_config(model.body.get_config())
    body(batch_of(2))
    for weight, value in zip(body.weights, model.body.weights, strict=True):
        weight.assign(value)
    np.testing.assert_allclose(body(batch_of(5)), model.body(batch_of(5)), rtol=1e-6)


@EACH
def test_two_models_share_nothing(name):
    one, two = built(name), built(name)
    assert not {id(w) for w in one.weights} & {id(w) for w in two.weights}
    assert not {id(part) for part in one.submodules} & {id(part) for part in two.submodules}


@EACH
def test_missing_unknown_and_misshaped_inputs_are_named(name):
    model, batch = MODELS[name](SCHEMA, config_of(name)), batch_of(2)
    with pytest.raises(ValueError, match=r"Missing: \['categorical'\]"):
        model({"numerical": batch["numerical"]})
    with pytest.raises(ValueError, match=r"unknown: \['user_id'\]"):
        model({**batch, "user_id": batch["categorical"]})
    with pytest.raises(ValueError, match="categorical"):
        model({**batch, "categorical": batch["categorical"][:, :2]})


@EACH
def test_another_models_options_are_refused(name):
    with pytest.raises(TypeError, match=f"takes a {MODELS[name].config_class.__name__}, received"):
        MODELS[name](SCHEMA, HistoryModelConfig())
