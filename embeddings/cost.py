"""What a placement costs each rank: memory held, bytes touched and exchanged, seconds a step.

The model of one training step on R ranks, with B rows in the global batch:

- Each rank looks up B / R rows and asks for each distinct id among theirs once, so for
  ``TableSpec.expected_distinct(B / R)`` ids of a table. Ids are taken to be spread over a table's
  rows evenly: what is frequent is deduplicated before it travels, and row-wise tables take turns.
- Exchanged tables: an id goes to the owner of each piece of its row, the piece comes back, and its
  gradient retraces the way. What a rank asks of itself does not travel.
- Replicated tables: each rank sends the gradients of its distinct rows, with their ids, to the
  R - 1 others; nothing else travels.
- All tables travel together, in one exchange of ids, one of vectors and one of gradients, and
  nobody goes on before all have what they asked for. So each exchange takes as long as its busiest
  rank does, and a rank sends and receives at the same time.
- Each piece in which a table's rows are looked up takes LEG_SECONDS on every rank; only column-wise
  tables have more than one.

Arrays hold one line for each rank and one column for each of RESOURCES.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lookback.core.errors import UserError
from lookback.embeddings.types import (
    OPTIMIZER_STATE,
    UPDATES_EVERY_ROW,
    WEIGHT_BYTES,
    Shard,
    TableSpec,
    Topology,
)

RESOURCES = (
    "memory",
    "touched",
    "ids_sent",
    "ids_received",
    "vectors_sent",
    "vectors_received",
    "gradients_sent",
    "gradients_received",
    "legs",
)
"""Columns of a cost array: bytes, and at last the number of pieces in which rows are looked up."""

MEMORY, TOUCHED, IDS, VECTORS, GRADIENTS, LEGS = 0, 1, 2, 4, 6, 8
"""Where they stand; of what is exchanged, the bytes sent, which those received follow."""

WIRE_BYTES = (4, 2)
"""Bytes of a number on the wire: float32, or bfloat16 and float16."""

LEG_SECONDS = 20e-6
"""Seconds that a piece takes beside its bytes: four kernels (where ids go, which of them differ,
gather, sum of gradients) at 5 us a launch. An estimate; it keeps tiny tables from being cut into
many columns."""

_INT32_ROWS = 1 << 31  # more rows than this, and an id takes 8 bytes

Costs = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a step asks of the ranks.

    Attributes:
      topology: the ranks.
      batch_rows: rows of the global batch (B).
      optimizer: of the tables that name none.
      wire_bytes: bytes of a number of a vector on the wire, one of WIRE_BYTES.
    """

    topology: Topology
    batch_rows: int
    optimizer: str
    wire_bytes: int = 4

    def __post_init__(self) -> None:
        """Validates the values.

        Raises:
          UserError: if one cannot be.
        """
        if self.batch_rows < 1:
            raise UserError(f"batch_rows must be at least 1, received {self.batch_rows}.")
        if self.optimizer not in OPTIMIZER_STATE:
            raise UserError(
                f"Unknown table optimizer {self.optimizer!r}; choose one of "
                f"{sorted(OPTIMIZER_STATE)}."
            )
        if self.wire_bytes not in WIRE_BYTES:
            raise UserError(f"wire_bytes must be one of {WIRE_BYTES}, received {self.wire_bytes}.")

    def optimizer_of(self, table: TableSpec) -> str:
        """The optimizer that updates a table."""
        return self.optimizer if table.optimizer is None else table.optimizer


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes of a step on the wire.

    Attributes:
      ids: of rows that are asked for.
      vectors: of those rows.
      gradients: of those rows, and of replicated tables with their ids.
    """

    ids: float = 0.0
    vectors: float = 0.0
    gradients: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.ids + other.ids, self.vectors + other.vectors, self.gradients + other.gradients
        )

    @property
    def total(self) -> float:
        """All of it."""
        return self.ids + self.vectors + self.gradients


@dataclasses.dataclass(frozen=True)
class RankCost:
    """What tables cost one rank.

    Attributes:
      memory: bytes of weights and optimizer state that it holds.
      touched: bytes of them that a step reads and writes.
      sent: what it sends in a step.
      received: what it receives in a step.
    """

    memory: float = 0.0
    touched: float = 0.0
    sent: Traffic = Traffic()
    received: Traffic = Traffic()

    def __add__(self, other: RankCost) -> RankCost:
        return RankCost(
            self.memory + other.memory,
            self.touched + other.touched,
            self.sent + other.sent,
            self.received + other.received,
        )


@dataclasses.dataclass(frozen=True)
class StepSeconds:
    """Estimated seconds of a step's table work, without anything beside it.

    Attributes:
      lookup: reading rows, reading and writing them in the update, and starting all that.
      exchange: of ids, vectors and gradients.
    """

    lookup: float
    exchange: float

    @property
    def total(self) -> float:
        """Both, one after the other."""
        return self.lookup + self.exchange


def exchanged_costs(table: TableSpec, shards: Sequence[Shard], workload: Workload) -> Costs:
    """What a table costs whose rows are asked for.

    Args:
      table: the table.
      shards: all of its shards.
      workload: of the step.

    Returns:
      ``[R, len(RESOURCES)]``
    """
    ranks = workload.topology.ranks
    held = np.zeros([ranks, 3])  # bytes, share of the table's rows, columns times that share
    optimizer = workload.optimizer_of(table)
    for shard in shards:
        part = len(shard.rows) / table.rows
        held[shard.rank] += (shard.bytes(optimizer), part, part * len(shard.columns))
    share, width = held[:, 1], held[:, 2]
    asked = table.expected_distinct(workload.batch_rows / ranks)
    ids = asked * _id_bytes(table)
    numbers = asked * workload.wire_bytes
    costs = np.zeros([ranks, len(RESOURCES)])
    costs[:, MEMORY] = held[:, 0]
    costs[:, TOUCHED] = _touched(table, share, width, ranks * asked, workload)
    costs[:, IDS] = ids * (share.sum() - share)
    costs[:, IDS + 1] = ids * (ranks - 1) * share
    costs[:, VECTORS] = numbers * (ranks - 1) * width
    costs[:, VECTORS + 1] = numbers * (width.sum() - width)
    # The way back: what came as a vector returns as a gradient.
    costs[:, GRADIENTS] = costs[:, VECTORS + 1]
    costs[:, GRADIENTS + 1] = costs[:, VECTORS]
    costs[:, LEGS] = len({shard.columns for shard in shards})
    return costs


def replicated_costs(table: TableSpec, workload: Workload) -> Costs:
    """What a table costs that every rank holds whole.

    Args:
      table: the table.
      workload: of the step.

    Returns:
      ``[R, len(RESOURCES)]``
    """
    ranks = workload.topology.ranks
    asked = table.expected_distinct(workload.batch_rows / ranks)
    row_bytes = _id_bytes(table) + table.dim * workload.wire_bytes
    whole = Shard(table.name, 0, range(table.rows), range(table.dim))
    costs = np.zeros([ranks, len(RESOURCES)])
    costs[:, MEMORY] = whole.bytes(workload.optimizer_of(table))
    costs[:, TOUCHED] = _touched(table, np.ones(ranks), np.full(ranks, table.dim), asked, workload)
    costs[:, GRADIENTS : GRADIENTS + 2] = (ranks - 1) * asked * row_bytes
    costs[:, LEGS] = 1
    return costs


def rank_costs(costs: Costs) -> list[RankCost]:
    """The lines of a cost array, in words.

    Args:
      costs: ``[R, len(RESOURCES)]``
    """
    return [
        RankCost(
            line[MEMORY],
            line[TOUCHED],
            sent=Traffic(line[IDS], line[VECTORS], line[GRADIENTS]),
            received=Traffic(line[IDS + 1], line[VECTORS + 1], line[GRADIENTS + 1]),
        )
        for line in costs.tolist()
    ]


def busy_seconds(costs: Costs, topology: Topology) -> Costs:
    """How long each rank is busy with each part of a step.

    Args:
      costs: ``[..., R, len(RESOURCES)]``
      topology: with R ranks.

    Returns:
      ``[..., R, 4]``: table rows; exchange of ids, of vectors, of gradients.
    """
    on_wire = np.array(_wire_seconds(topology))  # (R,)
    parts = [costs[..., TOUCHED] / topology.lookup_bandwidth + costs[..., LEGS] * LEG_SECONDS]
    for kind in (IDS, VECTORS, GRADIENTS):
        parts.append(np.maximum(costs[..., kind], costs[..., kind + 1]) * on_wire)
    return np.stack(parts, axis=-1)


def step_seconds(costs: Costs, topology: Topology) -> StepSeconds:
    """How long a step takes: of each of its parts, what the busiest rank takes.

    Args:
      costs: ``[R, len(RESOURCES)]``, of all tables together.
      topology: with R ranks.
    """
    lookup, *exchange = busy_seconds(costs, topology).max(axis=0).tolist()
    return StepSeconds(lookup, sum(exchange))


def imbalance(loads: Sequence[float] | Costs) -> float:
    """Largest load over mean load; 1 if nothing is loaded.

    Args:
      loads: of each rank, in any unit.
    """
    mean = sum(loads) / len(loads)
    return float(max(loads) / mean) if mean else 1.0


def nodes_of(topology: Topology) -> list[int]:
    """The node of each rank."""
    size = topology.ranks_per_node or topology.ranks
    return [rank // size for rank in range(topology.ranks)]


@functools.lru_cache(maxsize=8)  # asked for each time a planner looks at a placement
def _wire_seconds(topology: Topology) -> tuple[float, ...]:
    """Seconds for each byte that a rank sends to all others evenly.

    What goes to its own node and what goes to others takes two ways at once.
    """
    if topology.ranks == 1:
        return (0.0,)
    nodes = nodes_of(topology)
    sizes = collections.Counter(nodes)
    seconds = []
    for node in nodes:
        inside = (sizes[node] - 1) / (topology.ranks - 1)
        seconds.append(
            max(inside / topology.intra_bandwidth, (1 - inside) / topology.inter_bandwidth)
        )
    return tuple(seconds)


def _touched(
    table: TableSpec, share: Costs, width: Costs, gathered: float, workload: Workload
) -> Costs:
    """Bytes of rows that are read for the lookup, and read and written by the update.

    Args:
      table: the table.
      share: ``[R]`` of the table's rows that each rank holds.
      width: ``[R]`` columns, times the share of the rows in which they are held.
      gathered: rows that are read for the lookup, by all who ask.
      workload: of the step.
    """
    optimizer = workload.optimizer_of(table)
    a_weight, a_row = OPTIMIZER_STATE[optimizer]
    updated = table.expected_distinct(workload.batch_rows)
    if optimizer in UPDATES_EVERY_ROW:
        updated = table.rows
    values = gathered * width + 2 * updated * (width * (1 + a_weight) + share * a_row)
    return np.asarray(WEIGHT_BYTES * values, np.float64)


def _id_bytes(table: TableSpec) -> int:
    return 4 if table.rows <= _INT32_ROWS else 8
