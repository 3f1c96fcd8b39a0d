"""A table of a checkpoint as one file that other programs read, with the memory of a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lookback.checkpoints.format import Checkpoint, full_disk_means
from lookback.checkpoints.reshard import StoredTable, tables_of
from lookback.core.errors import UserError
from lookback.core.files import atomic_file
from lookback.core.outputs import check_file


def export_table(checkpoint: Checkpoint, name: str, output: Path) -> StoredTable:
    """Writes a table.

    Args:
      checkpoint: that has it.
      name: of the table.
      output: a file to create: `.npy`, a matrix `[rows, dim]`; or `.parquet`, with the columns
        `row` (int64) and `vector` (fixed-size list of float32), in the order of rows.

    Returns:
      What was written.

    Raises:
      UserError: if there is no such table, or `output` exists or ends in something else.
    """
    table = tables_of(checkpoint).get(name)
    if table is None:
        known = ", ".join(tables_of(checkpoint)) or "none"
        raise UserError(f"{checkpoint.path} has no table {name!r}. It has: {known}.")
    if output.suffix not in WRITERS:
        raise UserError(f"--output: expected {' or '.join(WRITERS)}, received {output.name!r}.")
    check_file(output, None, [checkpoint.path])
    output.parent.mkdir(parents=True, exist_ok=True)
    full = f"no space left for {output}. Free some, or choose another --output."
    with full_disk_means(full), atomic_file(output, inputs=[checkpoint.path]) as temporary:
        WRITERS[output.suffix](checkpoint, table, temporary)
    return table


def _write_npy(checkpoint: Checkpoint, table: StoredTable, path: Path) -> None:
    spec = table.spec
    header = {
        "descr": np.lib.format.dtype_to_descr(spec.dtype),
        "fortran_order": False,
        "shape": spec.shape,
    }
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in checkpoint.blocks(table.tensor):
            file.write(np.ascontiguousarray(block).data)


def _write_parquet(checkpoint: Checkpoint, table: StoredTable, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = table.spec.column_count
    schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])
    start = 0
    # No dictionary: hardly a weight occurs twice.
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for block in checkpoint.blocks(table.tensor):
            rows = np.arange(start, start + len(block), dtype=np.int64)
            values = pa.array(np.asarray(block, np.float32).reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(values, dim)
            writer.write_table(pa.table([pa.array(rows), vectors], schema=schema))
            start += len(block)


WRITERS: Mapping[str, Callable[[Checkpoint, StoredTable, Path], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}
