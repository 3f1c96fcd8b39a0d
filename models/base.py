"""What models over histories have in common: configuration, embedding, head, loss.

A model is a `merlin.models.tf.Model` of two parts: a block of ours that turns a batch (see
`formats.features`) into a representation ``[B, C, D]`` of each candidate, and a Merlin
`BinaryOutput` that turns it into click logits ``[B, C]``. What a model adds to the head's loss it
adds with `add_loss`, so that neither a trainer nor Keras' `fit` needs to know it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import merlin.models.tf as mm
import tensorflow as tf
from merlin.schema import Schema

from lookback.embeddings.collection import EmbeddingCollection
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.tables import tables_from_schema
from lookback.embeddings.types import TableSpec
from lookback.formats.features import (
    TIME_GAP,
    HistoryFeatures,
    history_name,
    negatives_name,
    sample_schema,
)
from lookback.models.block_config import ConfiguredBlock
from lookback.models.config import HistoryModelConfig

TARGET = "click"


class Embedded(NamedTuple):
    """A batch after the lookup; E is the width of an item, E' that of an event.

    An event is an item and, with time features, its time gap. Float tensors are in the layer's
    compute dtype.

    Attributes:
      user: ``[B, C, E_u]``.
      target: candidates ``[B, C, E]``.
      long: events of the long sequence ``[B, L, E']``, None if not asked for.
      long_mask: bool ``[B, L]``, which of them exist.
      short: events of the short sequence, time-major ``[S, B, E']``, None if not asked for.
      short_mask: bool ``[S, B]``.
      negatives: auxiliary negatives, with the time gap of the event they stand against,
        ``[S, B, E']``; None outside of training.
    """

    user: tf.Tensor
    target: tf.Tensor
    long: tf.Tensor
    long_mask: tf.Tensor
    short: tf.Tensor
    short_mask: tf.Tensor
    negatives: tf.Tensor


class HistoryBlock(ConfiguredBlock):
    """A network body over a batch of histories; subclasses write `slots` and `call`.

    `added_losses` names, in order, what `call` adds by `add_loss` in training; each is a mean over
    what `loss_counts` counts.
    """

    config_class: ClassVar[type[HistoryModelConfig]] = HistoryModelConfig
    features_class = HistoryFeatures
    _features: HistoryFeatures
    _config: HistoryModelConfig
    added_losses: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        features: HistoryFeatures,
        tables: Sequence[TableSpec],
        feature_tables: Mapping[str, str],
        config: HistoryModelConfig,
        sharding: Sharding = LOCAL,
        **kwargs: Any,
    ) -> None:
        """Creates the body.

        Args:
          features: the dataset's columns by role.
          tables: embedding tables.
          feature_tables: table of each of the dataset's columns (and of the time gap).
          config: of the model.
          sharding: where the tables' rows live.
          **kwargs: of `tf.keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self._features = features
        self._feature_tables = dict(feature_tables)
        self._config = config
        # The parts of a batch that may be looked up, each from its feature's table.
        self._event_features = (*features.item, *([TIME_GAP] if config.time_features else []))
        lookups = dict(feature_tables)
        for name in self._event_features:
            for part in ("long", "short", "negatives"):
                lookups[f"{name}/{part}"] = feature_tables[name]
        self.embeddings = EmbeddingCollection(tables, lookups, sharding=sharding, name="embeddings")

    @property
    def slots(self) -> tuple[slice | None, slice | None]:
        """History slots of the long and of the short sequence; None looks none up."""
        raise NotImplementedError

    def loss_counts(
        self, inputs: Mapping[str, tf.Tensor], labels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Of how many terms each of `added_losses` is the mean.

        Where a batch is shared among processes, or cut, the mean over all of it is that of the
        parts' means, weighted by these.

        Args:
          inputs: a batch, see `formats.features.sample_schema`.
          labels: ``[B, C]``.

        Returns:
          float32 [] by name.
        """
        del inputs
        return dict.fromkeys(self.added_losses, tf.cast(tf.size(labels), tf.float32))

    def lookups(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The ids that a call with these inputs looks up in `embeddings`.

        Args:
          inputs: a batch, see `formats.features.sample_schema`.

        Raises:
          ValueError: if an input has not the rank its role needs.
        """
        event, (long, short) = self._event_features, self.slots
        events = {name: history(inputs, name) for name in event}  # [B, T] each
        ids = {name: column(inputs, name) for name in (*self._features.user, *self._features.item)}
        if long is not None:
            ids |= {f"{n}/long": events[n][:, long] for n in event}
        if short is not None:
            ids |= {f"{n}/short": tf.transpose(events[n][:, short]) for n in event}
        if short is not None and negatives_name(event[0]) in inputs:
            for name in self._features.item:
                ids[f"{name}/negatives"] = tf.transpose(_list(inputs, negatives_name(name)))
        return ids

    def embed(self, inputs: Mapping[str, tf.Tensor]) -> Embedded:
        """Looks a batch up, each table once; arguments and errors as of `lookups`."""
        event, (long, short) = self._event_features, self.slots
        ids = self.lookups(inputs)
        negatives = f"{event[0]}/negatives" in ids
        vectors = {n: tf.cast(v, self.compute_dtype) for n, v in self.embeddings(ids).items()}
        if negatives and self._config.time_features:
            vectors[f"{TIME_GAP}/negatives"] = vectors[f"{TIME_GAP}/short"]

        def joined(part: str, names: Sequence[str]) -> tf.Tensor:
            return tf.concat([vectors[f"{name}{part}"] for name in names], -1)

        target = joined("", self._features.item)  # [B, C, E]
        users = self._features.user
        user = joined("", users) if users else target[:, :1, :0]  # [B, 1, E_u]
        shape = tf.concat([tf.shape(target)[:2], [user.shape[-1]]], 0)
        mask = self.mask(inputs)  # [B, T]
        return Embedded(
            user=tf.broadcast_to(user, shape),  # [B, C, E_u]
            target=target,
            long=None if long is None else joined("/long", event),
            long_mask=None if long is None else mask[:, long],
            short=None if short is None else joined("/short", event),
            short_mask=None if short is None else tf.transpose(mask[:, short]),
            negatives=joined("/negatives", event) if negatives else None,
        )

    def mask(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Which history slots hold an event: bool ``[B, T]``."""
        # Index 0 is padding in every column, and the item id is never 0 in a real event.
        return history(inputs, self._features.item[0]) > 0

    def split_event(self, events: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Splits events ``[..., E']`` into items ``[..., E]`` and time gaps (None without them)."""
        if not self._config.time_features:
            return events, None
        items, gaps = tf.split(events, [self.item_width, -1], axis=-1)
        return items, gaps

    def auxiliary_input(self, batch: Embedded, training: bool) -> tf.Tensor | None:
        """The batch's auxiliary negatives in training, else None.

        Raises:
          ValueError: if they are needed and absent, rather than to train without the loss.
        """
        if not training:
            return None
        if batch.negatives is None:
            names = [negatives_name(name) for name in self._features.item]
            raise ValueError(f"Training needs the auxiliary negatives {names} among the inputs.")
        return batch.negatives

    @property
    def item_width(self) -> int:
        """E, the width of an embedded item."""
        return self._config.embedding_dim * len(self._features.item)

    @property
    def event_width(self) -> int:
        """E', the width of an embedded event."""
        return self._config.embedding_dim * len(self._event_features)

    @property
    def user_width(self) -> int:
        """E_u, the width of an embedded user."""
        return self._config.embedding_dim * len(self._features.user)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        return {**super().get_config(), "feature_tables": dict(self._feature_tables)}

    def compute_output_shape(self, input_shape: Mapping[str, tf.TensorShape]) -> tf.TensorShape:
        """``[B, C, D]``; Merlin asks before it builds the head."""
        shape = input_shape[self._features.item[0]]
        return tf.TensorShape([shape[0], shape[1], self.output_width])

    @property
    def output_width(self) -> int:
        """D, the width of the representation: that of the last classification layer."""
        return self._config.stage_two_mlp_dims[-1]


@tf.keras.utils.register_keras_serializable(package="lookback")
class LogitHead(tf.keras.layers.Layer):
    """One logit for each candidate, in float32 under every policy."""

    def __init__(self, kernel_initializer: str = "glorot_uniform", **kwargs: Any) -> None:
        """Creates the head.

        Args:
          kernel_initializer: of the weights, by Keras' name.
          **kwargs: of `tf.keras.layers.Layer`.
        """
        super().__init__(**kwargs)
        self._kernel_initializer = kernel_initializer
        self._dense = tf.keras.layers.Dense(
            1, kernel_initializer=kernel_initializer, dtype="float32", name="logit"
        )

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        self._dense.build(input_shape)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps ``[B, C, D]`` to ``[B, C]``."""
        return tf.squeeze(self._dense(tf.cast(inputs, tf.float32)), -1)

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """Drops the last dimension."""
        return tf.TensorShape(input_shape)[:-1]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "kernel_initializer": self._kernel_initializer}


@tf.keras.utils.register_keras_serializable(package="lookback")
class ClickLoss(tf.keras.losses.Loss):
    """Binary cross entropy on logits, mean over all candidates, times a weight."""

    def __init__(self, weight: float = 1.0, name: str = "click_loss", **kwargs: Any) -> None:
        """Creates the loss; `weight` is the head's share of the model's loss."""
        super().__init__(name=name, **kwargs)
        self._weight = weight

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Loss of each candidate ``[B, C]``; Keras reduces it."""
        return self._weight * click_cross_entropy(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "weight": self._weight}


def click_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Element-wise binary cross entropy in float32."""
    return tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.cast(labels, tf.float32), logits=tf.cast(logits, tf.float32)
    )


def click_metrics() -> list[tf.keras.metrics.Metric]:
    """Keras metrics of the head: an AUC that knows that predictions are logits."""
    return [tf.keras.metrics.AUC(from_logits=True, name="auc")]


@tf.keras.utils.register_keras_serializable(package="lookback")
class HistoryModel(mm.Model):
    """A Merlin model whose auxiliary negatives are an input of training only."""

    def _check_schema_and_inputs_matching(self, inputs: Mapping[str, tf.Tensor]) -> None:
        # Merlin demands exactly the schema's columns (merlin/models/tf/models/base.py:1730), which
        # are those of serving; here training may bring its negatives along.
        expected = set(self.schema.column_names)
        optional = {negatives_name(name) for name in expected}
        missing, unknown = expected - set(inputs), set(inputs) - expected - optional
        if missing or unknown:
            raise ValueError(
                f"The model takes {sorted(expected)}. Missing: {sorted(missing)}; unknown: "
                f"{sorted(unknown)}."
            )

    @property
    def body(self) -> HistoryBlock:
        """The block in front of the head."""
        return self.blocks[0]


def assemble(
    body: HistoryBlock, schema: Schema, config: HistoryModelConfig, head_weight: float = 1.0
) -> HistoryModel:
    """Joins a body and the click head.

    Args:
      body: from a batch to ``[B, C, D]``.
      schema: of the dataset.
      config: of the model.
      head_weight: weight of the head's cross entropy in the loss.

    Returns:
      A model from a batch to float32 logits ``[B, C]``.
    """
    head = mm.BinaryOutput(
        TARGET,
        to_call=LogitHead(),
        default_loss=ClickLoss(head_weight),
        default_metrics_fn=click_metrics,
    )
    inputs = sample_schema(
        schema,
        max_seq_length=config.max_seq_length,
        short_seq_length=config.short_seq_length,
        negatives=False,
        time_features=config.time_features,
    )
    return HistoryModel(body, head, schema=inputs)


def history_tables(schema: Schema, config: HistoryModelConfig) -> list[TableSpec]:
    """The embedding tables of a history model.

    Args:
      schema: of the dataset.
      config: of the model.

    Returns:
      One spec a domain, with what a row of a training batch looks up.
    """
    return _tables(schema, config)[0]


def _tables(schema: Schema, config: HistoryModelConfig) -> tuple[list[TableSpec], dict[str, str]]:
    """The specs, and the table of each column (and of the time gap)."""
    features = HistoryFeatures.from_schema(schema)
    inputs = sample_schema(
        schema,
        max_seq_length=config.max_seq_length,
        short_seq_length=config.short_seq_length,
        negatives=False,
        time_features=config.time_features,
    )
    tables, by_column = tables_from_schema(inputs, config.embedding_dim)
    feature_tables = {name: by_column[name] for name in (*features.user, *features.item)}
    if config.time_features:
        feature_tables[TIME_GAP] = by_column[history_name(TIME_GAP)]
    # A positive and its negative, two rows of the batch, share a history and its negatives.
    slots = config.max_seq_length + config.auxiliary_negatives * config.short_seq_length
    ids_a_row = {
        **dict.fromkeys(features.user, 0.5),
        **dict.fromkeys(features.item, 1 + slots / 2),
        TIME_GAP: config.max_seq_length / 2,
    }
    hotness = {
        table.name: tuple(ids_a_row[n] for n, used in feature_tables.items() if used == table.name)
        for table in tables
    }
    specs = [dataclasses.replace(table, hotness=hotness[table.name]) for table in tables]
    return specs, feature_tables


def body_arguments(
    schema: Schema, config: HistoryModelConfig, sharding: Sharding = LOCAL
) -> dict[str, Any]:
    """Arguments of a `HistoryBlock` for a dataset with `schema`."""
    tables, feature_tables = _tables(schema, config)
    return {
        "features": HistoryFeatures.from_schema(schema),
        "tables": tables,
        "feature_tables": feature_tables,
        "config": config,
        "sharding": sharding,
    }


def by_candidate(block: tf.keras.layers.Layer, inputs: tf.Tensor, training: bool) -> tf.Tensor:
    """Applies a block of rows ``[N, D]`` to every candidate: ``[B, C, D]`` to ``[B, C, D']``."""
    rows = block(tf.reshape(inputs, [-1, inputs.shape[-1]]), training=training)
    return tf.reshape(rows, tf.concat([tf.shape(inputs)[:2], [rows.shape[-1]]], 0))


def column(inputs: Mapping[str, tf.Tensor], name: str) -> tf.Tensor:
    """A scalar column as ``[B, C]`` (C = 1 for user features)."""
    value = inputs[name]
    if value.shape.rank == 1:
        return tf.expand_dims(value, 1)
    if value.shape.rank != 2:
        raise ValueError(f"Input {name!r} must be [B] or [B, C], received shape {value.shape}.")
    return value


def history(inputs: Mapping[str, tf.Tensor], feature: str) -> tf.Tensor:
    """The history ``[B, T]`` of an item feature, or of the time gap."""
    return _list(inputs, history_name(feature))


def _list(inputs: Mapping[str, tf.Tensor], name: str) -> tf.Tensor:
    """A list column as ``[B, T]``; Merlin's PrepareFeatures appends an axis of 1."""
    value = inputs[name]
    if value.shape.rank == 3:
        return tf.squeeze(value, -1)
    if value.shape.rank != 2:
        raise ValueError(f"Input {name!r} must be [B, T], received shape {value.shape}.")
    return value
