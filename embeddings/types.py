"""The frozen values that describe embedding tables and where they lie. Pure Python."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from lookback.core.errors import shown
from lookback.core.limits import MOST_PARTS

OPTIMIZER_STATE: Mapping[str, tuple[int, int]] = {
    "sgd": (0, 0),
    "momentum": (1, 0),
    "adagrad": (1, 0),
    "rowwise_adagrad": (0, 1),
    "adam": (2, 0),
    "lazy_adam": (2, 0),
    "full_adam": (2, 0),
    "ftrl": (2, 0),
}
"""State of each table optimizer: values kept for each weight, and values kept for each row."""

UPDATES_EVERY_ROW = frozenset({"full_adam"})
"""Table optimizers that touch the whole table in every step, not only the rows of the batch."""

MOST_WEIGHTS = 1 << 56
"""Of a table: more than any machine holds, and its bytes still are a 64-bit number."""

MOST_IDS = 1 << 31
"""Of a feature in a row of the batch: more than a batch holds of all features together."""

WEIGHT_BYTES = 4
"""Tables and their optimizer state are float32 everywhere."""


@dataclasses.dataclass(frozen=True)
class TableSpec:
    """One embedding table.

    Attributes:
      name: the table's name; the schema's domain name, so that features of one domain share it.
      rows: number of rows, the reserved ids (padding, null, out-of-vocabulary) included.
      dim: length of a row (D).
      init_scale: rows start uniform in ``[-init_scale, init_scale]``. None means
        ``sqrt(1 / rows)``, the initialiser of NVIDIA's SIM and DLRM (Naumov et al.
        2019).
      optimizer: a key of OPTIMIZER_STATE; None means the run's.
      hotness: mean number of ids that each feature of the table has in a row of the batch.
      distinct: expected share of a rank's ids in a step that are distinct, in (0, 1]. None means
        unknown: then as many as uniform ids would have, which real ids rarely reach.
      capacity: rows that a process holds at most of a table that grows (`embeddings.growing`);
        None: a table that has all its rows from the start.
    """

    name: str
    rows: int
    dim: int
    init_scale: float | None = None
    optimizer: str | None = None
    hotness: tuple[float, ...] = (1.0,)
    distinct: float | None = None
    capacity: int | None = None

    def __post_init__(self) -> None:
        """Validates the numbers.

        Raises:
          ValueError: if a number is out of its range, the name is empty or the optimizer unknown.
        """
        object.__setattr__(self, "hotness", tuple(self.hotness))  # JSON gives lists back
        if not self.name:
            raise ValueError("TableSpec.name must not be empty: it keys the checkpoint.")
        for field, value in (("rows", self.rows), ("dim", self.dim), ("capacity", self.capacity)):
            if value is not None and value < 1:
                raise ValueError(
                    f"TableSpec {shown(self.name)}: {field} must be at least 1, "
                    f"received {shown(value)}."
                )
        if self.parameters > MOST_WEIGHTS:
            raise ValueError(
                f"TableSpec {shown(self.name)}: rows times dim must be at most {MOST_WEIGHTS:,}, "
                f"received {shown(self.rows)} times {shown(self.dim)}."
            )
        if self.optimizer is not None and self.optimizer not in OPTIMIZER_STATE:
            raise ValueError(
                f"TableSpec {shown(self.name)}: unknown optimizer {shown(self.optimizer)}; "
                f"choose one of {sorted(OPTIMIZER_STATE)}."
            )
        if any(not 0 <= value <= MOST_IDS for value in self.hotness):
            raise ValueError(
                f"TableSpec {shown(self.name)}: hotness must be at least 0 and at most "
                f"{MOST_IDS:,}, received {shown(self.hotness)}."
            )
        if self.distinct is not None and not 0 < self.distinct <= 1:
            raise ValueError(
                f"TableSpec {shown(self.name)}: distinct must lie in (0, 1], "
                f"received {shown(self.distinct)}."
            )

    @property
    def scale(self) -> float:
        """The bound of the uniform initialiser."""
        return math.sqrt(1.0 / self.rows) if self.init_scale is None else self.init_scale

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return self.rows * self.dim

    def expected_ids(self, batch_rows: float) -> float:
        """Ids that `batch_rows` rows of a batch look up, repeated ones counted each time."""
        return batch_rows * sum(self.hotness)

    def expected_distinct(self, batch_rows: float) -> float:
        """Distinct ids among them: what a deduplicated exchange sends."""
        ids = self.expected_ids(batch_rows)
        if self.distinct is not None:
            return min(float(self.rows), self.distinct * ids)
        return self.rows * -math.expm1(-ids / self.rows)


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices that tables are spread over.

    Attributes:
      ranks: processes, one for each device (R).
      memory: bytes that tables and their optimizer state may take on each rank; None: not limited.
      ranks_per_node: ranks that share a node; None: all of them.
      intra_bandwidth: bytes a second that a rank can send within its node. Default: what a 3rd
        generation NVLink GPU sends (NVIDIA A100 datasheet, 600 GB/s both ways).
      inter_bandwidth: bytes a second that a rank can send to other nodes. Default: one 200 Gbit/s
        adapter a GPU, as in DGX A100.
      lookup_bandwidth: bytes a second that a rank's table rows are read with. Default: half of an
        A100's 1,555 GB/s, since rows are short and scattered.
    """

    ranks: int
    memory: float | None = None
    ranks_per_node: int | None = None
    intra_bandwidth: float = 300e9
    inter_bandwidth: float = 25e9
    lookup_bandwidth: float = 777e9

    def __post_init__(self) -> None:
        """Validates the numbers.

        Raises:
          ValueError: if one is out of its range.
        """
        _check_ranks("Topology", self.ranks)
        for name in ("memory", "intra_bandwidth", "inter_bandwidth", "lookup_bandwidth"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Topology.{name} must be above 0, received {value}.")
        if self.ranks_per_node is not None and self.ranks_per_node < 1:
            raise ValueError(
                f"Topology.ranks_per_node must be at least 1, received {self.ranks_per_node}."
            )


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows and columns of a table that one rank holds.

    Attributes:
      table: the table's name.
      rank: who holds it.
      rows: rows of the table, in the order in which they are held; may be empty.
      columns: columns of the table, contiguous.
    """

    table: str
    rank: int
    rows: range
    columns: range

    @property
    def weights(self) -> int:
        """Number of weights."""
        return len(self.rows) * len(self.columns)

    def bytes(self, optimizer: str) -> int:
        """Bytes of the weights and of the optimizer's state."""
        a_weight, a_row = OPTIMIZER_STATE[optimizer]
        values = self.weights * (1 + a_weight) + len(self.rows) * a_row
        return WEIGHT_BYTES * values


@dataclasses.dataclass(frozen=True)
class Placement:
    """How one table is sharded.

    Attributes:
      table: the table's name.
      strategy: a key of `embeddings.sharding.STRATEGIES`.
      ranks: table-wise: the one owner. Column-wise: the owner of each piece of columns, in order.
        Other strategies use all ranks and leave it empty.
    """

    table: str
    strategy: str
    ranks: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class ShardingPlan:
    """Where every row of every table lies.

    `embeddings.sharding.shards_of` gives its shards.

    Attributes:
      ranks: number of processes (R).
      tables: the tables.
      placements: one for each table, in the same order.
    """

    ranks: int
    tables: tuple[TableSpec, ...]
    placements: tuple[Placement, ...]

    def __post_init__(self) -> None:
        """Checks that tables and placements belong together.

        Raises:
          ValueError: if they do not.
        """
        _check_ranks("Plan", self.ranks)
        names = [table.name for table in self.tables]
        placed = [placement.table for placement in self.placements]
        if len(set(names)) != len(names):
            raise ValueError(f"Plan.tables must have unique names, received {names}.")
        if names != placed:
            raise ValueError(
                f"Plan.placements must name each table once, in the tables' order {names}; "
                f"received {placed}."
            )

    def placement(self, table: str) -> Placement:
        """The placement of a table."""
        return next(p for p in self.placements if p.table == table)


def _check_ranks(of: str, ranks: int) -> None:
    if not 1 <= ranks <= MOST_PARTS:
        raise ValueError(
            f"{of}.ranks must be at least 1 and at most {MOST_PARTS:,}, received {ranks:,}."
        )
