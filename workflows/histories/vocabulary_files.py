"""Files of vocabularies that `nvtabular.ops.Categorify` reads: counted and written with Arrow."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import merlin.dtypes as md
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from lookback.core.arrow_files import open_parquet, read_parquet
from lookback.formats.vocabulary import (
    FIRST_KNOWN,
    NULL,
    OUT_OF_VOCABULARY,
    PADDING,
    count_column,
    id_file,
    read_ids,
    together,
)
from lookback.workflows.histories.value_counts import COUNT, VALUE, count_values, merge_counts

VOCABULARY_DIRECTORY = "categories"  # as NVTabular calls it

_NO_COUNTS = pa.table({VALUE: pa.array([], pa.string()), COUNT: pa.array([], pa.int64())})


def count_columns(df: pd.DataFrame, columns: list[str]) -> dict[str, pa.Table]:
    """Counts of the values of each column; nulls are not values."""
    counts = {}
    for name in columns:
        values = pa.array(df[name], from_pandas=True)
        if pa.types.is_null(values.type):
            continue  # an object column of no values has no type of its own
        counts[name] = count_values(values)
    return counts


def merge_columns(parts: list[dict[str, pa.Table]]) -> dict[str, pa.Table]:
    """Counts of several parts together, as `count_columns` gives them of each."""
    found = dict.fromkeys(name for part in parts for name in part)
    return {name: merge_counts([part[name] for part in parts if name in part]) for name in found}


def write_vocabularies(
    counts: Mapping[str, pa.Table],
    out_path: str | os.PathLike[str],
    thresholds: Mapping[str, int],
    known: Mapping[str, Path],
) -> dict[str, str]:
    """Writes the files that `nvtabular.ops.Categorify` reads; returns their paths by column.

    Args:
      counts: of the values of each column.
      out_path: where to write.
      thresholds: fewest events of a value with an id, by column.
      known: see `HistoryVocabulary`; these values have one in any case.
    """
    directory = Path(out_path) / VOCABULARY_DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name in thresholds:
        table = counts.get(name, _NO_COUNTS)
        kept = _in_order(table, name, thresholds[name], known.get(name))
        left_out = pc.sum(table["count"]).as_py() or 0
        left_out -= pc.sum(kept["count"]).as_py() or 0
        path = vocabulary_file(directory, name)
        _write_vocabulary(name, path, kept)
        pd.DataFrame(
            {
                "kind": ["pad", "null", "oov", "unique"],
                "offset": [
                    PADDING,
                    NULL,
                    OUT_OF_VOCABULARY,
                    FIRST_KNOWN,
                ],
                "num_indices": [1, 1, 1, len(kept)],
                "num_observed": [0, 0, left_out, pc.sum(kept["count"]).as_py() or 0],
            }
        ).to_parquet(directory / f"meta.{name}.parquet")
        paths[name] = str(path)
    return paths


def vocabulary_file(directory: Path, name: str) -> Path:
    """Where a column's is in a directory of vocabularies."""
    return directory / id_file(name)


def raw_type(path: Path, name: str) -> Any:
    """Type of the ids that a vocabulary was fitted on, as a schema has it."""
    found = open_parquet(path).schema_arrow.field(name).type
    return md.int64 if pa.types.is_integer(found) else md.object_


def _in_order(counts: pa.Table, name: str, threshold: int, known: Path | None) -> pa.Table:
    """The values with ids, in their order, and counts (`VALUE`, `COUNT`).

    Those of a vocabulary that was there stay where they are, whatever their counts are now.
    """
    before = _NO_COUNTS
    if known is not None and len(values := read_ids(known, name)):
        if not len(counts):  # then they have no type either
            counts = pa.table({VALUE: values.slice(0, 0), COUNT: counts[COUNT]})
        if pa.types.is_string(values.type) != pa.types.is_string(counts[VALUE].type):
            # Ids are integers as long as all of them are.
            values = values.cast(pa.string())
            counts = counts.set_column(0, VALUE, counts[VALUE].cast(pa.string()))
        values = values.cast(counts[VALUE].type)
        place = pc.index_in(values, value_set=together(counts[VALUE]))
        times = counts[COUNT].take(place).fill_null(0)
        before = pa.table({VALUE: values, COUNT: times.cast(counts[COUNT].type)})
        counts = counts.filter(pc.invert(pc.is_in(counts[VALUE], value_set=values)))
    new = counts.filter(pc.greater_equal(counts[COUNT], threshold))
    new = new.take(pc.sort_indices(new, sort_keys=[(COUNT, "descending"), (VALUE, "ascending")]))
    return pa.concat_tables([before, new]) if len(before) else new


def _write_vocabulary(name: str, path: Path, counts: pa.Table) -> None:
    pd.DataFrame(
        {name: counts[VALUE].to_pandas(), count_column(name): counts[COUNT].to_numpy()},
    ).set_index(pd.RangeIndex(FIRST_KNOWN, FIRST_KNOWN + len(counts))).to_parquet(
        path, compression=None
    )


def order_vocabulary(name: str, path: Path, known: Path | None = None) -> None:
    """Puts a vocabulary that upstream's code fitted in the canonical order."""
    table = read_parquet(path)
    counts = pa.table({VALUE: table[name], COUNT: table[count_column(name)]})
    ordered = _in_order(counts, name, 0, known)
    if ordered[VALUE] != table[name]:
        _write_vocabulary(name, path, ordered)


@functools.lru_cache(maxsize=16)
def read_vocabulary(path: Path, name: str, modified: int) -> pa.Array:
    """The known values, in the order of their indices.

    `modified` is part of the cache's key: a refitted vocabulary has the path of the old one.
    """
    return read_ids(path, name)
