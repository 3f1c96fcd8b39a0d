"""A plan as text: where each table lies, and what each rank holds and exchanges."""

from __future__ import annotations

from collections.abc import Sequence

from lookback.core.sizes import format_size
from lookback.embeddings.cost import (
    GRADIENTS,
    IDS,
    MEMORY,
    VECTORS,
    Costs,
    Workload,
    busy_seconds,
    imbalance,
    rank_costs,
    step_seconds,
)
from lookback.embeddings.planners.base import plan_costs
from lookback.embeddings.types import ShardingPlan, Topology

_SENT = [IDS, VECTORS, GRADIENTS]
_MOST_RANKS_LISTED = 8  # of one table, on its line


def describe_plan(
    plan: ShardingPlan, topology: Topology, *, batch_rows: int, optimizer: str, wire_bytes: int = 4
) -> str:
    """A table of the tables, one of the ranks, and how evenly they are loaded.

    Args:
      plan: the plan.
      topology: with as many ranks.
      batch_rows: rows of the global batch.
      optimizer: of the tables that name none.
      wire_bytes: bytes of a number of a vector on the wire.
    """
    workload = Workload(topology, batch_rows, optimizer, wire_bytes)
    costs = plan_costs(plan, workload)  # (tables, R, resources)
    total = costs.sum(axis=0)  # (R, resources)
    seconds = step_seconds(total, topology)
    by_rank = total[:, _SENT].sum(axis=1)
    summary = [
        f"{batch_rows:,} rows a step, optimizer {optimizer}, {wire_bytes} bytes a number on the "
        f"wire; memory a rank: {_limit(topology.memory)}",
        f"busiest rank: {format_size(total[:, MEMORY].max())} of memory, "
        f"{format_size(by_rank.max())} sent; all ranks: {format_size(total[:, MEMORY].sum())}, "
        f"{format_size(by_rank.sum())}",
        f"imbalance (largest / mean): memory {imbalance(total[:, MEMORY]):.3f}, "
        f"sent {imbalance(by_rank):.3f}",
        f"estimated a step: lookup {_milliseconds(seconds.lookup)}, exchange "
        f"{_milliseconds(seconds.exchange)} (each exchange takes as long as its busiest rank)",
    ]
    return "\n".join([_tables(plan, costs), "", _by_rank(total, topology), "", *summary])


def _tables(plan: ShardingPlan, costs: Costs) -> str:
    """One line a table; costs ``[tables, R, len(RESOURCES)]``."""
    sent = costs[:, :, _SENT].sum(axis=(1, 2))
    held = costs[:, :, MEMORY].sum(axis=1)
    lines = [["table", "strategy", "ranks", "rows", "dim", "memory", "sent a step"]]
    for number, (table, placement) in enumerate(zip(plan.tables, plan.placements, strict=True)):
        lines.append(
            [
                table.name,
                placement.strategy,
                _ranks(placement.ranks),
                f"{table.rows:,}",
                str(table.dim),
                format_size(held[number]),
                format_size(sent[number]),
            ]
        )
    return _aligned(lines, left=3)


def _by_rank(total: Costs, topology: Topology) -> str:
    """One line a rank; total ``[R, len(RESOURCES)]``."""
    busy = busy_seconds(total, topology)  # (R, parts)
    lines = [["rank", "memory", "sent a step", "ids", "vectors", "gradients", "lookup", "exchange"]]
    for rank, cost in enumerate(rank_costs(total)):
        sent = (cost.sent.total, cost.sent.ids, cost.sent.vectors, cost.sent.gradients)
        sizes = [format_size(size) for size in (cost.memory, *sent)]
        seconds = [_milliseconds(busy[rank, 0]), _milliseconds(busy[rank, 1:].sum())]
        lines.append([str(rank), *sizes, *seconds])
    return _aligned(lines, left=0)


def _ranks(ranks: Sequence[int]) -> str:
    if not ranks:
        return "all"
    if len(ranks) > _MOST_RANKS_LISTED:
        return f"{len(ranks)} of them"
    return ",".join(map(str, ranks))


def _limit(memory: float | None) -> str:
    return "not limited" if memory is None else format_size(memory)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms"


def _aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns of equal width, the first `left` of them aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
