"""Masked softmax and DIN's activation unit against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.models.blocks.attention import ActivationUnit, masked_softmax

RNG = np.random.default_rng(0)
B, C, S, H = 3, 2, 4, 3


def test_masked_softmax_equals_its_formula(formulas):
    scores = RNG.normal(0, 2, (4, 5))
    mask = RNG.random((4, 5)) < 0.6
    mask[0], mask[1] = True, False
    formulas.assert_equals_formula(
        lambda s: masked_softmax(s, tf.constant(mask)),
        lambda s: np.stack([formulas.masked_softmax(r, m) for r, m in zip(s, mask, strict=True)]),
        [scores],
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_masked_softmax_along_an_axis_with_a_broadcast_mask(formulas, axis):
    scores = RNG.normal(size=(3, 4, 2))
    shape = [1, 1, 1]
    shape[axis] = scores.shape[axis]
    mask = np.arange(scores.shape[axis]) > 0
    expected = np.apply_along_axis(lambda s: formulas.masked_softmax(s, mask), axis, scores)
    found = masked_softmax(tf.constant(scores), tf.constant(mask.reshape(shape)), axis)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_masked_softmax_is_float32_whatever_comes(dtype):
    scores = tf.constant([[1.0, 2.0, 4.0]], dtype)
    found = masked_softmax(scores, tf.constant([[True, True, True]]))
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, tf.nn.softmax([[1.0, 2.0, 4.0]]), rtol=1e-6)


def test_masked_softmax_of_extreme_scores_is_finite():
    """Differences beyond what exp can hold, and nothing allowed at all."""
    scores = tf.constant([[1e30, -1e30, 0.0], [5.0, -3e38, 3e38], [1.0, 2.0, 3.0]])
    mask = tf.constant([[True, True, True], [True, True, False], [False, False, False]])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        weights = masked_softmax(scores, mask)
        total = tf.reduce_sum(weights * [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(weights, [[1, 0, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(tape.gradient(total, scores), np.zeros((3, 3)))


def test_activation_unit_equals_its_formula(formulas):
    unit = ActivationUnit((5, 4))
    items, steps = RNG.normal(size=(C, B, H)), RNG.normal(size=(S, B, H))
    unit((tf.constant(items, tf.float32), tf.constant(steps, tf.float32)))
    formulas.randomise(unit.trainable_weights)

    def formula(items, steps, *weights):
        scores = [
            formulas.activation_unit(items[c, b], steps[s, b], weights)
            for s, c, b in np.ndindex(S, C, B)
        ]
        return np.reshape(scores, (S, C, B))

    formulas.assert_equals_formula(
        lambda i, s: unit((i, s)), formula, [items, steps], unit.trainable_weights
    )


def test_activation_unit_is_invariant_to_how_candidates_are_grouped():
    unit = ActivationUnit()
    items, steps = tf.random.normal([C, B, H]), tf.random.normal([S, B, H])
    together = unit((items, steps))
    for c in range(C):
        alone = unit((items[c : c + 1], steps))
        np.testing.assert_allclose(alone[:, 0], together[:, c], rtol=1e-5, atol=1e-6)


def test_activation_unit_has_the_published_widths():
    unit = ActivationUnit()
    unit((tf.zeros([C, B, H]), tf.zeros([S, B, H])))
    assert [list(w.shape) for w in unit.weights] == [
        [4 * H, 80],
        [80],
        [80, 40],
        [40],
        [40, 1],
        [1],
    ]
