"""A checkpoint laid out for another number of ranks, without the ranks.

One pass over the old data files, each read in its own order, a block at a time; all new files grow
together. So memory is that of a block, whatever the size of the tables.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from lookback.checkpoints.data_file import (
    DataFile,
    data_file,
    full_disk_means,
    require_space,
)
from lookback.checkpoints.format import Checkpoint
from lookback.checkpoints.manifest import (
    Region,
    TensorSpec,
    checkpoint_name,
    listed,
    merge_entries,
    write_manifest,
)
from lookback.checkpoints.ranges import intersect, place
from lookback.core.errors import UserError
from lookback.core.files import atomic_directory
from lookback.core.outputs import check_directory
from lookback.embeddings.sharding import STRATEGIES, shards_of
from lookback.embeddings.types import Placement, Shard, ShardingPlan, TableSpec

_SPARE = 1 << 20  # bytes: more than the manifest and the alignment of pieces take


@dataclasses.dataclass(frozen=True)
class StoredTable:
    """A table in a checkpoint.

    Attributes:
      name: of the table.
      spec: its shape `[rows, dim]` and type.
      slots: name -> tensor of its optimizer's state that has a row for each of its rows.
    """

    name: str
    spec: TensorSpec
    slots: Mapping[str, str]

    @property
    def tensor(self) -> str:
        """Name of the tensor with its rows."""
        return f"table/{self.name}"


def tables_of(checkpoint: Checkpoint) -> dict[str, StoredTable]:
    """The tables of a checkpoint by name."""
    prefix = "table/"
    specs = {
        tensor.removeprefix(prefix): spec
        for tensor, spec in checkpoint.specs.items()
        if tensor.startswith(prefix) and len(spec.shape) == 2
    }
    slots: dict[str, dict[str, str]] = {name: {} for name in specs}
    for tensor, spec in checkpoint.specs.items():
        # A table's name may begin like another's: the longest that fits is meant.
        owners = [name for name in specs if tensor.startswith(f"optimizer/{name}/")]
        owner = max(owners, key=len, default=None)
        if owner is not None and spec.shape[:1] == specs[owner].shape[:1]:
            slots[owner][tensor.removeprefix(f"optimizer/{owner}/")] = tensor
    return {name: StoredTable(name, spec, slots[name]) for name, spec in specs.items()}


def row_wise_plan(checkpoint: Checkpoint, ranks: int) -> ShardingPlan:
    """Every table's rows dealt out over so many ranks.

    Raises:
      UserError: if `ranks` is not at least 1.
    """
    if ranks < 1:
        raise UserError(f"--ranks: expected 1 or more, received {ranks}.")
    tables = tuple(
        TableSpec(table.name, table.spec.row_count, table.spec.column_count)
        for table in tables_of(checkpoint).values()
    )
    return ShardingPlan(ranks, tables, tuple(Placement(table.name, "row_wise") for table in tables))


def reshard(checkpoint: Checkpoint, plan: ShardingPlan, directory: Path) -> Path:
    """Writes a checkpoint anew: the files, and the rows in each, that the ranks of a plan hold.

    The state of a table's optimizer goes where its rows go, everything else to the first file.
    Nothing is verified here.

    Args:
      checkpoint: to copy.
      plan: of its tables.
      directory: of checkpoints; to be created, or empty.

    Returns:
      The new checkpoint, `directory/step-...`.

    Raises:
      UserError: if the plan has other tables, cannot hold the state of their optimizer, or there is
        no room; nothing is left then.
    """
    regions = _regions(checkpoint, plan)
    check_directory(directory, None, inputs=[checkpoint.path])
    path = directory / checkpoint_name(checkpoint.step)
    full = f"no space left in {directory} for the resharded checkpoint. Choose another --output."
    with full_disk_means(full):
        require_space(directory, sum(s.size for s in checkpoint.specs.values()) + _SPARE)
        with atomic_directory(path) as temporary:
            with contextlib.ExitStack() as stack:
                paths = [temporary / data_file(rank) for rank in range(plan.ranks)]
                files = [stack.enter_context(DataFile(path)) for path in paths]
                for name in checkpoint:
                    _copy(checkpoint, name, {files[r]: g for r, g in regions[name].items()})
            write_manifest(
                temporary,
                step=checkpoint.step,
                meta=checkpoint.meta,
                files={file.path.name: file.size for file in files},
                entries=merge_entries(file.entries for file in files),
            )
    return path


def _copy(checkpoint: Checkpoint, name: str, regions: Mapping[DataFile, Region]) -> None:
    spec = checkpoint.specs[name]
    for file, region in regions.items():
        file.begin(name, spec, region)
    start = 0
    for block in checkpoint.blocks(name):
        rows = range(start, start + len(block))
        for file, region in regions.items():
            part = block[place(intersect(region.rows, rows), rows)]
            if len(spec.shape) == 2:
                part = part[:, region.columns.start : region.columns.stop]
            file.write(part)
        start = rows.stop
    for file in regions:
        file.end()


def _regions(checkpoint: Checkpoint, plan: ShardingPlan) -> dict[str, dict[int, Region]]:
    """What each rank of the plan holds of each tensor."""
    tables = tables_of(checkpoint)
    _require_same_tables(checkpoint, tables, plan)
    owner = {t: table for table in tables.values() for t in (table.tensor, *table.slots.values())}
    shards = _stored_shards(plan)
    regions = {}
    for name, spec in checkpoint.specs.items():
        whole = Region(range(spec.row_count), range(spec.column_count))
        regions[name] = {0: whole}
        if name in owner:
            table = owner[name]
            regions[name] = {
                shard.rank: Region(shard.rows, _columns(table, shard, name, spec))
                for shard in shards[table.name]
                if shard.rows
            }
    return regions


def _stored_shards(plan: ShardingPlan) -> dict[str, list[Shard]]:
    """The shards of each table; of those that every rank holds alike, the first."""
    shards: dict[str, list[Shard]] = {table.name: [] for table in plan.tables}
    for shard in shards_of(plan):
        strategy = STRATEGIES[plan.placement(shard.table).strategy]
        if strategy.exchanged or not shards[shard.table]:
            shards[shard.table].append(shard)
    return shards


def _columns(table: StoredTable, shard: Shard, name: str, spec: TensorSpec) -> range:
    """Those of a tensor that go with a shard of its table."""
    if spec.shape == table.spec.shape:
        return shard.columns
    if len(shard.columns) != table.spec.column_count:
        raise UserError(
            f"table {table.name!r}: the plan cuts its columns, but {name} ({spec}) has one state "
            "for a whole row, which no rank would hold. Place the table table-wise or row-wise."
        )
    return range(spec.column_count)


def _require_same_tables(
    checkpoint: Checkpoint, tables: Mapping[str, StoredTable], plan: ShardingPlan
) -> None:
    planned = {table.name: (table.rows, table.dim) for table in plan.tables}
    problems = [f"missing from the plan: {name}" for name in tables if name not in planned]
    problems += [f"not in the checkpoint: {name}" for name in planned if name not in tables]
    problems += [
        f"{name}: the plan has {list(planned[name])}, the checkpoint {list(table.spec.shape)}"
        for name, table in tables.items()
        if name in planned and planned[name] != table.spec.shape
    ]
    if problems:
        raise UserError(
            f"the plan is not one for the tables of {checkpoint.path}: "
            f"{listed(problems, separator='; ')}. Plan for the dataset that it was trained on."
        )
