"""What DLRM and DCNv2 have in common: inputs, tables, hashing, precision, saving."""

from __future__ import annotations

import json

import merlin.models.tf as mm
import numpy as np
import pytest
import tensorflow as tf
from merlin.schema import ColumnSchema, Schema, Tags

from lookback.core.errors import UserError
from lookback.formats.tabular_schema import tabular_schema
from lookback.models import dcnv2, dlrm
from lookback.models.click_model import contract_of
from lookback.models.tabular_config import DCNv2Config, DLRMConfig
from lookback.training.optimizers import Optimizer

N, ROWS, D = 3, {"cat_0": 7, "cat_1": 5, "cat_2": 9}, 4
SMALL = {"embedding_dim": D, "bottom_mlp_sizes": (6, D), "top_mlp_sizes": (8, 5, 1)}
KINDS = {
    "dlrm": (dlrm, DLRMConfig, {}),
    "cat": (dlrm, DLRMConfig, {"interaction_op": "cat"}),
    "dcnv2": (dcnv2, DCNv2Config, {"cross_layer_projection_dim": 3}),
    "parallel": (dcnv2, DCNv2Config, {"structure": "parallel", "cross_layer_projection_dim": None}),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def make_batch(rows=6, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, size, rows) for size in ROWS.values()], 1)
    features = {
        "numerical": tf.constant(rng.normal(size=(rows, N)), tf.float32),
        "categorical": tf.constant(ids, tf.int32),
    }
    return features, tf.constant(rng.integers(0, 2, (rows, 1)), tf.float32)


def make_model(kind, **extra):
    module, config_class, options = KINDS[kind]
    model = module.build(tabular_schema(N, ROWS), config_class(**{**SMALL, **options, **extra}))
    model(make_batch()[0])
    return model


@EACH
@pytest.mark.parametrize("rows", [1, 6])
def test_a_float32_logit_a_row(kind, rows):
    model = make_model(kind)
    assert isinstance(model, mm.Model)
    features, _ = make_batch(rows)
    logits = model(features)
    assert logits.shape == [rows, 1]
    assert logits.dtype == tf.float32
    alone = model({name: value[:1] for name, value in features.items()})
    np.testing.assert_allclose(alone, logits[:1], rtol=1e-5, atol=1e-6)


@EACH
def test_the_optimizer_covers_all_and_a_step_moves_every_variable(kind):
    model = make_model(kind)
    optimizer = Optimizer("sgd", 0.1, 0.0, model)
    features, labels = make_batch(64)
    before = [v.numpy() for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        loss = contract_of(model).head_loss(labels, model(features, targets=labels, training=True))
    gradients = tape.gradient(loss, optimizer.variables_to_differentiate)
    assert all(g is not None for g in gradients)
    assert sum(isinstance(g, tf.IndexedSlices) for g in gradients) == len(ROWS)
    optimizer.apply(gradients)
    after = contract_of(model).head_loss(labels, model(features))
    assert after < loss
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(variable.numpy() - old).max() > 0, variable.name


@EACH
def test_lookups_are_what_a_call_looks_up(kind):
    model = make_model(kind)
    features, _ = make_batch()
    ids = model.body.lookups(features)
    assert list(ids) == list(ROWS)
    for number, values in enumerate(ids.values()):
        np.testing.assert_array_equal(values, features["categorical"][:, number])
    expected = model(features)
    with model.body.embeddings.ahead(model.body.embeddings.route(ids)):
        np.testing.assert_array_equal(model(features), expected)


@EACH
def test_tables_of_the_schema(kind):
    module, config_class, options = KINDS[kind]
    schema, config = tabular_schema(N, ROWS), config_class(**{**SMALL, **options})
    specs = module.tables(schema, config)
    assert {spec.name: spec.rows for spec in specs} == ROWS
    assert all((spec.dim, spec.hotness) == (D, (1.0,)) for spec in specs)
    model = make_model(kind)
    for spec in specs:
        values = model.body.embeddings.table_variables[spec.name].numpy()
        assert np.abs(values).max() <= spec.rows**-0.5  # NVIDIA's initial rows


def test_columns_of_one_domain_share_a_table():
    domain = {"min": 0, "max": 6, "name": "place"}
    columns = [
        ColumnSchema(
            name, tags=[Tags.CATEGORICAL], dtype="int32", properties={"domain": dict(domain)}
        )
        for name in ("home", "work")
    ]
    schema = Schema([*tabular_schema(N, {"cat_0": 5}), *columns])
    specs = dlrm.tables(schema, DLRMConfig(**SMALL))
    assert [(s.name, s.rows, s.hotness) for s in specs] == [
        ("cat_0", 5, (1.0,)),
        ("place", 7, (1.0, 1.0)),
    ]


# --- hash_indices, max_table_size ---


@EACH
def test_hashed_ids_are_those_modulo_the_rows(kind):
    model = make_model(kind, hash_indices=True, max_table_size=6)
    rows = np.minimum(list(ROWS.values()), 6)
    held = {n: v.shape[0] for n, v in model.body.embeddings.table_variables.items()}
    assert held == dict(zip(ROWS, rows, strict=True))
    features, _ = make_batch()
    ids = np.array([[7, 105, 2_000_000_003], [6, 5, 8]])
    features = {
        "numerical": features["numerical"][:2],
        "categorical": tf.constant(ids, tf.int32),
    }
    inside = {**features, "categorical": tf.constant(ids % rows, tf.int32)}
    np.testing.assert_array_equal(model(features), model(inside))


def test_without_hashing_an_id_beyond_its_table_is_an_error():
    features, _ = make_batch()
    features["categorical"] = features["categorical"] + 100
    with pytest.raises(tf.errors.InvalidArgumentError, match="is not in"):
        make_model("dlrm")(features)


# --- inputs ---


@EACH
def test_missing_and_unknown_inputs_are_named(kind):
    module, config_class, options = KINDS[kind]
    model = module.build(tabular_schema(N, ROWS), config_class(**{**SMALL, **options}))
    features, _ = make_batch()
    with pytest.raises(ValueError, match=r"Missing: \['categorical'\]; unknown: \['ids'\]"):
        model({"numerical": features["numerical"], "ids": features["categorical"]})


@pytest.mark.parametrize("name", ["numerical", "categorical"])
def test_a_matrix_of_another_width_is_refused(name):
    features, _ = make_batch()
    features[name] = features[name][:, :2]
    with pytest.raises(ValueError, match=rf"Input '{name}' must be \[B, 3\].*received.*\(6, 2\)"):
        make_model("dlrm")(features)


def test_a_dataset_without_ids_is_refused():
    with pytest.raises(UserError, match="needs categorical columns; the dataset has 3 numerical"):
        dlrm.build(tabular_schema(N, {}), DLRMConfig(**SMALL))


@EACH
def test_without_numbers_a_constant_takes_their_place(kind):
    module, config_class, options = KINDS[kind]
    config = config_class(**{**SMALL, **options})
    features, _ = make_batch()
    rows = len(features["categorical"])
    constant = {**features, "numerical": tf.ones([rows, 1])}
    nothing = {**features, "numerical": tf.zeros([rows, 0])}
    of_one = module.build(tabular_schema(1, ROWS), config)
    expected = of_one(constant)
    without = module.build(tabular_schema(0, ROWS), config)
    without(nothing)
    without.set_weights(of_one.get_weights())
    np.testing.assert_array_equal(without(nothing), expected)


# --- precision, configuration, saving ---


@EACH
def test_bf16_keeps_logits_tables_and_weights_in_float32(kind, precision):
    exact = make_model(kind)
    precision("mixed_bfloat16")
    model = make_model(kind)
    model.set_weights(exact.get_weights())
    features, labels = make_batch(32)
    assert model.body(features).dtype == tf.bfloat16
    with tf.GradientTape() as tape:
        logits = model(features)
        loss = contract_of(model).head_loss(labels, logits)
    assert logits.dtype == loss.dtype == tf.float32
    assert {v.dtype for v in model.trainable_variables} == {tf.float32}
    np.testing.assert_allclose(logits, exact(features), atol=0.05)
    for gradient in tape.gradient(loss, model.trainable_variables):
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        assert values.dtype == tf.float32
        assert np.isfinite(values).all()


@EACH
def test_config_round_trip_through_json(kind):
    body = make_model(kind, hash_indices=True, max_table_size=6).body
    config = body.get_config()
    copy = type(body).from_config(json.loads(json.dumps(config)))
    assert copy.get_config() == config
    features, _ = make_batch()
    copy(features)
    copy.set_weights(body.get_weights())
    np.testing.assert_array_equal(copy(features), body(features))
    shapes = {name: value.shape for name, value in features.items()}
    assert copy.compute_output_shape(shapes) == copy(features).shape


@pytest.mark.slow
def test_saved_model_scores_alike(without_autograph, tmp_path):
    """The form that no default has; tests/conformance saves each model in its own."""
    model = make_model("parallel")
    features, _ = make_batch(4)
    expected = model(features)
    with without_autograph():
        tf.saved_model.save(model, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_allclose(loaded(features), expected, rtol=1e-5, atol=1e-6)
