"""How long a step takes on R ranks: work that shrinks with the ranks, work that does not, messages.

    seconds(R) = fixed + row * B / R + exchange(R) + all_reduce(R)

The messages are LogGP's (Alexandrov et al., "LogGP: incorporating long messages into the LogP
model", 1995): a collective in which a rank sends to P others takes a latency, P - 1 gaps between
messages, and its bytes over the bandwidth. What is not in it: ranks that wait for the slowest of
them, reading data, networks that others use, and messages that hide behind computation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lookback.embeddings.cost import GRADIENTS, IDS, VECTORS, Workload, exchanged_costs
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.types import Placement, TableSpec, Topology


@dataclasses.dataclass(frozen=True)
class Link:
    """A way from one rank to another.

    Attributes:
      bandwidth: bytes a second that a rank sends, as collectives reach it.
      latency: seconds of a message of no bytes.
      gap: seconds between the beginnings of two messages of one rank.
    """

    bandwidth: float
    latency: float
    gap: float


@dataclasses.dataclass(frozen=True)
class Fabric:
    """What connects ranks.

    Attributes:
      inside: of a node.
      between: nodes.
      ranks_per_node: as the name says.
    """

    inside: Link
    between: Link
    ranks_per_node: int


# Four fifths of what the link could carry, which NCCL's tests report of large messages. Latencies
# are those of NCCL's tuning tables (src/graph/tuning.cc), rounded.
_REACHED = 0.8
NVLINK_A100 = Link(_REACHED * 300e9, 7e-6, 1e-6)
NVLINK_V100 = Link(_REACHED * 150e9, 7e-6, 1e-6)
CUBE_MESH_V100 = Link(40e9, 7e-6, 1e-6)
"""DGX-1: six links a GPU of 25 GB/s, two or one to some of the others and none to the rest."""
PCIE_4 = Link(_REACHED * 32e9 / 2, 10e-6, 1e-6)
"""x16, and a switch whose way up two GPUs share."""
INFINIBAND = Link(_REACHED * 25e9, 15e-6, 2e-6)
"""One HDR adapter (200 Gbit/s) a GPU, as DGX A100 has them."""
ETHERNET = Link(_REACHED * 12.5e9 / 8, 50e-6, 10e-6)
"""100 Gbit/s a node, for eight ranks, over TCP."""

FABRICS = {
    "nvlink_ib": Fabric(NVLINK_A100, INFINIBAND, 8),
    "nvlink_ethernet": Fabric(NVLINK_A100, ETHERNET, 8),
    "pcie_ib": Fabric(PCIE_4, INFINIBAND, 8),
    "pcie_ethernet": Fabric(PCIE_4, ETHERNET, 8),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step has to do, whatever the ranks.

    Attributes:
      fixed: seconds that every rank spends, however few its rows.
      row: seconds of a row of the batch, on one rank.
      dense_bytes: of gradients that all ranks add up.
      tables: whose rows travel; sharded by rows.
      wire_bytes: of a number of a vector.
    """

    fixed: float
    row: float
    dense_bytes: float
    tables: tuple[TableSpec, ...] = ()
    wire_bytes: int = 4


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by what takes them.

    Attributes:
      fixed: what does not shrink.
      rows: what does.
      exchange: of ids, vectors and their gradients.
      all_reduce: of dense gradients.
    """

    fixed: float
    rows: float
    exchange: float
    all_reduce: float

    @property
    def total(self) -> float:
        """All of them, one after another."""
        return self.fixed + self.rows + self.exchange + self.all_reduce

    @property
    def longest(self) -> str:
        """The name of what takes longest."""
        parts = dataclasses.asdict(self)
        return max(parts, key=lambda name: parts[name])


def step_time(work: Work, ranks: int, batch: int, fabric: Fabric) -> StepTime:
    """Predicts a step.

    Args:
      work: of a step.
      ranks: how many (R).
      batch: rows of the global batch (B).
      fabric: between the ranks.
    """
    exchange = 0.0
    if work.tables and ranks > 1:
        exchange = sum(all_to_all(b, ranks, fabric) for b in row_wise_bytes(work, ranks, batch))
    return StepTime(
        work.fixed,
        work.row * batch / ranks,
        exchange,
        all_reduce(work.dense_bytes, ranks, fabric),
    )


def all_to_all(sent: float, ranks: int, fabric: Fabric) -> float:
    """Seconds in which each rank sends something to every other one.

    Args:
      sent: bytes of a rank to all others together.
      ranks: how many (R).
      fabric: between them; what goes inside a node and what goes to others takes two ways at once.
    """
    if ranks == 1:
        return 0.0
    near = min(fabric.ranks_per_node, ranks) - 1
    far = ranks - 1 - near
    a_peer = sent / (ranks - 1)
    ways = [(fabric.inside, near)] + ([(fabric.between, far)] if far else [])
    return max(
        link.latency + (peers - 1) * link.gap + peers * a_peer / link.bandwidth
        for link, peers in ways
        if peers
    )


def all_reduce(held: float, ranks: int, fabric: Fabric) -> float:
    """Seconds in which all ranks add up as many bytes: a ring, as bandwidth allows.

    Between nodes, each rank's adapter carries its share of the ring (NCCL makes one for each).

    Args:
      held: bytes on each rank.
      ranks: how many (R).
      fabric: between them.
    """
    if ranks == 1 or not held:
        return 0.0
    nodes = math.ceil(ranks / fabric.ranks_per_node)
    near = min(fabric.ranks_per_node, ranks)
    moved = 2 * (ranks - 1) / ranks * held
    seconds = moved / fabric.inside.bandwidth
    steps = 2 * math.ceil(math.log2(near)) * fabric.inside.latency if near > 1 else 0.0
    if nodes > 1:
        seconds = max(seconds, moved / (fabric.between.bandwidth * near))
        steps += 2 * math.ceil(math.log2(nodes)) * fabric.between.latency
    return seconds + steps


def row_wise_bytes(work: Work, ranks: int, batch: int) -> Sequence[float]:
    """Bytes that the busiest rank sends: of ids, of vectors, of gradients (`embeddings.cost`)."""
    workload = Workload(Topology(ranks), batch, "adam", work.wire_bytes)
    strategy = STRATEGIES["row_wise"]
    by_table = [
        exchanged_costs(
            table, strategy.shards(table, Placement(table.name, "row_wise"), ranks), workload
        )
        for table in work.tables
    ]
    costs = np.sum(by_table, axis=0)
    return [float(costs[:, kind : kind + 2].max()) for kind in (IDS, VECTORS, GRADIENTS)]
