"""The backend without communication: every table whole, in this process. The oracle of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from embeddings.types import TableSpec


class LocalBackend:
    """Holds each table as one variable and looks rows up by gathering.

    A backend has three members, and a model never sees any of them: `build` creates the
    variables, `lookup` turns ids into vectors, `variables` names what holds the rows.
    """

    def __init__(self, tables: Sequence[TableSpec]) -> None:
        self._tables = tuple(tables)
        self._variables: dict[str, tf.Variable] = {}

    @property
    def variables(self) -> Mapping[str, tf.Variable]:
        """The tables' variables ``[rows, dim]`` by table name; empty before `build`."""
        return self._variables

    def build(self, layer: tf.keras.layers.Layer) -> None:
        """Creates the variables as weights of `layer`, so that Keras tracks and saves them."""
        for table in self._tables:
            self._variables[table.name] = layer.add_weight(
                name=table.name,
                shape=[table.rows, table.dim],
                # Tables stay fp32 under every mixed-precision policy: an update is often smaller
                # than half precision can resolve.
                dtype=tf.float32,
                initializer=tf.keras.initializers.RandomUniform(-table.scale, table.scale),
                experimental_autocast=False,
            )

    def lookup(self, ids: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Looks up rows of several tables.

        Args:
          ids: int tensors ``[N]`` by table name.

        Returns:
          float32 tensors ``[N, D]`` by table name. The gradient with respect to a table is one
          `tf.IndexedSlices`.
        """
        return {name: tf.gather(self._variables[name], index) for name, index in ids.items()}
