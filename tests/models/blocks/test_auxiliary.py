"""DIEN's auxiliary loss against equation 6."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.models.blocks.auxiliary import AuxiliaryNet

RNG = np.random.default_rng(0)
B, S, H, E = 3, 4, 3, 2
MASK = np.array([[0, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]], bool)


def arrays(slots=S):
    return [RNG.normal(size=(slots, B, width)) for width in (H, E, E)]


def call(net, mask):
    return lambda states, clicks, negatives: net((states, clicks, negatives, tf.constant(mask)))


@pytest.fixture
def net(formulas):
    net = AuxiliaryNet((5, 4))
    call(net, MASK)(*[tf.constant(a, tf.float32) for a in arrays()])
    formulas.randomise(net.trainable_weights)
    return net


@pytest.mark.parametrize("dims", [(5, 4), (5,), (5, 4, 3)])
def test_loss_equals_its_formula(formulas, dims):
    net = AuxiliaryNet(dims)
    inputs = arrays()
    call(net, MASK)(*[tf.constant(a, tf.float32) for a in inputs])
    formulas.randomise(net.trainable_weights)

    def formula(states, clicks, negatives, kernel, bias, *others):
        terms = []
        for b in range(B):
            weights = (kernel, bias, *others)
            terms += formulas.auxiliary_terms(
                states[:, b], clicks[:, b], negatives[:, b], MASK[:, b], weights
            )
        assert len(terms) == 1 + 3 + 0
        return np.mean(terms)

    formulas.assert_equals_formula(call(net, MASK), formula, inputs, net.trainable_weights)


def test_what_is_masked_does_not_matter(net):
    inputs = [tf.constant(a, tf.float32) for a in arrays()]
    loss = call(net, MASK)(*inputs)
    noise = [tf.where(MASK[:, :, None], x, 100 * tf.random.normal(x.shape)) for x in inputs]
    np.testing.assert_allclose(call(net, MASK)(*noise), loss, rtol=1e-6)


@pytest.mark.parametrize("slots", [1, 4])
def test_no_pair_of_valid_neighbours_costs_nothing(net, slots):
    inputs = [tf.constant(a, tf.float32) for a in arrays(slots)]
    mask = np.zeros((slots, B), bool)
    mask[0] = True
    with tf.GradientTape() as tape:
        loss = call(net, mask)(*inputs)
    assert loss.numpy() == 0
    for gradient in tape.gradient(loss, net.trainable_weights):
        np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


def test_extreme_logits_cost_what_they_should(formulas, net):
    """A clicked item of probability 0 in single precision: its logit, not infinity."""
    states, clicks, negatives = arrays()
    net.set_weights([*net.get_weights()[:-2], np.full((4, 1), -500.0), np.zeros(1)])
    inputs = [tf.constant(a, tf.float32) for a in (states, clicks, negatives)]
    with tf.GradientTape() as tape:
        loss = call(net, MASK)(*inputs)
    terms = []
    for b in range(B):
        weights = [w.astype(np.float64) for w in net.get_weights()]
        terms += formulas.auxiliary_terms(
            states[:, b], clicks[:, b], negatives[:, b], MASK[:, b], weights
        )
    assert loss.numpy() == pytest.approx(np.mean(terms), rel=1e-4)
    assert loss > 100
    for gradient in tape.gradient(loss, net.trainable_weights):
        assert np.isfinite(gradient).all()
