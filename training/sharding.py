"""Decides where a run's tables live: the backend, and for several processes the plan."""

from __future__ import annotations

from collections.abc import Sequence

from embeddings.config import Sharding
from embeddings.plan_report import describe_plan
from embeddings.planner import plan_tables
from embeddings.plans import check_plan, load_plan
from embeddings.sharding import shards_of
from embeddings.sizes import format_size, parse_size
from embeddings.types import Plan, TableSpec, Topology
from errors import UserError
from training.config import RunConfig
from training.world import World

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
    topology = Topology(
        ranks=world.size,
        memory=None if run.memory is None else parse_size(run.memory, "memory"),
        ranks_per_node=world.local_size,
    )
    if backend == "local":
        _refuse_what_one_process_ignores(run, world)
        if topology.memory is not None:
            _plan(run, tables, topology)  # refuses what does not fit
        return Sharding(), ""
    plan = _plan(run, tables, topology)
    description = describe_plan(
        plan,
        topology,
        batch_rows=run.global_batch_size,
        optimizer=run.optimizer,
        wire_bytes=_WIRE_BYTES[run.wire_dtype],
    )
    return Sharding(backend, plan, run.wire_dtype), description


def _plan(run: RunConfig, tables: Sequence[TableSpec], topology: Topology) -> Plan:
    if run.plan is not None:
        plan = load_plan(run.plan)
        check_plan(plan, tables, topology.ranks, optimizer=run.optimizer)
        _check_memory(plan, topology, run.optimizer)
        # The run knows its tables better than the plan's author did.
        return Plan(plan.ranks, tuple(tables), tuple(plan.placement(t.name) for t in tables))
    pairs = [entry.partition("=") for entry in run.placements or ()]
    return plan_tables(
        tables,
        topology,
        batch_rows=run.global_batch_size,
        optimizer=run.optimizer,
        planner=run.planner,
        strategies=run.strategies,
        overrides={name: wanted for name, _, wanted in pairs},
        wire_bytes=_WIRE_BYTES[run.wire_dtype],
        reserve_first_rank=False,
    )


def _check_memory(plan: Plan, topology: Topology, optimizer: str) -> None:
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


def _refuse_what_one_process_ignores(run: RunConfig, world: World) -> None:
    if world.size > 1:
        raise UserError(
            f"backend: local keeps all tables in one process, and {world.size} were started. Leave "
            "--backend out; --strategies data_parallel gives every process a copy."
        )
    ignored = {
        "plan": run.plan is not None,
        "strategies": run.strategies is not None,
        "placements": run.placements is not None,
        "wire_dtype": run.wire_dtype != "float32",
        "gradient_wire_dtype": run.gradient_wire_dtype != "float32",
        "prefetch_ids": run.prefetch_ids,
        "shard_histories": run.shard_histories,
    }
    for name, given in ignored.items():
        if given:
            raise UserError(
                f"{name}: expected with several processes, received with one. Start them with "
                f"scripts/run_model.sh --np R, or leave --{name} out."
            )
