"""EmbeddingCollection: the one layer through which models reach embedding tables."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from lookback.embeddings.backends import BACKENDS
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.tables import tables_from_schema
from lookback.embeddings.types import TableSpec

__all__ = ["COMBINERS", "EmbeddingCollection", "collections_of", "tables_from_schema"]

COMBINERS = ("sum", "mean", "sqrtn")
"""How the vectors of a bag become one: their sum, divided by n, or divided by sqrt(n)."""

Ids: TypeAlias = "tf.Tensor | tf.RaggedTensor"
RowSource: TypeAlias = Callable[[str, tf.Tensor], tf.Tensor]
"""From a table's name and ids ``[N]`` to float32 rows ``[N, D]``."""


@tf.keras.utils.register_keras_serializable(package="lookback")
class EmbeddingCollection(tf.keras.layers.Layer):
    """Looks up many features in a few shared tables, each table once a call.

    All features of one table are flattened, joined, looked up together and split again: one
    gather forward and one `tf.IndexedSlices` gradient a table and step, however often the model
    uses the table (target, history, negatives). Backends that exchange rows between processes then
    exchange once, for all tables together.

    Example:
    >>> collection = EmbeddingCollection(
    ...     [TableSpec("item_id", rows=100, dim=4)],
    ...     {"item_id": "item_id", "item_id_history": "item_id"},
    ...     seed=1,
    ... )
    >>> collection({"item_id_history": tf.zeros([1, 5], tf.int32)})["item_id_history"].shape
    TensorShape([1, 5, 4])
    """

    def __init__(
        self,
        tables: Sequence[TableSpec],
        feature_tables: Mapping[str, str],
        *,
        combiners: Mapping[str, str] | None = None,
        sharding: Sharding = LOCAL,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Creates the collection; the variables come with the first call.

        Args:
          tables: the tables, names unique.
          feature_tables: table name of every feature that may be looked up.
          combiners: of features that are bags, one of COMBINERS by feature name.
          sharding: where the rows live.
          seed: of the initial rows, which are the same under every sharding. None draws one from
            NumPy's global generator, which `tf.keras.utils.set_random_seed` seeds.
          **kwargs: of `tf.keras.layers.Layer` (name, dtype, trainable).

        Raises:
          ValueError: on duplicate table names, a feature whose table does not exist, an unknown
            backend or combiner.
        """
        super().__init__(**kwargs)
        names = [table.name for table in tables]
        if len(set(names)) != len(names):
            raise ValueError(f"Table names must be unique, received {names}.")
        for feature, table in feature_tables.items():
            if table not in names:
                raise ValueError(
                    f"Feature {feature!r} wants table {table!r}; the tables are {sorted(names)}."
                )
        for feature, combiner in (combiners or {}).items():
            if feature not in feature_tables or combiner not in COMBINERS:
                raise ValueError(
                    f"combiners: expected one of {COMBINERS} for each of "
                    f"{sorted(feature_tables)}, received {combiner!r} for {feature!r}."
                )
        if sharding.backend not in BACKENDS:
            raise ValueError(
                f"Unknown backend {sharding.backend!r}; choose one of {sorted(BACKENDS)}."
            )
        self.tables = tuple(tables)
        self._feature_tables = dict(feature_tables)
        self._combiners = dict(combiners or {})
        self._bag_tables = {feature_tables[feature] for feature in self._combiners}
        self.sharding = sharding
        self._seed = int(np.random.randint(1 << 31)) if seed is None else seed
        self._dims = {table.name: table.dim for table in tables}
        self._ahead: Any = None
        self._source: RowSource | None = None
        self.backend = BACKENDS[sharding.backend](self.tables, sharding, self._seed)

    @property
    def table_variables(self) -> Mapping[str, tf.Variable]:
        """The variables that hold rows, by the backend's names; empty before the first call.

        The local backend has one ``[rows, dim]`` for each table, of the table's name. What
        others hold where, `backend.held` says.
        """
        return self.backend.variables

    def build(self, input_shape: Any) -> None:
        """Creates the tables."""
        self.backend.build(self)
        super().build(input_shape)

    def route(self, inputs: Mapping[str, Ids]) -> Any:
        """Does the part of a lookup that needs no row: a nest of tensors for `ahead`.

        Args:
          inputs: as of `call`.
        """
        return self.backend.route(self._joined(inputs))

    @contextlib.contextmanager
    def ahead(self, route: Any) -> Iterator[None]:
        """Within it, `call` takes `route` instead of computing it.

        Args:
          route: of the same inputs, by `route`.
        """
        before, self._ahead = self._ahead, route
        try:
            yield
        finally:
            self._ahead = before

    def rows(self, inputs: Mapping[str, Ids]) -> dict[str, tf.Tensor]:
        """The rows that `call` makes vectors of, for `rows_from`: float32 ``[N, D]`` by table.

        Args:
          inputs: as of `call`.
        """
        return self.backend.fetch(self.route(inputs) if self._ahead is None else self._ahead)

    @contextlib.contextmanager
    def rows_from(self, source: RowSource) -> Iterator[None]:
        """Within it, `call` takes rows from elsewhere than the backend, whatever that is."""
        self._source = source
        try:
            yield
        finally:
            self._source = None

    def sources(self, inputs: Mapping[str, Ids]) -> dict[str, tf.Tensor | tf.Variable]:
        """Where an operation that reads rows itself finds those of features.

        Args:
          inputs: as of `call`.

        Returns:
          By feature name, the variable whose rows the ids number. Where there is none, or some of
          the table's rows make bags (so that all its gradient comes from one place, in the order
          of the inputs), what `call` gives.
        """
        by_id = {} if self._source is not None else self.backend.by_id
        tables = {f: self._feature_tables[f] for f in inputs}
        own = {f: by_id[t] for f, t in tables.items() if t in by_id and t not in self._bag_tables}
        others = {feature: ids for feature, ids in inputs.items() if feature not in own}
        if len(others) == len(inputs):
            return self(inputs)
        if others:
            # A route of all features would bring the rows of all; here, it is ids and no more.
            with self.ahead(None):
                own |= self(others)
        return own

    def call(self, inputs: Mapping[str, Ids]) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        """Looks features up.

        Args:
          inputs: by feature name, int32 or int64 ids in ``[0, rows)`` of the feature's table:
            dense of any shape ``[...]``, or ragged ``[B, None]``. A feature with a combiner is a
            bag: ragged, or dense ``[..., M]`` padded with id 0, which does not count.

        Returns:
          By feature name, float32 vectors ``[..., D]``, ragged ones ``[B, None, D]``; of bags
          without the axis of their ids, zeros where a bag is empty.

        Raises:
          ValueError: on a feature that `feature_tables` does not name, or a bag that is none.
        """
        by_table = self._by_table(inputs)
        if self._source is not None:
            rows = {name: self._source(name, ids) for name, ids in self._joined(inputs).items()}
        else:
            rows = self.rows(inputs)
        vectors: dict[str, tf.Tensor | tf.RaggedTensor] = {}
        for table, features in by_table.items():
            parts = [rows[table]]
            if len(features) > 1:
                sizes = [tf.size(_flat(inputs[feature])) for feature in features]
                parts = tf.split(rows[table], sizes)
            for feature, part in zip(features, parts):
                vectors[feature] = self._shaped(feature, inputs[feature], part)
        return {feature: vectors[feature] for feature in inputs}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        return {
            **super().get_config(),
            "tables": [dataclasses.asdict(table) for table in self.tables],
            "feature_tables": dict(self._feature_tables),
            "combiners": dict(self._combiners),
            "sharding": self.sharding.as_config(),
            "seed": self._seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EmbeddingCollection:
        """Rebuilds the layer from `get_config`."""
        config = dict(config)
        tables = [TableSpec(**table) for table in config.pop("tables")]
        sharding = Sharding.from_config(config.pop("sharding"))
        return cls(tables, sharding=sharding, **config)

    def _by_table(self, inputs: Mapping[str, Ids]) -> dict[str, list[str]]:
        by_table: dict[str, list[str]] = {}
        for feature in inputs:
            if feature not in self._feature_tables:
                raise ValueError(
                    f"Feature {feature!r} has no table; known: {sorted(self._feature_tables)}."
                )
            by_table.setdefault(self._feature_tables[feature], []).append(feature)
        return by_table

    def _joined(self, inputs: Mapping[str, Ids]) -> dict[str, tf.Tensor]:
        """The ids ``[N]`` of each table, all features one after another."""
        joined = {}
        for table, features in self._by_table(inputs).items():
            parts = [_flat(inputs[feature]) for feature in features]
            if len(parts) == 1:
                joined[table] = parts[0]
                continue
            dtype = tf.int64 if any(part.dtype == tf.int64 for part in parts) else tf.int32
            joined[table] = tf.concat([tf.cast(part, dtype) for part in parts], 0)
        return joined

    def _shaped(self, feature: str, ids: Ids, vectors: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        """The vectors ``[N, D]`` of a feature in the shape of its ids, or one for each bag."""
        combiner = self._combiners.get(feature)
        if isinstance(ids, tf.RaggedTensor):
            if combiner is None:
                return ids.with_flat_values(vectors)
            bags, counts = ids.value_rowids(), tf.cast(ids.row_lengths(), tf.float32)
            sums = tf.math.unsorted_segment_sum(vectors, bags, ids.nrows())  # [B, D]
            return _combined(sums, counts, combiner)
        dim = self._dims[self._feature_tables[feature]]
        vector = vectors
        if ids.shape.rank != 1:
            vector = tf.reshape(vectors, tf.concat([tf.shape(ids), [dim]], 0))
            vector.set_shape(ids.shape.concatenate([dim]))
        if combiner is None:
            return vector
        if ids.shape.rank < 2:
            raise ValueError(
                f"Feature {feature!r} is a bag: expected [..., M] or ragged ids, received shape "
                f"{ids.shape}."
            )
        valid = tf.cast(ids > 0, tf.float32)  # [..., M]
        sums = tf.reduce_sum(vector * tf.expand_dims(valid, -1), -2)  # [..., D]
        return _combined(sums, tf.reduce_sum(valid, -1), combiner)


def collections_of(model: tf.keras.Model) -> list[EmbeddingCollection]:
    """A model's embedding collections.

    Raises:
      ValueError: if two of them hold a table of the same name.
    """
    found = [module for module in model.submodules if isinstance(module, EmbeddingCollection)]
    names = [table.name for collection in found for table in collection.tables]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two embedding collections hold a table named {name!r}.")
    return found


def _flat(ids: Ids) -> tf.Tensor:
    if isinstance(ids, tf.RaggedTensor):
        return ids.flat_values
    return ids if ids.shape.rank == 1 else tf.reshape(ids, [-1])


def _combined(sums: tf.Tensor, counts: tf.Tensor, combiner: str) -> tf.Tensor:
    """Divides sums ``[..., D]`` of bags of ``[...]`` ids by what the combiner says."""
    if combiner == "sum":
        return sums
    divisor = counts if combiner == "mean" else tf.sqrt(counts)
    return tf.math.divide_no_nan(sums, tf.expand_dims(divisor, -1))
