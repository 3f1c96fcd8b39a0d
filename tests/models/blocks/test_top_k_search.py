"""The searches' masks against sorting in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.models.blocks.top_k_search import latest_k_mask, mean_weights, top_k_mask

RNG = np.random.default_rng(0)


def top_k(scores, mask, k):
    """One row: the k allowed entries of the largest score, the earlier one first among equals."""
    best = sorted(np.flatnonzero(mask), key=lambda t: (-scores[t], t))[:k]
    return np.isin(np.arange(len(scores)), best)


@pytest.mark.parametrize("k", [1, 3, 6, 7, 50])
@pytest.mark.parametrize("values", [2, 5, 10**6], ids=["2 scores", "5 scores", "no ties"])
@pytest.mark.parametrize("allowed", [0.3, 1.0])
def test_top_k_mask(k, values, allowed):
    scores = RNG.integers(-values // 2, values // 2 + 1, (40, 7)).astype(np.float32)
    mask = RNG.random((40, 7)) < allowed
    mask[0], mask[1] = False, True
    expected = np.stack([top_k(s, m, k) for s, m in zip(scores, mask, strict=True)])
    found = top_k_mask(tf.constant(scores), tf.constant(mask), k)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found.numpy().sum(1), np.minimum(mask.sum(1), k))


def test_top_k_mask_agrees_with_tensorflow_and_keeps_leading_axes():
    scores = RNG.integers(0, 4, (3, 2, 9)).astype(np.float32)
    found = top_k_mask(tf.constant(scores), tf.ones([3, 2, 9], tf.bool), 4).numpy()
    for row in np.ndindex(3, 2):
        chosen = tf.math.top_k(scores[row], 4).indices.numpy()
        np.testing.assert_array_equal(np.flatnonzero(found[row]), np.sort(chosen))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_top_k_mask_of_half_precision(dtype):
    scores = tf.constant([[3.0, -65000.0, 1.0, 2.0]], dtype)
    mask = tf.constant([[True, True, False, True]])
    np.testing.assert_array_equal(top_k_mask(scores, mask, 2), [[True, False, False, True]])
    np.testing.assert_array_equal(top_k_mask(scores, mask, 3), mask)


def test_top_k_mask_of_an_unknown_length():
    scores = RNG.normal(size=(5, 8)).astype(np.float32)
    spec = [tf.TensorSpec([None, None]), tf.TensorSpec([None, None], tf.bool)]
    compiled = tf.function(lambda s, m: top_k_mask(s, m, 3), input_signature=spec)
    for length in (3, 4, 8):
        mask = np.ones((5, length), bool)
        expected = np.stack([top_k(s, m, 3) for s, m in zip(scores[:, :length], mask, strict=True)])
        np.testing.assert_array_equal(compiled(scores[:, :length], mask), expected)


def test_top_k_mask_has_no_gradient_and_does_not_need_one():
    scores = tf.constant([[1.0, 2.0, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        mask = top_k_mask(scores, tf.constant([[True, True, True]]), 2)
        loss = tf.reduce_sum(tf.cast(mask, tf.float32) * scores)
    np.testing.assert_array_equal(tape.gradient(loss, scores), [[0.0, 1.0, 1.0]])


@pytest.mark.parametrize("k", [1, 3, 9])
def test_latest_k_mask(k):
    mask = RNG.random((20, 3, 8)) < 0.5
    mask[0], mask[1] = False, True
    expected = np.zeros_like(mask)
    for row in np.ndindex(20, 3):
        expected[row][np.flatnonzero(mask[row])[-k:]] = True
    np.testing.assert_array_equal(latest_k_mask(tf.constant(mask), k), expected)


def test_mean_weights():
    selected = RNG.random((20, 6)) < 0.4
    selected[0] = False
    values = RNG.normal(size=(20, 6))
    weights = mean_weights(tf.constant(selected))
    assert weights.dtype == tf.float32
    for row in range(20):
        chosen = values[row][selected[row]]
        expected = chosen.mean() if len(chosen) else 0.0
        assert np.dot(weights[row], values[row]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
