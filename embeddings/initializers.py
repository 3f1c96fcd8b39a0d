"""Initial rows of tables, a pure function of (seed, table, row, column).

However a table is cut into shards, and whoever creates them, every weight starts as it would have
in the whole table, bit for bit: runs of any world size begin alike, and no rank ever needs more
memory than its own rows take.
"""

from __future__ import annotations

import tensorflow as tf

from lookback.core import splitmix
from lookback.embeddings.types import Shard

BLOCK_VALUES = 1 << 20
"""Weights made at a time: about 40 MB while they are made. Measured on 2 cores: 2**16 at a time
33 M weights/s, 2**20 119 M, 2**22 136 M."""

_BITS = 24  # as many as a float32 holds exactly


def uniform_rows(
    seed: int, table: str, rows: range | tf.Tensor, columns: range, dim: int, scale: float
) -> tf.Tensor:
    """Initial weights, uniform in ``[-scale, scale)`` on a grid of 2**24 values.

    The weight in row r and column c is number ``r * dim + c`` of a SplitMix64 stream whose key is
    seed and table, so it depends on neither the other rows and columns nor their order.

    Args:
      seed: of the run.
      table: its name; tables have streams of their own.
      rows: rows ``[N]`` of the table, a range or integer tensor.
      columns: columns of the table; d of them, contiguous.
      dim: columns of the whole table (D).
      scale: bound.

    Returns:
      float32 ``[N, d]``.
    """
    if isinstance(rows, range):
        rows = tf.range(rows.start, rows.stop, rows.step, dtype=tf.int64)
    return _uniform(
        _key(seed, table),
        tf.cast(rows, tf.int64),
        tf.constant([columns.start, columns.stop], tf.int64),
        tf.constant(dim, tf.int64),
        tf.constant(scale, tf.float32),
    )


def fill_rows(
    variable: tf.Variable, start: int, shard: Shard, seed: int, dim: int, scale: float
) -> None:
    """Writes a shard's initial rows into a variable, with the memory of a block.

    Args:
      variable: float32 ``[M, d]``, d the number of the shard's columns.
      start: row of the variable for the shard's first row; the others follow.
      shard: rows and columns of a table; may have no rows.
      seed: of the run.
      dim: columns of the whole table (D).
      scale: initial weights are uniform in ``[-scale, scale)``.
    """
    block = max(1, BLOCK_VALUES // len(shard.columns))
    for begin in range(0, len(shard.rows), block):
        rows = shard.rows[begin : begin + block]
        values = uniform_rows(seed, shard.table, rows, shard.columns, dim, scale)
        # Not `variable[a:b].assign`: it reads the variable first, and so copies it in each block.
        where = tf.range(start + begin, start + begin + len(rows), dtype=tf.int64)
        variable.scatter_update(tf.IndexedSlices(values, where))


def _key(seed: int, table: str) -> tf.Tensor:
    return splitmix.mix(splitmix.mix(tf.constant(seed, tf.int64)) + splitmix.stream(table))


def _spec(dtype: tf.DType, *shape: int | None) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype)


@tf.function(
    autograph=False,
    input_signature=[
        _spec(tf.int64),
        _spec(tf.int64, None),
        _spec(tf.int64, 2),
        _spec(tf.int64),
        _spec(tf.float32),
    ],
)
def _uniform(
    key: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor, dim: tf.Tensor, scale: tf.Tensor
) -> tf.Tensor:
    counter = tf.expand_dims(rows * dim, 1) + tf.range(columns[0], columns[1])  # [N, d]
    bits = splitmix.shift_right(splitmix.mix(key + splitmix.WEYL * counter), 64 - _BITS)
    # Every value up to the product is exact, so all devices round alike.
    return (tf.cast(bits, tf.float32) * 2.0 ** (1 - _BITS) - 1.0) * scale
