"""Table sizes of NVIDIA's public DLRM recipes on Criteo's 1 TB, by frequency threshold."""

from __future__ import annotations

from lookback.embeddings.types import TableSpec
from lookback.workflows.generators.criteo_tables import ROWS

DIM = 128
BATCH_ROWS = 65536
MEMORY_A_RANK = 80e9


def criteo_tables(threshold: str) -> list[TableSpec]:
    """The 26 tables of a recipe, one id a row each."""
    return [TableSpec(f"cat_{n}", rows, DIM) for n, rows in enumerate(ROWS[threshold])]
