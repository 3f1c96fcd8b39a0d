"""Distinct ids and sums of duplicates, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.embeddings.duplicates import distinct, sum_duplicates

ROWS = 40
# Fewer than rows are hashed; as many or more are counted.
COUNTS = (0, 1, ROWS - 1, ROWS, 10 * ROWS)


def draw(count, dtype):
    return tf.constant(np.random.default_rng(count).integers(0, ROWS, count), dtype)


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
@pytest.mark.parametrize("compiled", [False, True])
def test_each_id_once_and_where_it_is(compiled, dtype):
    function = (
        tf.function(distinct, reduce_retracing=True, autograph=False) if compiled else distinct
    )
    for count in COUNTS:
        ids = draw(count, dtype)
        values, position = function(ids, ROWS)
        assert (values.dtype, position.dtype) == (dtype, tf.int32)
        np.testing.assert_array_equal(np.sort(values), np.unique(ids))
        np.testing.assert_array_equal(tf.gather(values, position), ids)


def test_first_and_last_row_and_a_table_without_rows():
    values, _ = distinct(tf.repeat(tf.constant([ROWS - 1, 0]), ROWS), ROWS)
    assert sorted(values.numpy()) == [0, ROWS - 1]
    assert [len(found) for found in distinct(tf.zeros([0], tf.int32), 0)] == [0, 0]


@pytest.mark.parametrize("count", COUNTS)
def test_sum_duplicates(count):
    indices = draw(count, tf.int64)
    values = np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)
    gradient = tf.IndexedSlices(tf.constant(values), indices, tf.constant([ROWS, 3]))
    rows, sums = sum_duplicates(gradient, ROWS)
    assert sorted(rows.numpy()) == np.unique(indices).tolist()
    expected = np.zeros([ROWS, 3])
    np.add.at(expected, indices.numpy(), values)
    np.testing.assert_allclose(sums, expected[rows.numpy()], rtol=1e-5, atol=1e-6)
