"""Draws are the same numbers whoever computes them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from lookback.dataloading.draws import compiled_draws, draw_below
from lookback.kernels.loader import portable

NUMBERS = tf.range(5, dtype=tf.int64)


def drawn(bound):
    return draw_below((3, "train", tf.constant(1, tf.int64)), "aux", NUMBERS, 4, bound)


def test_xla_draws_what_tensorflow_draws():
    with portable():
        plain = drawn(1000)
        with compiled_draws():
            graph = tf.function(drawn, autograph=False).get_concrete_function(1000)
        assert [op.type for op in graph.graph.get_operations()].count("RightShift") == 0
        np.testing.assert_array_equal(graph(), plain)
    np.testing.assert_array_equal(drawn(1000), plain)  # by our kernel, where there is one
    assert len(np.unique(plain)) > 15
    assert np.all((plain >= 0) & (plain < 1000))


def test_draws_are_compiled_only_where_it_is_wanted():
    with portable(), compiled_draws(wanted=False):
        graph = tf.function(drawn, autograph=False).get_concrete_function(1000)
    assert [op.type for op in graph.graph.get_operations()].count("RightShift") > 0
