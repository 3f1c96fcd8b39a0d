"""Tabular datasets in the layout that NVIDIA's DLRM and DCNv2 read: ``split_binary``.

NVIDIA's tools know the splits ``train`` and ``test`` alone, so the validation rows lie beside them
and are not named (`formats.feature_spec`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lookback.core.errors import UserError
from lookback.formats.dataset_info import SPLITS, read_tabular_info
from lookback.formats.feature_spec import NAMED_SPLITS, write_feature_spec
from lookback.formats.tabular_files import column_names, parts
from lookback.workflows.output import SPLIT_BINARY, Output

if TYPE_CHECKING:
    import pyarrow as pa


def export_split_binary(
    input_dir: str | Path, output_dir: str | Path, *, overwrite: bool = False
) -> int:
    """Writes a dataset as ``split_binary``, row group by row group; gives the number of rows.

    Args:
      input_dir: a tabular dataset.
      output_dir: to create.
      overwrite: replace split_binary files of ours at `output_dir`.

    Raises:
      UserError: if `input_dir` is no tabular dataset, or `output_dir` is there.
    """
    from lookback.formats.split_binary import write_split

    directory = Path(input_dir)
    target = Output(Path(output_dir), SPLIT_BINARY, overwrite, (directory,))
    cardinalities = read_tabular_info(directory)["cardinalities"]
    numerical, _ = column_names(len(_numerical_columns(directory)), 0)
    with target.create() as output:
        rows = 0
        for split in SPLITS:
            files = parts(directory, split)
            if files or split in NAMED_SPLITS:
                rows += write_split(output / split, _tables(files), numerical, cardinalities)
        write_feature_spec(output, len(numerical), cardinalities)
    return rows


DATASET_TYPES: dict[str, Callable[..., int]] = {"split_binary": export_split_binary}
"""Layouts: (input, output, overwrite) -> rows written."""


def _numerical_columns(directory: Path) -> list[str]:
    from lookback.core.arrow_files import open_parquet

    for split in SPLITS:
        for file in parts(directory, split):
            columns = open_parquet(file).schema_arrow.names
            return [name for name in columns if name.startswith("num_")]
    raise UserError(f"{directory} has no rows to export.")


def _tables(files: list[Path]) -> Iterator[pa.Table]:
    """Row groups, one after another."""
    from lookback.core.arrow_files import open_parquet

    for file in files:
        parquet = open_parquet(file)
        for group in range(parquet.num_row_groups):
            yield parquet.read_row_group(group)
