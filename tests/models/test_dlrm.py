"""DLRM as a whole: against NumPy, and against the plain Keras version."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.benchmarks.baselines.dlrm import PlainDLRM
from lookback.formats.tabular_schema import tabular_schema
from lookback.kernels import loader
from lookback.models import dlrm
from lookback.models.click_model import contract_of
from lookback.models.tabular_config import DLRMConfig

N, ROWS = 3, {"cat_0": 7, "cat_1": 5, "cat_2": 9}
D, WIDE = 4, 16  # our kernel reads rows of a multiple of 16
TOP = (8, 5, 1)


def make_batch(rows, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, size, rows) for size in ROWS.values()], 1).astype(np.int32)
    numerical = rng.normal(size=(rows, N)).astype(np.float32)
    labels = rng.integers(0, 2, (rows, 1)).astype(np.float32)
    return {"numerical": numerical, "categorical": ids}, labels


def tensors(features):
    return {name: tf.constant(value) for name, value in features.items()}


@pytest.fixture(params=[("dot", D), ("dot", WIDE), ("cat", D)], ids=str)
def model(request, formulas):
    interaction, width = request.param
    config = DLRMConfig(
        embedding_dim=width,
        bottom_mlp_sizes=(6, width),
        top_mlp_sizes=TOP,
        interaction_op=interaction,
    )
    built = dlrm.build(tabular_schema(N, ROWS), config)
    built(tensors(make_batch(2)[0]))
    formulas.randomise(built.trainable_weights)
    return built


def weights_of(model, sublayer):
    """Variables by role, in the order of the plain model's."""
    body = model.body

    tables = body.embeddings.table_variables
    return {
        "tables": [tables[name] for name in ROWS],
        "bottom": sublayer(body, "bottom_mlp").weights,
        "top": sublayer(body, "top_mlp").weights,
        "logit": list(model.model_outputs[0].to_call.weights),
    }


def relu_layers(x, weights):
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        x = np.maximum(x @ kernel + bias, 0)
    return x


def formula(w, features, interaction):
    """Naumov et al. 2019, figure 1, in float64: logits ``[B, 1]``."""
    logits = []
    for numbers, ids in zip(features["numerical"], features["categorical"], strict=True):
        vectors = [relu_layers(numbers.astype(np.float64), w["bottom"])]
        vectors += [table[index] for table, index in zip(w["tables"], ids, strict=True)]
        if interaction == "dot":
            products = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
            joined = np.concatenate([vectors[0], products])
        else:
            joined = np.concatenate(vectors)
        hidden = relu_layers(joined, w["top"])
        logits.append(hidden @ w["logit"][0] + w["logit"][1])
    return np.stack(logits)


@pytest.mark.parametrize("rows", [1, 9])
def test_logits_equal_numpy(model, formulas, rows):
    features, _ = make_batch(rows)
    values = formulas.values_of(weights_of(model, formulas.sublayer))
    expected = formula(values, features, model.body.get_config()["config"]["interaction_op"])
    np.testing.assert_allclose(model(tensors(features)), expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_numpys_slopes(model, formulas):
    """Of the mean cross entropy, by central differences in float64."""
    features, labels = make_batch(9)
    parts = weights_of(model, formulas.sublayer)
    values = formulas.values_of(parts)
    interaction = model.body.get_config()["config"]["interaction_op"]
    with tf.GradientTape() as tape:
        loss = contract_of(model).head_loss(tf.constant(labels), model(tensors(features)))
    gradients = tape.gradient(loss, parts)
    rng = np.random.default_rng(2)

    def loss_of():
        return formulas.cross_entropy(labels, formula(values, features, interaction))

    assert float(loss) == pytest.approx(loss_of(), rel=1e-5)
    for role, arrays in values.items():
        for array, gradient in zip(arrays, gradients[role], strict=True):
            found = tf.convert_to_tensor(gradient).numpy()
            for flat in rng.permutation(array.size)[:6]:
                index = np.unravel_index(flat, array.shape)
                slopes = []
                for move in (1e-6, -1e-6):
                    array[index] += move
                    slopes.append(loss_of() / (2 * move))
                    array[index] -= move
                assert found[index] == pytest.approx(sum(slopes), rel=1e-3, abs=2e-5), role


@pytest.mark.parametrize("model", [("dot", D), ("dot", WIDE)], indirect=True, ids=str)
@pytest.mark.parametrize("rows", [1, 33])
def test_equals_the_plain_version(model, formulas, rows):
    width = model.body.get_config()["config"]["embedding_dim"]
    plain = PlainDLRM(
        list(ROWS.values()), embedding_dim=width, bottom_mlp_sizes=(6, width), top_mlp_sizes=TOP
    )
    features, labels = make_batch(rows, seed=3)
    features, labels = tensors(features), tf.constant(labels)
    plain(features)
    ours = [w for part in weights_of(model, formulas.sublayer).values() for w in part]
    layers = [*plain.tables, *plain.bottom, *plain.top, plain.logit]
    theirs = [w for layer in layers for w in layer.weights]
    for mine, other in zip(ours, theirs, strict=True):
        other.assign(mine)
    with tf.GradientTape(persistent=True) as tape:
        logits, expected = model(features, training=True), plain(features, training=True)
        loss = contract_of(model).head_loss(labels, logits)
        plain_loss = tf.reduce_mean(
            tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=expected)
        )
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert float(loss) == pytest.approx(float(plain_loss), rel=1e-6)
    for variable, found, wanted in zip(
        ours, tape.gradient(loss, ours), tape.gradient(plain_loss, theirs), strict=True
    ):
        wanted = tf.convert_to_tensor(wanted).numpy()
        np.testing.assert_allclose(
            tf.convert_to_tensor(found), wanted, rtol=2e-5, atol=1e-6, err_msg=variable.name
        )


@pytest.mark.skipif(
    loader.cpu_kernels() is None, reason="a GPU, or an environment that setup.sh did not make"
)
@pytest.mark.parametrize("model", [("dot", WIDE)], indirect=True, ids=str)
def test_rows_are_read_where_tables_have_them(model):
    features = tensors(make_batch(3)[0])

    def operations():
        traced = tf.function(lambda inputs: model(inputs), autograph=False)
        graph = traced.get_concrete_function(features).graph
        return {operation.type for operation in graph.get_operations()}

    assert "LookbackLookupInteraction" in operations()
    with loader.portable() as found:
        portable = operations()
    assert found.asked
    assert not any(name.startswith("Lookback") for name in portable)
