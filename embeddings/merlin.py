"""Our tables inside plain Merlin models, in place of `mm.EmbeddingTable` and `mm.Embeddings`.

Importing this module imports `merlin.models.tf`, which starts Horovod where it is installed
(merlin/models/tf/distributed/backend.py:20-33 of 23.12), so do it after process set-up.

On several processes, train such a model with `training.steps.Steps`, to which a model is its
`Contract` (`models.click_model`). Of a model of somebody's own that is its one output; it may have
any number of our tables. Losses that it adds (regularisers, too) must be named::

    contract = dataclasses.replace(contract_of(model), added_losses=("l2",))
    steps = Steps(model, optimizer, source, None, world=world, contract=contract)

With ``lookups=Lookups(embeddings.collection, ids)``, where ``ids`` says what a call looks up, its
ids can travel ahead, and its batches be cut in parts.

Where results differ from Merlin's own table: in dense bags ``[B, T, 1]`` id 0 is padding and does
not count, while Merlin averages it in; ragged bags are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from merlin.models.tf.core.base import Block
from merlin.models.tf.inputs.embedding import EmbeddingTableBase
from merlin.models.utils.schema_utils import (
    schema_to_tensorflow_metadata_json,
    tensorflow_metadata_json_to_schema,
)
from merlin.schema import ColumnSchema, Schema, Tags

from lookback.embeddings.collection import EmbeddingCollection, Ids
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.tables import tables_from_schema
from lookback.embeddings.types import TableSpec

Shapes = dict[str, tf.TensorShape]
Vectors = dict[str, tf.Tensor | tf.RaggedTensor]


@tf.keras.utils.register_keras_serializable(package="lookback")
class ShardedTable(EmbeddingTableBase):
    """One table, shared by the features of a domain.

    Example:
    >>> embeddings = mm.Embeddings(schema, dim=16, table_cls=ShardedTable, seed=1)
    >>> model = mm.Model(mm.InputBlockV2(schema, categorical=embeddings), mm.MLPBlock([8]), ...)

    `mm.Embeddings` hands `sequence_combiner` and the arguments below on, and drops every other
    option of Merlin's table (initializers, regularizers) without a word. Each table of the model
    exchanges rows by itself; `SchemaEmbeddings` exchanges those of all tables at once.
    """

    collection: EmbeddingCollection  # made by `build`, when all features are known

    def __init__(
        self,
        dim: int,
        *col_schemas: ColumnSchema,
        sequence_combiner: str | None = None,
        sharding: Sharding = LOCAL,
        seed: int | None = None,
        init_scale: float | None = None,
        trainable: bool = True,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        """Creates the table; features may be added until it is built.

        Args:
          dim: length of a row (D).
          *col_schemas: columns of one domain.
          sequence_combiner: of columns that are lists: "sum", "mean", "sqrtn", or None.
          sharding: where the rows live; its plan may be one of more tables.
          seed: of the initial rows; None draws one.
          init_scale: of `TableSpec`.
          trainable: whether the rows are trained.
          name: of the layer.
          dtype: of what the layer gives, or a policy; rows are float32.
          **kwargs: of `merlin.models.tf.Block`.
        """
        super().__init__(dim, *col_schemas, trainable=trainable, name=name, dtype=dtype, **kwargs)
        self._sequence_combiner = _combiner(sequence_combiner)
        self._sharding, self._seed, self._init_scale = sharding, seed, init_scale

    def build(self, input_shapes: Any) -> None:
        """Creates the rows."""
        if not self.built:
            table = TableSpec(self.table_name, self.input_dim, self.dim, self._init_scale)
            self.collection = EmbeddingCollection(
                [table],
                dict.fromkeys(self.features, self.table_name),
                combiners=_combiners(self.schema, self._sequence_combiner),
                sharding=_sharding_of(self._sharding, self.table_name),
                seed=self._seed,
                name=self.table_name,
                trainable=self.trainable,
            )
            _build(self.collection)
        super().build(input_shapes)

    def call(self, inputs: Ids | Mapping[str, Ids]) -> tf.Tensor | tf.RaggedTensor | Vectors:
        """Looks ids up in one of Merlin's layouts.

        Args:
          inputs: of one feature, or by feature name: ``[B, 1]``; of lists ``[B, T, 1]``, ragged or
            not. Features of other tables are left out.

        Returns:
          ``[B, D]``, or ``[B, T, D]`` of lists that are not combined; by feature name if the
          inputs are.
        """
        if isinstance(inputs, dict):
            return _look_up(self, self.collection, self.schema, inputs)
        column = self.col_schema.name
        return _look_up(self, self.collection, self.schema, {column: inputs})[column]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of what `call` returns."""
        bag = self._sequence_combiner is not None
        if isinstance(input_shape, dict):
            return {
                name: _output_shape(column, input_shape[name], self.dim, bag)
                for name, column in self.features.items()
                if name in input_shape
            }
        return _output_shape(self.col_schema, input_shape, self.dim, bag)

    def compute_call_output_shape(self, input_shapes: Any) -> Any:
        """As `compute_output_shape`; Merlin's blocks ask for either."""
        return self.compute_output_shape(input_shapes)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        return {
            **super().get_config(),
            "sequence_combiner": self._sequence_combiner,
            "sharding": self._sharding.as_config(),
            "seed": self._seed,
            "init_scale": self._init_scale,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ShardedTable:
        """Rebuilds the table from `get_config`."""
        config = dict(config)
        schema = tensorflow_metadata_json_to_schema(config.pop("schema"))
        sharding = Sharding.from_config(config.pop("sharding"))
        return cls(config.pop("dim"), *schema, sharding=sharding, **config)


@tf.keras.utils.register_keras_serializable(package="lookback")
class SchemaEmbeddings(Block):
    """All categorical columns of a schema, one table a domain, looked up together.

    Example:
    >>> embeddings = SchemaEmbeddings(schema, dim=16, seed=1)
    >>> model = mm.DLRMModel(schema, embeddings=embeddings, bottom_block=mm.MLPBlock([16]), ...)
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        *,
        sequence_combiner: str | None = "mean",
        sharding: Sharding = LOCAL,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Creates the block; the rows come with the first call.

        Args:
          schema: its categorical columns are taken, targets left out.
          dim: length of a row (D).
          sequence_combiner: of columns that are lists: "sum", "mean", "sqrtn", or None. Merlin's
            default.
          sharding: where the rows live.
          seed: of the initial rows; None draws one.
          **kwargs: of `merlin.models.tf.Block` (name, dtype, trainable).

        Raises:
          ValueError: if the schema has no categorical column, or one without a domain.
        """
        super().__init__(**kwargs)
        columns = schema.select_by_tag(Tags.CATEGORICAL).excluding_by_tag(Tags.TARGET)
        if not len(columns):
            raise ValueError(
                "SchemaEmbeddings expects a schema with columns tagged CATEGORICAL, received "
                f"columns {schema.column_names}."
            )
        self.set_schema(columns)
        self.dim = dim
        self._sequence_combiner = _combiner(sequence_combiner)
        self._sharding, self._seed = sharding, seed
        tables, feature_tables = tables_from_schema(columns, dim)
        self.collection = EmbeddingCollection(
            tables,
            feature_tables,
            combiners=_combiners(columns, self._sequence_combiner),
            sharding=sharding,
            seed=seed,
            name=f"{self.name}_collection",
            trainable=self.trainable,
        )

    def build(self, input_shapes: Any) -> None:
        """Creates the rows."""
        _build(self.collection)
        super().build(input_shapes)

    def call(self, inputs: Mapping[str, Ids]) -> Vectors:
        """Looks all features up at once.

        Args:
          inputs: by feature name, in Merlin's layouts: ``[B, 1]``; of lists ``[B, T, 1]``, ragged
            or not. Features that are not the schema's are left out.

        Returns:
          By feature name ``[B, D]``, or ``[B, T, D]`` of lists that are not combined.
        """
        return _look_up(self, self.collection, self.schema, inputs)

    def compute_output_shape(self, input_shape: Mapping[str, Any]) -> Shapes:
        """The shapes of what `call` returns."""
        bag = self._sequence_combiner is not None
        return {
            column.name: _output_shape(column, input_shape[column.name], self.dim, bag)
            for column in self.schema
            if column.name in input_shape
        }

    def compute_call_output_shape(self, input_shapes: Mapping[str, Any]) -> Shapes:
        """As `compute_output_shape`; Merlin's blocks ask for either."""
        return self.compute_output_shape(input_shapes)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        return {
            **super().get_config(),
            "schema": schema_to_tensorflow_metadata_json(self.schema),
            "dim": self.dim,
            "sequence_combiner": self._sequence_combiner,
            "sharding": self._sharding.as_config(),
            "seed": self._seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SchemaEmbeddings:
        """Rebuilds the block from `get_config`."""
        config = dict(config)
        schema = tensorflow_metadata_json_to_schema(config.pop("schema"))
        sharding = Sharding.from_config(config.pop("sharding"))
        return cls(schema, sharding=sharding, **config)


def _combiner(combiner: Any) -> str | None:
    if combiner is not None and not isinstance(combiner, str):
        raise ValueError(
            "sequence_combiner must be 'sum', 'mean', 'sqrtn' or None, received "
            f"{combiner!r}. Use None and put layers after the embeddings."
        )
    return combiner


def _combiners(schema: Schema, combiner: str | None) -> dict[str, str]:
    """Only what the schema calls a list is a bag."""
    return {} if combiner is None else {c.name: combiner for c in schema if c.is_list}


def _sharding_of(sharding: Sharding, table: str) -> Sharding:
    """The sharding with its plan cut to one table."""
    plan = sharding.plan
    if plan is None:
        return sharding
    tables = tuple(spec for spec in plan.tables if spec.name == table)
    if not tables:
        raise ValueError(
            f"The plan has no table {table!r}; it has {[spec.name for spec in plan.tables]}."
        )
    plan = dataclasses.replace(plan, tables=tables, placements=(plan.placement(table),))
    return dataclasses.replace(sharding, plan=plan)


def _build(collection: EmbeddingCollection) -> None:
    """Creates the rows in `build`, as Merlin's `ParallelBlock` builds before it calls."""
    if not collection.built:
        with tf.name_scope(collection.name):
            collection.build(None)


def _look_up(
    block: Block, collection: EmbeddingCollection, schema: Schema, inputs: Mapping[str, Ids]
) -> Vectors:
    ids = {c.name: _ids(c, inputs[c.name]) for c in schema if c.name in inputs}
    vectors = collection(ids)
    # Merlin's table, too, keeps float32 rows and gives the policy's type.
    return {name: tf.cast(vector, block.compute_dtype) for name, vector in vectors.items()}


def _ids(column: ColumnSchema, ids: Ids) -> Ids:
    """Takes off the last axis that Merlin's loader and `PrepareFeatures` put on."""
    if isinstance(ids, tf.SparseTensor):
        raise ValueError(
            f"Feature {column.name!r}: sparse ids are not supported; convert them with "
            "tf.RaggedTensor.from_sparse."
        )
    return tf.squeeze(ids, axis=-1) if _has_unit_axis(column, ids.shape) else ids


def _has_unit_axis(column: ColumnSchema, shape: tf.TensorShape) -> bool:
    # A list [B, 1] is a list of one, not a scalar [B].
    return shape.rank > (2 if column.is_list else 1) and shape[-1] == 1


def _output_shape(column: ColumnSchema, shape: Any, dim: int, bag: bool) -> tf.TensorShape:
    shape = tf.TensorShape(shape)
    if bag and column.is_list:
        return tf.TensorShape([shape[0], dim])
    return (shape[:-1] if _has_unit_axis(column, shape) else shape).concatenate([dim])
