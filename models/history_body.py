"""What models over histories have in common: lookups, and how one is built for a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from merlin.schema import Schema

from lookback.embeddings.config import LOCAL, Sharding
from lookback.formats.features import HistoryFeatures, history_name, negatives_name
from lookback.formats.history_columns import ROLES, TIME_GAP, Role
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.click_body import ClickBody
from lookback.models.click_model import ClickModel, click_model
from lookback.models.config import HistoryModelConfig
from lookback.models.history_inputs import bag_column, column, history, negatives, time_major
from lookback.models.history_tables import chosen_schema, serving_schema, tables_by_feature

_EVENT: tuple[Role, ...] = ("item", "context", "event")
"""Whose features make an event, in their order; the time gap comes last."""

_LONG, _SHORT, _NEGATIVES = _PARTS = ("/long", "/short", "/negatives")
"""What is appended to a feature's name where it is not the target's."""


class Embedded(NamedTuple):
    """A batch after the lookup; E is the width of an item, E' that of an event.

    Each category is its embedding (D wide), each bag of categories the mean of theirs, and all
    numbers of a role (of users, items, the context, events) together a linear projection, D wide,
    too. An item is its own features'; an event is its item, its context, what was known afterwards
    and, with time features, its time gap; a user is what is known of the user and the target's
    context. Float tensors are in the layer's compute dtype.

    Attributes:
      user: ``[B, C, E_u]``.
      target: candidates ``[B, C, E]``.
      long: events of the long sequence ``[B, L, E']``, None if not asked for.
      long_mask: bool ``[B, L]``, which of them exist.
      short: events of the short sequence, time-major ``[S, B, E']``, None if not asked for.
      short_mask: bool ``[S, B]``.
      negatives: auxiliary negatives, with all else of the event they stand against,
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Creates the tables and projections; arguments as of `ClickBody`."""
        super().__init__(*args, **kwargs)
        # The context's is shared by targets and events, as its tables are: it means the same.
        self._projections = {
            role: tf.keras.layers.Dense(self._config.embedding_dim, name=f"{role}_numbers")
            for role in ROLES
            if self._features.numbers_of(role)
        }

    @property
    def slots(self) -> tuple[slice | None, slice | None]:
        """History slots of the long and of the short sequence; None looks none up."""
        raise NotImplementedError

    @property
    def serving_inputs(self) -> set[str]:
        """Features of users, candidates and the context, and the histories."""
        events = (*self._features.of(*_EVENT), *self._gap)
        targets = self._features.of("user", "item", "context")
        return {*targets, *(history_name(name) for name in events)}

    @property
    def training_inputs(self) -> set[str]:
        """The auxiliary negatives."""
        return {negatives_name(name) for name in self._features.of("item")}

    def lookups(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The ids that a call with these inputs looks up in `embeddings`.

        Args:
          inputs: a batch, see `formats.features.sample_schema`.

        Raises:
          ValueError: if an input has not the rank its role needs.
        """
        return self._arranged(inputs, self._looked_up) | self._arranged_gaps(inputs)

    def embed(self, inputs: Mapping[str, tf.Tensor]) -> Embedded:
        """Looks a batch up, each table once; arguments and errors as of `lookups`."""
        long, short = self.slots
        ids = self.lookups(inputs)
        numbers = self._arranged(inputs, self._features.numbers_of)
        vectors = {n: tf.cast(v, self.compute_dtype) for n, v in self.embeddings(ids).items()}

        def joined(part: str, *roles: Role) -> list[tf.Tensor]:
            found = []
            for role in roles:
                found += [vectors[f"{name}{part}"] for name in self._looked_up(role)]
                if role in self._projections:
                    values = [numbers[f"{n}{part}"] for n in self._features.numbers_of(role)]
                    found.append(self._projections[role](tf.stack(values, -1)))
            return found

        def events(part: str, items: str | None = None) -> tf.Tensor:
            gaps = [vectors[f"{name}{part}"] for name in self._gap]
            others = joined(part, "context", "event")
            return tf.concat([*joined(items or part, "item"), *others, *gaps], -1)

        target = tf.concat(joined("", "item"), -1)  # [B, C, E]
        users = joined("", "user", "context")
        user = tf.concat(users, -1) if users else target[:, :1, :0]  # [B, 1, E_u]
        shape = tf.concat([tf.shape(target)[:2], [user.shape[-1]]], 0)
        mask = self.mask(inputs)  # [B, T]
        drawn = f"{self._features.item[0]}{_NEGATIVES}" in ids
        return Embedded(
            user=tf.broadcast_to(user, shape),  # [B, C, E_u]
            target=target,
            long=None if long is None else events(_LONG),
            long_mask=None if long is None else mask[:, long],
            short=None if short is None else events(_SHORT),
            short_mask=None if short is None else _steps(mask, short),
            negatives=events(_SHORT, _NEGATIVES) if drawn else None,
        )

    def mask(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Which history slots hold an event: bool ``[B, T]``."""
        # Index 0 is padding in every column, and the item id is never 0 in a real event.
        return history(inputs, self._features.item[0]) > 0

    def split_event(self, events: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Splits events ``[..., E']`` into items ``[..., E]`` and time gaps (None without them).

        What lies between them, of the context and of what was known afterwards, is in neither.
        """
        gap = self._config.embedding_dim * len(self._gap)
        between = self.event_width - self.item_width - gap
        if not gap + between:
            return events, None
        items, _, gaps = tf.split(events, [self.item_width, between, gap], axis=-1)
        return items, gaps if gap else None

    def auxiliary_input(self, batch: Embedded, training: bool) -> tf.Tensor | None:
        """The batch's auxiliary negatives in training, else None.

        Raises:
          ValueError: if they are needed and absent, rather than to train without the loss.
        """
        if not training:
            return None
        if batch.negatives is None:
            names = [negatives_name(name) for name in self._features.of("item")]
            raise ValueError(f"Training needs the auxiliary negatives {names} among the inputs.")
        return batch.negatives

    @property
    def item_width(self) -> int:
        """E, the width of an embedded item."""
        return self._width("item")

    @property
    def event_width(self) -> int:
        """E', the width of an embedded event."""
        return self._width(*_EVENT) + self._config.embedding_dim * len(self._gap)

    @property
    def user_width(self) -> int:
        """E_u, the width of an embedded user."""
        return self._width("user", "context")

    def compute_output_shape(self, input_shape: Mapping[str, tf.TensorShape]) -> tf.TensorShape:
        """``[B, C, D]``; Merlin asks before it builds the head."""
        shape = input_shape[self._features.item[0]]
        return tf.TensorShape([shape[0], shape[1], self.output_width])

    @property
    def output_width(self) -> int:
        """D, the width of the representation: that of the last classification layer."""
        return self._config.stage_two_mlp_dims[-1]

    @property
    def _gap(self) -> tuple[str, ...]:
        """The time gap, if the model looks it up."""
        return (TIME_GAP,) if self._config.time_features else ()

    def _looked_up(self, role: Role) -> tuple[str, ...]:
        """The features of a role that are ids."""
        names: tuple[str, ...] = getattr(self._features, role)
        return names

    def _width(self, *roles: Role) -> int:
        """Of what is joined of roles: each category's embedding, and their numbers' projections."""
        parts = [len(self._looked_up(role)) + (role in self._projections) for role in roles]
        return self._config.embedding_dim * sum(parts)

    def _arranged(
        self, inputs: Mapping[str, tf.Tensor], names_of: Callable[[Role], Sequence[str]]
    ) -> dict[str, tf.Tensor]:
        """Columns as `Embedded` has them, by name and part; of bags with an axis more.

        Args:
          inputs: a batch.
          names_of: of each role, which.
        """
        long, short = self.slots
        bags = self._features.bags
        found: dict[str, tf.Tensor] = {}
        for role in ROLES:
            for name in names_of(role):
                if role != "event":
                    found[name] = (
                        bag_column(inputs, name, by_candidate=role == "item")
                        if name in bags
                        else column(inputs, name)
                    )
                if role != "user":
                    values = history(inputs, name, bag=name in bags)  # [B, T]
                    found |= _sequences(name, values, long, short)
                if role == "item" and short is not None and negatives_name(name) in inputs:
                    drawn = negatives(inputs, name, bag=name in bags)  # [B, S]
                    found[f"{name}{_NEGATIVES}"] = time_major(drawn)
        return found

    def _arranged_gaps(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The time gaps of both sequences."""
        found: dict[str, tf.Tensor] = {}
        for name in self._gap:
            found |= _sequences(name, history(inputs, name), *self.slots)
        return found

    def _tables_of_lookups(self) -> dict[str, str]:
        """Beside the columns, each part of the events, from its feature's table."""
        events = [name for role in _EVENT for name in self._looked_up(role)]
        parts = {
            f"{name}{part}": self._feature_tables[name]
            for name in (*events, *self._gap)
            for part in _PARTS
        }
        return {**self._feature_tables, **parts}

    def _combiners_of_lookups(self) -> dict[str, str]:
        """Bags count as the mean of their ids, wherever they are."""
        known = self._tables_of_lookups()
        names = (f"{name}{part}" for name in self._features.bags for part in ("", *_PARTS))
        return {name: "mean" for name in names if name in known}


def _sequences(
    name: str, events: tf.Tensor, long: slice | None, short: slice | None
) -> dict[str, tf.Tensor]:
    """What of events ``[B, T, ...]`` is in the long sequence and, time-major, in the short one."""
    found = {}
    if long is not None:
        found[f"{name}{_LONG}"] = events[:, long]
    if short is not None:
        found[f"{name}{_SHORT}"] = _steps(events, short)
    return found


def _steps(values: tf.Tensor, short: slice) -> tf.Tensor:
    """What of ``[B, T, ...]`` is in the short sequence, time-major ``[S, B, ...]``."""
    steps = time_major(values[:, short])
    # Of as many slots as requests have, TensorFlow does not know how many the last S are.
    steps.set_shape([-short.start, *steps.shape[1:]])
    return steps


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
    features = HistoryFeatures.from_schema(chosen_schema(schema, config))
    body = body_class(features, tables, config, sharding, feature_tables)
    return click_model(body, serving_schema(schema, config), LogitHead(), head_weight)


def by_candidate(block: tf.keras.layers.Layer, inputs: tf.Tensor, training: bool) -> tf.Tensor:
    """Applies a block of rows ``[N, D]`` to every candidate: ``[B, C, D]`` to ``[B, C, D']``."""
    rows = block(tf.reshape(inputs, [-1, inputs.shape[-1]]), training=training)
    return tf.reshape(rows, tf.concat([tf.shape(inputs)[:2], [rows.shape[-1]]], 0))
