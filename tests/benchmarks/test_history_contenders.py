"""What the benchmarks of SIM, DIEN and DIN time does what it says."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.benchmarks.history_contenders import Contenders
from lookback.kernels.loader import portable
from lookback.models import DIENConfig, DINConfig, SIMConfig
from lookback.models.click_model import contract_of


@pytest.fixture(scope="module")
def histories(make_histories):
    return make_histories(lengths=[120] * 3)


def test_our_training_step_counts_rows_and_updates_the_model(histories, eagerly, monkeypatch):
    contenders = Contenders(histories, batch_size=32)
    model = contenders.ours()
    monkeypatch.setattr(contenders, "ours", lambda: model)
    before = model.get_weights()
    for alone in (False, True):
        step = contenders.train_ours(alone=alone)
        assert [step(), step()] == [32, 32]
        after = model.get_weights()
        assert any((old != new).any() for old, new in zip(before, after, strict=True))
        assert all(np.isfinite(weights).all() for weights in after)
        before = after


@pytest.mark.parametrize(
    "config",
    [
        SIMConfig(),
        DIENConfig(),
        DIENConfig(long_seq_length=94),
        DINConfig(),
        DINConfig(interaction="activation_unit"),
    ],
    ids=["sim", "dien", "dien_6", "din", "din_unit"],
)
def test_counted_flops_are_those_of_the_graph(histories, config):
    """Of all products of matrices in the graphs that TensorFlow makes."""
    contenders = Contenders(histories, batch_size=8, config=config)
    model, (features, labels) = contenders.ours(), contenders.batches[0]

    def loss_of(features, labels):
        logits = model(features, targets=labels, training=True)
        return tf.add_n([contract_of(model).head_loss(labels, logits), *model.losses])

    def backward(features, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(features, labels)
        return tape.gradient(loss, model.trainable_variables)

    def forward(features, labels):
        return model({n: v for n, v in features.items() if not n.endswith("_negatives")})

    with portable():
        scoring, training = (
            products(tf.function(function, autograph=False).get_concrete_function(features, labels))
            / 8
            for function in (forward, backward)
        )
    assert scoring == contenders.cost(training=False).flops
    # No gradient goes to the states that both GRUs begin with: of a history, and of a candidate.
    begin = 0 if isinstance(config, DINConfig) else (1 / 2 + 1) * 2 * 96 * 3 * 96
    assert training == pytest.approx(contenders.cost(training=True).flops - begin, rel=1e-6)


def products(function) -> float:
    """FLOPs of the products of matrices in a graph."""
    total = 0
    for op in function.graph.get_operations():
        if op.type in ("MatMul", "BatchMatMulV2"):
            transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
            joined = op.inputs[0].shape[-2 if transposed else -1]
            total += 2 * op.outputs[0].shape.num_elements() * joined
    return total
