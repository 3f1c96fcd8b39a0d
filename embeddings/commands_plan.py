"""``python -m embeddings plan``: where tables would lie, and what each rank would hold and send."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lookback.core.errors import UserError
from lookback.core.sizes import parse_size
from lookback.embeddings.config import WIRE_DTYPES
from lookback.embeddings.plan_report import describe_plan
from lookback.embeddings.planner import plan_tables
from lookback.embeddings.planners import PLANNERS
from lookback.embeddings.plans import load_tables, save_plan
from lookback.embeddings.sharding import STRATEGIES
from lookback.embeddings.tables import LIST_LENGTH, tables_with_hotness
from lookback.embeddings.types import OPTIMIZER_STATE, TableSpec, Topology

if TYPE_CHECKING:
    from merlin.schema import Schema

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EMBEDDING_DIM = 16  # the default of seed 000's --embedding_dim
GLOBAL_BATCH_SIZE = 131072  # of its --global_batch_size

_BANDWIDTHS = {
    "intra_bandwidth": "that a rank sends within its node",
    "inter_bandwidth": "that a rank sends to other nodes",
    "lookup_bandwidth": "of table rows that a rank reads",
}
_Read = TypeVar("_Read")


def add_parsers(subparsers: Commands) -> None:
    """Adds the command `plan`.

    Args:
      subparsers: of `python -m embeddings`.
    """
    parser = subparsers.add_parser(
        "plan",
        help="place tables on ranks",
        description="Places embedding tables on ranks and prints what each rank would hold and "
        "exchange, or says what is missing. Sizes are written like 80GB, 40GiB or 1000000.",
        allow_abbrev=False,
    )
    parser.set_defaults(func=_plan)
    _add_tables(parser.add_argument_group("tables"))
    _add_ranks(parser.add_argument_group("ranks"))
    _add_step(parser.add_argument_group("a training step"))
    _add_choice(parser.add_argument_group("placement"))
    parser.add_argument("--output", metavar="FILE", help="write the plan there, as YAML")


def _add_tables(group: Any) -> None:
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--dataset_dir", metavar="DIR", help="a dataset: one table for each domain of its schema"
    )
    source.add_argument(
        "--tables",
        metavar="FILE",
        help="YAML with rows and, if wanted, dim, hotness, distinct, optimizer by table name",
    )
    group.add_argument(
        "--embedding_dim",
        type=int,
        default=EMBEDDING_DIM,
        metavar="N",
        help=f"length of a row of tables that name none (default: {EMBEDDING_DIM})",
    )
    group.add_argument(
        "--hotness",
        action="append",
        default=[],
        metavar="TABLE=N",
        help="ids of a table in a row of the batch, all features together; default: one for a "
        "scalar column, the bound of a list column's length in the schema, and "
        f"{LIST_LENGTH:g} where there is none",
    )


def _add_ranks(group: Any) -> None:
    group.add_argument("--ranks", type=int, required=True, metavar="R", help="processes")
    group.add_argument(
        "--memory", metavar="SIZE", help="for tables and optimizer state, a rank; default: no limit"
    )
    group.add_argument(
        "--ranks_per_node", type=int, metavar="N", help="ranks that share a node; default: all"
    )
    for name, words in _BANDWIDTHS.items():
        default = f"{getattr(Topology, name) / 1e9:g}GB"  # a dataclass keeps its defaults there
        group.add_argument(
            f"--{name}",
            default=default,
            metavar="SIZE",
            help=f"bytes a second {words} (default: {default})",
        )


def _add_step(group: Any) -> None:
    group.add_argument(
        "--global_batch_size",
        type=int,
        default=GLOBAL_BATCH_SIZE,
        metavar="N",
        help=f"rows of a batch, on all ranks together (default: {GLOBAL_BATCH_SIZE})",
    )
    group.add_argument(
        "--optimizer",
        choices=sorted(OPTIMIZER_STATE),
        default="adam",
        help="of the tables that name none (default: adam)",
    )
    group.add_argument(
        "--wire_dtype",
        choices=WIRE_DTYPES,
        default="float32",
        help="type in which vectors and gradients travel (default: float32)",
    )


def _add_choice(group: Any) -> None:
    group.add_argument(
        "--planner",
        choices=list(PLANNERS),
        default="cost",
        help="cost: the shortest step; largest_first: whole tables, from the largest on, where "
        "most memory is free (seed 004) (default: cost)",
    )
    group.add_argument(
        "--strategies",
        metavar="NAME,NAME,...",
        help=f"those that may be chosen, of {', '.join(STRATEGIES)}; default: the planner's own",
    )
    group.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="TABLE=STRATEGY",
        help="a table's strategy, with ranks if wanted: item_id=row_wise, item_id=table_wise:3",
    )
    group.add_argument(
        "--reserve_first_rank",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="largest_first: no tables on rank 0, to leave it to a bottom MLP, as seed 004 does",
    )


def _plan(args: argparse.Namespace) -> None:
    topology = _topology(args)
    tables, notes = _tables(args)
    step = {
        "batch_rows": args.global_batch_size,
        "optimizer": args.optimizer,
        "wire_bytes": 4 if args.wire_dtype == "float32" else 2,
    }
    plan = plan_tables(
        tables,
        topology,
        planner=args.planner,
        strategies=None if args.strategies is None else args.strategies.split(","),
        overrides=_pairs(args.override, "--override", str, "a strategy"),
        reserve_first_rank=args.reserve_first_rank,
        **step,
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if args.output is not None:
        save_plan(plan, args.output, [] if args.tables is None else [Path(args.tables)])
    print(describe_plan(plan, topology, **step))
    if args.output is not None:
        print(f"plan: {args.output}")


def _topology(args: argparse.Namespace) -> Topology:
    try:
        return Topology(
            args.ranks,
            None if args.memory is None else parse_size(args.memory, "--memory"),
            args.ranks_per_node,
            **{name: parse_size(getattr(args, name), f"--{name}") for name in _BANDWIDTHS},
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _tables(args: argparse.Namespace) -> tuple[list[TableSpec], list[str]]:
    """The tables, and what was assumed about them."""
    assumed: list[str] = []
    if args.embedding_dim < 1:
        raise UserError(f"--embedding_dim must be at least 1, received {args.embedding_dim}.")
    if args.tables is not None:
        tables = load_tables(args.tables, args.embedding_dim)
    else:
        schema = _read_schema(Path(args.dataset_dir))
        try:
            tables, assumed = tables_with_hotness(schema, args.embedding_dim)
        except ValueError as error:
            raise UserError(str(error)) from error
        if not tables:
            raise UserError(
                f"The schema in {args.dataset_dir} has no categorical column, so there is no table "
                "to place. Write the dataset with `python -m workflows`, or tag its schema."
            )
    names = [table.name for table in tables]
    hotness = _pairs(args.hotness, "--hotness", float, "a number of ids")
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


def _read_schema(directory: Path) -> Schema:
    if not (directory / "schema.pbtxt").is_file():
        raise UserError(
            f"--dataset_dir: there is no schema.pbtxt in {directory}. Expected the output "
            "directory of `python -m workflows run`."
        )
    with warnings.catch_warnings():
        # merlin regrets aloud that PyTorch and Triton are not there.
        warnings.filterwarnings("ignore", message=".*dtype mappings did not load.*")
        from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

    try:
        return TensorflowMetadata.from_proto_text_file(str(directory)).to_merlin_schema()
    except Exception as error:  # a damaged one raises protobuf's own
        raise UserError(
            f"{directory / 'schema.pbtxt'} cannot be read ({error}); run the workflow again."
        ) from error


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
