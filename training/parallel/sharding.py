"""Decides where a run's tables live: the backend, and for several processes the plan."""

from __future__ import annotations

from collections.abc import Sequence

from lookback.core.devices import has_gpu
from lookback.core.errors import UserError
from lookback.core.gpus import least_memory
from lookback.core.sizes import format_size
from lookback.core.world import World, require_same
from lookback.embeddings.config import Sharding
from lookback.embeddings.plan_report import describe_plan
from lookback.embeddings.planner import parse_placement, plan_tables
from lookback.embeddings.plans import check_plan, load_plan
from lookback.embeddings.sharding import shards_of
from lookback.embeddings.types import ShardingPlan, TableSpec, Topology
from lookback.training.config import RunConfig
from lookback.training.config_checks import cutting_options

GPU_SHARE = 0.8
"""Of a GPU's memory for tables: the rest is for activations, libraries and what fragments."""

_WIRE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def choose_sharding(
    run: RunConfig, tables: Sequence[TableSpec], world: World
) -> tuple[Sharding, str]:
    """Decides where the rows of `tables` live.

    Args:
      run: says which backend, plan, strategies and memory.
      tables: of the model.
      world: the processes that train together.

    Returns:
      The sharding, and its description for the log ("" if every table is whole, in one process).

    Raises:
      UserError: if the options contradict each other or the world, or no plan fits.
    """
    backend = run.backend or ("local" if world.size == 1 else "horovod")
    if world.size == 1:
        _refuse_what_one_process_ignores(run, backend)
    for option in cutting_options(run) if backend == "sok" else ():
        raise UserError(
            f"{option}: expected with --backend horovod, received sok, whose kernels add "
            "gradients up in no fixed order. Leave one of them out."
        )
    growing = [table.name for table in tables if table.capacity is not None]
    if growing and backend != "sok":
        raise UserError(
            f"embedding_type: expected dynamic with --backend sok, whose tables grow, received it "
            f"with {backend}. Add --backend sok (it needs a GPU), or leave --embedding_type out."
        )
    topology = Topology(
        ranks=world.size,
        # Of a table that grows nobody knows yet how much: only what is asked for is a limit.
        memory=run.memory if growing else _memory(run, world),
        ranks_per_node=min(world.gather(world.local_size)),  # or ranks would plan differently
    )
    if backend == "local":
        if world.size > 1:
            raise UserError(
                f"backend: local keeps all tables in one process, and {world.size} were started. "
                "Leave --backend out; --strategies data_parallel gives every process a copy."
            )
        if topology.memory is not None:
            _plan(run, tables, topology)  # refuses what does not fit
        return Sharding(), ""
    plan = _plan(run, tables, topology)
    description = describe_plan(
        plan,
        topology,
        batch_rows=run.batch_rows,
        optimizer=_optimizer(run),
        wire_bytes=_WIRE_BYTES[run.wire_dtype],
    )
    sharding = Sharding(backend, plan, run.wire_dtype)
    require_same(world, {"plan": sharding.as_config()})  # a file may differ from host to host
    return sharding, description


def _memory(run: RunConfig, world: World) -> float | None:
    """Bytes that a rank has for tables and optimizer state; None: no limit.

    Where training is on GPUs, those of the smallest, or a table that is too large would end the run
    in the middle of its start, in an allocator's words.
    """
    if run.memory is not None:
        return run.memory
    own = least_memory() if has_gpu() else None
    known = [memory for memory in world.gather(own) if memory is not None]
    return GPU_SHARE * min(known) if known else None


def check_placements(run: RunConfig) -> None:
    """Reads what the run says of where tables lie, whatever tables there are.

    Raises:
      UserError: if the plan cannot be read, or a placement is none.
    """
    if run.plan is not None:
        load_plan(run.plan)
    for table, wanted in _overrides(run.placements or ()).items():
        parse_placement(table, wanted)


def _plan(run: RunConfig, tables: Sequence[TableSpec], topology: Topology) -> ShardingPlan:
    if run.plan is not None:
        plan = load_plan(run.plan)
        check_plan(plan, tables, topology.ranks, optimizer=run.optimizer)
        # The run knows its tables better than the plan's author did.
        placements = tuple(plan.placement(table.name) for table in tables)
        plan = ShardingPlan(plan.ranks, tuple(tables), placements)
        _check_memory(plan, topology, _optimizer(run))
        return plan
    strategies = run.strategies
    if run.backend == "sok" and strategies is None:
        strategies = ("table_wise", "row_wise")  # what SOK can do
    return plan_tables(
        tables,
        topology,
        batch_rows=run.batch_rows,
        optimizer=_optimizer(run),
        planner=run.planner,
        strategies=strategies,
        overrides=_overrides(run.placements or ()),
        wire_bytes=_WIRE_BYTES[run.wire_dtype],
        reserve_first_rank=False,
    )


def _optimizer(run: RunConfig) -> str:
    """The optimizer whose state takes memory beside the tables: none, unless the run trains."""
    return run.optimizer if run.mode == "train" else "sgd"


def _overrides(entries: Sequence[str]) -> dict[str, str]:
    """Placements by table, from ``["user_id=table_wise:1", "item_id=column_wise:0", "2"]``.

    The command line splits at commas, those between ranks included.
    """
    joined: list[str] = []
    for entry in entries:
        if "=" in entry:
            joined.append(entry)
        else:
            joined[-1] += f",{entry}"
    return {name: wanted for name, _, wanted in (entry.partition("=") for entry in joined)}


def _check_memory(plan: ShardingPlan, topology: Topology, optimizer: str) -> None:
    if topology.memory is None:
        return
    optimizers = {table.name: table.optimizer or optimizer for table in plan.tables}
    needed = [0] * plan.ranks
    for shard in shards_of(plan):
        needed[shard.rank] += shard.bytes(optimizers[shard.table])
    most = max(needed)
    if most > topology.memory:
        raise UserError(
            f"plan: rank {needed.index(most)} would hold {format_size(most, up=True)} of tables "
            f"and optimizer state, and --memory allows {format_size(topology.memory)}. Make "
            "another with `python -m embeddings plan`, or leave --plan out."
        )


def _refuse_what_one_process_ignores(run: RunConfig, backend: str) -> None:
    ignored = {"gradient_wire_dtype": run.gradient_wire_dtype != "float32"}
    if backend == "local":
        ignored |= {
            "plan": run.plan is not None,
            "planner": run.planner != "cost",
            "strategies": run.strategies is not None,
            "placements": run.placements is not None,
            "wire_dtype": run.wire_dtype != "float32",
            "prefetch_ids": run.prefetch_ids,
        }
    for name, given in ignored.items():
        if given:
            raise UserError(
                f"{name}: expected with several processes, received with one. Start them with "
                f"scripts/run_model.sh --np R, or leave --{name} out."
            )
