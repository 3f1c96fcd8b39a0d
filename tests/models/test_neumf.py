"""NeuMF against the paper's formulas in NumPy, and its dropout against a plain implementation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from lookback import models
from lookback.core.errors import UserError
from lookback.formats.interaction_features import SAMPLE_KEY
from lookback.kernels.masked_relu import kept_fraction
from lookback.models import MODELS
from lookback.models.blocks.mlp_dropout import dropout_masks
from lookback.models.neumf import NeuMFBody
from lookback.models.neumf_config import NeuMFConfig

SMALL = {"factors": 5, "layers": (8, 7, 6), "dropout": 0.5}
OF_BRANCHES = {"both": SMALL, "mf": {"factors": 5}, "mlp": {"layers": (8, 7, 6), "dropout": 0.5}}
USERS, ITEMS = 30, 40


@pytest.fixture(scope="module")
def schema(make_schema):
    return make_schema({"user_id": USERS, "country": 4}, {"item_id": ITEMS, "category_id": 6})


def batch_of(rows=9, candidates=3, seed=0, shared=False):
    rng = np.random.default_rng(seed)
    return {
        "user_id": tf.constant(rng.integers(3, USERS, rows), tf.int32),
        "item_id": tf.constant(
            rng.integers(3, ITEMS, (1 if shared else rows, candidates)), tf.int32
        ),
    }


def small(branches="both", **options):
    """A small model's options: those that its branches have."""
    return NeuMFConfig(**{**OF_BRANCHES[branches], **options}, branches=branches)


def built(schema, **options):
    model = MODELS["neumf"](schema, small(**options))
    model(batch_of())
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return model


def weights_of(model):
    """By the last parts of their names, and the tables by theirs."""
    tables = model.body.embeddings.table_variables
    found = {name: variable.numpy() for name, variable in tables.items()}
    for weight in model.trainable_weights:
        name = weight.name.split(":")[0].split("/")[-1]
        if name.startswith(("kernel", "bias")):
            found[f"{place_of(weight)}/{name}"] = weight.numpy()
    return found


def place_of(weight):
    return "mlp" if "/mlp/" in weight.name else "logit"


def formula(w, config, users, items, masks=None):
    """Logits of pairs ``[N]``: section 3.4 of the paper, NVIDIA's dropout by given masks."""
    parts = []
    if config.has_mf:
        parts.append(w["user_id/mf"][users] * w["item_id/mf"][items])
    if config.has_mlp:
        x = np.concatenate([w["user_id/mlp"][users], w["item_id/mlp"][items]], 1)
        for number in range(len(config.layers) - 1):
            x = np.maximum(x @ w[f"mlp/kernel_{number}"] + w[f"mlp/bias_{number}"], 0)
            if masks is not None:
                x = x * masks[number] / kept_fraction(config.dropout)
        parts.append(x)
    return (np.concatenate(parts, 1) @ w["logit/kernel"] + w["logit/bias"])[:, 0]


def pairs_of(batch):
    users, items = batch["user_id"].numpy(), batch["item_id"].numpy()
    items = np.broadcast_to(items, (len(users), items.shape[1]))
    return np.repeat(users, items.shape[1]), items.reshape(-1)


@pytest.mark.parametrize("branches", ["both", "mf", "mlp"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("candidates", [1, 4])
def test_scores_are_the_papers(schema, branches, shared, candidates):
    model = built(schema, branches=branches)
    batch = batch_of(candidates=candidates, shared=shared)
    found = model(batch).numpy()
    assert found.dtype == np.float32
    config = small(branches=branches)
    expected = formula(weights_of(model), config, *pairs_of(batch))
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3, 0.5])
def test_training_scores_and_gradients_are_the_formulas_with_the_same_masks(schema, dropout):
    model = built(schema, dropout=dropout)
    batch = batch_of(rows=20)
    batch[SAMPLE_KEY] = tf.range(20, dtype=tf.int64) * 7919
    labels = tf.one_hot(tf.zeros(20, tf.int32), 3)
    config = small(dropout=dropout)
    with tf.GradientTape() as tape:
        logits = model(batch, targets=labels, training=True)
        loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))
    variables = model.trainable_weights
    found = tape.gradient(loss, variables)

    masks = None
    if dropout:
        keys = tf.reshape(model.body.dropout_keys(batch), [-1])
        masks = [m.drawn().numpy() for m in dropout_masks(keys, list(config.layers[1:]), dropout)]
    users, items = pairs_of(batch)
    weights = weights_of(model)
    np.testing.assert_allclose(
        logits.numpy().reshape(-1),
        formula(weights, config, users, items, masks),
        rtol=1e-4,
        atol=1e-5,
    )
    named = {id(v): name for name, v in model.body.embeddings.table_variables.items()}
    for variable, gradient in zip(variables, found, strict=True):
        name = named.get(id(variable))
        if name is None:
            name = f"{place_of(variable)}/{variable.name.split(':')[0].split('/')[-1]}"
        gradient = tf.convert_to_tensor(gradient).numpy()
        rng = np.random.default_rng(3)
        for _ in range(4):  # finite differences in random directions
            direction = rng.normal(0, 1, gradient.shape)
            shifted = []
            for sign in (1, -1):
                moved = {**weights, name: weights[name] + sign * 1e-4 * direction}
                x = formula(moved, config, users, items, masks)
                y = labels.numpy().reshape(-1)
                shifted.append(np.mean(np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x)))))
            expected = (shifted[0] - shifted[1]) / 2e-4
            assert (gradient * direction).sum() == pytest.approx(expected, rel=2e-2, abs=2e-5)


@pytest.mark.parametrize(("rate", "kept"), [(0.5, 0.5), (0.25, 0.75), (0.1, 230 / 256)])
def test_dropout_keeps_its_share_of_every_unit(rate, kept):
    keys = tf.random.stateless_uniform([4000], [1, 2], None, None, tf.int64)
    assert kept_fraction(rate) == kept
    for mask, width in zip(dropout_masks(keys, [3, 70, 8], rate), [3, 70, 8], strict=True):
        values = mask.drawn().numpy()
        assert values.shape == (4000, width)
        assert set(np.unique(values)) == {0.0, 1.0}
        deviation = np.sqrt(kept * (1 - kept) / 4000)
        assert np.abs(values.mean(0) - kept).max() < 5 * deviation
        correlation = np.corrcoef(values.T) - np.eye(width)
        assert np.abs(correlation).max() < 5.5 / np.sqrt(4000)


def test_a_samples_dropout_depends_on_its_key_alone():
    keys = tf.constant([5, 6, 7, 5], tf.int64)
    whole = dropout_masks(keys, [9, 66], 0.5)
    alone = dropout_masks(keys[2:3], [9, 66], 0.5)
    for mask, single in zip(*([m.drawn() for m in masks] for masks in (whole, alone)), strict=True):
        np.testing.assert_array_equal(mask[2:3], single)
        np.testing.assert_array_equal(mask[0], mask[3])
        assert not np.array_equal(mask[0], mask[1])


def test_candidates_of_a_user_drop_different_units(schema):
    model = built(schema)
    batch = {"item_id": tf.zeros([2, 3], tf.int32), SAMPLE_KEY: tf.constant([1, 2], tf.int64)}
    keys = model.body.dropout_keys(batch).numpy()
    assert len(set(keys.reshape(-1).tolist())) == 6


def test_dropout_without_keys_is_an_error(schema):
    with pytest.raises(ValueError, match=r"needs 'sample_key'"):
        built(schema)(batch_of(), training=True)


def test_half_precision_stays_close(schema):
    full = built(schema)
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        half = built(schema)
        found = half(batch_of())
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, full(batch_of()), atol=0.15)


def test_tables_are_those_of_the_options(schema):
    def sizes(**options):
        config = small(**options)
        return {t.name: (t.rows, t.dim) for t in models.neumf.tables(schema, config)}

    mf = {"user_id/mf": (USERS, 5), "item_id/mf": (ITEMS, 5)}
    mlp = {"user_id/mlp": (USERS, 4), "item_id/mlp": (ITEMS, 4)}
    assert sizes() == mf | mlp
    assert sizes(branches="mf") == mf
    assert sizes(branches="mlp") == mlp


def test_initial_weights_are_the_seeds(schema):
    tf.keras.utils.set_random_seed(1)
    model = MODELS["neumf"](schema, NeuMFConfig())
    model(batch_of())
    weights = weights_of(model)
    assert weights["user_id/mlp"].std() == pytest.approx(0.01, rel=0.05)
    limit = np.sqrt(6 / (256 + 256))
    assert np.abs(weights["mlp/kernel_0"]).max() == pytest.approx(limit, rel=0.01)
    limit = np.sqrt(3 / 128)
    assert np.abs(weights["logit/kernel"]).max() == pytest.approx(limit, rel=0.05)
    assert not weights["mlp/bias_0"].any()


def test_defaults_are_the_seeds():
    assert dataclasses.asdict(NeuMFConfig()) == {
        "factors": 64,
        "layers": (256, 256, 128, 64),
        "dropout": 0.5,
        "branches": "both",
    }
    expected = {"epochs": 30, "global_batch_size": 2**20, "lr": 0.0045}
    expected |= {"beta1": 0.25, "beta2": 0.5, "eps": 1e-8, "optimizer": "full_adam"}
    assert NeuMFConfig.recipes["nvidia"] == expected


def test_a_block_comes_back_from_its_configuration(schema):
    model = built(schema)
    body = NeuMFBody.from_config(model.body.get_config())
    twin = type(model)(body, model.blocks[1], schema=model.schema)
    twin(batch_of())
    for weight, value in zip(twin.weights, model.weights, strict=True):
        weight.assign(value)
    np.testing.assert_array_equal(twin(batch_of()), model(batch_of()))


@pytest.mark.parametrize(
    "options",
    [
        {"factors": 0},
        {"layers": (7, 4)},
        {"layers": (8,)},
        {"layers": (8, 0)},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"branches": "gmf"},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(UserError, match=next(iter(options))):
        NeuMFConfig(**options)


def test_inputs_of_wrong_rank(schema):
    model = built(schema)
    with pytest.raises(ValueError, match=r"'item_id' must be \[B, C\]"):
        model.body.lookups({"user_id": tf.zeros([2], tf.int32), "item_id": tf.zeros([2], tf.int32)})
