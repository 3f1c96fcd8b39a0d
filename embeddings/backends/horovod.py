"""Rows spread over processes by a plan, exchanged with Horovod: Gloo on CPU, NCCL on GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from lookback.core.errors import UserError
from lookback.embeddings.backends.base import Backend, Gradients, Held, concatenated
from lookback.embeddings.config import Sharding
from lookback.embeddings.exchange import Exchange, ExchangeRoute, from_wire, to_wire
from lookback.embeddings.shard_layout import ShardLayout
from lookback.embeddings.types import TableSpec


class HorovodBackend(Backend):
    """Holds this process's shards and exchanges rows with the others (`embeddings.exchange`).

    Tables that every process holds whole exchange nothing on the way forward; their gradients, one
    row for each distinct id, are gathered from all processes (`reduce_gradients`).
    """

    exchanges = True
    joins = True

    def __init__(self, tables: Sequence[TableSpec], sharding: Sharding, seed: int) -> None:
        """Prepares the backend; see `Backend`.

        Raises:
          UserError: if Horovod is not installed.
          ValueError: if the plan is not one for these tables and processes.
        """
        super().__init__(tables, sharding, seed)
        self._hvd = _horovod()
        plan = self._plan_of(self._hvd.size())
        self._rank: int = self._hvd.rank()
        self._layout = ShardLayout(plan, joint=self.joint)
        self._wire_dtype = tf.as_dtype(sharding.wire_dtype)
        self._exchange = Exchange(
            plan, self._layout, self._rank, self._all_to_all, self._wire_dtype
        )
        self._sent_replicas = tf.Variable(0, trainable=False, dtype=tf.int64, name="sent_replicas")

    @property
    def held(self) -> Sequence[Held]:
        """The shards of this process."""
        return [
            Held(shard, group.name, start, replicated=not group.exchanged)
            for group, shard, start in self._layout.held(self._rank)
        ]

    def optimizer_of(self, variable: str) -> str | None:
        """That of the group."""
        return next(group.optimizer for group in self._layout.groups if group.name == variable)

    @property
    def sent_bytes(self) -> Mapping[str, int]:
        """Bytes that this process has sent to others so far, by kind."""
        counters = {**self._exchange.sent_bytes, "replicas": self._sent_replicas}
        return {kind: int(counter) for kind, counter in counters.items()}

    def build(self, layer: tf.keras.layers.Layer) -> None:
        """Creates one variable ``[N, d]`` a group; N differs between processes and may be 0."""
        with tf.init_scope():
            # Processes whose seeds differed would each begin with shards of another table.
            seed = self._hvd.broadcast(tf.constant(self._seed, tf.int64), 0, name="table_seed")
            self._seed = int(seed)
        held = self.held
        for group in self._layout.groups:
            parts = [part for part in held if part.variable == group.name]
            self._add_rows(layer, group.name, group.width, parts)

    def route(self, ids: Mapping[str, tf.Tensor]) -> ExchangeRoute:
        """Deduplicates ids and asks their owners for the rows."""
        return self._exchange.route(ids)

    def fetch(self, route: ExchangeRoute) -> dict[str, tf.Tensor]:
        """Brings the rows from their owners: ``[N, D]`` by table name."""
        return self._exchange.fetch(route, self._variables)

    def reduce_gradients(self, gradients: Gradients, *, distinct: bool = False) -> Gradients:
        """Gathers the gradients of replicated groups; the others have arrived already.

        Every process gets the same rows in the same order, and so takes the same step (on CPU; a
        GPU adds up the gradients of one row in any order, so that copies may differ in the last
        bit there).
        """
        replicated = {group.name for group in self._layout.groups if not group.exchanged}
        return {
            name: self._gather(gradient if distinct else self._summed(name, gradient))
            if name in replicated
            else gradient
            for name, gradient in gradients.items()
        }

    def senders(self, route: ExchangeRoute) -> tf.Tensor:
        """Who asked for rows sends their gradients."""
        return route.asked

    def joined(self, parts: Sequence[Gradients], senders: Sequence[tf.Tensor]) -> Gradients:
        """By sender, then part: the order of the batch, of which each has a contiguous share."""
        result: Gradients = {}
        for number, group in enumerate(self._layout.groups):
            if group.name not in parts[0]:
                continue
            gradients = [part[group.name] for part in parts]
            if group.exchanged:
                counts = [sent[:, number] for sent in senders]
                gradients = [
                    tf.IndexedSlices(values, rows, gradients[0].dense_shape)
                    for values, rows in zip(
                        _by_sender([g.values for g in gradients], counts, self._layout.ranks),
                        _by_sender([g.indices for g in gradients], counts, self._layout.ranks),
                    )
                ]
            else:
                gradients = [self._summed(group.name, gradient) for gradient in gradients]
            result[group.name] = concatenated(gradients)
        return result

    def _gather(self, gradient: tf.IndexedSlices) -> tf.IndexedSlices:
        rows, values = gradient.indices, gradient.values
        row_bytes = rows.dtype.size + values.shape[-1] * self._wire_dtype.size
        sent = tf.size(rows, tf.int64) * row_bytes * (self._layout.ranks - 1)
        self._sent_replicas.assign_add(sent)
        values = self._hvd.allgather(to_wire(values, self._wire_dtype))
        return tf.IndexedSlices(
            from_wire(values, self._wire_dtype), self._hvd.allgather(rows), gradient.dense_shape
        )

    def _all_to_all(self, values: tf.Tensor, splits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        arrived, received = self._hvd.alltoall(values, splits)
        return arrived, received


def _by_sender(
    parts: Sequence[tf.Tensor], counts: Sequence[tf.Tensor], ranks: int
) -> list[tf.Tensor]:
    """What each rank sent of each part: rank 0's of all parts, then rank 1's, and so on.

    Args:
      parts: rows by sender.
      counts: of each part, how many rows ``[R]`` each rank sent.
      ranks: R.
    """
    split = [tf.split(part, count, num=ranks) for part, count in zip(parts, counts)]
    return [by_rank[rank] for rank in range(ranks) for by_rank in split]


def _horovod() -> Any:
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise UserError(
            f"backend: horovod needs Horovod with TensorFlow support, which cannot be imported "
            f"({error}). Run scripts/setup.sh, which builds it."
        ) from error
    if not hvd.is_initialized():
        hvd.init()
    return hvd
