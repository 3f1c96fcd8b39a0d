"""Whether the labels of a split are of both classes, read from its parquet files alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError


def both_classes(groups: Iterable[tuple[Path, int]], column: str) -> bool:
    """Reads labels row group by row group, until both classes have occurred.

    Args:
      groups: files, and numbers of row groups in them.
      column: of the labels, 0 and 1.

    Raises:
      UserError: if a file cannot be read.
    """
    seen: set[float] = set()
    for file, group in groups:
        try:
            with open_parquet(file) as parquet:
                labels = parquet.read_row_group(group, columns=[column]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file} cannot be read ({error}). Write the dataset again.") from error
        seen.update(labels.unique().drop_null().to_pylist())
        if len(seen) > 1:
            return True
    return False
