"""The files of a tabular dataset, and their writer: parquet parts, schema, ``dataset.json``.

Each part carries a digest of its values in its footer, so the hash of a whole dataset needs no
second look at the data, and parts may be written by any process in any order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet
from lookback.core.manifests import Files
from lookback.formats.dataset_info import FEATURES, SPLITS, TABULAR, VOCABULARIES, write_info
from lookback.formats.part_files import part_name
from lookback.formats.schema import write_schema

LABEL = "label"
ROW_GROUP = 65_536
"""Rows of a row group: what is read, skipped and shuffled as a whole."""

ROWS_A_FILE = 2**22
COMPRESSION = "lz4"
"""Ids are small numbers in four bytes each: lz4 halves them, and reads at the speed of memory."""

_DIGEST = b"lookback.sha256"

Columns = Sequence[np.ndarray[Any, Any]] | np.ndarray[Any, Any]


class TabularWriter:
    """Writes one split, in parts of a fixed number of rows.

    The enclosing directory should be one of `atomic_directory`: a part may be half written.

    Args:
      directory: of the dataset; the split's own is created on the first row.
      split: a name of `SPLITS`.
      numerical: names of the numerical columns, or how many (N): then they are num_0, num_1, ...
      categorical: names of the categorical columns, or how many (M): then they are cat_0, ...
      rows_a_file: rows of each part but the last.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        numerical: int | Sequence[str],
        categorical: int | Sequence[str],
        rows_a_file: int = ROWS_A_FILE,
    ) -> None:
        self._directory = Path(directory) / split
        self._names = column_names(numerical, categorical)
        self._rows_a_file = rows_a_file
        self._pending: list[tuple[np.ndarray[Any, Any], ...]] = []
        self._waiting = 0
        self._parts = 0
        self._rows = 0

    def write(
        self,
        label: np.ndarray[Any, Any],
        numerical: np.ndarray[Any, Any],
        categorical: np.ndarray[Any, Any],
    ) -> None:
        """Appends rows.

        Args:
          label: float32 [n], 0 or 1.
          numerical: float32 [n, N].
          categorical: int32 [n, M].

        Raises:
          ValueError: if the shapes are not these.
        """
        rows = len(label)
        numbers, ids = map(len, self._names)
        expected = ((rows, numbers), (rows, ids))
        if label.ndim != 1 or (numerical.shape, categorical.shape) != expected:
            raise ValueError(
                f"Expected label [n], numerical [n, {numbers}] and categorical [n, {ids}]; "
                f"received {label.shape}, {numerical.shape} and {categorical.shape}."
            )
        start = 0
        while start < rows:
            stop = min(rows, start + self._rows_a_file - self._waiting)
            piece = (label[start:stop], numerical[start:stop], categorical[start:stop])
            # The caller may fill the same buffer again.
            self._pending.append(tuple(array.copy() for array in piece))
            self._waiting += stop - start
            start = stop
            if self._waiting == self._rows_a_file:
                self._flush()

    def close(self) -> int:
        """Writes what is left; gives the number of rows of the split."""
        self._flush()
        return self._rows

    def _flush(self) -> None:
        if not self._waiting:
            return
        label, numerical, categorical = (
            np.concatenate(arrays) for arrays in zip(*self._pending, strict=True)
        )
        self._pending.clear()
        self._directory.mkdir(parents=True, exist_ok=True)
        file = self._directory / part_name(self._parts)
        write_part(file, label, numerical.T, categorical.T, self._names)
        self._parts += 1
        self._rows += self._waiting
        self._waiting = 0


def column_names(
    numerical: int | Sequence[str], categorical: int | Sequence[str]
) -> tuple[list[str], list[str]]:
    """Names of the numerical and of the categorical columns, where they are given or numbered."""

    def names(given: int | Sequence[str], prefix: str) -> list[str]:
        if isinstance(given, int):
            return [f"{prefix}_{number}" for number in range(given)]
        return list(given)

    return names(numerical, "num"), names(categorical, "cat")


def write_part(
    file: Path,
    label: np.ndarray[Any, Any],
    numerical: Columns,
    categorical: Columns,
    names: tuple[Sequence[str], Sequence[str]] | None = None,
) -> None:
    """Writes one parquet file: PLAIN values, row groups of `ROW_GROUP` rows, no nulls.

    Args:
      file: to write.
      label: [n].
      numerical: N columns, each [n].
      categorical: M columns, each [n].
      names: of both; None: `column_names` numbers them.
    """
    nums, cats = names or column_names(len(numerical), len(categorical))
    arrays = {
        LABEL: np.ascontiguousarray(label, "<f4"),
        **{
            name: np.ascontiguousarray(values, "<f4")
            for name, values in zip(nums, numerical, strict=True)
        },
        **{
            name: np.ascontiguousarray(values, "<i4")
            for name, values in zip(cats, categorical, strict=True)
        },
    }
    digest = hashlib.sha256()
    for values in arrays.values():
        digest.update(values.data)
    fields = [
        pa.field(name, pa.from_numpy_dtype(values.dtype), nullable=False)
        for name, values in arrays.items()
    ]
    schema = pa.schema(fields, metadata={_DIGEST: digest.hexdigest().encode()})
    pq.write_table(
        pa.table([pa.array(values) for values in arrays.values()], schema=schema),
        file,
        row_group_size=ROW_GROUP,
        compression=COMPRESSION,
        use_dictionary=False,
        write_statistics=False,
    )


def write_description(
    directory: Path,
    *,
    dataset: str,
    options: Mapping[str, Any],
    counts: Mapping[str, Any],
    cardinalities: Mapping[str, int],
    numerical: int | Sequence[str],
    vocabularies: Mapping[str, str] | None = None,
    features: Mapping[str, Any] | None = None,
    known: Files | None = None,
) -> dict[str, Any]:
    """Writes ``schema.pbtxt``, then ``dataset.json``, which makes the directory a dataset.

    Args:
      directory: with the parts of all splits.
      dataset: name, a key of the registry it came through.
      options: what has a say in the content.
      counts: rows of each split under its name, and what else was counted.
      cardinalities: rows of the table of each categorical column, in order.
      numerical: names of the numerical columns, or how many; see `TabularWriter`.
      vocabularies: what the ids of each column stand for, where a workflow gave them.
      features: the transformation of each column, where each has its own (`formats.transforms`).
      known: see `formats.dataset_info.write_info`.

    Returns:
      the content of ``dataset.json``.
    """
    from lookback.formats.tabular_schema import tabular_schema

    directory = Path(directory)
    content = {
        "dataset": dataset,
        "options": dict(options),
        "counts": dict(counts),
        "cardinalities": dict(cardinalities),
        "content_hash": content_hash(directory, cardinalities, numerical, features),
        VOCABULARIES: dict(vocabularies or {}),
        **({FEATURES: dict(features)} if features else {}),
    }
    write_schema(tabular_schema(numerical, cardinalities), directory)
    return write_info(directory, TABULAR, content, known)


def content_hash(
    directory: Path,
    cardinalities: Mapping[str, int],
    numerical: int | Sequence[str],
    features: Mapping[str, Any] | None = None,
) -> str:
    """``sha256:<hex>`` of the columns, and of the values of each part in order.

    It depends on how rows are spread over parts, which the input and the options decide: workers
    and memory have no say in it.
    """
    names, _ = column_names(numerical, 0)
    content = {
        # Numbered columns are as many as there are, as they were before columns had other names.
        "numerical": len(names) if names == column_names(len(names), 0)[0] else names,
        "cardinalities": dict(cardinalities),
        **({FEATURES: dict(features)} if features else {}),
        "parts": {split: [_digest(file) for file in parts(directory, split)] for split in SPLITS},
    }
    text = json.dumps(content)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def parts(directory: Path, split: str) -> list[Path]:
    """The parts of a split, in order; none where it has no rows."""
    return sorted(Path(directory).joinpath(split).glob("part-*.parquet"))


def _digest(file: Path) -> str:
    with open_parquet(file) as parquet:
        metadata = parquet.schema_arrow.metadata or {}
    if _DIGEST not in metadata:
        raise ValueError(f"{file} was not written by `write_part`: it has no digest.")
    return metadata[_DIGEST].decode()
