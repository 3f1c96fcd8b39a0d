"""The backend without communication: every table whole, in this process. The oracle of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from embeddings.backends.base import Backend, Held
from embeddings.types import Shard


class LocalBackend(Backend):
    """Holds each table as one variable and looks rows up by gathering."""

    @property
    def held(self) -> Sequence[Held]:
        """All tables, each a variable of its own name."""
        return [
            Held(Shard(table.name, 0, range(table.rows), range(table.dim)), table.name, 0)
            for table in self._tables.values()
        ]

    def build(self, layer: tf.keras.layers.Layer) -> None:
        """Creates one variable ``[rows, dim]`` a table."""
        for part in self.held:
            self._add_rows(layer, part.variable, len(part.shard.columns), [part])

    def route(self, ids: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The ids themselves."""
        return dict(ids)

    def fetch(self, route: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Gathers ``[N, D]`` from each table."""
        return {name: tf.gather(self._variables[name], index) for name, index in route.items()}
