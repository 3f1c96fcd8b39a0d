"""``python -m embeddings plan``: where tables would lie, and what each rank would hold and send."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lookback.core.errors import UserError
from lookback.core.limits import MOST_BYTES, MOST_PARTS, MOST_ROWS, MOST_WIDTH
from lookback.core.options import Command, CommandLine, option, require_one
from lookback.embeddings.config import WIRE_DTYPES
from lookback.embeddings.plan_report import describe_plan
from lookback.embeddings.planner import plan_tables
from lookback.embeddings.planners import PLANNERS
from lookback.embeddings.plans import load_tables, save_plan
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.tables import LIST_LENGTH, tables_with_hotness
from lookback.embeddings.types import OPTIMIZER_STATE, TableSpec, Topology
from lookback.formats.schema import SCHEMA_FILE, read_schema
from lookback.formats.verification import verify_dataset

_Read = TypeVar("_Read")


@dataclasses.dataclass(frozen=True)
class Tables:
    """The tables to place. Defaults are those of NVIDIA's SIM."""

    scope: ClassVar[str] = "tables"
    dataset_dir: Path | None = option(
        None, help="a dataset: one table for each domain of its schema"
    )
    tables: Path | None = option(
        None,
        help="YAML with rows and, if wanted, dim, hotness, distinct, optimizer by table name; "
        "instead of --dataset_dir",
    )
    embedding_dim: int = option(
        16, help="length of a row of tables that name none", at_least=1, limit=MOST_WIDTH
    )
    hotness: tuple[str, ...] = option(
        (),
        help="TABLE=N: ids of a table in a row of the batch, all features together, where it is "
        "not one for a scalar column, the bound of a list column's length in the schema, and "
        f"{LIST_LENGTH:g} where there is none",
        repeatable=True,
    )

    def __post_init__(self) -> None:
        """Validates."""
        require_one(self, "dataset_dir", "tables")


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The processes, and what they can hold and send: see `embeddings.types.Topology`."""

    scope: ClassVar[str] = "ranks"
    ranks: int = option(help="processes", at_least=1, at_most=MOST_PARTS)
    memory: float | None = option(
        None,
        help="for tables and optimizer state, a rank; none: no limit",
        unit="bytes",
        above=0,
        limit=MOST_BYTES,
    )
    ranks_per_node: int | None = option(
        None, help="that share a node; none: all", at_least=1, limit=MOST_PARTS
    )
    intra_bandwidth: float = option(
        Topology.intra_bandwidth,
        help="bytes a second that a rank sends within its node",
        unit="bytes",
        above=0,
    )
    inter_bandwidth: float = option(
        Topology.inter_bandwidth,
        help="bytes a second that a rank sends to other nodes",
        unit="bytes",
        above=0,
    )
    lookup_bandwidth: float = option(
        Topology.lookup_bandwidth,
        help="bytes a second of table rows that a rank reads",
        unit="bytes",
        above=0,
    )

    def topology(self) -> Topology:
        """What planners know of them."""
        return Topology(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Step:
    """A training step. Defaults are those of NVIDIA's SIM."""

    scope: ClassVar[str] = "a training step"
    global_batch_size: int = option(
        131072, help="rows of a batch, on all ranks together", at_least=1, limit=MOST_ROWS
    )
    optimizer: str = option(
        "adam", help="of the tables that name none", choices=sorted(OPTIMIZER_STATE)
    )
    wire_dtype: str = option(
        "float32", help="type in which vectors and gradients travel", choices=WIRE_DTYPES
    )

    def workload(self) -> dict[str, Any]:
        """It in the words of planners."""
        return {
            "batch_rows": self.global_batch_size,
            "optimizer": self.optimizer,
            "wire_bytes": 4 if self.wire_dtype == "float32" else 2,
        }


@dataclasses.dataclass(frozen=True)
class PlacementOptions:
    """How places are chosen, and where the plan goes."""

    scope: ClassVar[str] = "placement"
    planner: str = option(
        "cost",
        help="cost: the shortest step; largest_first: whole tables, from the largest on, where "
        "most memory is free (NVIDIA's heuristic)",
        choices=tuple(PLANNERS),
    )
    strategies: tuple[str, ...] | None = option(
        None, help="those that may be chosen; none: the planner's own", choices=tuple(STRATEGIES)
    )
    override: tuple[str, ...] = option(
        (),
        help="TABLE=STRATEGY: a table's strategy, with ranks if wanted: item_id=row_wise, "
        "item_id=table_wise:3",
        repeatable=True,
    )
    reserve_first_rank: bool = option(
        False,
        help="largest_first: no tables on rank 0, to leave it to a bottom MLP, as NVIDIA's "
        "heuristic does",
    )
    output: Path | None = option(None, help="write the plan there, as YAML")


def _plan(source: Tables, ranks: Ranks, step: Step, choice: PlacementOptions) -> None:
    topology = ranks.topology()
    tables, notes = _tables(source)
    plan = plan_tables(
        tables,
        topology,
        planner=choice.planner,
        strategies=choice.strategies,
        overrides=_pairs(choice.override, "--override", str, "a strategy"),
        reserve_first_rank=choice.reserve_first_rank,
        **step.workload(),
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if choice.output is not None:
        save_plan(plan, choice.output, [] if source.tables is None else [source.tables])
    print(describe_plan(plan, topology, **step.workload()))
    if choice.output is not None:
        print(f"plan: {choice.output}")


def _tables(source: Tables) -> tuple[list[TableSpec], list[str]]:
    """The tables, and what was assumed about them."""
    assumed: list[str] = []
    if source.tables is not None:
        tables = load_tables(source.tables, source.embedding_dim)
    else:
        assert source.dataset_dir is not None  # `Tables` has one of the two
        verify_dataset(source.dataset_dir, parts=(SCHEMA_FILE,))
        schema = read_schema(source.dataset_dir)
        try:
            tables, assumed = tables_with_hotness(schema, source.embedding_dim)
        except ValueError as error:
            raise UserError(str(error)) from error
        if not tables:
            raise UserError(
                f"The schema in {source.dataset_dir} has no categorical column, so there is no "
                "table to place. Write the dataset with `python -m workflows`, or tag its schema."
            )
    names = [table.name for table in tables]
    hotness = _pairs(source.hotness, "--hotness", float, "a number of ids")
    for name in hotness:
        if name not in names:
            raise UserError(f"--hotness: no table is named {name!r}; the tables are {names}.")
    try:
        tables = [
            dataclasses.replace(table, hotness=(hotness[table.name],))
            if table.name in hotness
            else table
            for table in tables
        ]
    except ValueError as error:
        raise UserError(f"--hotness: {error}") from error
    notes = [
        f"table {name!r} has lists of no stated bound: assumed {LIST_LENGTH:g} ids a row; "
        f"--hotness {name}=N says otherwise"
        for name in assumed
        if name not in hotness
    ]
    return tables, notes


def _pairs(
    texts: Sequence[str], option: str, read: Callable[[str], _Read], words: str
) -> dict[str, _Read]:
    """Reads TABLE=VALUE, each table once."""
    values: dict[str, _Read] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            if not equals or not name or name in values:
                raise ValueError
            values[name] = read(value)
        except ValueError as error:
            raise UserError(
                f"{option}: expected a table's name, = and {words}, each table once; received "
                f"{text!r}."
            ) from error
    return values


PLAN = Command(
    "place tables on ranks",
    CommandLine((Tables, Ranks, Step, PlacementOptions)),
    _plan,
    "Places embedding tables on ranks and prints what each rank would hold and exchange, or says "
    "what is missing. Sizes are written like 80GB, 40GiB or 1000000.",
)
