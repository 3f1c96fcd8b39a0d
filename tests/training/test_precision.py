"""Loss scaling: overflow skips and halves, growth after good steps."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.training.precision import LossScale, all_finite, amp_policy

GOOD = tf.constant([1.0, 2.0])
BAD = {"inf": np.inf, "-inf": -np.inf, "nan": np.nan}


@pytest.mark.parametrize(("gpu", "policy"), [(True, "mixed_float16"), (False, "mixed_bfloat16")])
def test_policy_of_the_device(gpu, policy, monkeypatch):
    monkeypatch.setattr("lookback.training.precision.has_gpu", lambda: gpu)
    assert amp_policy() == policy


def test_defaults_are_those_of_keras():
    keras = tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.SGD())
    ours = LossScale()
    assert ours.scale == keras.initial_scale
    ours.good_steps.assign(keras.dynamic_growth_steps - 2)
    for scale in (keras.initial_scale, 2 * keras.initial_scale):
        ours.update(tf.constant(True))
        assert ours.scale == scale


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16])
def test_scaled_loss_and_unscaled_gradients(dtype):
    scale = LossScale(initial=8.0)
    assert scale.scaled(tf.constant(3.0, dtype)).dtype == dtype
    assert scale.scaled(tf.constant(3.0, dtype)) == 24.0
    slices = tf.IndexedSlices(tf.constant([[8.0], [16.0]]), tf.constant([4, 4]), [9, 1])
    dense, nothing, sparse = scale.unscaled([tf.constant([8.0, -4.0]), None, slices])
    np.testing.assert_array_equal(dense, [1.0, -0.5])
    assert nothing is None
    assert isinstance(sparse, tf.IndexedSlices)
    np.testing.assert_array_equal(sparse.values, [[1.0], [2.0]])
    np.testing.assert_array_equal(sparse.indices, [4, 4])


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
@pytest.mark.parametrize("sparse", [False, True])
def test_a_gradient_that_is_not_finite_is_found(value, sparse):
    assert all_finite([GOOD, None])
    bad = tf.constant([[1.0, value]])
    gradient = tf.IndexedSlices(bad, tf.constant([3]), [9, 2]) if sparse else bad
    assert not all_finite([GOOD, None, gradient])
    assert not all_finite([gradient])


def test_gradients_of_no_row_are_finite():
    none = tf.zeros([0, 2])
    assert all_finite([none, tf.IndexedSlices(none, tf.zeros([0], tf.int32))])


def test_a_step_that_is_not_finite_halves_the_scale():
    scale = LossScale(initial=16.0, growth_steps=5)
    scale.update(tf.constant(True))
    assert (scale.scale, scale.good_steps) == (16.0, 1)
    scale.update(tf.constant(False))
    assert (scale.scale, scale.good_steps) == (8.0, 0)


def test_the_scale_doubles_after_enough_good_steps():
    scale = LossScale(initial=4.0, growth_steps=3)
    seen = []
    for _ in range(7):
        scale.update(tf.constant(True))
        seen.append(float(scale.scale))
    assert seen == [4, 4, 8, 8, 8, 16, 16]


def test_an_overflow_starts_the_count_again():
    scale = LossScale(initial=4.0, growth_steps=3)
    seen = []
    for finite in [True, True, False, True, True, True]:
        scale.update(tf.constant(finite))
        seen.append(float(scale.scale))
    assert seen == [4, 4, 2, 2, 2, 4]


def test_the_scale_never_falls_below_1():
    scale = LossScale(initial=2.0)
    for _ in range(5):
        scale.update(tf.constant(False))
    assert scale.scale == 1.0


def test_half_precision_gradients_survive_that_would_underflow():
    """1e-8 is 0 in fp16; scaled by 2**15 it is not."""
    weight = tf.Variable(1.0)
    scale = LossScale()

    def gradient(scaled):
        with tf.GradientTape() as tape:
            half = tf.cast(weight, tf.float16)
            loss = tf.cast(half, tf.float32) * 1e-8
            loss = scale.scaled(loss) if scaled else loss
        return tape.gradient(loss, weight)

    assert gradient(scaled=False) == 0
    (found,) = scale.unscaled([gradient(scaled=True)])
    assert found.numpy() == pytest.approx(1e-8, rel=1e-3)


def test_in_a_graph_a_bad_step_is_skipped():
    weight, scale = tf.Variable(1.0), LossScale(initial=4.0)

    @tf.function
    def step(factor):
        with tf.GradientTape() as tape:
            loss = scale.scaled(factor * weight)
        gradients = scale.unscaled([tape.gradient(loss, weight)])
        finite = all_finite(gradients)
        scale.update(finite)
        if finite:
            weight.assign_sub(0.1 * gradients[0])

    step(tf.constant(2.0))
    assert weight.numpy() == pytest.approx(0.8)
    step(tf.constant(3e38))  # times 4 overflows
    assert weight.numpy() == pytest.approx(0.8)
    assert scale.scale == 2.0
    step(tf.constant(2.0))
    assert weight.numpy() == pytest.approx(0.6)
