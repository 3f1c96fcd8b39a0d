"""What models over histories have in common: lookups, and how one is built for a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import tensorflow as tf
from merlin.schema import Schema

from lookback.embeddings.config import LOCAL, Sharding
from lookback.formats.features import TIME_GAP, HistoryFeatures, history_name, negatives_name
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.click_body import ClickBody
from lookback.models.click_model import ClickModel, click_model
from lookback.models.config import HistoryModelConfig
from lookback.models.history_inputs import column, history, negatives
from lookback.models.history_tables import serving_schema, tables_by_feature


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


class HistoryBody(ClickBody):
    """A network over a batch of histories; subclasses write `slots` and `call`."""

    config_class: ClassVar[type[HistoryModelConfig]] = HistoryModelConfig
    features_class = HistoryFeatures
    _features: HistoryFeatures
    _config: HistoryModelConfig

    @property
    def slots(self) -> tuple[slice | None, slice | None]:
        """History slots of the long and of the short sequence; None looks none up."""
        raise NotImplementedError

    @property
    def serving_inputs(self) -> set[str]:
        """Features of users and candidates, and the histories."""
        histories = {history_name(name) for name in self._event_features}
        return {*self._features.user, *self._features.item, *histories}

    @property
    def training_inputs(self) -> set[str]:
        """The auxiliary negatives."""
        return {negatives_name(name) for name in self._features.item}

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
                ids[f"{name}/negatives"] = tf.transpose(negatives(inputs, name))
        return ids

    def embed(self, inputs: Mapping[str, tf.Tensor]) -> Embedded:
        """Looks a batch up, each table once; arguments and errors as of `lookups`."""
        event, (long, short) = self._event_features, self.slots
        ids = self.lookups(inputs)
        drawn = f"{event[0]}/negatives" in ids
        vectors = {n: tf.cast(v, self.compute_dtype) for n, v in self.embeddings(ids).items()}
        if drawn and self._config.time_features:
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
            negatives=joined("/negatives", event) if drawn else None,
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

    def compute_output_shape(self, input_shape: Mapping[str, tf.TensorShape]) -> tf.TensorShape:
        """``[B, C, D]``; Merlin asks before it builds the head."""
        shape = input_shape[self._features.item[0]]
        return tf.TensorShape([shape[0], shape[1], self.output_width])

    @property
    def output_width(self) -> int:
        """D, the width of the representation: that of the last classification layer."""
        return self._config.stage_two_mlp_dims[-1]

    @property
    def _event_features(self) -> tuple[str, ...]:
        """What an event is made of: the item's features, and its time gap if wanted."""
        return (*self._features.item, *([TIME_GAP] if self._config.time_features else []))

    def _tables_of_lookups(self) -> dict[str, str]:
        """Beside the columns, each part of the events, from its feature's table."""
        parts = {
            f"{name}/{part}": self._feature_tables[name]
            for name in self._event_features
            for part in ("long", "short", "negatives")
        }
        return {**self._feature_tables, **parts}


def build_history(
    body_class: type[HistoryBody],
    schema: Schema,
    config: HistoryModelConfig,
    sharding: Sharding = LOCAL,
    head_weight: float = 1.0,
) -> ClickModel:
    """Builds a model over histories for a dataset: a body and the click head.

    Args:
      body_class: from a batch to ``[B, C, D]``.
      schema: of the dataset, see `formats.features`.
      config: of the model, of the body's `config_class`.
      sharding: where the tables' rows live.
      head_weight: weight of the head's cross entropy in the loss.

    Returns:
      A model from a batch to float32 logits ``[B, C]``.
    """
    tables, feature_tables = tables_by_feature(schema, config)
    features = HistoryFeatures.from_schema(schema)
    body = body_class(features, tables, config, sharding, feature_tables)
    return click_model(body, serving_schema(schema, config), LogitHead(), head_weight)


def by_candidate(block: tf.keras.layers.Layer, inputs: tf.Tensor, training: bool) -> tf.Tensor:
    """Applies a block of rows ``[N, D]`` to every candidate: ``[B, C, D]`` to ``[B, C, D']``."""
    rows = block(tf.reshape(inputs, [-1, inputs.shape[-1]]), training=training)
    return tf.reshape(rows, tf.concat([tf.shape(inputs)[:2], [rows.shape[-1]]], 0))
