"""Rows in variables of NVIDIA's Sparse Operation Kit, looked up by its fused GPU kernels.

Written against SOK 2.0.0 (the Merlin 23.12 image) and 2.1.0, whose interfaces are the same as far
as they are used here. What their sources say and their documentation does not:

- A variable's rows lie as in our row-wise and table-wise strategies, and the gradient of a lookup
  names local rows, each once, summed over all processes (lookup.py, `_LookupBackward`). So plans,
  optimizers and checkpoints are those of the other backends.
- Tables that grow (`TableSpec.capacity`) are its `DynamicVariable`s: keys are rows of the table,
  in lookups and in gradients, and what `tf.gather` and `scatter_update` do not find they insert.
- One `lookup_sparse` takes variables of one kind only, "distributed" or "localized", that grow or
  do not, and one of
  "localized" ones alone needs a table on every process (`lookup_sparse`).
- Every table and process must ask for equally many rows, or the kernels read beyond their inputs
  (`HotnessCalculateOp`). Ours differ, so they are padded with rows without ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lookback.core.devices import has_gpu
from lookback.core.errors import UserError
from lookback.embeddings.backends.base import Backend, Held
from lookback.embeddings.config import Sharding
from lookback.embeddings.growing import GrowingRows
from lookback.embeddings.initializers import fill_rows, uniform_rows
from lookback.embeddings.optimizers import NewSlot
from lookback.embeddings.sharding import STRATEGIES, shards_of
from lookback.embeddings.sharding.base import Strategy
from lookback.embeddings.types import ShardingPlan, TableSpec

LEAST_CAPACITY = 1024
"""Of a table that grows: what SOK's own example has (dump_load.py), eight of HKV's buckets."""

_HOW = "use `--backend horovod`, which holds the same plan and checkpoints"


class SokRoute(NamedTuple):
    """What `fetch` needs to know.

    Attributes:
      distinct: by table, the distinct ids ``[U]``, int64.
      places: by table, for each id ``[N]`` its place among the distinct ones.
      rows: int64 scalar: rows of every lookup of the step, on every process.
    """

    distinct: dict[str, tf.Tensor]
    places: dict[str, tf.Tensor]
    rows: tf.Tensor


class SOKBackend(Backend):
    """Holds one variable a table: the rows that SOK, and our plan, place on this process."""

    exchanges = True

    def __init__(self, tables: Sequence[TableSpec], sharding: Sharding, seed: int) -> None:
        """Prepares the backend; see `Backend`.

        Raises:
          UserError: if SOK, Horovod or a GPU is missing, the plan uses what SOK cannot do, or
            vectors are to travel in half precision, tables are to be joint.
          ValueError: if the plan is not one for these tables and processes.
        """
        super().__init__(tables, sharding, seed)
        self._hvd, self._sok = start()
        plan = self._plan_of(self._hvd.size())
        if sharding.wire_dtype != "float32":
            raise UserError(
                f"backend: sok exchanges float32 vectors only, received wire_dtype "
                f"{sharding.wire_dtype!r}. Leave it out, or {_HOW}."
            )
        if self.joint:
            raise UserError(
                "backend: sok has a variable for each table (its kernels look all of them up at "
                f"once), received joint tables. Keep them separate, or {_HOW}."
            )
        self._modes = _modes(plan)
        self._held = [
            Held(shard, shard.table, 0)
            for shard in shards_of(plan)
            if shard.rank == self._hvd.rank()
        ]

    @property
    def held(self) -> Sequence[Held]:
        """The shards of this process, each in the variable of its table."""
        return self._held

    def build(self, layer: tf.keras.layers.Layer) -> None:
        """Creates a variable ``[N, dim]`` for each table; N is 0 where another process has it.

        Of a table that grows a `DynamicVariable`, which is empty.
        """
        with tf.init_scope():
            # Processes whose seeds differed would each begin with shards of another table.
            seed = self._hvd.broadcast(tf.constant(self._seed, tf.int64), 0, name="table_seed")
            self._seed = int(seed)
            for name, table in self._tables.items():
                if table.capacity is not None:
                    self._variables[name] = self._growing_variable(name, table.dim, 0.0)
                    continue
                self._variables[name] = self._sok.Variable(
                    shape=[table.rows, table.dim],
                    initializer=tf.zeros,
                    dtype=tf.float32,
                    name=name,
                    mode=self._modes[name],
                )
            for part in self._held:
                table = self._tables[part.shard.table]
                if table.capacity is not None:
                    continue
                variable = self._variables[part.variable]
                if variable.shape[0] != part.stop:
                    raise RuntimeError(
                        f"Table {table.name!r}: SOK holds {variable.shape[0]} rows here, the plan "
                        f"{part.stop}. This version of SOK lays rows out in another way; {_HOW}."
                    )
                fill_rows(variable, part.start, part.shard, self._seed, table.dim, table.scale)
        # Keras tracks and saves what is an attribute; `add_weight` cannot make SOK's variables.
        layer.sok_variables = dict(self._variables)

    def route(self, ids: Mapping[str, tf.Tensor]) -> SokRoute:
        """Deduplicates ids and agrees on the number of rows: one reduction of a number."""
        distinct, places, sizes = {}, {}, [tf.constant(1, tf.int64)]
        for name, index in ids.items():
            distinct[name], places[name] = tf.unique(tf.cast(index, tf.int64))
            sizes.append(tf.size(distinct[name], tf.int64))
        rows = self._hvd.allreduce(tf.reduce_max(tf.stack(sizes)), op=self._hvd.Max)
        return SokRoute(distinct, places, rows)

    def fetch(self, route: SokRoute) -> dict[str, tf.Tensor]:
        """Looks the distinct rows up, with one call for each kind of variable."""
        vectors: dict[str, tf.Tensor] = {}
        for names in self._calls(route.distinct):
            found = self._sok.lookup_sparse(
                [self._variables[name] for name in names],
                [self._one_id_rows(route, name) for name in names],
                combiners=["sum"] * len(names),
            )
            vectors.update(zip(names, found))
        for name, ids in route.distinct.items():
            table = self._tables[name]
            if table.capacity is not None:
                columns = range(table.dim)
                first = uniform_rows(self._seed, name, ids, columns, table.dim, table.scale)
                # Below the rows of the ids are those without: they are zeros, and nobody's.
                beyond = tf.zeros([tf.shape(vectors[name])[0] - tf.shape(ids)[0], table.dim])
                vectors[name] += tf.concat([first, beyond], 0)
        return {name: _spread(vectors[name], place) for name, place in route.places.items()}

    def new_slot(self, variable: str) -> NewSlot | None:
        """State of a table that grows grows with it."""
        if self._tables[variable].capacity is None:
            return None
        return lambda name, slot, columns, value: self._growing_variable(name, columns, value, slot)

    def growing(
        self, part: Held, variable: tf.Variable, value: float | None = None
    ) -> GrowingRows | None:
        """See `Backend.growing`."""
        table = self._tables[part.shard.table]
        if table.capacity is None:
            return None

        def initial(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            if value is not None:
                return np.full((len(rows), variable.shape[1]), value, np.float32)
            columns = range(table.dim)
            return uniform_rows(
                self._seed, table.name, tf.constant(rows), columns, table.dim, table.scale
            ).numpy()

        return GrowingRows(variable, self._sok.export, initial, differences=value is None)

    def _growing_variable(
        self, table: str, columns: int, value: float, slot: str | None = None
    ) -> tf.Variable:
        """A hash table of rows, in HKV: beyond its capacity, what was not used for longest goes.

        A table's own holds differences from the initial rows, so that what is not there, or was
        evicted, is as it began; SOK's own initial values are constants or random.
        """
        capacity = self._tables[table].capacity
        assert capacity is not None
        slots = 1 << (max(capacity, LEAST_CAPACITY) - 1).bit_length()  # HKV wants powers of 2
        return self._sok.DynamicVariable(
            dimension=columns,
            initializer=str(value),
            var_type="hybrid",
            key_type=tf.int64,
            dtype=tf.float32,
            name=table if slot is None else f"{table}/{slot}",
            mode=self._modes[table],
            trainable=slot is None,
            init_capacity=slots,
            max_capacity=slots,
            max_hbm_for_vectors=-(-slots * columns * 4 // (1 << 30)),  # in GiB: all of them
        )

    def _calls(self, wanted: Mapping[str, tf.Tensor]) -> list[list[str]]:
        """The tables of each call, those that nobody asks for included where SOK needs them."""
        calls = []
        for grows in (False, True):
            modes = {n: m for n, m in self._modes.items() if self._grows(n) is grows}
            distributed = [n for n in wanted if modes.get(n) == "distributed"]
            localized = [n for n, mode in modes.items() if mode != "distributed"]
            if not any(name in wanted for name in localized):
                localized = []
            calls += [names for names in (distributed, localized) if names]
        return calls

    def _grows(self, table: str) -> bool:
        return self._tables[table].capacity is not None

    def _one_id_rows(self, route: SokRoute, name: str) -> tf.RaggedTensor:
        """The distinct ids of a table as rows of one id each, and rows of none."""
        ids = route.distinct.get(name, tf.zeros([0], tf.int64))
        lengths = tf.cast(tf.sequence_mask(tf.size(ids), route.rows), tf.int64)
        return tf.RaggedTensor.from_row_lengths(ids, lengths, validate=False)


@tf.custom_gradient
def _spread(
    vectors: tf.Tensor, places: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, None]]]:
    """Gathers ``[N, D]``; the gradient is dense, as SOK's kernels take no `tf.IndexedSlices`."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        return tf.math.unsorted_segment_sum(upstream, places, tf.shape(vectors)[0]), None

    return tf.gather(vectors, places), gradient


def _modes(plan: ShardingPlan) -> dict[str, str]:
    """SOK's mode of each table."""
    modes: dict[str, str] = {}
    for placement in plan.placements:
        mode = STRATEGIES[placement.strategy].sok_mode(placement)
        if mode is None:
            able = [n for n, s in STRATEGIES.items() if type(s).sok_mode is not Strategy.sok_mode]
            raise UserError(
                f"backend: sok cannot hold table {placement.table!r} {placement.strategy}; it can "
                f"do {able}. Plan with these strategies only, or {_HOW}."
            )
        modes[placement.table] = mode
    owners = {rank for p in plan.placements for rank in p.ranks}
    if owners and len(owners) < plan.ranks:
        raise UserError(
            "backend: sok needs a table_wise table on every process, or none at all; processes "
            f"{sorted(set(range(plan.ranks)) - owners)} have none. Plan those tables row_wise, or "
            f"{_HOW}."
        )
    return modes


def start() -> tuple[Any, Any]:
    """Imports and starts Horovod and SOK.

    Returns:
      The modules.
    """
    try:
        import horovod.tensorflow as hvd
        import sparse_operation_kit as sok
    except Exception as error:  # without its libraries, SOK raises plain `Exception` on import
        raise UserError(
            f"backend: sok needs NVIDIA's Sparse Operation Kit and Horovod, which cannot be "
            f"imported ({error}). The Docker image has both; elsewhere install `merlin-sok`, "
            f"which is built from source and needs a GPU to run. Without it, {_HOW}."
        ) from error
    if not has_gpu():
        raise UserError(
            f"backend: sok has GPU kernels only, and TensorFlow sees no GPU here. Run it where "
            f"there is one, or {_HOW}."
        )
    if not hvd.is_initialized():
        hvd.init()
    try:
        sok.communication.rank()
    except RuntimeError:  # not started yet; a second start is an error
        # By default SOK puts Keras' legacy optimizers in place of the present ones.
        sok.init(use_legacy_optimizer=False)
    return hvd, sok
