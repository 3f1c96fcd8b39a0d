"""Chooses where tables lie: (tables, topology) -> Plan. Pure arithmetic over frozen values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lookback.core.errors import UserError
from lookback.embeddings.cost import Workload
from lookback.embeddings.planners import PLANNERS
from lookback.embeddings.planners.base import Problem, needs_whole_rows
from lookback.embeddings.refusal import refusal
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec, Topology


def plan_tables(
    tables: Sequence[TableSpec],
    topology: Topology,
    *,
    batch_rows: int,
    optimizer: str,
    planner: str = "cost",
    strategies: Sequence[str] | None = None,
    overrides: Mapping[str, str | Placement] | None = None,
    wire_bytes: int = 4,
    reserve_first_rank: bool = True,
) -> ShardingPlan:
    """Places every table.

    Args:
      tables: names unique.
      topology: the ranks, and what they can hold and send.
      batch_rows: rows of the global batch.
      optimizer: of the tables that name none; a key of OPTIMIZER_STATE.
      planner: a key of PLANNERS.
      strategies: names of the strategies that may be chosen; None: all that the planner knows.
      overrides: by table name, what shall be, whatever `strategies` says: a strategy's name (the
        planner then picks the ranks), a strategy and its ranks like "table_wise:3" or
        "column_wise:0,2", or a Placement.
      wire_bytes: bytes of a number of a vector on the wire: 4, or 2 for bfloat16 and float16.
      reserve_first_rank: whether "largest_first" leaves rank 0, if there are others, to the bottom
        MLP, as NVIDIA's DLRM for PyTorch does. No matter to "cost".

    Raises:
      UserError: if the tables do not fit, with numbers and fixes, or an argument is not valid.
    """
    names = [table.name for table in tables]
    if not names or len(set(names)) != len(names):
        raise UserError(f"Expected at least one table, names unique, received {names}.")
    if planner not in PLANNERS:
        raise UserError(f"Unknown planner {planner!r}; choose one of {list(PLANNERS)}.")
    allowed = _allowed(strategies, planner)
    problem = Problem(
        tuple(tables),
        Workload(topology, batch_rows, optimizer, wire_bytes),
        allowed,
        _placements(overrides or {}, tables, topology.ranks),
        reserve_first_rank,
    )
    for table in tables:
        _check_choices(problem, table)
    plan = PLANNERS[planner].plan(problem)
    if plan is None:
        raise refusal(problem, planner)
    return plan


def parse_placement(table: str, text: str) -> str | Placement:
    """Reads a strategy's name, or a name and ranks.

    Args:
      table: its name.
      text: such as "row_wise", "table_wise:3" or "column_wise:0,2".

    Raises:
      UserError: if it is neither.
    """
    strategy, colon, ranks = text.partition(":")
    if strategy not in STRATEGIES:
        raise UserError(
            f"Override of table {table!r}: unknown strategy {strategy!r}; choose one of "
            f"{list(STRATEGIES)}, with ranks if you like (table_wise:3, column_wise:0,2)."
        )
    if not colon:
        return strategy
    try:
        return Placement(table, strategy, tuple(int(rank) for rank in ranks.split(",")))
    except ValueError as error:
        raise UserError(
            f"Override of table {table!r}: expected ranks like 3 or 0,2 after {strategy}:, "
            f"received {ranks!r}."
        ) from error


def _allowed(strategies: Sequence[str] | None, planner: str) -> tuple[str, ...]:
    known = PLANNERS[planner].strategies
    if strategies is None:
        return known
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown or not strategies:
        raise UserError(
            f"Unknown strategies {unknown}; choose from {list(STRATEGIES)}."
            if unknown
            else f"No strategy is allowed; choose from {list(STRATEGIES)}."
        )
    allowed = tuple(name for name in known if name in strategies)
    if not allowed:
        raise UserError(
            f"Planner {planner!r} chooses from {list(known)}, but only {list(strategies)} may be "
            "chosen. Allow one of its strategies, or take another planner of "
            f"{list(PLANNERS)}."
        )
    return allowed


def _placements(
    overrides: Mapping[str, str | Placement], tables: Sequence[TableSpec], ranks: int
) -> dict[str, str | Placement]:
    by_name = {table.name: table for table in tables}
    read: dict[str, str | Placement] = {}
    for name, wanted in overrides.items():
        if name not in by_name:
            raise UserError(f"Override of unknown table {name!r}; the tables are {list(by_name)}.")
        placement = parse_placement(name, wanted) if isinstance(wanted, str) else wanted
        if isinstance(placement, Placement):
            _check_placement(by_name[name], placement, ranks)
        read[name] = placement
    return read


def _check_placement(table: TableSpec, placement: Placement, ranks: int) -> None:
    if placement.table != table.name or placement.strategy not in STRATEGIES:
        raise UserError(
            f"Override of table {table.name!r}: expected a placement of that table by one of "
            f"{list(STRATEGIES)}, received {placement}."
        )
    try:
        STRATEGIES[placement.strategy].shards(table, placement, ranks)
    except ValueError as error:
        raise UserError(f"Override: {error}") from error


def _check_choices(problem: Problem, table: TableSpec) -> None:
    """Refuses optimizers that no owner could apply, and tables without any strategy."""
    optimizer = problem.workload.optimizer_of(table)
    override = problem.overrides.get(table.name)
    wanted = override.strategy if isinstance(override, Placement) else override
    splits = wanted is not None and STRATEGIES[wanted].splits_rows
    if (splits and needs_whole_rows(optimizer)) or not problem.strategies_of(table):
        raise UserError(
            f"Table {table.name!r} cannot be {wanted or ' or '.join(problem.strategies)} with "
            f"optimizer {optimizer}: its state belongs to whole rows, of which no rank would hold "
            "one. Choose another strategy or another optimizer (adagrad has state a weight)."
        )
