"""DIEN's two recurrences and the attention between them against the formulas."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.models.blocks.evolution import UNITS_PER_DIM, InterestEvolution

RNG = np.random.default_rng(0)
B, C, S, E, H = 3, 2, 4, 2, 3
MASK = np.array([[0, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]], bool)
SHAPES = {"target": (B, C, E), "short": (S, B, E), "negatives": (S, B, E)}


@pytest.fixture
def layer(formulas):
    layer = InterestEvolution(H, (5, 4))
    inputs = {name: tf.zeros(shape) for name, shape in SHAPES.items()}
    layer(inputs["target"], inputs["short"], tf.constant(MASK), inputs["negatives"])
    formulas.randomise(layer.trainable_weights)
    return layer


@pytest.mark.slow
def test_forward_and_gradients_equal_the_formulas(formulas, layer):
    """Final states and the loss at once, so that the gradients of both are summed."""
    roles = formulas.evolution_parts(layer)
    variables = [v for role in roles.values() for v in role]

    def function(target, short, negatives):
        final, loss = layer(target, short, tf.constant(MASK), negatives)
        return tf.concat([tf.reshape(final, [-1]), [loss]], 0)

    def formula(target, short, negatives, *values):
        values = list(values)
        w = {role: [values.pop(0) for _ in variables] for role, variables in roles.items()}
        finals, terms = [], []
        for b in range(B):
            for c in range(C):
                final, states = formulas.evolve(target[b, c], short[:, b], MASK[:, b], w)
                finals.append(final)
            terms += formulas.auxiliary_terms(
                states, short[:, b], negatives[:, b], MASK[:, b], w["auxiliary"]
            )
        return np.concatenate([*finals, [np.mean(terms)]])

    inputs = [RNG.normal(size=shape) for shape in SHAPES.values()]
    formulas.assert_equals_formula(function, formula, inputs, variables, entries=12)


def test_without_negatives_there_is_no_loss(layer):
    target, short = tf.random.normal(SHAPES["target"]), tf.random.normal(SHAPES["short"])
    final, loss = layer(target, short, tf.constant(MASK))
    assert loss is None
    with_negatives, _ = layer(target, short, tf.constant(MASK), short)
    np.testing.assert_array_equal(final, with_negatives)


def test_a_layer_built_for_serving_has_the_training_weights():
    serving, training = InterestEvolution(H, (5, 4)), InterestEvolution(H, (5, 4))
    target, short = tf.zeros(SHAPES["target"]), tf.zeros(SHAPES["short"])
    serving.build_auxiliary(E)
    serving(target, short, tf.constant(MASK))
    training(target, short, tf.constant(MASK), short)
    shapes = [sorted(str(w.shape) for w in layer.weights) for layer in (serving, training)]
    assert shapes[0] == shapes[1]


def test_units_per_dimension_is_that_of_the_published_code():
    assert UNITS_PER_DIM == 6
