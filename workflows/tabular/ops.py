"""NVTabular operators of the tabular workflow, and the workflow itself.

The pickle of a saved workflow refers to these classes by name, so NVTabular loads it only with this
package on the path; `restore_workflow` needs no pickle.
They take pandas frames: of text, as a block was parsed (`workflows.tabular.text.Rows.frame`), or of
raw values, as a request gives them; both come to the same rows.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
from merlin.dag import Graph
from merlin.schema import ColumnSchema, Schema, Tags
from nvtabular import ops

from lookback.formats.numbers import shifted_log
from lookback.formats.tabular_files import LABEL, column_names
from lookback.formats.vocabulary import key_file, keys_digest, read_keys
from lookback.workflows.saved import read_saved_options, write_options, write_workflow
from lookback.workflows.tabular import kernels
from lookback.workflows.tabular.counts import (
    ENDINGS,
    CountedVocabulary,
    write_runs,
    write_vocabulary,
)

VOCABULARY_DIRECTORY = "vocabulary"


class ClickLabel(ops.Operator):
    """The label as float32."""

    def transform(self, col_selector: nvt.ColumnSelector, df: pd.DataFrame) -> pd.DataFrame:
        """Converts the type."""
        return df[col_selector.names].astype(np.float32, copy=False)

    @property
    def output_tags(self) -> list[Tags]:
        """Tags of a target."""
        return [Tags.TARGET, Tags.BINARY_CLASSIFICATION]

    @property
    def output_dtype(self) -> Any:
        """Type of the column."""
        return np.float32


class ShiftedLog(ops.Operator):
    """x -> ln(max(x + 2, 1)) as float32, a missing x counting as 0.

    `nvtabular.ops.FillMissing` >> `LogOp` would fill and copy frame by frame, and `LogOp` is
    ln(x + 1).
    """

    def transform(self, col_selector: nvt.ColumnSelector, df: pd.DataFrame) -> pd.DataFrame:
        """Computes column by column."""
        logs = np.empty((len(col_selector.names), len(df)), np.float32)
        for row, name in zip(logs, col_selector.names, strict=True):
            values = pd.to_numeric(df[name]).to_numpy(np.float64, na_value=np.nan)
            row[:] = shifted_log(values)
        return pd.DataFrame(logs.T, columns=col_selector.names, index=df.index, copy=False)

    @property
    def output_tags(self) -> list[Tags]:
        """Tags of a number."""
        return [Tags.CONTINUOUS]

    @property
    def output_dtype(self) -> Any:
        """Type of the columns."""
        return np.float32


class KeyCategorify(ops.StatOperator):
    """Categorical values -> ids: 0 for rare, unknown and missing ones, known ones from 1.

    Known values follow by falling count; of equal count, by key (`formats.vocabulary`), which for
    Criteo's hashes is the order of the values.

    `nvtabular.ops.Categorify` reserves three ids, and on CPU looks values up by merging frames.

    Args:
      frequency_threshold: fewest occurrences of a known value; 0 makes every value known.
      out_path: directory for the vocabulary files, ``NAME.arrow`` for each column.
    """

    def __init__(self, frequency_threshold: int, out_path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.frequency_threshold = frequency_threshold
        self.out_path = str(out_path)
        self.sizes: dict[str, int] = {}

    def fit(self, col_selector: nvt.ColumnSelector, ddf: Any) -> Any:
        """Counts each partition as a Dask task; the merge is one more."""
        count = dask.delayed(_count_partition)
        names = list(col_selector.names)
        runs = [
            count(partition, names, Path(self.out_path) / f"partition-{number}")
            for number, partition in enumerate(ddf.to_delayed())
        ]
        return dask.delayed(_write_vocabularies)(
            runs, names, self.frequency_threshold, Path(self.out_path)
        )

    def fit_finalize(self, sizes: dict[str, int]) -> None:
        """Takes the number of known values of each column; their files are in `out_path`."""
        self.sizes = dict(sizes)

    def clear(self) -> None:
        """Forgets what was fitted."""
        self.sizes = {}

    def set_storage_path(self, new_path: str, copy: bool = False) -> None:
        """Goes with a workflow that is saved or moved."""
        target = Path(new_path) / VOCABULARY_DIRECTORY
        if copy and target != Path(self.out_path):
            target.mkdir(parents=True, exist_ok=True)
            for name in self.sizes:
                shutil.copyfile(_file(self.out_path, name), _file(target, name))
        self.out_path = str(target)

    def transform(self, col_selector: nvt.ColumnSelector, df: pd.DataFrame) -> pd.DataFrame:
        """Replaces raw values, or their keys, by their int32 ids."""
        ids = np.empty((len(col_selector.names), len(df)), np.int32)
        for row, name in zip(ids, col_selector.names, strict=True):
            path = _file(self.out_path, name)
            vocabulary = _read_vocabulary(path, path.stat().st_mtime_ns)
            vocabulary.look_up(keys_of_column(df[name]), row)
        return pd.DataFrame(ids.T, columns=col_selector.names, index=df.index, copy=False)

    def _compute_properties(self, col_schema: ColumnSchema, input_schema: Schema) -> ColumnSchema:
        name = col_schema.name
        if name not in self.sizes:
            return col_schema
        domain = {"min": 0, "max": self.sizes[name], "name": name}
        return col_schema.with_properties({"domain": domain})

    @property
    def output_tags(self) -> list[Tags]:
        """Tags of an id."""
        return [Tags.CATEGORICAL]

    @property
    def output_dtype(self) -> Any:
        """Type of the columns."""
        return np.int32


def keys_of_column(column: pd.Series) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Keys of a column of strings (None or empty: missing), or of keys."""
    if pd.api.types.is_integer_dtype(column.dtype):
        return np.ascontiguousarray(column.to_numpy(np.int64))
    values = pa.array(column, pa.large_string(), from_pandas=True)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    keys = np.empty(len(values), np.int64)
    present = values.is_valid().to_numpy(zero_copy_only=False)
    _, offsets, data = values.buffers()
    text = np.frombuffer(data or b"", np.uint8)
    kernels.keys_of(text, np.frombuffer(offsets, np.int64)[values.offset :], present, keys)
    return keys


def build_workflow(
    numerical: int,
    categorical: int,
    *,
    frequency_threshold: int,
    vocabulary_directory: Path,
    sizes: Mapping[str, int] | None = None,
) -> nvt.Workflow:
    """The workflow from raw columns to label, logarithms and ids.

    For requests, which have no label: ``workflow.remove_inputs(["label"])``.

    Args:
      numerical: N.
      categorical: M.
      frequency_threshold: see `KeyCategorify`.
      vocabulary_directory: where the vocabulary files are, or where fitting writes them.
      sizes: known values of each column, whose files are there already; without it the workflow
        is yet to be fitted.
    """
    nums, cats = column_names(numerical, categorical)
    categorify = KeyCategorify(frequency_threshold, vocabulary_directory)
    columns = [LABEL] >> ClickLabel()
    if nums:
        columns = columns + (nums >> ShiftedLog())
    if cats:
        columns = columns + (cats >> categorify)
    workflow = nvt.Workflow(columns)
    if sizes is not None:
        categorify.fit_finalize(dict(sizes))
        raw = [ColumnSchema(name) for name in (LABEL, *nums, *cats)]
        workflow.fit_schema(Schema(raw))
    return workflow


def save_workflow(workflow: nvt.Workflow, directory: Path, options: dict[str, Any]) -> None:
    """Saves a fitted workflow with its vocabularies and options; see `workflows.saved`."""
    write_workflow(workflow, directory)
    write_options(options, directory)


def restore_workflow(directory: Path) -> nvt.Workflow:
    """A saved workflow from its vocabularies and options, without its pickle.

    Raises:
      UserError: if something of it is not there, or not as expected.
    """
    options = read_saved_options(directory)["options"]
    _, cats = column_names(0, options["categorical"])
    vocabulary = directory / VOCABULARY_DIRECTORY
    return build_workflow(
        options["numerical"],
        options["categorical"],
        frequency_threshold=options["frequency_threshold"],
        vocabulary_directory=vocabulary,
        sizes={name: len(read_keys(_file(vocabulary, name)).keys) for name in cats},
    )


def vocabulary_digests(directory: Path, names: Sequence[str]) -> dict[str, str]:
    """What the ids of columns stand for, by the vocabularies of a saved workflow."""
    return {name: keys_digest(_file(directory / VOCABULARY_DIRECTORY, name)) for name in names}


def known_values(workflow: nvt.Workflow) -> dict[str, int]:
    """Number of known values of each categorical column."""
    sizes: dict[str, int] = {}
    for node in Graph.get_nodes_by_op_type([workflow.output_node], KeyCategorify):
        sizes.update(node.op.sizes)
    return sizes


def _file(directory: str | os.PathLike[str], name: str) -> Path:
    return Path(directory) / key_file(name)


@functools.lru_cache(maxsize=1024)
def _read_vocabulary(path: Path, modified: int) -> CountedVocabulary:
    """`modified` is part of the cache's key: a refitted vocabulary has the path of the old one."""
    return CountedVocabulary(path)


def _count_partition(df: pd.DataFrame, names: Sequence[str], stem: Path) -> list[Any]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    return write_runs([keys_of_column(df[name]) for name in names], stem)


def _write_vocabularies(
    runs: list[list[Any]], names: Sequence[str], threshold: int, directory: Path
) -> dict[str, int]:
    sizes = {
        name: write_vocabulary(list(of_column), threshold, _file(directory, name))
        for name, of_column in zip(names, zip(*runs, strict=True), strict=True)
    }
    for file in {f"{run.stem}{ending}" for part in runs for run in part for ending in ENDINGS}:
        Path(file).unlink()
    return sizes
