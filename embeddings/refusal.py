"""What to say when tables do not fit: how much is missing, and what would do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from lookback.core.errors import UserError
from lookback.core.sizes import format_size
from lookback.embeddings.cost import MEMORY
from lookback.embeddings.planners import PLANNERS
from lookback.embeddings.planners.base import Problem, fullest_rank
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.types import OPTIMIZER_STATE, WEIGHT_BYTES, Placement

_MOST_RANKS = 1024  # beyond this, more ranks are no advice


def refusal(problem: Problem, planner: str) -> UserError:
    """The error for tables that do not fit, with the numbers and numbered fixes.

    Every fix has been tried: it alone is enough.

    Args:
      problem: for which the planner found no plan.
      planner: a key of PLANNERS.
    """
    ranks = "1 rank" if problem.ranks == 1 else f"{problem.ranks} ranks"
    fixes = [fix for fix in _fixes(problem, planner) if fix]
    lines = [
        f"The tables do not fit on {ranks} of {format_size(problem.memory)}.",
        f"  needed: {_need(problem, planner)}",
        f"  largest: {_largest(problem)}",
        f"  available: {format_size(problem.memory)} a rank, "
        f"{format_size(problem.memory * problem.ranks)} on all",
        "Each of these is enough:",
        *(f"  {number}. {fix}" for number, fix in enumerate(fixes, start=1)),
    ]
    return UserError("\n".join(lines))


def _need(problem: Problem, planner: str) -> str:
    total = sum(problem.bytes(table) for table in problem.tables)
    weights = WEIGHT_BYTES * sum(table.parameters for table in problem.tables)
    names = {name for table in problem.tables for name in problem.strategies_of(table)}
    allowed = ", ".join(name for name in STRATEGIES if name in names)
    count = len(problem.tables)
    return (
        f"{format_size(total)} for {count} {'table' if count == 1 else 'tables'} "
        f"({format_size(weights)} of weights, {format_size(total - weights)} of optimizer state); "
        f"{format_size(_peak(problem, planner), up=True)} on the fullest rank, by planner "
        f"{planner!r} with {allowed}"
    )


def _largest(problem: Problem) -> str:
    """The largest table, and how much of it must lie on one rank."""
    table = max(problem.tables, key=problem.bytes)
    optimizer = problem.workload.optimizer_of(table)
    a_weight, a_row = OPTIMIZER_STATE[optimizer]
    choices = problem.choices(table, range(problem.ranks))
    peaks = [float(problem.cost(table, choice)[:, MEMORY].max()) for choice in choices]
    # To three digits, so that a row more or less does not count.
    least = min(range(len(choices)), key=lambda i: float(f"{peaks[i]:.2e}"))
    return (
        f"{table.name!r} takes {format_size(problem.bytes(table))} ({table.rows:,} rows x "
        f"({table.dim} x {1 + a_weight}{' + 1' if a_row else ''}) x {WEIGHT_BYTES} bytes with "
        f"{optimizer}), {format_size(peaks[least])} of it on one rank under "
        f"{choices[least].strategy}"
    )


def _fixes(problem: Problem, planner: str) -> Iterator[str]:
    yield _row_wise(problem, planner)
    if ranks := _enough_ranks(problem, planner):
        yield f"More ranks: {ranks} instead of {problem.ranks}."
    yield f"More memory a rank: {format_size(_peak(problem, planner), up=True)}."
    yield _less_state(problem, planner)
    yield _smaller_dim(problem, planner)


def _row_wise(problem: Problem, planner: str) -> str:
    """Row-wise for the largest one, two, four and so on of the tables that may not have it."""
    without = [t for t in problem.tables if "row_wise" not in problem.strategies_of(t)]
    without.sort(key=problem.bytes, reverse=True)
    names = [table.name for table in without]
    if not names:
        return ""

    def with_row_wise(count: int) -> Problem:
        overrides = {**problem.overrides, **dict.fromkeys(names[:count], "row_wise")}
        return dataclasses.replace(problem, overrides=overrides)

    everywhere = with_row_wise(len(names))
    if not _fits(everywhere, planner):
        ranks = _enough_ranks(everywhere, planner)
        return f"Allow row_wise for {_listed(names)}, and have {ranks} ranks." if ranks else ""
    count = 1  # not by halving: two may not fit where one does
    while not _fits(with_row_wise(count), planner):
        count = min(2 * count, len(names))
    peak = _peak(with_row_wise(count), planner)
    return (
        f"Allow row_wise for {_listed(names[:count])}: {format_size(peak, up=True)} on the fullest "
        "rank."
    )


def _enough_ranks(problem: Problem, planner: str) -> int | None:
    """A number of ranks on which the tables fit; None if more ranks do not help."""

    def on(ranks: int) -> Problem:
        return problem.with_topology(ranks=ranks)

    few, many = problem.ranks, 2 * problem.ranks
    while not _fits(on(many), planner):
        if many >= _MOST_RANKS or _peak(on(many), planner) >= _peak(on(few), planner):
            return None
        few, many = many, 2 * many
    return _first(few, many, lambda ranks: _fits(on(ranks), planner))


def _less_state(problem: Problem, planner: str) -> str:
    """The optimizer with most state that is enough, of those with less than the present one."""
    present = problem.workload.optimizer
    for optimizer in sorted(OPTIMIZER_STATE, key=OPTIMIZER_STATE.__getitem__, reverse=True):
        if OPTIMIZER_STATE[optimizer] >= OPTIMIZER_STATE[present]:
            continue
        tried = problem.with_workload(optimizer=optimizer)
        if not all(map(tried.strategies_of, tried.tables)) or not _fits(tried, planner):
            continue
        saved = sum(problem.bytes(table) - tried.bytes(table) for table in problem.tables)
        return (
            f"An optimizer with less state: {optimizer} instead of {present} saves "
            f"{format_size(saved)}."
        )
    return ""


def _smaller_dim(problem: Problem, planner: str) -> str:
    """The largest limit on all dims that is enough."""
    widest = max(table.dim for table in problem.tables)

    def cut_by(columns: int) -> Problem:
        tables = (
            dataclasses.replace(table, dim=min(table.dim, widest - columns))
            for table in problem.tables
        )
        # Narrow tables cannot be cut into as many pieces; the planner may choose anew.
        overrides = {
            name: p.strategy if isinstance(p, Placement) and len(p.ranks) > 1 else p
            for name, p in problem.overrides.items()
        }
        return dataclasses.replace(problem, tables=tuple(tables), overrides=overrides)

    if widest == 1 or not _fits(cut_by(widest - 1), planner):
        return ""
    columns = _first(0, widest - 1, lambda tried: _fits(cut_by(tried), planner))
    return f"Shorter rows: dim {widest - columns} instead of {widest}."


def _first(bad: int, good: int, is_good: Callable[[int], bool]) -> int:
    """Halves the way from a number that is bad to one that is good until they are neighbours."""
    while good - bad > 1:
        middle = (bad + good) // 2
        bad, good = (bad, middle) if is_good(middle) else (middle, good)
    return good


def _fits(problem: Problem, planner: str) -> bool:
    return _peak(problem, planner) <= problem.memory


def _peak(problem: Problem, planner: str) -> float:
    """Bytes on the fullest rank, if there were enough memory."""
    plan = PLANNERS[planner].pack(problem.with_topology(memory=None))
    if plan is None:
        raise RuntimeError(f"Planner {planner!r} finds no plan even without a limit on memory.")
    return fullest_rank(plan, problem.workload)[1]


def _listed(names: list[str], most: int = 3) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
