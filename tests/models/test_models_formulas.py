"""SIM, DIN and DIEN as a whole: against NumPy, and against the plain Keras version."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.benchmarks.baselines.plain_sim import (
    PlainDIEN,
    PlainDIN,
    PlainSIM,
    auxiliary_loss,
    binary_cross_entropy,
    one_row_per_candidate,
)
from lookback.kernels import loader
from lookback.models import MODELS

T, L, D, K = 9, 5, 3, 3
S = T - L
USERS = {"user_id": 7, "country": 4}
ITEMS = {"item_id": 40, "category_id": 6}
COMMON = {
    "embedding_dim": D,
    "max_seq_length": T,
    "long_seq_length": L,
    "stage_two_mlp_dims": (7, 6),
}
OPTIONS = {
    "sim": {"stage_one_mlp_dims": (8,), "aux_mlp_dims": (6, 5), "k": K},
    "din": {},
    "dien": {"aux_mlp_dims": (6, 5)},
}
# name: lengths of histories, candidates, how many different items in them.
BATCHES = {
    "all lengths": (list(range(T + 1)), 2, None),
    "one row, one candidate": ([6], 1, None),
    "all histories empty": ([0, 0, 0], 2, None),
    "no long history": ([S, 1, 2], 2, None),
    "shorter than k": ([S + 1, S + 2], 2, None),
    "repeated items": ([T] * 6, 2, 2),
    "one candidate": ([T, 3, 0], 1, None),
    "five candidates": ([T, 3, 0, 7], 5, 4),
}
KINDS = [("sim", {}), ("sim", {"gsu": "hard"}), ("din", {}), ("dien", {})]
EACH_KIND = pytest.mark.parametrize(
    ("name", "extra"), KINDS, ids=["soft sim", "hard sim", "din", "dien"]
)


def build(name, schema, batch, labels, formulas, **extra):
    entry = MODELS[name]
    config = entry.config_class(**COMMON, **OPTIONS[name], **extra)
    model = entry(schema, config)
    model(tensors(batch), targets=tf.constant(labels), training=True)
    formulas.randomise(model.trainable_weights)
    return model, config


def tensors(batch):
    return {name: tf.constant(value) for name, value in batch.items()}


def losses_of(model, batch, labels):
    """Logits, and the losses in training by name, as the trainer takes them."""
    labels = tf.constant(labels)
    logits = model(tensors(batch), targets=labels, training=True)
    (output,) = model.model_outputs
    losses = {"head": output.default_loss(labels, logits)}
    names = [name.removesuffix("_loss") for name in model.body.added_losses]
    losses |= dict(zip(names, model.losses, strict=True))
    return logits, losses


# --- against NumPy ---


@pytest.mark.parametrize("time", [False, True], ids=["", "time"])
@pytest.mark.parametrize(
    ("name", "extra"),
    [*KINDS, ("din", {"interaction": "activation_unit"})],
    ids=["soft sim", "hard sim", "din", "dien", "din unit"],
)
def test_logits_and_losses_equal_the_formulas(formulas, make_schema, make_batch, name, extra, time):
    for lengths, distinct in ((range(T + 1), None), ([T] * 4, 2)):
        batch, labels = make_batch(list(lengths), time=time, distinct=distinct)
        model, config = build(
            name, make_schema(), batch, labels, formulas, time_features=time, **extra
        )
        reference = formulas.NumpyModel(
            name, formulas.values_of(formulas.parts_of(model)), config, formulas.features_of(model)
        )
        expected = reference(batch, labels)
        logits, losses = losses_of(model, batch, labels)
        scale = np.abs(expected["logits"]).max()
        np.testing.assert_allclose(logits, expected["logits"], rtol=1e-5, atol=1e-5 * scale)
        assert set(losses) == set(expected["losses"])
        for term, value in expected["losses"].items():
            assert losses[term].numpy() == pytest.approx(value, rel=1e-5, abs=1e-6), term


@pytest.mark.parametrize(
    ("name", "extra"),
    [*KINDS, ("din", {"interaction": "activation_unit"})],
    ids=["soft sim", "hard sim", "din", "dien", "din unit"],
)
def test_logits_and_losses_of_typed_features_equal_the_formulas(
    formulas, typed_schema, make_typed_batch, name, extra
):
    """Bags, numbers, and what is of contexts and events, in each of their places."""
    batch, labels = make_typed_batch(list(range(T + 1)), time=True)
    model, config = build(name, typed_schema, batch, labels, formulas, time_features=True, **extra)
    reference = formulas.NumpyModel(
        name, formulas.values_of(formulas.parts_of(model)), config, formulas.features_of(model)
    )
    expected = reference(batch, labels)
    logits, losses = losses_of(model, batch, labels)
    scale = np.abs(expected["logits"]).max()
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-5, atol=1e-5 * scale)
    for term, value in expected["losses"].items():
        assert losses[term].numpy() == pytest.approx(value, rel=1e-5, abs=1e-6), term


@pytest.mark.skipif(loader.cpu_kernels() is None, reason="a GPU, or nobody built the operations")
@pytest.mark.parametrize("time", [False, True], ids=["", "time"])
def test_sim_scores_alike_with_and_without_the_kernel(formulas, make_schema, make_batch, time):
    batch, labels = make_batch(list(range(T + 1)), time=time)
    model, _ = build("sim", make_schema(), batch, labels, formulas, time_features=time)
    assert model.body.compute_dtype == "float32"
    with_kernel = model(tensors(batch))
    with loader.portable():
        without = model(tensors(batch))
    searched = model(tensors(batch), targets=tf.constant(labels), testing=True)
    for other in (without, searched):
        np.testing.assert_allclose(with_kernel, other, rtol=1e-5, atol=1e-5)


# --- against the plain Keras version ---


@pytest.fixture(scope="module")
def pairs(make_schema, make_batch, formulas):
    """Ours and the plain model with the same weights, made once for each kind."""
    made = {}

    def get(name, **extra):
        key = (name, *extra.items())
        if key not in made:
            batch, labels = make_batch([T, 3])
            model, _ = build(name, make_schema(), batch, labels, formulas, **extra)
            plain = plain_model(name, **extra)
            plain(one_row_per_candidate(tensors(batch), labels)[0])
            variables = paired_variables(name, formulas.parts_of(model), plain)
            assert len(variables) == len(plain.trainable_weights)
            assert len(variables) == len(model.trainable_weights)
            for ours, theirs in variables:
                theirs.assign(tf.reshape(ours, theirs.shape))
            made[key] = model, plain, variables
        return made[key]

    return get


def plain_model(name, gsu="soft"):
    classifier = COMMON["stage_two_mlp_dims"]
    options = {"embedding_dim": D}
    if name == "din":
        return PlainDIN(USERS, ITEMS, mlp_dims=classifier, **options)
    options |= {"long_seq_length": L, "aux_mlp_dims": OPTIONS[name]["aux_mlp_dims"]}
    if name == "dien":
        return PlainDIEN(USERS, ITEMS, mlp_dims=classifier, **options)
    return PlainSIM(
        USERS,
        ITEMS,
        k=K,
        stage_one_mlp_dims=OPTIONS["sim"]["stage_one_mlp_dims"],
        stage_two_mlp_dims=classifier,
        category_feature="category_id" if gsu == "hard" else None,
        **options,
    )


def paired_variables(name, parts, plain):
    """(ours, the plain model's) for every trainable variable."""

    def hidden(mlp):
        layers = zip(mlp.hidden, mlp.activations, strict=True)
        return [w for dense, activation in layers for w in (*dense.weights, *activation.weights)]

    def whole(mlp):
        return [*hidden(mlp), *mlp.logit.weights]

    classifier = plain.stage_two if name == "sim" else plain.classifier
    theirs = {"stage_two": hidden(classifier), "head": classifier.logit.weights}
    if name == "sim":
        theirs |= {"stage_one": hidden(plain.stage_one)}
        theirs |= {"stage_one_head": plain.stage_one.logit.weights}
    if name != "din":
        evolution = plain.interest_evolution
        unit = evolution.attention_unit
        theirs |= {
            "extractor": evolution.gru.cell.weights,
            "evolution": evolution.augru.cell.weights,
            "project": unit.projection.weights,
            "slope": unit.prelu.weights,
            "attention": whole(unit.mlp),
            "auxiliary": whole(plain.auxiliary_net),
        }
    assert set(theirs) | {"tables"} == set(parts)
    pairs = [(table, plain.tables[n].embeddings) for n, table in parts["tables"].items()]
    for role, variables in theirs.items():
        pairs += zip(parts[role], variables, strict=True)
    return pairs


def plain_losses(name, outputs, labels):
    losses = {"head": binary_cross_entropy(labels, outputs["logits"])}
    if name == "sim":
        losses["head"] *= 0.5
        losses["gsu"] = 0.5 * binary_cross_entropy(labels, outputs["gsu_logits"])
    if name != "din":
        losses["aux"] = auxiliary_loss(
            outputs["aux_click_logits"], outputs["aux_noclick_logits"], outputs["aux_mask"]
        )
    return losses


@pytest.mark.parametrize("case", BATCHES)
@EACH_KIND
def test_equals_the_plain_version(pairs, make_batch, name, extra, case):
    """Logits, each loss, the total, and all gradients."""
    lengths, candidates, distinct = BATCHES[case]
    model, plain, variables = pairs(name, **extra)
    batch, labels = make_batch(lengths, candidates=candidates, distinct=distinct, seed=3)
    rows, row_labels = one_row_per_candidate(tensors(batch), labels)
    ours, theirs = (list(side) for side in zip(*variables, strict=True))
    with tf.GradientTape() as tape:
        logits, losses = losses_of(model, batch, labels)
        total = tf.add_n(list(losses.values()))
    gradients = tape.gradient(total, ours)
    with tf.GradientTape() as tape:
        outputs = plain(rows, training=True)
        plain_total = plain.compute_loss(y=row_labels, y_pred=outputs)
    plain_gradients = tape.gradient(plain_total, theirs)

    np.testing.assert_allclose(tf.reshape(logits, [-1]), outputs["logits"], rtol=1e-5, atol=1e-5)
    expected = plain_losses(name, outputs, row_labels)
    assert set(losses) == set(expected)
    for term, value in expected.items():
        assert losses[term].numpy() == pytest.approx(float(value), rel=1e-5, abs=1e-6), term
    assert total.numpy() == pytest.approx(float(plain_total), rel=1e-5)
    for variable, found, wanted in zip(ours, gradients, plain_gradients, strict=True):
        found, wanted = dense(found, variable), dense(wanted, variable)
        scale = max(np.abs(wanted).max(), 1e-2)
        np.testing.assert_allclose(
            found, wanted, rtol=2e-5, atol=2e-5 * scale, err_msg=variable.name
        )


def dense(gradient, variable):
    if gradient is None:
        return np.zeros(variable.shape)
    return tf.convert_to_tensor(gradient).numpy().reshape(variable.shape)


@EACH_KIND
def test_without_dropout_training_and_serving_score_alike(pairs, make_batch, name, extra):
    model, _, _ = pairs(name, **extra)
    batch, labels = make_batch([T, 3, 0])
    training, _ = losses_of(model, batch, labels)
    serving = {n: v for n, v in tensors(batch).items() if not n.endswith("_negatives")}
    # Scoring gathers what SIM's search finds, where training weighs it: other orders of sums.
    np.testing.assert_allclose(model(serving), training, atol=1e-6)
    assert not model.losses


@EACH_KIND
def test_slots_that_no_history_fills_can_be_left_out(pairs, make_batch, name, extra):
    model, _, _ = pairs(name, **extra)
    batch, _ = make_batch([S + 2, 1, 0, S], candidates=3)
    whole = {n: v for n, v in batch.items() if not n.endswith("_negatives")}
    cut = {n: v[:, T - S - 2 :] if n.endswith("_history") else v for n, v in whole.items()}
    specs = {n: tf.TensorSpec([None] * v.ndim, v.dtype) for n, v in cut.items()}
    graph = tf.function(lambda x: model(x), input_signature=[specs], autograph=False)
    np.testing.assert_allclose(graph(tensors(cut)), model(tensors(whole)), atol=1e-6)


def test_hard_search_of_a_category_that_never_occurs(pairs, make_batch):
    """All long events are masked: both searches find nothing."""
    model, plain, _ = pairs("sim", gsu="hard")
    batch, labels = make_batch([T, T])
    for name in ("category_id_history", "category_id"):
        batch[name] = np.where(batch[name] > 0, 1, 0).astype(np.int32)
    batch["category_id"][:] = 2
    logits, losses = losses_of(model, batch, labels)
    outputs = plain(one_row_per_candidate(tensors(batch), labels)[0], training=True)
    np.testing.assert_allclose(tf.reshape(logits, [-1]), outputs["logits"], rtol=1e-5, atol=1e-5)
    assert all(np.isfinite(loss) for loss in losses.values())


def test_hard_search_by_a_named_feature(make_schema, make_batch, formulas):
    batch, labels = make_batch([T] * 3)
    schema = make_schema(items={"item_id": 40, "brand": 6, "category_id": 6})
    for suffix in ("", "_history", "_negatives"):
        batch[f"brand{suffix}"] = 1 + batch[f"item_id{suffix}"] % 5
    scores = {}
    for feature in (None, "brand", "category_id"):
        model, config = build(
            "sim", schema, batch, labels, formulas, gsu="hard", category_feature=feature
        )
        reference = formulas.NumpyModel(
            "sim", formulas.values_of(formulas.parts_of(model)), config, formulas.features_of(model)
        )
        scores[feature] = model(tensors(batch)).numpy()
        np.testing.assert_allclose(scores[feature], reference(batch, labels)["logits"], rtol=1e-4)
    np.testing.assert_array_equal(scores[None], scores["brand"])
    assert np.abs(scores["brand"] - scores["category_id"]).max() > 1e-3


# --- time features ---


@EACH_KIND
def test_gaps_matter_and_their_padding_does_not(formulas, make_schema, make_batch, name, extra):
    batch, labels = make_batch([T] * 4 + [6], time=True)
    model, _ = build(name, make_schema(), batch, labels, formulas, time_features=True, **extra)
    before = model(tensors(batch)).numpy()
    assert "time_gap" in model.body.embeddings.table_variables
    shuffled = dict(batch)
    shuffled["time_gap_history"] = np.roll(batch["time_gap_history"], 1, axis=1)
    assert np.abs(model(tensors(shuffled)).numpy()[:4] - before[:4]).max() > 1e-3
    padded = dict(batch)
    padded["time_gap_history"] = np.where(
        batch["item_id_history"] > 0, batch["time_gap_history"], 7
    )
    np.testing.assert_allclose(model(tensors(padded)), before, rtol=1e-6, atol=1e-6)


@EACH_KIND
def test_without_time_features_there_is_no_gap_table(pairs, name, extra):
    model, _, _ = pairs(name, **extra)
    assert set(model.body.embeddings.table_variables) == {*USERS, *ITEMS}
