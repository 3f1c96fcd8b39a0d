"""`scores.parquet`: every scored row of a split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookback.core.files import atomic_file, inside_ours


def write_scores(path: Path, columns: Mapping[str, NDArray], dataset_dir: Path) -> Path:
    """Writes scored rows as parquet.

    Of each id: `NAME`, the raw id, where the dataset has a vocabulary (null where the row stands
    for none: unknown, null); and `NAME_row`, its row in the embedding table. Then `label`, `logit`
    and `probability`, the sigmoid of the logit: where negatives were drawn in training, it says how
    a positive is told from such draws, and is no rate of clicks.

    Args:
      path: the file to write, whole or not at all.
      columns: ``[N]`` by name: label, logit, and encoded ids, in the order in which rows were
        scored.
      dataset_dir: whose rows they are.

    Returns:
      `path`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lookback.formats.raw_ids import raw_ids_of  # brings Arrow, for which help need not wait

    labels, logits = columns["label"], columns["logit"]
    table: dict[str, object] = {}
    for name, rows in columns.items():
        if name in ("label", "logit"):
            continue
        raw = raw_ids_of(dataset_dir, name)
        if raw is not None:
            table[name] = raw.take(rows)
        table[f"{name}_row"] = rows
    table |= {"label": labels.astype("int8"), "logit": logits}
    table["probability"] = 1 / (1 + np.exp(-logits.astype("float64")))
    with atomic_file(path, replaces=inside_ours) as temporary:
        pq.write_table(pa.table(table), temporary)
    return path
