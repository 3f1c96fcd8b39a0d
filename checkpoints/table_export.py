"""A table of a checkpoint as one file that other programs read, with the memory of a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lookback.checkpoints.data_file import full_disk_means
from lookback.checkpoints.format import Checkpoint
from lookback.checkpoints.reshard import StoredTable, tables_of
from lookback.core.errors import UserError
from lookback.core.files import atomic_file
from lookback.core.outputs import check_file, in_words

# It imports pyarrow, and --help answers at once.
if TYPE_CHECKING:
    from lookback.formats.raw_ids import RawIds


def export_table(
    checkpoint: Checkpoint, name: str, output: Path, dataset_dir: Path | None = None
) -> StoredTable:
    """Writes a table.

    Args:
      checkpoint: that has it.
      name: of the table.
      output: a file to create: `.npy`, a matrix `[rows, dim]`; or `.parquet`, with the columns
        `row` (int64) and `vector` (fixed-size list of float32), in the order of rows.
      dataset_dir: a dataset, or a bundle, that knows what the rows stand for. Then `.parquet` has
        two more columns: `raw_id`, null where a row has none (or the vocabulary only its hash), and
        `special`, which names those rows: padding, null (a missing value) or unknown.

    Returns:
      What was written.

    Raises:
      UserError: if there is no such table, `output` exists or ends in something else, or the
        dataset's vocabulary is not of that table.
    """
    table = tables_of(checkpoint).get(name)
    if table is None:
        known = ", ".join(tables_of(checkpoint)) or "none"
        raise UserError(f"{checkpoint.path} has no table {name!r}. It has: {known}.")
    if output.suffix not in WRITERS:
        raise UserError(f"--output: expected {' or '.join(WRITERS)}, received {output.name!r}.")
    inputs = [checkpoint.path, *([] if dataset_dir is None else [dataset_dir])]
    check_file(output, None, inputs)
    raw_ids = None if dataset_dir is None else _raw_ids(table, dataset_dir, output)
    with in_words(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    full = f"no space left for {output}. Free some, or choose another --output."
    with full_disk_means(full), atomic_file(output, inputs=inputs) as temporary:
        WRITERS[output.suffix](checkpoint, table, temporary, raw_ids)
    return table


def _raw_ids(table: StoredTable, dataset_dir: Path, output: Path) -> RawIds:
    """What the rows of a table stand for."""
    from lookback.formats.raw_ids import feature_of, features_with_raw_ids, raw_ids_of

    if output.suffix != ".parquet":
        raise UserError(
            f"--dataset_dir: expected with an --output that ends in .parquet, which has room for "
            f"ids, received {output.name!r}."
        )
    feature = feature_of(table.name)
    raw_ids = raw_ids_of(dataset_dir, feature)
    if raw_ids is None:
        known = ", ".join(features_with_raw_ids(dataset_dir)) or "none"
        raise UserError(
            f"--dataset_dir: {dataset_dir} has no vocabulary of {feature!r}; it has: {known}. "
            "Expected the output of `python -m workflows run`, or a bundle, of the checkpoint's "
            "dataset."
        )
    if len(raw_ids) != table.spec.row_count:
        raise UserError(
            f"--dataset_dir: {dataset_dir} numbers {len(raw_ids)} values of {feature!r}, and table "
            f"{table.name!r} has {table.spec.row_count} rows, so they do not belong together. Give "
            "the dataset that the model was trained on."
        )
    return raw_ids


def _write_npy(
    checkpoint: Checkpoint, table: StoredTable, path: Path, raw_ids: RawIds | None
) -> None:
    assert raw_ids is None  # `_raw_ids` has refused them
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


def _write_parquet(
    checkpoint: Checkpoint, table: StoredTable, path: Path, raw_ids: RawIds | None
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = table.spec.column_count
    ids = [] if raw_ids is None else [("raw_id", raw_ids.known.type), ("special", pa.string())]
    schema = pa.schema([("row", pa.int64()), *ids, ("vector", pa.list_(pa.float32(), dim))])
    start = 0
    # No dictionary: hardly a weight occurs twice.
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for block in checkpoint.blocks(table.tensor):
            rows = np.arange(start, start + len(block), dtype=np.int64)
            values = pa.array(np.asarray(block, np.float32).reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(values, dim)
            named = [] if raw_ids is None else [raw_ids.take(rows), raw_ids.names_of(rows)]
            writer.write_table(pa.table([pa.array(rows), *named, vectors], schema=schema))
            start += len(block)


WRITERS: Mapping[str, Callable[[Checkpoint, StoredTable, Path, RawIds | None], None]] = {
    ".npy": _write_npy,
    ".parquet": _write_parquet,
}
