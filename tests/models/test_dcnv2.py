"""DCNv2 as a whole: the paper's formulas in NumPy, by values and by slopes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.formats.tabular_schema import tabular_schema
from lookback.models import dcnv2
from lookback.models.click_model import contract_of
from lookback.models.tabular_config import DCNv2Config

N, ROWS, D = 3, {"cat_0": 7, "cat_1": 5}, 4
LAYERS = 2


def make_batch(rows, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, size, rows) for size in ROWS.values()], 1).astype(np.int32)
    numerical = rng.normal(size=(rows, N)).astype(np.float32)
    labels = rng.integers(0, 2, (rows, 1)).astype(np.float32)
    return {"numerical": numerical, "categorical": ids}, labels


def tensors(features):
    return {name: tf.constant(value) for name, value in features.items()}


@pytest.fixture(params=["stacked", "parallel"])
def structure(request):
    return request.param


@pytest.fixture(params=[3, None], ids=["low rank", "full rank"])
def model(request, structure, formulas):
    config = DCNv2Config(
        embedding_dim=D,
        bottom_mlp_sizes=(6, 5),  # other than D: nothing is multiplied across features
        top_mlp_sizes=(8, 5, 1),
        num_cross_layers=LAYERS,
        cross_layer_projection_dim=request.param,
        structure=structure,
    )
    built = dcnv2.build(tabular_schema(N, ROWS), config)
    built(tensors(make_batch(2)[0]))
    formulas.randomise(built.trainable_weights, scale=0.3)
    return built


def weights_of(model, sublayer):
    """Variables by role; of each cross layer U (if low-rank), then V (or W) and b."""
    body = model.body

    crosses = []
    for layer in sublayer(body, "CrossBlock").layers:
        inner = layer.dense
        if inner.dense_u is not None:
            crosses += inner.dense_u.weights
        crosses += inner.dense.weights
    tables = body.embeddings.table_variables
    return {
        "tables": [tables[name] for name in ROWS],
        "bottom": sublayer(body, "bottom_mlp").weights,
        "cross": crosses,
        "top": sublayer(body, "top_mlp").weights,
        "logit": list(model.model_outputs[0].to_call.weights),
    }


def relu_layers(x, weights):
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        x = np.maximum(x @ kernel + bias, 0)
    return x


def formula(w, features, structure):
    """Wang et al. 2021, equations 1 and 2 (on rows: transposed), in float64: logits ``[B, 1]``."""
    parts = [relu_layers(features["numerical"].astype(np.float64), w["bottom"])]
    parts += [t[i] for t, i in zip(w["tables"], features["categorical"].T, strict=True)]
    x0 = x = np.concatenate(parts, 1)
    size = len(w["cross"]) // LAYERS
    for layer in range(LAYERS):
        *low_rank, kernel, bias = w["cross"][layer * size : (layer + 1) * size]
        matrix = low_rank[0] @ kernel if low_rank else kernel
        x = x0 * (x @ matrix + bias) + x
    if structure == "stacked":
        hidden = relu_layers(x, w["top"])
    else:
        hidden = np.concatenate([x, relu_layers(x0, w["top"])], 1)
    return hidden @ w["logit"][0] + w["logit"][1]


@pytest.mark.parametrize("rows", [1, 9])
def test_logits_equal_the_paper(model, structure, formulas, rows):
    features, _ = make_batch(rows)
    expected = formula(
        formulas.values_of(weights_of(model, formulas.sublayer)), features, structure
    )
    np.testing.assert_allclose(model(tensors(features)), expected, rtol=2e-5, atol=2e-5)


def test_gradients_are_numpys_slopes(model, structure, formulas):
    """Of the mean cross entropy, by central differences in float64."""
    features, labels = make_batch(9)
    parts = weights_of(model, formulas.sublayer)
    assert sum(map(len, parts.values())) == len(model.trainable_variables)
    values = formulas.values_of(parts)
    with tf.GradientTape() as tape:
        loss = contract_of(model).head_loss(tf.constant(labels), model(tensors(features)))
    gradients = tape.gradient(loss, parts)
    rng = np.random.default_rng(2)

    def loss_of():
        return formulas.cross_entropy(labels, formula(values, features, structure))

    assert float(loss) == pytest.approx(loss_of(), rel=1e-5)
    for role, arrays in values.items():
        for array, gradient in zip(arrays, gradients[role], strict=True):
            found = tf.convert_to_tensor(gradient).numpy()
            for flat in rng.permutation(array.size)[:5]:
                index = np.unravel_index(flat, array.shape)
                slopes = []
                for move in (1e-6, -1e-6):
                    array[index] += move
                    slopes.append(loss_of() / (2 * move))
                    array[index] -= move
                assert found[index] == pytest.approx(sum(slopes), rel=1e-3, abs=2e-5), role
