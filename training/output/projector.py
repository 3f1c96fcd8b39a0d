"""Embedding tables as TensorBoard's projector reads them: vectors and names, a line each."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lookback.core.files import atomic_file, inside_ours
from lookback.embeddings.collection import EmbeddingCollection
from lookback.formats.raw_ids import raw_ids_of

CONFIG = "projector_config.pbtxt"
MOST_ROWS = 10_000
"""Of a table: what the projector's browser moves smoothly."""


def write_projector(
    directory: Path,
    embeddings: EmbeddingCollection,
    dataset_dir: Path,
    items: str | None,
    counts: NDArray[np.int64] | None,
) -> str:
    """Writes tables of one process, of long ones a part.

    Args:
      directory: TensorBoard's, of the run.
      embeddings: whose tables lie whole in this process.
      dataset_dir: whose rows they are; its vocabularies name them.
      items: the table that `counts` is of.
      counts: how often its rows occur in training; the most frequent are written.

    Returns:
      What was written, in a line.
    """
    directory.mkdir(parents=True, exist_ok=True)
    told, config = [], []
    for part in embeddings.backend.held:
        table, total = part.shard.table, len(part.shard.rows)
        rows = np.arange(total)
        if table == items and counts is not None:
            rows = np.argsort(-counts[:total], kind="stable")
        rows = np.sort(rows[:MOST_ROWS])
        variable = embeddings.backend.variables[part.variable]
        vectors = np.asarray(variable)[part.start : part.stop][rows]
        text = io.StringIO()
        np.savetxt(text, vectors, fmt="%.6g", delimiter="\t")
        _write(directory / f"{table}.tsv", text.getvalue())
        names = [" ".join(name.split()) for name in _names(dataset_dir, table, rows)]
        _write(directory / f"{table}_names.tsv", "\n".join(names) + "\n")
        config.append(
            f"embeddings {{ tensor_name: {json.dumps(table)} tensor_path: "
            f"{json.dumps(f'{table}.tsv')} metadata_path: {json.dumps(f'{table}_names.tsv')} }}\n"
        )
        told.append(f"{len(rows):,} of {total:,} rows of {table}")
    _write(directory / CONFIG, "".join(config))
    return f"for TensorBoard's projector, in {directory}: {', '.join(told)}"


def _names(dataset_dir: Path, table: str, rows: NDArray[np.int64]) -> list[str]:
    """Raw ids where the dataset knows them, else numbers of rows."""
    raw = raw_ids_of(dataset_dir, table)
    if raw is None:
        return [f"row {row}" for row in rows]
    known, special = raw.take(rows).to_pylist(), raw.names_of(rows).to_pylist()
    return [str(s if k is None else k) for k, s in zip(known, special, strict=True)]


def _write(path: Path, text: str) -> None:
    with atomic_file(path, replaces=inside_ours) as temporary:
        temporary.write_text(text, encoding="utf-8")
