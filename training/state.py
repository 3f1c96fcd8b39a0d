"""What training changes, by name, as checkpoints hold it: whole tensors, or this rank's parts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lookback.checkpoints.store import Checkpoint, RowBlocks, TensorSpec
from lookback.embeddings.collection import EmbeddingCollection, collections_of
from lookback.embeddings.growing import GrowingRows
from lookback.embeddings.optimizers import TableOptimizer

MODEL_PREFIXES = ("table/", "model/")
"""First parts of the names of a model's own tensors."""

_ROWS_A_BLOCK = 1 << 18  # of a table in a checkpoint: 16 MB at D = 16, so that memory stays flat


@dataclasses.dataclass(frozen=True)
class TensorShard:
    """Some rows and columns of a tensor, and where this rank keeps them.

    Attributes:
      variable: what holds them.
      rows: of the tensor, in the order in which they are held.
      columns: of the tensor, contiguous; None means all.
      start: the first row's place in the variable.
      growing: how the rows are held in a variable that grows; None: from `start` on.
    """

    variable: tf.Variable
    rows: range
    columns: range | None = None
    start: int = 0
    growing: GrowingRows | None = None

    def blocks(self) -> Iterator[NDArray]:
        """The rows, block by block."""
        if self.growing is not None:
            yield from self.growing.blocks(self.rows, _ROWS_A_BLOCK)
            return
        if not self.variable.shape.rank:
            yield self.variable.numpy()
            return
        stop = self.start + len(self.rows)
        for begin in range(self.start, stop, _ROWS_A_BLOCK):
            # Gathered: a slice of a variable copies all of it first, once its rows have been
            # scattered to (resource_var.h, copy_on_read_mode).
            yield tf.gather(
                self.variable, tf.range(begin, min(begin + _ROWS_A_BLOCK, stop))
            ).numpy()

    def write(self, begin: int, block: NDArray) -> None:
        """Takes rows.

        Args:
          begin: the first one's number among `rows`.
          block: ``[N, d]``.
        """
        if self.growing is not None:
            self.growing.write(self.rows[begin : begin + len(block)], block)
            return
        places = tf.range(self.start + begin, self.start + begin + len(block))
        self.variable.scatter_update(tf.IndexedSlices(block, places))


@dataclasses.dataclass(frozen=True)
class State:
    """A tensor of a run, or this rank's parts of it.

    Attributes:
      shape: of the whole tensor.
      dtype: of its numbers.
      parts: that this rank holds; maybe none.
      replicated: whether every rank holds the same, so that one of them saves it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[TensorShard, ...]
    replicated: bool

    @property
    def spec(self) -> TensorSpec:
        """Shape and type, as checkpoints compare them."""
        return TensorSpec(self.shape, self.dtype)

    def pieces(self) -> list[RowBlocks]:
        """The parts, for a checkpoint, to be read block by block."""
        whole = range(self.shape[0] if self.shape else 1)
        return [
            RowBlocks(
                self.shape,
                self.dtype,
                part.blocks,
                None if part.rows == whole else part.rows,
                part.columns,
            )
            for part in self.parts
        ]

    def restore(self, name: str, checkpoint: Checkpoint) -> None:
        """Reads the parts from a checkpoint, whoever wrote it, block by block."""
        for part in self.parts:
            if not self.shape:
                part.variable.assign(checkpoint[name])
                continue
            done = 0
            for block in checkpoint.blocks(name, part.rows, part.columns, _ROWS_A_BLOCK):
                part.write(done, block)
                done += len(block)


def whole(variable: tf.Variable) -> State:
    """A tensor that every rank holds whole."""
    shape = tuple(variable.shape)
    rows = range(shape[0] if shape else 1)
    return State(shape, _dtype(variable), (TensorShard(variable, rows),), replicated=True)


def model_states(model: tf.keras.Model) -> dict[str, State]:
    """A model's tensors by name: ``table/NAME`` and ``model/LAYER/...``."""
    states: dict[str, State] = {}
    held = set()
    for collection in collections_of(model):
        variables = collection.backend.variables
        held |= {id(variable) for variable in variables.values()}
        for table in collection.tables:
            parts = [
                (
                    TensorShard(
                        variables[h.variable],
                        h.shard.rows,
                        h.shard.columns,
                        h.start,
                        collection.backend.growing(h, variables[h.variable]),
                    ),
                    h.replicated,
                )
                for h in collection.backend.held
                if h.shard.table == table.name
            ]
            states[f"table/{table.name}"] = _table_state((table.rows, table.dim), parts)
    others = [v for v in model.weights if id(v) not in held]
    return states | dense_states("model", others)


def slot_states(
    collection: EmbeddingCollection, optimizers: Mapping[str, TableOptimizer]
) -> dict[str, State]:
    """The states of table optimizers by name: ``optimizer/TABLE/SLOT``.

    The same names on every rank, whatever it holds: they depend on the optimizer alone.

    Args:
      collection: whose tables are optimized.
      optimizers: by table name.
    """
    states: dict[str, State] = {}
    for table in collection.tables:
        optimizer = optimizers[table.name]
        held = [h for h in collection.backend.held if h.shard.table == table.name]
        for slot, kind in optimizer.slot_kinds.items():
            parts = []
            for h in held:
                variable = optimizer.slots[h.variable][slot]
                columns = h.shard.columns if kind == "weight" else range(1)
                growing = collection.backend.growing(h, variable, optimizer.initial_value(slot))
                shard = TensorShard(variable, h.shard.rows, columns, h.start, growing)
                parts.append((shard, h.replicated))
            width = table.dim if kind == "weight" else 1
            states[f"optimizer/{table.name}/{slot}"] = _table_state((table.rows, width), parts)
    return states


def dense_states(prefix: str, variables: Sequence[tf.Variable]) -> dict[str, State]:
    """The states of variables that are no tables, named by `unique_names`."""
    return {name: whole(v) for name, v in unique_names(prefix, variables).items()}


def unique_names(prefix: str, variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
    """Names variables independently of what else the process has built.

    Keras numbers layers over the process ("dense_7"), so a resumed run would look for other names
    than were saved. The numbers are dropped, and equal names numbered in the model's own order.
    """
    named: dict[str, tf.Variable] = {}
    for variable in variables:
        plain = re.sub(r"_\d+(?=/|$)", "", variable.name.partition(":")[0])
        name, copies = f"{prefix}/{plain}", 1
        while name in named:
            copies += 1
            name = f"{prefix}/{plain}.{copies}"
        named[name] = variable
    return named


def _table_state(shape: tuple[int, int], parts: Sequence[tuple[TensorShard, bool]]) -> State:
    every = range(shape[1])
    own = [
        dataclasses.replace(part, columns=None if part.columns == every else part.columns)
        for part, _ in parts
    ]
    replicated = any(replicated for _, replicated in parts)
    return State(shape, np.dtype(np.float32), tuple(own), replicated)


def _dtype(variable: tf.Variable) -> np.dtype:
    return np.dtype(variable.dtype.as_numpy_dtype)
