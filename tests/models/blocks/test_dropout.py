"""Dropout whose randomness is a weight."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.models.blocks.dropout import ResumableDropout

ONES = tf.ones([200, 50])


def test_rate_and_scale():
    dropped = ResumableDropout(0.3)(ONES, training=True).numpy()
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / 0.7], rtol=1e-6)
    # 10,000 draws: the standard deviation of the fraction is 0.0046.
    assert (dropped == 0).mean() == pytest.approx(0.3, abs=0.02)


def test_nothing_happens_outside_of_training():
    layer = ResumableDropout(0.5)
    assert layer(ONES, training=False) is not None
    np.testing.assert_array_equal(layer(ONES), ONES)
    assert layer.get_weights() == [0]


def test_every_step_drops_anew_and_counts():
    layer = ResumableDropout(0.5)
    first, second = layer(ONES, training=True), layer(ONES, training=True)
    assert (first.numpy() != second.numpy()).any()
    assert layer.get_weights() == [2]
    assert layer.trainable_weights == []


def test_a_resumed_layer_draws_what_the_first_one_would_have():
    layer = ResumableDropout(0.5, seed=3)
    layer(ONES, training=True)
    saved = layer.get_weights()
    expected = [layer(ONES, training=True).numpy() for _ in range(2)]
    resumed = ResumableDropout(0.5, seed=3)
    resumed(ONES)
    resumed.set_weights(saved)
    for values in expected:
        np.testing.assert_array_equal(resumed(ONES, training=True), values)


def test_compiled_equals_eager_and_advances():
    layer, other = ResumableDropout(0.5), ResumableDropout(0.5)
    compiled = tf.function(lambda x: layer(x, training=True))
    for _ in range(3):
        np.testing.assert_array_equal(compiled(ONES), other(ONES, training=True))


def test_seeds_drop_differently():
    one, two = (ResumableDropout(0.5, seed=s)(ONES, training=True).numpy() for s in (1, 2))
    assert (one != two).any()


def test_gradient_passes_where_values_do():
    layer = ResumableDropout(0.25)
    with tf.GradientTape() as tape:
        tape.watch(ONES)
        outputs = layer(ONES, training=True)
    gradient = tape.gradient(outputs, ONES)
    np.testing.assert_allclose(gradient, outputs, rtol=1e-6)
