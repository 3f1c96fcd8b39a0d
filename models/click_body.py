"""The body of a click model: what lies between a batch and the heads, and what it declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import tensorflow as tf
from merlin.models.tf.core.base import Block

from lookback.embeddings.collection import EmbeddingCollection
from lookback.embeddings.config import LOCAL, Sharding
from lookback.embeddings.types import TableSpec
from lookback.models.blocks.logit_head import LogitHead
from lookback.models.fused import FusedModel


class Attended(NamedTuple):
    """What a model looks at in a batch's histories, L of their T slots.

    Attributes:
      slots: of the T, which.
      weights: float32 ``[B, C, L]``, what attention gives each event; of a candidate they add up to
        1, or 0 where there is no event.
      found: bool ``[B, C, L]``, which events a search chose; None if the model does not search.
    """

    slots: slice
    weights: tf.Tensor
    found: tf.Tensor | None = None


class ClickBody(Block):
    """A network made of a dataset's columns, embedding tables and a model's options.

    Subclasses write `call`, `lookups`, `serving_inputs`, `output_width` and
    `compute_output_shape` (which Merlin asks before it builds the head). What a constructor takes
    besides, it adds to `get_config`, as plain values that it takes as they are.

    Attributes:
      config_class: dataclass of the model's options.
      features_class: dataclass of the dataset's columns by role.
      added_losses: what `call` adds by `add_loss` in training, by name and in order; each is a
        mean over what `loss_counts` counts.
      added_weights: of these, by name, what the mean is multiplied with, where it is not 1.
      scopes: of the model and of the body, in the names of a checkpoint's tensors; None are
        Keras', made of the classes' names.
      embeddings: the model's only tables.
    """

    config_class: ClassVar[type[Any]]
    features_class: ClassVar[type[Any]]
    added_losses: ClassVar[tuple[str, ...]] = ()
    added_weights: ClassVar[Mapping[str, float]] = {}
    scopes: ClassVar[tuple[str | None, str | None]] = (None, None)
    _features: Any
    _config: Any
    embeddings: EmbeddingCollection

    def __init__(
        self,
        features: Any,
        tables: Sequence[TableSpec],
        config: Any,
        sharding: Sharding = LOCAL,
        feature_tables: Mapping[str, str] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Creates the body.

        Args:
          features: the dataset's columns by role, a `features_class`.
          tables: embedding tables.
          config: of the model, a `config_class`.
          sharding: where the tables' rows live.
          feature_tables: table of each of the dataset's columns; None: each table is a feature.
          name: of the layer.
          **kwargs: of `tf.keras.layers.Layer`.
        """
        super().__init__(name=name or self.scopes[1], **kwargs)
        self._features, self._config = features, config
        if feature_tables is None:
            feature_tables = {table.name: table.name for table in tables}
        self._feature_tables = dict(feature_tables)
        self.embeddings = EmbeddingCollection(
            tables,
            self._tables_of_lookups(),
            combiners=self._combiners_of_lookups(),
            sharding=sharding,
            name="embeddings",
        )

    @property
    def serving_inputs(self) -> set[str]:
        """Names of a batch's features that every call needs."""
        raise NotImplementedError

    @property
    def training_inputs(self) -> set[str]:
        """Names of features that a batch may bring besides, for training."""
        return set()

    @property
    def output_width(self) -> int:
        """D, the width of the representation that the heads read."""
        raise NotImplementedError

    def lookups(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The ids that a call with these inputs looks up in `embeddings`, by feature."""
        raise NotImplementedError

    def loss_counts(
        self, inputs: Mapping[str, tf.Tensor], labels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Of how many terms each of `added_losses` is the mean: of a row's labels, unless said.

        Where a batch is shared among processes, or cut, the mean over all of it is that of the
        parts' means, weighted by these.

        Args:
          inputs: a batch.
          labels: ``[B, C]``.

        Returns:
          float32 [] by name.
        """
        del inputs
        return dict.fromkeys(self.added_losses, tf.cast(tf.size(labels), tf.float32))

    def attended(self, inputs: Mapping[str, tf.Tensor]) -> Attended | None:
        """What a call with these inputs attends to; None of a model that attends to nothing.

        Args:
          inputs: a batch.
        """
        del inputs
        return None

    def fused(self, head: LogitHead, head_weight: float) -> FusedModel | None:
        """What operations that do a call, the head and the losses at once need to know.

        Args:
          head: on top of this body.
          head_weight: of its cross entropy.

        Returns:
          None of a body for which there are no such operations.
        """
        del head, head_weight
        return None

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        return {
            **super().get_config(),
            "features": dataclasses.asdict(self._features),
            "tables": [dataclasses.asdict(table) for table in self.embeddings.tables],
            "feature_tables": dict(self._feature_tables),
            "config": dataclasses.asdict(self._config),
            "sharding": self.embeddings.sharding.as_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ClickBody:
        """Rebuilds the body from `get_config`, JSON's lists in place of tuples included."""
        config = dict(config)
        return cls(
            features=cls.features_class(**_with_tuples(config.pop("features"))),
            tables=[TableSpec(**table) for table in config.pop("tables")],
            config=cls.config_class(**_with_tuples(config.pop("config"))),
            sharding=Sharding.from_config(config.pop("sharding")),
            **config,
        )

    def _tables_of_lookups(self) -> dict[str, str]:
        """The table of each feature that `lookups` may name."""
        return self._feature_tables

    def _combiners_of_lookups(self) -> dict[str, str]:
        """How those that are bags become one vector, see `EmbeddingCollection`."""
        return {}


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
