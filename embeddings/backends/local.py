"""The backend without communication: every table whole, in this process. The oracle of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from lookback.core.devices import whole_numbers
from lookback.embeddings.backends.base import Backend, Held
from lookback.embeddings.ids import inside
from lookback.embeddings.types import Shard, TableSpec

_INT32_MAX = (1 << 31) - 1


class LocalBackend(Backend):
    """Holds each table as one variable and looks rows up by gathering.

    Or all tables of one width and optimizer as one variable, one table after another
    (`Sharding.joint`): then one gather reads the rows of all of them. On CPUs that takes about as
    long, and the sparse update, which deduplicates all ids in one thread, rather longer; so it is
    not what happens unasked.
    """

    @property
    def by_id(self) -> Mapping[str, tf.Variable]:
        """All tables, if each is a variable."""
        return {} if self.joint else self._variables

    @property
    def held(self) -> Sequence[Held]:
        """All tables, each a variable of its own name, or those of one width one after another."""
        parts, taken = [], dict[str, int]()
        for table in self._tables.values():
            variable = self._variable_of(table)
            start = taken.get(variable, 0)
            shard = Shard(table.name, 0, range(table.rows), range(table.dim))
            parts.append(Held(shard, variable, start))
            taken[variable] = start + table.rows
        return parts

    def optimizer_of(self, variable: str) -> str | None:
        """That of the tables in it."""
        tables = self._tables.values()
        return next(t.optimizer for t in tables if self._variable_of(t) == variable)

    def build(self, layer: tf.keras.layers.Layer) -> None:
        """Creates one variable ``[rows, dim]`` a table, or one for those of one width."""
        by_variable: dict[str, list[Held]] = {}
        for part in self.held:
            by_variable.setdefault(part.variable, []).append(part)
        for variable, parts in by_variable.items():
            self._add_rows(layer, variable, len(parts[0].shard.columns), parts)

    def route(self, ids: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The rows of the variables: of separate tables the ids themselves."""
        if not self.joint:
            return dict(ids)
        held = {part.shard.table: part for part in self.held}
        largest = {part.variable: part.stop for part in held.values()}  # the last one's counts
        route = {}
        for name, index in ids.items():
            part = held[name]
            small = largest[part.variable] <= _INT32_MAX
            dtype = whole_numbers() if small else tf.int64
            own = inside(name, self._tables[name].rows, index)
            route[name] = tf.cast(own, dtype) + part.start
        return route

    def fetch(self, route: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Gathers ``[N, D]``: from each table, or for all those of one width at once."""
        wanted: dict[str, list[str]] = {}
        for name in route:
            wanted.setdefault(self._variable_of(self._tables[name]), []).append(name)
        vectors: dict[str, tf.Tensor] = {}
        for variable, names in wanted.items():
            if len(names) == 1:
                vectors[names[0]] = tf.gather(self._variables[variable], route[names[0]])
                continue
            rows = tf.gather(self._variables[variable], tf.concat([route[n] for n in names], 0))
            parts = tf.split(rows, [tf.size(route[n]) for n in names])
            vectors.update(zip(names, parts))
        return {name: vectors[name] for name in route}

    def _variable_of(self, table: TableSpec) -> str:
        """The name of the variable that holds a table."""
        if not self.joint:
            return table.name
        return f"tables_{table.dim}" + (f"_{table.optimizer}" if table.optimizer else "")
