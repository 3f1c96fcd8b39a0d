"""Rows of tables that grow: those that were used, by key, and up to a bound.

What nobody has used is as it begins: a table's row a pure function of seed, table and row
(`initializers`), a row of state a constant. So a checkpoint has every row, as of any other table,
and no reader needs to know how its writer held them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Values = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class GrowingRows:
    """Some rows of a tensor, as a hash table holds them.

    Attributes:
      variable: of `sok.DynamicVariable`'s kind: `scatter_update` inserts; its key is the row.
      export: gives keys ``[U]`` in any order, and what they hold ``[U, d]``.
      initial: from rows ``[N]`` to what they begin with, ``[N, d]``.
      differences: whether the variable holds the differences from there, which begin as zeros.
    """

    variable: Any
    export: Callable[[Any], tuple[tf.Tensor, tf.Tensor]]
    initial: Callable[[Rows], Values]
    differences: bool

    def blocks(self, rows: range, size: int) -> Iterator[Values]:
        """What the rows are, block by block; those that are not held as they begin.

        Args:
          rows: of the tensor.
          size: rows of a block.
        """
        keys, held = (tensor.numpy() for tensor in self.export(self.variable))
        order = np.argsort(keys)
        keys, held = keys[order], held[order]
        for begin in range(0, len(rows), size):
            wanted = np.asarray(rows[begin : begin + size], np.int64)
            values = self.initial(wanted)
            places = np.searchsorted(keys, wanted)
            there = places < len(keys)
            there[there] = keys[places[there]] == wanted[there]
            found = held[places[there]]
            values[there] = values[there] + found if self.differences else found
            yield values

    def write(self, rows: range, values: Values) -> None:
        """Takes what rows are to be; those that are as they begin need no room.

        Args:
          rows: N of the tensor.
          values: ``[N, d]``.
        """
        keys = np.asarray(rows, np.int64)
        initial = self.initial(keys)
        changed = (values != initial).any(axis=1)
        kept = values[changed] - initial[changed] if self.differences else values[changed]
        if len(kept):
            self.variable.scatter_update(
                tf.IndexedSlices(tf.constant(kept, tf.float32), tf.constant(keys[changed]))
            )
