"""How the bodies of models travel in saved models: `get_config` and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from merlin.models.tf.core.base import Block

from lookback.embeddings.collection import EmbeddingCollection
from lookback.embeddings.config import Sharding
from lookback.embeddings.types import TableSpec


class ConfiguredBlock(Block):
    """A body made of a dataset's columns, embedding tables and a model's options.

    A subclass's constructor takes `features`, `tables`, `config` and `sharding`, keeps the first
    and third as `_features` and `_config`, and makes `embeddings` of the others. What it takes
    besides, it adds to `get_config`, as plain values that the constructor takes as they are.
    """

    config_class: ClassVar[type[Any]]
    features_class: ClassVar[type[Any]]
    _features: Any
    _config: Any
    embeddings: EmbeddingCollection

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        return {
            **super().get_config(),
            "features": dataclasses.asdict(self._features),
            "tables": [dataclasses.asdict(table) for table in self.embeddings.tables],
            "config": dataclasses.asdict(self._config),
            "sharding": self.embeddings.sharding.as_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ConfiguredBlock:
        """Rebuilds the block from `get_config`, JSON's lists in place of tuples included."""
        config = dict(config)
        return cls(
            features=cls.features_class(**_with_tuples(config.pop("features"))),
            tables=[TableSpec(**table) for table in config.pop("tables")],
            config=cls.config_class(**_with_tuples(config.pop("config"))),
            sharding=Sharding.from_config(config.pop("sharding")),
            **config,
        )


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
