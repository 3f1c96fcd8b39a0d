"""EmbeddingCollection: the one layer through which models reach embedding tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from merlin.schema import Schema, Tags

from embeddings.backends import BACKENDS
from embeddings.types import TableSpec


@tf.keras.utils.register_keras_serializable(package="lookback")
class EmbeddingCollection(tf.keras.layers.Layer):
    """Looks up many features in a few shared tables, each table once a call.

    All features of one table are flattened, joined, looked up together and split again: one
    gather forward and one `tf.IndexedSlices` gradient a table and step, however often the model
    uses the table (target, history, negatives). Backends that exchange rows between ranks then
    exchange once.

    Example:
    >>> collection = EmbeddingCollection(
    ...     [TableSpec("item_id", rows=100, dim=4)],
    ...     {"item_id": "item_id", "item_id_history": "item_id"},
    ... )
    >>> collection({"item_id_history": tf.zeros([1, 5], tf.int32)})["item_id_history"].shape
    TensorShape([1, 5, 4])
    """

    def __init__(
        self,
        tables: Sequence[TableSpec],
        feature_tables: Mapping[str, str],
        backend: str = "local",
        **kwargs: Any,
    ) -> None:
        """Creates the collection; the variables come with the first call.

        Args:
          tables: the tables, names unique.
          feature_tables: table name of every feature that may be looked up.
          backend: a key of `embeddings.backends.BACKENDS`.
          **kwargs: of `tf.keras.layers.Layer` (name, dtype, trainable).

        Raises:
          ValueError: on duplicate table names, a feature whose table does not exist, or an
            unknown backend.
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
        if backend not in BACKENDS:
            raise ValueError(f"Unknown backend {backend!r}; choose one of {sorted(BACKENDS)}.")
        self.tables = tuple(tables)
        self._feature_tables = dict(feature_tables)
        self._backend_name = backend
        self._backend = BACKENDS[backend](self.tables)

    @property
    def table_variables(self) -> Mapping[str, tf.Variable]:
        """The variables that hold table rows, by table name; empty before the first call."""
        return self._backend.variables

    def build(self, input_shape: Any) -> None:
        """Creates the tables."""
        self._backend.build(self)
        super().build(input_shape)

    def call(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Looks features up.

        Args:
          inputs: int32 or int64 ids of any shape ``[...]`` by feature name, each in
            ``[0, rows)`` of its table.

        Returns:
          float32 vectors ``[..., D]`` by feature name.

        Raises:
          ValueError: on a feature that `feature_tables` does not name.
        """
        by_table: dict[str, list[str]] = {}
        for feature in inputs:
            if feature not in self._feature_tables:
                raise ValueError(
                    f"Feature {feature!r} has no table; known: {sorted(self._feature_tables)}."
                )
            by_table.setdefault(self._feature_tables[feature], []).append(feature)
        joined = {
            table: tf.concat([tf.reshape(inputs[feature], [-1]) for feature in features], 0)
            for table, features in by_table.items()
        }
        rows = self._backend.lookup(joined)
        vectors = {}
        for table, features in by_table.items():
            sizes = [tf.size(inputs[feature]) for feature in features]
            for feature, part in zip(features, tf.split(rows[table], sizes)):
                shape = tf.concat([tf.shape(inputs[feature]), [self._dim(table)]], 0)
                vector = tf.reshape(part, shape)
                vector.set_shape(inputs[feature].shape.concatenate([self._dim(table)]))
                vectors[feature] = vector
        return {feature: vectors[feature] for feature in inputs}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        return {
            **super().get_config(),
            "tables": [dataclasses.asdict(table) for table in self.tables],
            "feature_tables": dict(self._feature_tables),
            "backend": self._backend_name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EmbeddingCollection:
        """Rebuilds the layer from `get_config`."""
        config = dict(config)
        tables = [TableSpec(**table) for table in config.pop("tables")]
        return cls(tables, **config)

    def _dim(self, table: str) -> int:
        return next(spec.dim for spec in self.tables if spec.name == table)


def tables_from_schema(schema: Schema, dim: int) -> tuple[list[TableSpec], dict[str, str]]:
    """Derives tables from a schema: one for each domain of its categorical columns.

    Args:
      schema: categorical columns carry an int domain; columns with one domain name share a table.
      dim: length of a row.

    Returns:
      The table specs, ordered by first use, and the table name of every column.

    Raises:
      ValueError: if a column has no domain, or two columns disagree about a domain's size.
    """
    rows: dict[str, int] = {}
    feature_tables: dict[str, str] = {}
    for column in schema.select_by_tag(Tags.CATEGORICAL):
        domain = column.int_domain
        if domain is None or domain.max is None:
            raise ValueError(
                f"Categorical column {column.name!r} has no int domain, so its table's size is "
                "unknown. Write the dataset with `python -m workflows`, or add the domain."
            )
        table = domain.name or column.name
        size = int(domain.max) + 1
        if rows.setdefault(table, size) != size:
            raise ValueError(
                f"Column {column.name!r} gives domain {table!r} {size} rows, another gave it "
                f"{rows[table]}; columns that share a table must agree."
            )
        feature_tables[column.name] = table
    return [TableSpec(name, size, dim) for name, size in rows.items()], feature_tables
