"""What models over histories have in common: lookups, and how one is built for a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from merlin.schema import Schema

from lookback.embeddings.config import LOCAL, Sharding
from lookback.formats.features import HistoryFeatures, history_name, negatives_name
from lookback.formats.history_columns import ROLES, TIME_GAP, Role
from lookback.kernels.history_step import HistoryPart
from lookback.models.blocks.linear import Dense
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.click_body import ClickBody
from lookback.models.click_model import ClickModel, click_model
from lookback.models.config import HistoryModelConfig
from lookback.models.fused import FusedModel
from lookback.models.history_inputs import bag_column, column, history, negatives, time_major
from lookback.models.history_tables import chosen_schema, serving_schema, tables_by_feature

_INT32_MAX = (1 << 31) - 1

_EVENT: tuple[Role, ...] = ("item", "context", "event")
"""Whose features make an event, in their order; the time gap comes last."""

_LONG, _SHORT, _NEGATIVES = _PARTS = ("/long", "/short", "/negatives")
"""What is appended to a feature's name where it is not the target's."""


class Parts(NamedTuple):
    """What embedded items, events and users are made of, each D wide, one after another.

    A part is the name of a lookup, or the projection of numbers, in the layer's compute dtype, in
    the shape that the lookup's vectors would have. Lists are None where `Embedded` has None.

    Attributes:
      target: of candidates ``[B, C]``.
      long: of the events of the long sequence ``[B, L]``.
      short: of the short one's, time-major ``[S, B]``.
      negatives: of auxiliary negatives, likewise.
      user: ``[B, 1]``; may be empty.
    """

    target: Sequence[str | tf.Tensor]
    long: Sequence[str | tf.Tensor] | None
    short: Sequence[str | tf.Tensor] | None
    negatives: Sequence[str | tf.Tensor] | None
    user: Sequence[str | tf.Tensor]


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
    """A network over a batch of histories; subclasses write `slots` and `call`.

    Attributes:
      fused_operation: name of the operations that compute what `call`, a click head and the losses
        do (`models.fused`): of this very class, which also writes `fused_arguments`, and not of
        one that derives from it and may differ.
    """

    config_class: ClassVar[type[HistoryModelConfig]] = HistoryModelConfig
    features_class = HistoryFeatures
    fused_operation: ClassVar[str | None] = None
    _features: HistoryFeatures
    _config: HistoryModelConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Creates the tables and projections; arguments as of `ClickBody`."""
        super().__init__(*args, **kwargs)
        # The context's is shared by targets and events, as its tables are: it means the same.
        self._projections = {
            role: Dense(self._config.embedding_dim, name=f"{role}_numbers")
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
        parts = self.parts(inputs)
        vectors = {n: tf.cast(v, self.compute_dtype) for n, v in self.embeddings(ids).items()}

        def joined(found: Sequence[str | tf.Tensor] | None) -> Any:
            if found is None:
                return None
            return tf.concat([vectors[p] if isinstance(p, str) else p for p in found], -1)

        target = joined(parts.target)  # [B, C, E]
        user = joined(parts.user) if parts.user else target[:, :1, :0]  # [B, 1, E_u]
        shape = tf.concat([tf.shape(target)[:2], [user.shape[-1]]], 0)
        mask = self.mask(inputs)  # [B, T]
        return Embedded(
            user=tf.broadcast_to(user, shape),  # [B, C, E_u]
            target=target,
            long=joined(parts.long),
            long_mask=None if long is None else mask[:, long],
            short=joined(parts.short),
            short_mask=None if short is None else _steps(mask, short),
            negatives=joined(parts.negatives),
        )

    def parts(self, inputs: Mapping[str, tf.Tensor]) -> Parts:
        """What `embed` joins; arguments and errors as of `lookups`."""
        long, short = self.slots
        numbers = self._arranged(inputs, self._features.numbers_of)

        def of(part: str, *roles: Role) -> list[str | tf.Tensor]:
            found: list[str | tf.Tensor] = []
            for role in roles:
                found += [f"{name}{part}" for name in self._looked_up(role)]
                if role in self._projections:
                    values = [numbers[f"{n}{part}"] for n in self._features.numbers_of(role)]
                    found.append(self._projections[role](tf.stack(values, -1)))
            return found

        def events(part: str) -> list[str | tf.Tensor]:
            return [*of(part, "context", "event"), *(f"{name}{part}" for name in self._gap)]

        drawn = short is not None and negatives_name(self._features.item[0]) in inputs
        of_short = None if short is None else events(_SHORT)
        return Parts(
            target=of("", "item"),
            long=None if long is None else [*of(_LONG, "item"), *events(_LONG)],
            short=None if of_short is None else [*of(_SHORT, "item"), *of_short],
            # Against the event: all but the item is that event's, one vector for both.
            negatives=[*of(_NEGATIVES, "item"), *of_short]
            if drawn and of_short is not None
            else None,
            user=of("", "user", "context"),
        )

    def mask(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Which history slots hold an event: bool ``[B, T]``."""
        # Index 0 is padding in every column, and the item id is never 0 in a real event.
        return history(inputs, self._features.item[0]) > 0

    def fused(self, head: LogitHead, head_weight: float) -> FusedModel | None:
        """As `ClickBody` says, where the body names its operations."""
        name = vars(type(self)).get("fused_operation")
        if name is None:
            return None

        def arguments(inputs: Mapping[str, tf.Tensor], training: bool) -> dict[str, Any]:
            parts = self._sources(inputs, training)
            return {"parts": parts, **self.fused_arguments(inputs, head, training)}

        added = {loss: self.added_weights.get(loss, 1.0) for loss in self.added_losses}
        return FusedModel(
            name=name,
            width=self._config.embedding_dim,
            dtype=self.compute_dtype,
            loss_weights={"head_loss": head_weight, **added},
            arguments=arguments,
            refusal=self._by_candidate,
        )

    def fused_arguments(
        self, inputs: Mapping[str, tf.Tensor], head: LogitHead, training: bool
    ) -> dict[str, Any]:
        """What the operations take of a batch and of the layers, by name, but for parts.

        Args:
          inputs: a batch.
          head: on top of this body.
          training: for a Step, else for a Score.
        """
        raise NotImplementedError

    def _sources(
        self, inputs: Mapping[str, tf.Tensor], training: bool
    ) -> dict[str, list[HistoryPart]]:
        """`parts`, of which an operation looks up what it can.

        Arguments as of `fused_arguments`.
        """
        ids = self.lookups(inputs)
        vectors = self.embeddings.sources(ids)
        looked_up = {
            name: HistoryPart(_as_int32(ids[name]), found)
            if isinstance(found, tf.Variable)
            else HistoryPart(found)
            for name, found in vectors.items()
        }
        parts = self.parts(inputs)
        places = {"target": parts.target, "long": parts.long, "short": parts.short}
        places["user"] = parts.user
        if parts.short is not None:
            places["negative"] = self.auxiliary_input(parts, training)
        found = {
            place: [
                looked_up[p] if isinstance(p, str) else HistoryPart(tf.cast(p, tf.float32))
                for p in of
            ]
            for place, of in places.items()
            if of is not None
        }
        users = [HistoryPart(tf.squeeze(of.values, 1), of.table) for of in found["user"]]  # [B]
        return {**found, "user": users}

    def _by_candidate(self, inputs: Mapping[str, tf.Tensor]) -> str:
        """Why operations do not take a batch: the user's part must be the same for candidates."""
        for name in self._features.of("user", "context"):
            if name not in self._features.bags and column(inputs, name).shape[1] != 1:
                return f"{name!r} may differ among the candidates of a row"
        return ""

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

    def rows_of(self, inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """How many rows a batch has, one a candidate: int32 [], B * C."""
        return tf.size(column(inputs, self._features.item[0]))

    def auxiliary_input(self, batch: Embedded | Parts, training: bool) -> Any:
        """The batch's auxiliary negatives, as it has them, in training, else None.

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
        """Columns as `Embedded` has them, by name and part, in the order of `Parts`.

        So the gradient of a table that several features share has its rows in one order, and sums
        of equal rows one set of bits, whether TensorFlow looks them up or a kernel does. Bags have
        an axis more.

        Args:
          inputs: a batch.
          names_of: of each role, which.
        """
        long, short = self.slots
        bags = self._features.bags

        def present(*roles: Role) -> dict[str, tf.Tensor]:
            return {
                name: bag_column(inputs, name, by_candidate=role == "item")
                if name in bags
                else column(inputs, name)
                for role in roles
                for name in names_of(role)
            }

        found = present("item")
        past = [name for role in _EVENT for name in names_of(role)]
        events = {name: history(inputs, name, bag=name in bags) for name in past}  # [B, T]
        if long is not None:
            found |= {f"{name}{_LONG}": values[:, long] for name, values in events.items()}
        if short is not None:
            found |= {f"{name}{_SHORT}": _steps(values, short) for name, values in events.items()}
        for name in names_of("item"):
            if short is not None and negatives_name(name) in inputs:
                drawn = negatives(inputs, name, bag=name in bags)  # [B, S]
                found[f"{name}{_NEGATIVES}"] = time_major(drawn)
        return found | present("user", "context")

    def _arranged_gaps(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The time gaps of both sequences."""
        found: dict[str, tf.Tensor] = {}
        long, short = self.slots
        for name in self._gap:
            gaps = history(inputs, name)  # [B, T]
            if long is not None:
                found[f"{name}{_LONG}"] = gaps[:, long]
            if short is not None:
                found[f"{name}{_SHORT}"] = _steps(gaps, short)
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


def _as_int32(ids: tf.Tensor) -> tf.Tensor:
    """Ids of tables that int32 can number; what it cannot hold stays beyond every table."""
    return (
        ids if ids.dtype == tf.int32 else tf.cast(tf.clip_by_value(ids, -1, _INT32_MAX), tf.int32)
    )


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
