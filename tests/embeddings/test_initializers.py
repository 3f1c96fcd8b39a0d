"""Initial rows against NumPy's uint64, whole or in any pieces, and their distribution."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from lookback.core import splitmix
from lookback.embeddings import initializers
from lookback.embeddings.initializers import fill_rows, uniform_rows
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.types import Placement, Shard, TableSpec

ROWS, DIM, SCALE = 53, 7, 0.25


def np_mix(state):
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def np_rows(seed, table, rows, dim, scale):
    """The whole table in NumPy, from the docstring."""
    with np.errstate(over="ignore"):
        seed = np.array([seed], np.int64).view(np.uint64)
        key = np_mix(np_mix(seed) + np.uint64(splitmix.stream(table)))
        counter = np.arange(rows * dim, dtype=np.uint64)
        bits = np_mix(key + np.uint64(0x9E3779B97F4A7C15) * counter) >> np.uint64(40)
    unit = bits.astype(np.float64) / 2**23 - 1
    return (unit.astype(np.float32) * np.float32(scale)).reshape(rows, dim)


def whole(seed=3, table="item", rows=ROWS, dim=DIM, scale=SCALE):
    return uniform_rows(seed, table, range(rows), range(dim), dim, scale).numpy()


@pytest.mark.parametrize("seed", [0, 3, -5, 2**62])
@pytest.mark.parametrize("table", ["item", "a table of a rather long name"])
def test_rows_equal_numpy(seed, table):
    expected = np_rows(seed, table, ROWS, DIM, SCALE)
    np.testing.assert_array_equal(whole(seed, table), expected)


@pytest.mark.parametrize(
    "rows", [range(0, 0), range(5, 6), range(1, ROWS, 4), range(52, -1, -3)], ids=str
)
@pytest.mark.parametrize("columns", [range(0, 7), range(2, 5), range(6, 7)], ids=str)
def test_any_rows_and_columns_are_those_of_the_whole_table(rows, columns):
    expected = whole()[list(rows)][:, list(columns)]
    found = uniform_rows(3, "item", rows, columns, DIM, SCALE)
    np.testing.assert_array_equal(found, expected)
    index = tf.constant(list(rows), tf.int32)
    np.testing.assert_array_equal(uniform_rows(3, "item", index, columns, DIM, SCALE), found)


def test_rows_beyond_int32_have_numbers_of_their_own():
    far = uniform_rows(3, "item", range(2**40, 2**40 + 4), range(DIM), DIM, SCALE)
    assert not np.array_equal(far, whole()[:4])
    assert len(np.unique(far)) == far.shape.num_elements()


def test_tables_and_seeds_differ():
    tables = [whole(), whole(seed=4), whole(table="items"), whole(table="meti")]
    for number, table in enumerate(tables):
        for other in tables[number + 1 :]:
            assert (table == other).mean() < 0.01


def test_the_scale_only_scales():
    np.testing.assert_allclose(whole(scale=0.5), 2 * whole(scale=0.25), rtol=1e-7)


@pytest.mark.parametrize("seed", [0, 1])
def test_values_are_uniform_and_uncorrelated(seed):
    rows, dim = 20_000, 16
    values = whole(seed, rows=rows, dim=dim, scale=1.0).astype(np.float64)
    count = values.size
    assert values.min() >= -1 and values.max() < 1
    assert abs(values.mean()) < 5 / np.sqrt(3 * count)  # the mean's deviation is sqrt(1/3/n)
    assert abs(values.var() - 1 / 3) < 5 * np.sqrt(4 / 45 / count)
    # Kolmogorov and Smirnov: above 1.95 / sqrt(n) in one case of a thousand.
    ranks = (np.sort(values.ravel()) + 1) / 2
    distance = np.abs(ranks - (np.arange(count) + 0.5) / count).max()
    assert distance < 1.95 / np.sqrt(count)
    for a, b in ((values[:-1], values[1:]), (values[:, :-1], values[:, 1:])):
        assert abs((a * b).mean()) < 5 / 3 / np.sqrt(a.size)


@pytest.mark.parametrize("block", [1, 10, DIM * ROWS, 1 << 20])
def test_fill_rows_writes_there_and_nowhere_else(block, monkeypatch):
    monkeypatch.setattr(initializers, "BLOCK_VALUES", block)
    variable = tf.Variable(tf.fill([40, 3], 9.0))
    shard = Shard("item", 1, range(1, ROWS, 2), range(4, 7))
    fill_rows(variable, 5, shard, 3, DIM, SCALE)
    expected = np.full((40, 3), 9.0, np.float32)
    expected[5 : 5 + 26] = whole()[1::2, 4:7]
    np.testing.assert_array_equal(variable, expected)


def test_fill_rows_of_no_rows_does_nothing():
    variable = tf.Variable(tf.zeros([0, 3]))
    fill_rows(variable, 0, Shard("item", 4, range(4, 4, 5), range(0, 3)), 3, 3, SCALE)
    assert variable.shape == [0, 3]


@pytest.mark.parametrize(
    "placement",
    [
        Placement("item", "row_wise"),
        Placement("item", "table_wise", (2,)),
        Placement("item", "column_wise", (1, 0, 2)),
        Placement("item", "data_parallel"),
    ],
    ids=lambda placement: placement.strategy,
)
def test_shards_of_every_strategy_make_the_same_table(placement):
    table = np.full((ROWS, DIM), np.nan, np.float32)
    spec = TableSpec("item", ROWS, DIM)
    for shard in STRATEGIES[placement.strategy].shards(spec, placement, 3):
        variable = tf.Variable(tf.zeros([len(shard.rows), len(shard.columns)]))
        fill_rows(variable, 0, shard, 3, DIM, SCALE)
        table[np.ix_(shard.rows, shard.columns)] = variable
    np.testing.assert_array_equal(table, whole())


@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="needs a GPU")
def test_gpu_and_cpu_agree_bit_for_bit():
    found = []
    for device in ("CPU:0", "GPU:0"):
        with tf.device(device):
            found.append(whole(rows=10_000))
    np.testing.assert_array_equal(*found)
