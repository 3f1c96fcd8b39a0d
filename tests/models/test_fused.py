"""Fused steps against the layers that define them: losses, gradients, scores; who uses which."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf

from lookback.embeddings.config import Sharding
from lookback.kernels import loader
from lookback.models import MODELS, fused
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.click_model import ClickModel, click_model, contract_of

T, L, D = 9, 5, 16
LENGTHS = [9, 0, 3, 7, 1, 6, 2]
KINDS = {
    "soft sim": ("sim", {}),
    "hard sim": ("sim", {"gsu": "hard"}),
    "din": ("din", {}),
    "din unit": ("din", {"interaction": "activation_unit"}),
    "dien": ("dien", {}),
}
WIDTHS = {
    "sim": {"k": 3, "stage_one_mlp_dims": (24, 10), "aux_mlp_dims": (20, 7)},
    "din": {},
    "dien": {"aux_mlp_dims": (20, 7)},
}
EACH = pytest.mark.parametrize("kind", KINDS)
TYPED = pytest.mark.parametrize("typed", [False, True], ids=["ids", "typed"])
fused_only = pytest.mark.skipif(
    loader.history_level("float32") is None,
    reason="a GPU, or a machine or environment without operations",
)


@pytest.fixture
def make(make_schema, typed_schema, make_batch, make_typed_batch, formulas):
    """Makes a model with sizeable weights, and a batch for it."""

    def of(kind, typed=False, lengths=LENGTHS, candidates=2, sharding=None, **extra):
        name, options = KINDS[kind]
        config = MODELS[name].config_class(
            **{
                **{"embedding_dim": D, "max_seq_length": T, "long_seq_length": L},
                **{"stage_two_mlp_dims": (19, 8), "time_features": typed},
                **WIDTHS[name],
                **options,
                **extra,
            }
        )
        schema = typed_schema if typed else make_schema()
        tf.keras.utils.set_random_seed(5)
        model = MODELS[name](schema, config, sharding or Sharding())
        make_it = make_typed_batch if typed else make_batch
        features, labels = make_it(lengths, time=typed, candidates=candidates)
        features = {name: tf.constant(value) for name, value in features.items()}
        model(without_negatives(features))
        formulas.randomise(model.trainable_weights, scale=0.3)
        return model, features, tf.constant(labels)

    return of


def without_negatives(features):
    return {n: v for n, v in features.items() if not n.endswith("_negatives")}


def by_layers(model, features, labels, variables):
    """Losses by name and gradients of their sum."""
    contract = contract_of(model)
    with tf.GradientTape() as tape:
        logits = model(features, targets=labels, training=True)
        losses = [contract.head_loss(labels, logits), *model.losses]
        total = tf.add_n(losses)
    found = dict(zip(contract.loss_names, map(float, losses), strict=True))
    return found, tape.gradient(total, variables)


def by_operation(model, features, labels, variables, scale=1.0):
    contract = contract_of(model)
    assert contract.fused is not None, contract.fused_said
    counts = contract.counts(features, labels)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        shares, total = contract.fused.shares(features, labels, counts)
        scaled = total if scale == 1.0 else total * scale
    assert float(total) == pytest.approx(sum(map(float, shares.values())), rel=1e-6)
    return {n: float(v) for n, v in shares.items()}, tape.gradient(scaled, variables)


def rewind(model):
    """Dropout draws again what it has drawn."""
    for variable in model.variables:
        if variable.dtype == tf.int64:
            variable.assign(0)


def in_order(gradient):
    """A gradient as a matrix; of slices, rows that occur more than once added one by one."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient.numpy()
    dense = np.zeros(gradient.dense_shape, np.float32)
    np.add.at(dense, gradient.indices.numpy(), gradient.values.numpy())
    return dense


def assert_alike(found, expected, variables, tolerance):
    for variable, ours, theirs in zip(variables, found, expected, strict=True):
        theirs = in_order(theirs)
        scale = max(np.abs(theirs).max(), 1e-3)
        np.testing.assert_allclose(
            in_order(ours), theirs, rtol=0, atol=tolerance * scale, err_msg=variable.name
        )


@fused_only
@pytest.mark.parametrize("joint", [False, True], ids=["tables", "vectors"])
@TYPED
@EACH
def test_losses_and_gradients_are_those_of_the_layers(make, kind, typed, joint):
    """Rows are looked up by the operation, or by TensorFlow where tables share a variable."""
    model, features, labels = make(kind, typed, sharding=Sharding(joint=joint), dropout_rate=0.3)
    variables = model.trainable_variables
    expected, theirs = by_layers(model, features, labels, variables)
    rewind(model)
    found, ours = by_operation(model, features, labels, variables)
    assert found == pytest.approx(expected, rel=1e-5)
    assert_alike(ours, theirs, variables, 1e-4)


@fused_only
@pytest.mark.parametrize("candidates", [1, 3])
@EACH
def test_of_other_numbers_of_candidates(make, kind, candidates):
    model, features, labels = make(kind, candidates=candidates)
    variables = model.trainable_variables
    expected, theirs = by_layers(model, features, labels, variables)
    found, ours = by_operation(model, features, labels, variables)
    assert found == pytest.approx(expected, rel=1e-5)
    assert_alike(ours, theirs, variables, 1e-4)


@fused_only
@EACH
def test_nothing_comes_of_an_empty_batch(make, kind):
    model, features, labels = make(kind, lengths=[])
    found, gradients = by_operation(model, features, labels, model.trainable_variables)
    assert set(found.values()) == {0.0}
    assert all((in_order(gradient) == 0).all() for gradient in gradients)
    assert model.score(without_negatives(features)).shape == [0, 2]


@fused_only
@TYPED
@EACH
def test_looked_up_here_or_there_gradients_have_the_same_bits(make, kind, typed):
    """A table's rows, and the parts that short events share with the negatives against them."""
    separate, features, labels = make(kind, typed)
    joint, _, _ = make(kind, typed, sharding=Sharding(joint=True))
    tables = separate.body.embeddings.table_variables
    (rows,) = joint.body.embeddings.table_variables.values()
    rows.assign(tf.concat(list(tables.values()), 0))
    ours = [v for v in separate.trainable_variables if not is_of(v, tables.values())]
    theirs = [v for v in joint.trainable_variables if v is not rows and not is_of(v, [rows])]
    for one, other in zip(ours, theirs, strict=True):
        other.assign(one)
    losses, gradients = by_operation(separate, features, labels, [*ours, *tables.values()])
    joint_losses, joint_gradients = by_operation(joint, features, labels, [*theirs, rows])
    assert losses == joint_losses
    for found, expected in zip(gradients[: len(ours)], joint_gradients[:-1], strict=True):
        np.testing.assert_array_equal(found, expected)
    of_tables = np.concatenate([in_order(gradient) for gradient in gradients[len(ours) :]])
    np.testing.assert_array_equal(of_tables, in_order(joint_gradients[-1]))


def is_of(variable, others):
    return any(variable is other for other in others)


@fused_only
def test_a_scaled_total_scales_all_gradients(make):
    model, features, labels = make("soft sim", typed=True)
    variables = model.trainable_variables
    _, plain = by_operation(model, features, labels, variables)
    _, scaled = by_operation(model, features, labels, variables, scale=8.0)
    for one, other in zip(plain, scaled, strict=True):
        np.testing.assert_array_equal(8 * in_order(one), in_order(other))


@fused_only
def test_what_a_step_tells_cannot_be_differentiated(make):
    model, features, labels = make("din")
    contract = contract_of(model)
    with tf.GradientTape() as tape:
        shares, _ = contract.fused.shares(features, labels, contract.counts(features, labels))
    with pytest.raises(ValueError, match="expected `total` alone to be differentiated"):
        tape.gradient(shares["head_loss"], model.trainable_variables)


@fused_only
@pytest.mark.parametrize("joint", [False, True], ids=["tables", "vectors"])
@TYPED
@EACH
def test_scores_are_those_of_a_call(make, kind, typed, joint):
    model, features, _ = make(kind, typed, sharding=Sharding(joint=joint), candidates=5)
    features = without_negatives(features)
    graph = tf.function(model.score, autograph=False)
    operations = {o.type for o in graph.get_concrete_function(features).graph.get_operations()}
    assert f"Lookback{KINDS[kind][0].capitalize()}Score" in operations
    np.testing.assert_allclose(graph(features), model(features), rtol=1e-5, atol=1e-5)
    cut = {n: v[:, 2:] if n.endswith("_history") else v for n, v in features.items()}
    np.testing.assert_allclose(model.score(cut), model(cut), rtol=1e-5, atol=1e-5)


@fused_only
@pytest.mark.parametrize("kind", ["soft sim", "dien", "din unit"])
def test_half_precision_is_as_near_as_that_of_the_layers(make, precision, kind):
    if not loader.history_level("bfloat16"):
        pytest.skip("no products of bfloat16 here")
    model, features, labels = make(kind)
    expected, theirs = by_layers(model, features, labels, model.trainable_variables)
    precision("mixed_bfloat16")
    half, _, _ = make(kind)
    half.set_weights(model.get_weights())
    _, rounded = by_layers(half, features, labels, half.trainable_variables)
    found, ours = by_operation(half, features, labels, half.trainable_variables)
    assert found == pytest.approx(expected, rel=0.05)
    for variable, own, layers, exact in zip(
        half.trainable_variables, ours, rounded, theirs, strict=True
    ):
        exact = in_order(exact)
        size = np.linalg.norm(exact)
        errors = [np.linalg.norm(in_order(of) - exact) / size for of in (own, layers)]
        assert errors[0] < max(0.02, 1.5 * errors[1]), variable.name
    scored = half.score(without_negatives(features))
    assert scored.dtype == tf.float32
    reference = model(without_negatives(features)).numpy()
    np.testing.assert_allclose(scored, reference, atol=0.05 * np.abs(reference).max())


@fused_only
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
@pytest.mark.parametrize("wrong", [40, -1, 1 << 31, (1 << 32) + 3])
def test_ids_beyond_a_table_are_refused(make, dtype, wrong):
    if wrong > dtype.max:
        pytest.skip("int32 has no such number")
    model, features, labels = make("soft sim")
    ids = features["item_id_history"].numpy().astype(dtype.as_numpy_dtype)
    ids[3, -1] = wrong
    features["item_id_history"] = tf.constant(ids)
    with pytest.raises(tf.errors.InvalidArgumentError, match="40"):
        by_operation(model, features, labels, model.trainable_variables)
    with pytest.raises(tf.errors.InvalidArgumentError, match="40"):
        model.score(without_negatives(features))


# --- who uses which ---


@fused_only
def test_a_run_says_which_operations_it_has(make):
    model, _, _ = make("soft sim")
    said = contract_of(model).fused_said
    assert said == f"fused step: {loader.history_level('float32')}, float32"


@pytest.mark.parametrize(
    ("extra", "policy", "why"),
    [
        ({"embedding_dim": 24}, "float32", "--embedding_dim of a multiple of 16, not 24"),
        ({}, "mixed_float16", "in float32 or bfloat16, not in float16"),
    ],
)
def test_layers_compute_what_operations_do_not(make, precision, extra, policy, why):
    precision(policy)
    model, features, _ = make("din", **extra)
    contract = contract_of(model)
    assert contract.fused is None
    assert contract.fused_said.startswith("fused step: not used") and why in contract.fused_said
    features = without_negatives(features)
    np.testing.assert_array_equal(model.score(features), model(features))


def test_layers_compute_where_operations_are_not_wanted(make):
    model, features, _ = make("dien")
    with loader.portable() as asked:
        assert contract_of(model).fused is None
        assert "not wanted" in contract_of(model).fused_said
    assert asked.asked
    with loader.portable() as asked:
        make("dien", embedding_dim=24)[0].score(without_negatives(features))
    assert not asked.asked


def test_a_level_without_products_of_a_type_is_told(make, monkeypatch):
    monkeypatch.setattr(fused, "cpu_kernels", object)
    monkeypatch.setattr(fused, "history_level", lambda dtype: "")
    assert "no products of float32" in contract_of(make("din")[0]).fused_said


def test_a_body_that_derives_from_ours_may_differ(make):
    """What it overrides, no operation knows."""
    model, _, _ = make("din")

    class Other(type(model.body)):
        """Scores by length alone."""

    body = Other.from_config(model.body.get_config())
    other = click_model(body, model.schema, LogitHead())
    assert isinstance(other, ClickModel)
    assert (contract_of(other).fused, contract_of(other).fused_said) == (None, "")


def test_so_may_a_model_that_does(make):
    model, _, _ = make("din")

    class Other(ClickModel):
        """Adds a loss of its own."""

    other = Other(model.body, *model.model_outputs, schema=model.schema)
    assert (contract_of(other).fused, contract_of(other).fused_said) == (None, "")


@fused_only
def test_what_differs_among_candidates_is_left_to_the_layers_and_logged_once(make, caplog):
    model, features, _ = make("soft sim", candidates=2)
    features = without_negatives(features)
    by_row = model.score(features)
    for name in ("user_id", "country"):
        features[name] = tf.repeat(features[name][:, tf.newaxis], 2, 1)
    fused._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_allclose(model.score(features), by_row, rtol=1e-5, atol=1e-5)
    assert caplog.text.count("'user_id' may differ among the candidates of a row") == 1
