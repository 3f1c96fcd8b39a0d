"""Distinct ids and sums of duplicates, against NumPy."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from lookback.embeddings.duplicates import distinct, sum_duplicates
from lookback.kernels import loader

needs_kernels = pytest.mark.skipif(
    loader.cpu_kernels() is None, reason="a GPU, or an environment that setup.sh did not make"
)
WAYS = pytest.mark.parametrize(
    "way",
    [
        pytest.param(loader.portable, id="tensorflow"),
        pytest.param(contextlib.nullcontext, id="kernel", marks=needs_kernels),
    ],
)

ROWS = 40
# Fewer than rows are hashed; as many or more are counted.
COUNTS = (0, 1, ROWS - 1, ROWS, 10 * ROWS)


def draw(count, dtype):
    return tf.constant(np.random.default_rng(count).integers(0, ROWS, count), dtype)


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
@pytest.mark.parametrize("compiled", [False, True])
@WAYS
def test_each_id_once_and_where_it_is(way, compiled, dtype):
    function = (
        tf.function(distinct, reduce_retracing=True, autograph=False) if compiled else distinct
    )
    for count in COUNTS:
        ids = draw(count, dtype)
        with way():
            values, position = function(ids, ROWS)
        assert (values.dtype, position.dtype) == (dtype, tf.int32)
        np.testing.assert_array_equal(np.sort(values), np.unique(ids))
        np.testing.assert_array_equal(tf.gather(values, position), ids)


@WAYS
def test_first_and_last_row_and_a_table_without_rows(way):
    with way():
        values, _ = distinct(tf.repeat(tf.constant([ROWS - 1, 0]), ROWS), ROWS)
        assert sorted(values.numpy()) == [0, ROWS - 1]
        assert [len(found) for found in distinct(tf.zeros([0], tf.int32), 0)] == [0, 0]


@needs_kernels
@pytest.mark.parametrize("rows", [500, 1 << 40])  # numbered by row, and hashed
def test_the_kernel_s_order_is_that_of_the_ids(rows):
    ids = tf.constant(np.random.default_rng(0).integers(0, rows, 400) // 7 * 7, tf.int64)
    for found, expected in zip(distinct(ids, rows), tf.unique(ids), strict=True):
        np.testing.assert_array_equal(found, expected)


@needs_kernels
def test_ids_outside_of_the_table_are_refused():
    for wrong in (-1, ROWS):
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"indices\[1\] = {wrong} is not"):
            distinct(tf.constant([3, wrong]), ROWS)


@pytest.mark.parametrize("count", COUNTS)
@WAYS
def test_sum_duplicates(way, count):
    indices = draw(count, tf.int64)
    values = np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)
    gradient = tf.IndexedSlices(tf.constant(values), indices, tf.constant([ROWS, 3]))
    with way():
        rows, sums = sum_duplicates(gradient, ROWS)
    assert sorted(rows.numpy()) == np.unique(indices).tolist()
    expected = np.zeros([ROWS, 3])
    np.add.at(expected, indices.numpy(), values)
    np.testing.assert_allclose(sums, expected[rows.numpy()], rtol=1e-5, atol=1e-6)
