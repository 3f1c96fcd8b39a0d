"""What a backend is: where table rows live, and how ids become vectors."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from lookback.embeddings.config import Sharding
from lookback.embeddings.duplicates import sum_duplicates
from lookback.embeddings.growing import GrowingRows
from lookback.embeddings.initializers import fill_rows
from lookback.embeddings.optimizers import NewSlot
from lookback.embeddings.types import Shard, ShardingPlan, TableSpec

Gradients = dict[str, tf.IndexedSlices]


@dataclasses.dataclass(frozen=True)
class Held:
    """A part of a table that this process holds.

    Attributes:
      shard: which rows and columns of which table.
      variable: name of the backend's variable that holds them.
      start: the shard's first row in that variable; the others follow.
      replicated: whether every process holds the same part.
    """

    shard: Shard
    variable: str
    start: int
    replicated: bool = False

    @property
    def stop(self) -> int:
        """One beyond the shard's last row in the variable."""
        return self.start + len(self.shard.rows)


class Backend(abc.ABC):
    """Holds the rows of tables, or this process's part of them.

    A lookup has two halves, so that the first can run ahead of time: `route` needs the ids only,
    `fetch` reads rows. Between processes both are collective: every process must call them, for
    the same tables, in the same order, with ids or without.

    Attributes:
      exchanges: whether ids and vectors travel between processes.
      joins: whether tables of one width share a variable unless `Sharding.joint` says.
    """

    exchanges: ClassVar[bool] = False
    joins: ClassVar[bool] = False

    def __init__(self, tables: Sequence[TableSpec], sharding: Sharding, seed: int) -> None:
        """Prepares the backend; `build` makes the variables.

        Args:
          tables: names unique.
          sharding: the plan and the type on the wire.
          seed: of the initial rows, which depend on nothing else.

        Raises:
          ValueError: if the plan is missing, or not one for these tables and processes.
        """
        self._tables = {table.name: table for table in tables}
        self._sharding = sharding
        self._seed = seed
        self._variables: dict[str, tf.Variable] = {}

    @property
    def variables(self) -> Mapping[str, tf.Variable]:
        """What holds rows, by name: ``[N, d]`` each; empty before `build`."""
        return self._variables

    @property
    def joint(self) -> bool:
        """Whether tables of one width share a variable."""
        return self.joins if self._sharding.joint is None else self._sharding.joint

    @property
    def by_id(self) -> Mapping[str, tf.Variable]:
        """Variables whose rows are those of a table, as they are numbered, by table name.

        An operation may read these itself. Of other tables `fetch` alone brings rows.
        """
        return {}

    @property
    @abc.abstractmethod
    def held(self) -> Sequence[Held]:
        """Where in `variables` each part lies that this process holds."""

    def optimizer_of(self, variable: str) -> str | None:
        """The optimizer that the tables in a variable name; None means the run's."""
        return self._tables[variable].optimizer  # where each table has a variable of its name

    def new_slot(self, variable: str) -> NewSlot | None:
        """What makes optimizer state of a variable; None: state has a row for each of its rows."""
        del variable
        return None

    def growing(
        self, part: Held, variable: tf.Variable, value: float | None = None
    ) -> GrowingRows | None:
        """How a part's rows are held in a variable that grows; None: at their places.

        Args:
          part: of `held`.
          variable: one of `variables`, or of an optimizer's state.
          value: what state begins with; None: it is the table's own variable.
        """
        del part, variable, value
        return None

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """Bytes that this process has sent to others so far, by kind."""
        return {}

    @abc.abstractmethod
    def build(self, layer: tf.keras.layers.Layer) -> None:
        """Creates the variables as weights of `layer`, so that Keras tracks and saves them."""

    @abc.abstractmethod
    def route(self, ids: Mapping[str, tf.Tensor]) -> Any:
        """Finds out where rows must come from.

        Args:
          ids: int tensors ``[N]`` by table name.

        Returns:
          A nest of tensors for `fetch`.
        """

    @abc.abstractmethod
    def fetch(self, route: Any) -> dict[str, tf.Tensor]:
        """Gets the rows.

        Args:
          route: of `route`, in this step or an earlier one.

        Returns:
          float32 tensors ``[N, D]`` by table name. The gradient with respect to a variable is one
          `tf.IndexedSlices`.
        """

    def reduce_gradients(self, gradients: Gradients, *, distinct: bool = False) -> Gradients:
        """Sums what several processes hold a copy of.

        Args:
          gradients: with respect to `variables`, by name: this process's share of the sum over
            all processes where they hold copies, else the whole.
          distinct: they come from `joined`, and are to stay in its order.

        Returns:
          Gradients that an optimizer can apply; indices may repeat.
        """
        del distinct
        return gradients

    def senders(self, route: Any) -> tf.Tensor:
        """How many rows of each gradient come from each process: int32 ``[R, G]``, for `joined`."""
        del route
        return tf.zeros([1, 0], tf.int32)

    def joined(self, parts: Sequence[Gradients], senders: Sequence[tf.Tensor]) -> Gradients:
        """The gradients of a batch from those of its parts, in the order of the batch.

        Floating-point sums depend on their order; in this one, an optimizer adds up the same
        numbers in the same way however many processes shared the parts.

        Args:
          parts: of this process, one after another.
          senders: of each.
        """
        del senders
        return {
            name: concatenated([self._summed(name, part[name]) for part in parts])
            for name in parts[0]
        }

    def _summed(self, name: str, gradient: tf.IndexedSlices) -> tf.IndexedSlices:
        """The gradient of a variable with each row once."""
        rows, values = sum_duplicates(gradient, self._variables[name].shape[0])
        return tf.IndexedSlices(values, rows, gradient.dense_shape)

    def _plan_of(self, ranks: int) -> ShardingPlan:
        """The plan, which a backend of several processes needs.

        Args:
          ranks: how many processes are running.

        Raises:
          ValueError: if there is none, or it is one for other tables or processes.
        """
        plan, tables = self._sharding.plan, list(self._tables)
        if plan is None or [table.name for table in plan.tables] != tables:
            planned = None if plan is None else [table.name for table in plan.tables]
            raise ValueError(
                f"The {self._sharding.backend} backend needs a plan for its tables {tables}, "
                f"received one for {planned}."
            )
        if plan.ranks != ranks:
            raise ValueError(f"The plan is for {plan.ranks} processes; {ranks} are running.")
        return plan

    def _add_rows(
        self, layer: tf.keras.layers.Layer, name: str, width: int, parts: Sequence[Held]
    ) -> None:
        """Creates a variable that holds `parts`, one after another, with their initial rows."""
        variable = layer.add_weight(
            name=name,
            shape=[max((part.stop for part in parts), default=0), width],
            # Tables stay fp32 under every mixed-precision policy: an update is often smaller than
            # half precision can resolve.
            dtype=tf.float32,
            initializer="zeros",
            experimental_autocast=False,
        )
        self._variables[name] = variable
        for part in parts:
            table = self._tables[part.shard.table]
            fill_rows(variable, part.start, part.shard, self._seed, table.dim, table.scale)


def concatenated(gradients: Sequence[tf.IndexedSlices]) -> tf.IndexedSlices:
    """The sum of gradients, one after another."""
    return tf.IndexedSlices(
        tf.concat([gradient.values for gradient in gradients], 0),
        tf.concat([gradient.indices for gradient in gradients], 0),
        gradients[0].dense_shape,
    )
