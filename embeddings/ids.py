"""Checks ids where an id beyond its table would be a row of another."""

from __future__ import annotations

import tensorflow as tf


def inside(table: str, rows: int, ids: tf.Tensor) -> tf.Tensor:
    """The ids, if all are the table's: the numbers beyond are rows of the next table.

    Args:
      table: its name, for the error.
      rows: that it has.
      ids: int ``[N]``.

    Raises:
      tf.errors.InvalidArgumentError: when the ids are read, naming the table and their range.
    """
    # Without ids: the type's largest number, and its least.
    least, most = (tf.cast(f(ids), tf.int64) for f in (tf.reduce_min, tf.reduce_max))
    check = tf.debugging.Assert(
        (least >= 0) & (most < rows),
        [f"Table {table!r}: expected ids in [0, {rows}), received", least, "to", most],
    )
    with tf.control_dependencies([check]):
        return tf.identity(ids)
