"""What every model of users and items must bear: a new one is tested by being registered."""

from __future__ import annotations

import dataclasses
from typing import Any

import merlin.models.tf as mm
import numpy as np
import pytest
import tensorflow as tf

from lookback.formats.interaction_features import SAMPLE_KEY
from lookback.models import MODELS
from lookback.models.config import HistoryModelConfig
from lookback.training.config import RunConfig

EACH = pytest.mark.parametrize(
    "name", [name for name, entry in MODELS.items() if entry.config_class.layout == "interactions"]
)
USERS, ITEMS = 30, 40
SMALL: dict[str, Any] = {"factors": 5, "layers": (8, 7, 6)}


@pytest.fixture(scope="module")
def schema(make_schema):
    return make_schema({"country": 4, "user_id": USERS}, {"item_id": ITEMS, "category_id": 6})


def config_of(name: str) -> Any:
    names = {field.name for field in dataclasses.fields(MODELS[name].config_class)}
    return MODELS[name].config_class(**{n: v for n, v in SMALL.items() if n in names})


def batch_of(rows: int, candidates: int = 3) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(rows)
    return {
        "user_id": tf.constant(rng.integers(3, USERS, rows), tf.int32),
        "item_id": tf.constant(rng.integers(3, ITEMS, (rows, candidates)), tf.int32),
    }


def to_train(rows: int) -> dict[str, tf.Tensor]:
    return {**batch_of(rows), SAMPLE_KEY: tf.range(rows, dtype=tf.int64)}


@pytest.fixture(scope="module")
def built(schema):
    def make(name):
        tf.keras.utils.set_random_seed(2)
        model = MODELS[name](schema, config_of(name))
        model(batch_of(3))
        rng = np.random.default_rng(1)
        for weight in model.trainable_weights:
            weight.assign(rng.normal(0, 0.5, weight.shape))
        return model

    return make


@EACH
def test_is_a_merlin_model_of_the_documented_options(built, name):
    model = built(name)
    assert isinstance(model, mm.Model)
    assert len(model.model_outputs) == 1
    config_class = MODELS[name].config_class
    config_class()  # every option has a default
    assert all("help" in field.metadata for field in dataclasses.fields(config_class))
    defaults = config_class.recipes["nvidia"]
    run = RunConfig(model_type=name, dataset_dir="d", **defaults)
    assert {option: getattr(run, option) for option in defaults} == defaults


@EACH
def test_float32_logits_of_each_pair_that_depend_on_no_other(built, name):
    model, batch = built(name), batch_of(7)
    logits = model(batch)
    assert logits.shape == [7, 3]
    assert logits.dtype == tf.float32
    for row in range(7):
        for column in range(3):
            pair = {
                "user_id": batch["user_id"][row : row + 1],
                "item_id": batch["item_id"][row : row + 1, column : column + 1],
            }
            np.testing.assert_allclose(model(pair)[0, 0], logits[row, column], rtol=1e-4, atol=1e-5)


@EACH
def test_every_weight_learns_and_each_table_has_one_sparse_gradient(built, name):
    model = built(name)
    (output,) = model.model_outputs
    labels = tf.one_hot(tf.zeros(64, tf.int32), 3)
    with tf.GradientTape() as tape:
        loss = output.default_loss(labels, model(to_train(64), training=True))
    gradients = tape.gradient(loss, model.trainable_weights)
    tables = {id(v) for v in model.body.embeddings.table_variables.values()}
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        sparse = isinstance(gradient, tf.IndexedSlices)
        assert sparse == (id(weight) in tables), weight.name
        assert np.abs((gradient.values if sparse else gradient).numpy()).max() > 0, weight.name


@EACH
def test_a_batch_of_no_rows_has_no_logits_and_finite_gradients(built, name):
    model = built(name)
    with tf.GradientTape() as tape:
        logits = model(to_train(0), training=True)
        loss = tf.reduce_sum(logits)
    assert logits.shape == [0, 3]
    for gradient in tape.gradient(loss, model.trainable_weights):
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        assert np.isfinite(values.numpy()).all()


@EACH
def test_the_ids_of_a_batch_are_those_that_a_call_looks_up(built, name):
    model, batch = built(name), batch_of(6)
    route = model.body.embeddings.route(model.body.lookups(batch))
    expected = model(batch).numpy()
    with model.body.embeddings.ahead(route):
        np.testing.assert_array_equal(model(batch), expected)


@EACH
def test_tables_are_known_before_the_model_is_built(schema, name):
    config = config_of(name)
    tables = MODELS[name].tables(schema, config)
    assert tuple(tables) == MODELS[name](schema, config).body.embeddings.tables
    with pytest.raises(TypeError, match=r"takes a .*Config, received a HistoryModelConfig"):
        MODELS[name].tables(schema, HistoryModelConfig())


@EACH
def test_unknown_numbers_of_rows(built, name):
    model = built(name)
    specs = {
        "user_id": tf.TensorSpec([None], tf.int32),
        "item_id": tf.TensorSpec([None, None], tf.int32),
    }
    call = tf.function(lambda batch: model(batch), input_signature=[specs], autograph=False)
    for rows, candidates in ((1, 1), (5, 3), (0, 3), (2, 9)):
        batch = batch_of(rows, candidates)
        np.testing.assert_allclose(call(batch), model(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@EACH
def test_keras_fit_learns_and_what_is_saved_predicts_the_same(
    schema, name, without_autograph, tmp_path
):
    tf.keras.utils.set_random_seed(5)
    model, batch = MODELS[name](schema, config_of(name)), to_train(512)
    labels = tf.cast(batch["item_id"] % 2 == 0, tf.float32)
    model.compile(optimizer=tf.keras.optimizers.Adam(0.02))
    data = tf.data.Dataset.from_tensor_slices((batch, labels)).batch(64)
    with without_autograph():
        history = model.fit(data, epochs=12, verbose=0).history
        model.save(tmp_path / "saved")
    assert history["loss"][-1] < 0.7 * history["loss"][0]
    loaded = mm.Model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(loaded(batch_of(9)), model(batch_of(9)), rtol=1e-5, atol=1e-6)


@EACH
def test_an_input_too_few_or_too_many_is_named(schema, name):
    model = MODELS[name](schema, config_of(name))
    wrong = {"user_id": tf.zeros([1], tf.int32), "price": tf.zeros([1])}
    with pytest.raises(ValueError, match=r"Missing: \['item_id'\]; unknown: \['price'\]"):
        model(wrong)
