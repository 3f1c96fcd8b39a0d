"""GRU and AUGRU against DIEN's equations."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.models.blocks import recurrent
from lookback.models.blocks.recurrent import AUGRU, InterestGRU

RNG = np.random.default_rng(0)
B, C, S, D, H = 3, 2, 4, 3, 2
# Left padding, a full row, an empty one.
MASK = np.array([[0, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]], bool)


@pytest.fixture(params=(False, True), ids=("three products", "one product"), autouse=True)
def on_gpu(request, monkeypatch):
    """The gates of a step are one product on GPUs; either way the numbers are the same."""
    monkeypatch.setattr(recurrent, "has_gpu", lambda: request.param)


def built(layer, inputs, formulas):
    layer(inputs)
    formulas.randomise(layer.trainable_weights, scale=0.6)
    return layer


@pytest.fixture
def gru(formulas):
    return built(InterestGRU(H), (tf.zeros([S, B, D]), tf.constant(MASK)), formulas)


@pytest.fixture
def augru(formulas):
    return built(AUGRU(H), (tf.zeros([S, B, D]), tf.zeros([S, C, B])), formulas)


def test_gru_equals_its_equations(formulas, gru):
    def formula(steps, *weights):
        states = [formulas.gru_states(steps[:, b], MASK[:, b], weights) for b in range(B)]
        return np.stack(states, 1)

    formulas.assert_equals_formula(
        lambda steps: gru((steps, tf.constant(MASK))),
        formula,
        [RNG.normal(size=(S, B, D))],
        gru.trainable_weights,
    )


def test_gru_keeps_its_state_over_masked_steps_anywhere(formulas, gru):
    mask = np.array([[1], [0], [0], [1]], bool)
    steps = RNG.normal(size=(S, 1, D)).astype(np.float32)
    states = gru((tf.constant(steps), tf.constant(mask)))
    np.testing.assert_array_equal(states[1], states[0])
    np.testing.assert_array_equal(states[2], states[0])
    short = gru((tf.constant(steps[[0, 3]]), tf.constant(mask[[0, 3]])))
    np.testing.assert_allclose(states[3], short[1], rtol=1e-5, atol=1e-6)


def test_gru_is_keras_gru_with_its_gate_turned_around(gru):
    """Keras: ``h' = z h + (1 - z) c``, so its z is sigmoid of minus our update's argument."""
    kernel, recurrent, bias = gru.get_weights()
    sign = np.repeat([-1.0, 1.0, 1.0], H)
    keras = tf.keras.layers.GRU(H, return_sequences=True, time_major=True)
    steps = tf.random.normal([S, B, D])
    keras(steps)
    keras.set_weights([kernel * sign, recurrent * sign, np.stack([bias * sign, 0 * bias])])
    found = gru((steps, tf.ones([S, B], tf.bool)))
    np.testing.assert_allclose(found, keras(steps), rtol=1e-5, atol=1e-6)


def test_augru_equals_its_equations(formulas, augru):
    def formula(steps, attention, *weights):
        final = [
            formulas.augru_final(steps[:, b], attention[:, c, b], weights)
            for c, b in np.ndindex(C, B)
        ]
        return np.reshape(final, (C, B, H))

    formulas.assert_equals_formula(
        lambda steps, attention: augru((steps, attention)),
        formula,
        [RNG.normal(size=(S, B, D)), RNG.random((S, C, B))],
        augru.trainable_weights,
    )


def test_augru_of_full_attention_is_the_gru_and_of_none_stays_at_zero(gru, augru):
    augru.set_weights(gru.get_weights())
    steps = tf.random.normal([S, B, D])
    attention = tf.stack([tf.ones([S, B]), tf.zeros([S, B])], 1)  # [S, 2, B]
    final = augru((steps, attention))
    states = gru((steps, tf.ones([S, B], tf.bool)))
    np.testing.assert_allclose(final[0], states[-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(final[1], np.zeros((B, H)))


def test_one_step_is_enough(gru, augru):
    steps = tf.random.normal([1, B, D])
    assert gru((steps, tf.ones([1, B], tf.bool))).shape == [1, B, H]
    assert augru((steps, tf.ones([1, C, B]))).shape == [C, B, H]


def test_state_weights_start_orthogonal():
    layer = InterestGRU(5)
    layer((tf.zeros([S, B, D]), tf.constant(MASK)))
    kernel, recurrent, bias = layer.get_weights()
    assert kernel.shape == (D, 15)
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(5), atol=1e-5)
    np.testing.assert_array_equal(bias, np.zeros(15))
