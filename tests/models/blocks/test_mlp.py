"""The classification MLP against its formula."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from lookback.models.blocks.mlp import PRELU_SLOPE, prelu_mlp

RNG = np.random.default_rng(0)


def test_dense_and_prelu(formulas):
    inputs = RNG.normal(size=(6, 3))
    block = prelu_mlp((5, 4), None, "classifier")
    block(tf.constant(inputs, tf.float32))
    assert [w.shape.as_list() for w in block.weights] == [[3, 5], [5], [5], [5, 4], [4], [4]]
    np.testing.assert_allclose(block.weights[2], np.full(5, PRELU_SLOPE))
    np.testing.assert_allclose(block.weights[5], np.full(4, PRELU_SLOPE))
    formulas.randomise(block.weights)
    formulas.assert_equals_formula(
        block, lambda x, *w: formulas.prelu_layers(x, w), [inputs], block.trainable_weights
    )


def test_dropout_comes_last_and_only_if_asked_for():
    inputs = tf.constant(RNG.normal(size=(50, 3)), tf.float32)
    with_dropout = prelu_mlp((8,), 0.5, "classifier")
    plain = with_dropout(inputs, training=False)
    dropped = with_dropout(inputs, training=True).numpy()
    kept = dropped != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(dropped[kept], 2 * plain.numpy()[kept], rtol=1e-5)
    assert not prelu_mlp((8,), None, "classifier").layers[-1].name.startswith("resumable")


def test_blocks_of_different_names_drop_differently():
    inputs = tf.ones([20, 3])
    masks = []
    for name in ("stage_one", "stage_two"):
        block = prelu_mlp((8,), 0.5, name)
        masks.append(block(inputs, training=True).numpy() == 0)
    assert (masks[0] != masks[1]).any()
