"""The exchange of ids and vectors between processes, and its gradient.

One step, whatever the number of tables and strategies:

1. `route`: the ids of each table are deduplicated, every distinct one becomes a number that names
   its row on its owner (see `embeddings.shard_layout`), and one all-to-all takes the numbers there.
2. `fetch`: owners gather the rows, one all-to-all brings them back, and each id takes its vector
   from what came.

Differentiation retraces the second step: gradients are summed for each distinct id before they
travel (`_spread`), one all-to-all takes them to the owners, and what arrives is the sparse gradient
of the owner's variables.

How bytes travel is the caller's business (`AllToAll`), so the arithmetic can be tested in one
process.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from lookback.embeddings.duplicates import distinct
from lookback.embeddings.ids import inside
from lookback.embeddings.shard_layout import ShardLayout
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.types import ShardingPlan

AllToAll = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""Sends the first ``splits[0]`` rows of a tensor to rank 0, and so on: (tensor, splits) to what
arrived, by rank, and how many rows came from each."""

KINDS = ("ids", "vectors", "gradients")


class ExchangeRoute(NamedTuple):
    """What `fetch` needs to know; tensors only, so that it can travel from step to step.

    R ranks take part, and G groups are exchanged.

    Attributes:
      rows: for each group, the rows ``[n_g]`` of this rank that are wanted, by rank.
      asked: int32 ``[R, G]``: how many of them each rank wants.
      requested: int32 ``[R, G]``: how many rows this rank wants of each.
      positions: by table, the place ``[N]`` of each id among the distinct ones ``[U]``. Of tables
        that every rank holds: the row.
      places: by table that is exchanged, for each leg: the place ``[U]`` of each distinct id's
        vector among those of the leg's group that come back.
    """

    rows: tuple[tf.Tensor, ...]
    asked: tf.Tensor
    requested: tf.Tensor
    positions: dict[str, tf.Tensor]
    places: dict[str, tuple[tf.Tensor, ...]]


class _Leg(NamedTuple):
    """The distinct ids of a table, as one group's owners are asked for them."""

    group: int
    table: str
    number: int  # among the table's legs
    owner: tf.Tensor  # int32 [U]
    row: tf.Tensor  # [U], as on the wire


class Exchange:
    """Routes ids and fetches vectors by a plan, as seen from one rank.

    Attributes:
      sent_bytes: int64 variables by kind ("ids", "vectors", "gradients"): what this rank has sent
        to others so far. What it sends to itself does not travel and does not count.
    """

    def __init__(
        self,
        plan: ShardingPlan,
        layout: ShardLayout,
        rank: int,
        all_to_all: AllToAll,
        wire_dtype: tf.DType,
    ) -> None:
        """Prepares the exchange.

        Args:
          plan: where rows lie.
          layout: of the plan.
          rank: this one.
          all_to_all: collective.
          wire_dtype: float type in which vectors and gradients travel.
        """
        self._plan, self._layout, self._rank = plan, layout, rank
        self._all_to_all = all_to_all
        self._wire_dtype = wire_dtype
        self._index_dtype = tf.int64 if layout.needs_int64 else tf.int32
        self._table_rows = {table.name: table.rows for table in plan.tables}
        self._widths = [group.width for group in layout.exchanged_groups]
        self.sent_bytes = {
            kind: tf.Variable(0, trainable=False, dtype=tf.int64, name=f"sent_{kind}")
            for kind in KINDS
        }

    def route(self, ids: Mapping[str, tf.Tensor]) -> ExchangeRoute:
        """Deduplicates ids and tells each owner which rows are wanted: one all-to-all.

        Args:
          ids: int tensors ``[N]`` by table name; N may be 0.
        """
        legs: list[_Leg] = []
        positions: dict[str, tf.Tensor] = {}
        for table, index in ids.items():
            count = self._table_rows[table]
            index = tf.cast(inside(table, count, index), self._index_dtype)
            if STRATEGIES[self._plan.placement(table).strategy].exchanged:
                once, positions[table] = distinct(index, count)  # [U], [N]
                legs += self._legs(table, once)
            else:
                positions[table] = index + self._layout.pieces[table][0].starts[self._rank]
        if not legs:
            none = tf.zeros([self._layout.ranks, 0], tf.int32)
            return ExchangeRoute((), none, none, positions, {})
        legs.sort(key=operator.attrgetter("group"))
        wanted, requested, place = self._by_owner(legs)
        received, splits = self._all_to_all(wanted, tf.reduce_sum(requested, 1))
        self._count("ids", requested, [self._index_dtype.size] * len(self._widths))
        rows, asked = self._read(received, splits)
        found = zip(legs, tf.split(place, [tf.size(leg.owner) for leg in legs]))
        by_leg = {(leg.table, leg.number): of_distinct for leg, of_distinct in found}
        places = {
            table: tuple(by_leg[table, n] for n in range(len(self._layout.pieces[table])))
            for table, _ in by_leg
        }
        return ExchangeRoute(rows, asked, requested, positions, places)

    def fetch(
        self, route: ExchangeRoute, variables: Mapping[str, tf.Variable]
    ) -> dict[str, tf.Tensor]:
        """Brings the rows: one all-to-all, and one more for the gradients.

        Args:
          route: of `route`.
          variables: of the groups, by name, ``[n, width]``.

        Returns:
          float32 vectors ``[N, D]`` by table name.
        """
        legs: dict[tuple[str, int], tf.Tensor] = {}
        if route.rows:
            rows = [
                tf.gather(variables[group.name], wanted)
                for group, wanted in zip(self._layout.exchanged_groups, route.rows)
            ]
            arrived = self._send(rows, route.asked, route.requested)
            for group, vectors in enumerate(arrived):
                legs |= self._vectors_of_legs(group, vectors, route)
        result = {}
        for table, position in route.positions.items():
            pieces = self._layout.pieces[table]
            if table in route.places:
                parts = [legs[table, number] for number in range(len(pieces))]
                result[table] = parts[0] if len(parts) == 1 else tf.concat(parts, 1)  # [N, D]
            else:
                held = variables[self._layout.groups[pieces[0].group].name]
                result[table] = tf.gather(held, position)
        return result

    def _vectors_of_legs(
        self, group: int, vectors: tf.Tensor, route: ExchangeRoute
    ) -> dict[tuple[str, int], tf.Tensor]:
        """The vectors ``[N, d]`` of each leg from those that came for its group."""
        legs = [
            (table, number)
            for table in route.places
            for number, piece in enumerate(self._layout.pieces[table])
            if piece.group == group
        ]
        found = _spread(
            vectors,
            [route.places[table][number] for table, number in legs],
            [route.positions[table] for table, _ in legs],
        )
        return dict(zip(legs, found))

    def _legs(self, table: str, ids: tf.Tensor) -> list[_Leg]:
        """The owners of a table's distinct ids ``[U]``, and the rows' numbers there."""
        placement = self._plan.placement(table)
        strategy = STRATEGIES[placement.strategy]
        legs = []
        for number, (piece, leg) in enumerate(
            zip(
                self._layout.pieces[table],
                strategy.input_dist(placement, ids, self._layout.ranks),
            )
        ):
            starts = tf.constant(piece.starts, self._index_dtype)  # [R]
            row = leg.row + tf.gather(starts, leg.owner)
            owner = tf.cast(leg.owner, tf.int32)
            legs.append(_Leg(piece.group, table, number, owner, row))
        return legs

    def _by_owner(self, legs: Sequence[_Leg]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Sorts what is wanted by owner, then group.

        Args:
          legs: by group; M distinct ids in all.

        Returns:
          Rows as on the wire ``[M]``; how many are requested, int32 ``[R, G]``; and for each of
          the legs' distinct ids ``[M]`` its place among the vectors of its group.
        """
        ranks, groups = self._layout.ranks, len(self._widths)
        owner = tf.concat([leg.owner for leg in legs], 0)
        sizes = [tf.size(leg.owner) for leg in legs]
        group = tf.repeat(tf.constant([leg.group for leg in legs]), tf.stack(sizes))
        key = owner * groups + group  # [M]
        # A counting sort; tf.argsort takes ten times as long (n log n, and one thread).
        parts = tf.dynamic_partition(tf.range(tf.size(key)), key, ranks * groups)
        counts = tf.stack([tf.size(part) for part in parts])  # [R G]
        requested = tf.reshape(counts, [ranks, groups])
        order = tf.concat(parts, 0)  # [M]
        rows = tf.gather(tf.concat([leg.row for leg in legs], 0), order)
        # From the place among all that is sent to the place among the group's.
        begin = tf.cumsum(counts, exclusive=True)
        begin_in_group = tf.reshape(tf.cumsum(requested, 0, exclusive=True), [-1])
        place = tf.math.invert_permutation(order) + tf.gather(begin_in_group - begin, key)
        return rows, requested, place

    def _read(
        self, received: tf.Tensor, splits: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
        """Rows of each group, and how many of them each rank asks for ``[R, G]``."""
        groups, bases = len(self._widths), self._layout.bases[self._rank]
        if groups == 1:
            return (received,), tf.expand_dims(splits, 1)
        group = tf.searchsorted(
            tf.constant(bases[1:], self._index_dtype), received, side="right"
        )  # [M']
        rows = tuple(
            part - base for part, base in zip(tf.dynamic_partition(received, group, groups), bases)
        )
        source = tf.repeat(tf.range(self._layout.ranks), splits)  # [M']
        size = self._layout.ranks * groups
        asked = tf.math.bincount(source * groups + group, minlength=size, maxlength=size)
        return rows, tf.reshape(asked, [self._layout.ranks, groups])

    def _send(
        self, vectors: Sequence[tf.Tensor], asked: tf.Tensor, requested: tf.Tensor
    ) -> list[tf.Tensor]:
        """Sends each group's vectors ``[n_g, d_g]`` to who asked; returns those requested."""
        if len(self._widths) == 1:
            (width,) = self._widths
            flat = self._travel(
                vectors[0], asked, requested, tf.squeeze(asked, 1), tf.squeeze(requested, 1)
            )
            return [tf.ensure_shape(flat, [None, width])]
        widths = tf.constant(self._widths)
        ranks, groups = self._layout.ranks, len(self._widths)
        by_group = [
            tf.split(tf.reshape(rows, [-1]), asked[:, number] * self._widths[number], num=ranks)
            for number, rows in enumerate(vectors)
        ]
        packed = tf.concat([by_group[g][r] for r in range(ranks) for g in range(groups)], 0)
        flat = self._travel(
            packed,
            asked,
            requested,
            tf.reduce_sum(asked * widths, 1),
            tf.reduce_sum(requested * widths, 1),
        )
        parts = tf.split(flat, tf.reshape(requested * widths, [-1]), num=ranks * groups)
        return [
            tf.reshape(tf.concat(parts[number::groups], 0), [-1, width])
            for number, width in enumerate(self._widths)
        ]

    def _travel(
        self,
        packed: tf.Tensor,
        asked: tf.Tensor,
        requested: tf.Tensor,
        splits: tf.Tensor,
        returned: tf.Tensor,
    ) -> tf.Tensor:
        """All-to-all of vectors; its gradient is the all-to-all in the other direction.

        Args:
          packed: float32, by receiver.
          asked: rows each rank gets ``[R, G]``.
          requested: rows each rank sends here ``[R, G]``.
          splits: parts of `packed` for each rank ``[R]``.
          returned: the same for the way back.
        """

        @tf.custom_gradient
        def travel(there: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            def back(gradient: tf.Tensor) -> tf.Tensor:
                self._count("gradients", requested, self._wire_widths)
                return self._on_the_wire(gradient, returned)

            self._count("vectors", asked, self._wire_widths)
            return self._on_the_wire(there, splits), back

        result: tf.Tensor = travel(packed)
        return result

    def _on_the_wire(self, values: tf.Tensor, splits: tf.Tensor) -> tf.Tensor:
        """All-to-all in the wire's type; float32 in and out."""
        arrived, _ = self._all_to_all(to_wire(values, self._wire_dtype), splits)
        return from_wire(arrived, self._wire_dtype)

    @property
    def _wire_widths(self) -> list[int]:
        """Bytes of a vector of each group as it travels."""
        return [width * self._wire_dtype.size for width in self._widths]

    def _count(self, kind: str, rows: tf.Tensor, row_bytes: Sequence[int]) -> None:
        """Adds rows ``[R, G]`` that were sent, of `row_bytes` each, to what travelled."""
        others = tf.concat([rows[: self._rank], rows[self._rank + 1 :]], 0)
        total = tf.cast(others, tf.int64) * tf.constant(row_bytes, tf.int64)
        self.sent_bytes[kind].assign_add(tf.reduce_sum(total))


def _spread(
    vectors: tf.Tensor, places: Sequence[tf.Tensor], positions: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Each id's vector, for several tables, from those of their distinct ids.

    Its gradient adds up leg by leg. TensorFlow's own would first join the gradients of all ids of
    all tables, a copy of the largest tensors there are (4 % of SIM's step with 16,384 rows a rank).

    Args:
      vectors: of all distinct ids of all legs, each once ``[M, d]``.
      places: for each leg, where among them the vectors of its distinct ids are ``[U]``.
      positions: for each leg, the place of each id among its distinct ones ``[N]``.

    Returns:
      For each leg ``[N, d]``.
    """
    if not places:
        return []

    @tf.custom_gradient
    def spread(vectors: tf.Tensor) -> tuple[list[tf.Tensor], Callable[..., tf.Tensor]]:
        def back(*upstream: tf.Tensor) -> tf.Tensor:
            sums = [
                tf.math.unsorted_segment_sum(gradient, position, tf.size(place))
                for gradient, position, place in zip(upstream, positions, places)
            ]
            order = tf.math.invert_permutation(tf.concat(places, 0))
            return tf.gather(tf.concat(sums, 0), order)

        found = [
            tf.gather(vectors, tf.gather(place, position))
            for place, position in zip(places, positions)
        ]
        return found, back

    result: list[tf.Tensor] = spread(vectors)
    return result


def to_wire(values: tf.Tensor, wire_dtype: tf.DType) -> tf.Tensor:
    """Float32 values in the wire's type; bfloat16 as bits, since not every transport knows it."""
    values = tf.cast(values, wire_dtype)
    return tf.bitcast(values, tf.float16) if wire_dtype == tf.bfloat16 else values


def from_wire(values: tf.Tensor, wire_dtype: tf.DType) -> tf.Tensor:
    """Float32 again, from what `to_wire` made."""
    if wire_dtype == tf.bfloat16:
        values = tf.bitcast(values, tf.bfloat16)
    return tf.cast(values, tf.float32)
