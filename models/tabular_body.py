"""What models over tabular rows have in common: lookups, bottom MLP, how one is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf
from merlin.schema import Schema

from lookback.core.devices import computable, has_gpu
from lookback.core.errors import UserError
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.tables import tables_from_schema
from lookback.embeddings.types import TableSpec
from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.formats.tabular_schema import TabularFeatures
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.blocks.mlp_relu import ReluMLP, bias_initializer
from lookback.models.click_body import ClickBody
from lookback.models.click_model import ClickModel, click_model
from lookback.models.tabular_config import DYNAMIC, TabularModelConfig


class TabularBody(ClickBody):
    """A network over rows of N numbers and M ids; subclasses write `call`."""

    config_class: ClassVar[type[TabularModelConfig]] = TabularModelConfig
    features_class = TabularFeatures
    _features: TabularFeatures
    _config: TabularModelConfig

    def __init__(
        self,
        features: TabularFeatures,
        tables: Sequence[TableSpec],
        config: TabularModelConfig,
        sharding: Sharding = LOCAL,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Creates the body; arguments as of `ClickBody`."""
        if config.joint_tables is not None:
            sharding = dataclasses.replace(sharding, joint=config.joint_tables)
        super().__init__(features, tables, config, sharding, *args, **kwargs)
        rows = {table.name: table.rows for table in tables}
        self._rows = [rows[self._feature_tables[name]] for name in features.categorical]
        self._bottom = ReluMLP(config.bottom_mlp_sizes, name="bottom_mlp")

    @property
    def serving_inputs(self) -> set[str]:
        """A matrix of the numbers and one of the ids: 2 tensors to move rather than 39."""
        return {NUMERICAL, CATEGORICAL}

    def lookups(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The ids that a call with these inputs looks up in `embeddings`: ``[B]`` a feature.

        Args:
          inputs: a batch, see `formats.tabular_schema`.

        Raises:
          ValueError: if the ids are not one column for each categorical feature.
        """
        names = self._features.categorical
        ids = computable(_matrix(inputs, CATEGORICAL, len(names)))  # [B, M]
        if self._config.hash_indices:
            ids = tf.math.floormod(ids, tf.constant([self._rows], ids.dtype))
        # No kernel for GPUs unstacks whole numbers.
        columns = [ids[:, n] for n in range(len(names))] if has_gpu() else tf.unstack(ids, axis=1)
        return dict(zip(names, columns))

    def bottom(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The bottom MLP's output ``[B, H]``; arguments and errors as of `lookups`.

        Of rows without numbers the MLP reads a constant 1. So it learns one vector for all rows,
        and what is multiplied with that are linear terms of the embeddings.
        """
        numbers = _matrix(inputs, NUMERICAL, len(self._features.numerical))  # [B, N]
        if not self._features.numerical:
            numbers = tf.ones([tf.shape(numbers)[0], 1], numbers.dtype)
        return self._bottom(numbers)

    def joined_vectors(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """`bottom`, then the embeddings, in the compute dtype: ``[B, H + M D]``."""
        embedded = self.embeddings(self.lookups(inputs))
        vectors = [self.bottom(inputs), *embedded.values()]
        return tf.concat([tf.cast(vector, self.compute_dtype) for vector in vectors], 1)

    @property
    def vectors_width(self) -> int:
        """Width of `joined_vectors`."""
        embedded = len(self._features.categorical) * self._config.embedding_dim
        return self._config.bottom_mlp_sizes[-1] + embedded

    @property
    def output_width(self) -> int:
        """D, the width of the representation: that of the top MLP's last hidden layer."""
        return self._config.top_mlp_sizes[-2]

    def compute_output_shape(self, input_shape: Mapping[str, tf.TensorShape]) -> tf.TensorShape:
        """``[B, D]``; Merlin asks before it builds the head."""
        return tf.TensorShape([input_shape[CATEGORICAL][0], self.output_width])


def build_tabular(
    body_class: type[TabularBody],
    schema: Schema,
    config: TabularModelConfig,
    sharding: Sharding = LOCAL,
) -> ClickModel:
    """Builds a tabular model for a dataset: a body and the click head.

    Args:
      body_class: from a batch to ``[B, D]``.
      schema: of the dataset, see `formats.tabular_schema`.
      config: of the model, of the body's `config_class`.
      sharding: where the tables' rows live.

    Returns:
      A model from a batch to float32 logits ``[B, 1]``.

    Raises:
      UserError: if the dataset has no categorical column.
    """
    features = TabularFeatures.from_schema(schema)
    if not features.categorical:
        raise UserError(
            "The model needs categorical columns; the dataset has "
            f"{len(features.numerical)} numerical ones and none of them. Use another dataset, or "
            "make buckets of numbers (type: buckets, of a log of one's own)."
        )
    tables, feature_tables = _tables(schema, config)
    body = body_class(features, tables, config, sharding, feature_tables)
    inputs = schema.select_by_name([*features.numerical, *features.categorical])
    # Initial weights as of `ReluMLP`.
    return click_model(body, inputs, LogitHead("glorot_normal", bias_initializer(1)))


def tabular_tables(schema: Schema, config: TabularModelConfig) -> list[TableSpec]:
    """The embedding tables of a tabular model.

    Args:
      schema: of the dataset.
      config: of the model.

    Returns:
      One spec a domain, cut to `max_table_size` rows. Each feature looks up one id a row, and rows
      start uniform in ``±sqrt(1 / rows)`` (`TableSpec.scale`), as in NVIDIA's DLRM.
    """
    return _tables(schema, config)[0]


def _tables(schema: Schema, config: TabularModelConfig) -> tuple[list[TableSpec], dict[str, str]]:
    """The specs, and the table of each categorical column."""
    tables, feature_tables = tables_from_schema(schema, config.embedding_dim)
    users = list(feature_tables.values())
    specs = []
    for table in tables:
        rows = min(table.rows, config.max_table_size or table.rows)
        grows = config.embedding_type == DYNAMIC
        spec = dataclasses.replace(
            table,
            rows=rows,
            hotness=(1.0,) * users.count(table.name),
            capacity=min(rows, config.embedding_capacity or rows) if grows else None,
        )
        specs.append(spec)
    return specs, feature_tables


def _matrix(inputs: Mapping[str, tf.Tensor], name: str, columns: int) -> tf.Tensor:
    """An input, if it is ``[B, columns]``."""
    value = inputs[name]
    if value.shape.rank != 2 or value.shape[1] not in (None, columns):
        raise ValueError(
            f"Input {name!r} must be [B, {columns}], a column for each feature in the schema's "
            f"order; received shape {value.shape}."
        )
    return tf.ensure_shape(value, [None, columns])
