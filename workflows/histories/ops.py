"""NVTabular operators of the history workflow, and the workflow itself.

The pickle of a saved workflow refers to these classes by name, so NVTabular loads it only with this
package on the path; `restore_workflow` needs no pickle. What NVTabular's users need to encode raw
ids on another machine is saved apart, from NVTabular's own classes only: see `save_workflow`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import merlin.dtypes as md
import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
from merlin.dag import Graph
from merlin.dtypes.shape import DefaultShapes
from merlin.schema import ColumnSchema, Schema
from nvtabular import ops

from lookback.core.arrow_files import open_parquet, read_parquet
from lookback.formats import history_columns as names
from lookback.formats.history_columns import Column
from lookback.formats.vocabulary import (
    count_column,
    encode_ids,
    ids_digest,
    read_ids,
)
from lookback.workflows.histories.gather import encode_column, first_events
from lookback.workflows.histories.vocabulary_files import (
    VOCABULARY_DIRECTORY,
    count_columns,
    merge_columns,
    order_vocabulary,
    raw_type,
    read_vocabulary,
    vocabulary_file,
    write_vocabularies,
)
from lookback.workflows.saved import write_options, write_workflow

COUNTS_MERGED_AT_ONCE = 8  # NVTabular's own `split_every`
ENCODER_DIRECTORY = "encoder"


class HistoryVocabulary(ops.Categorify):
    """`nvtabular.ops.Categorify`, fitted and applied with Arrow on CPU.

    The files it writes and the ids it gives are Categorify's: 0 padding, 1 null, 2 out of
    vocabulary, then the known values by falling count. Four things differ:

    - values of equal count follow in the order of the values themselves, so a vocabulary depends
      on the data alone (upstream sorts the counts with an unstable sort, categorify.py:1322);
    - a vocabulary can go on from another one: its ids stay, and new values follow (what
      NVTabular#798 asks for);
    - a partition without rows passes (upstream fails on it: ``dropna().iloc[0]``, :1663);
    - counting and looking up run on Arrow's kernels: about 10 times the speed of the merge of
      string columns, and without the interpreter's lock.

    On a GPU (cuDF frames) upstream's code runs, and only the order is put right.

    Args:
      freq_threshold: for each column, the count below which a value is left out (and so becomes
        index 2); 0 keeps all.
      out_path: directory for the vocabulary files.
      known: of columns the file of a vocabulary that the new one goes on from; None: of none.
    """

    def __init__(
        self,
        freq_threshold: dict[str, int],
        out_path: str | os.PathLike[str],
        known: Mapping[str, Path] | None = None,
    ) -> None:
        super().__init__(
            freq_threshold=freq_threshold, out_path=str(out_path), dtype=np.dtype(np.int32)
        )
        self._fitted_upstream = False
        self._known = dict(known or {})

    def fit(self, col_selector: nvt.ColumnSelector, ddf: Any) -> Any:
        """Counts the values of each column; the counts are merged in a tree."""
        self._fitted_upstream = not isinstance(ddf._meta, pd.DataFrame)
        if self._fitted_upstream:
            return super().fit(col_selector, ddf)
        count = dask.delayed(count_columns)
        merge = dask.delayed(merge_columns)
        level = [count(partition, list(col_selector.names)) for partition in ddf.to_delayed()]
        while len(level) > 1:
            step = COUNTS_MERGED_AT_ONCE
            level = [merge(level[i : i + step]) for i in range(0, len(level), step)]
        return dask.delayed(write_vocabularies)(
            level[0], self.out_path, self.freq_threshold, self._known
        )

    def fit_finalize(self, categories: dict[str, str]) -> None:
        """Takes the paths of the vocabulary files, in the canonical order."""
        super().fit_finalize(categories)
        if self._fitted_upstream:
            for name, path in categories.items():
                order_vocabulary(name, Path(path), self._known.get(name))
        self._known = {}  # paths of this run alone are not to be saved

    def transform(self, col_selector: nvt.ColumnSelector, df: Any) -> Any:
        """Replaces raw values by their int32 indices."""
        if not isinstance(df, pd.DataFrame):
            return super().transform(col_selector, df)
        encoded = df.copy(deep=False)
        for name in col_selector.names:
            encoded[name] = self._encode(name, df[name])
        return encoded

    def _encode(self, name: str, series: pd.Series) -> np.ndarray[Any, np.dtype[np.int32]]:
        path = Path(self.categories[name])
        vocabulary = read_vocabulary(path, name, path.stat().st_mtime_ns)
        values = pa.array(series, from_pandas=True)
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        return encode_ids(values, vocabulary)


Vocabulary = HistoryVocabulary
"""The name in pickles that earlier versions saved."""


class MinInteractions:
    """Keeps the events of the users who have enough of them; the callable of a `Filter`.

    It counts inside a partition, so a user's events must all lie in one.

    Args:
      minimum: fewest events of a user who is kept.
    """

    def __init__(self, minimum: int) -> None:
        self.minimum = minimum

    def __call__(self, df: Any) -> Any:
        """Whether to keep each row of a frame."""
        counts = df[names.HISTORY_ID].value_counts()
        return df[names.HISTORY_ID].isin(counts[counts >= self.minimum].index)


class DifferentInteractions(MinInteractions):
    """Keeps, of the users who have enough events, the first in time with each item.

    Args:
      minimum: fewest events of a user who is kept, counted before any is left out.
      fewest_items: fewest events that a user must have after it.
    """

    def __init__(self, minimum: int, fewest_items: int) -> None:
        super().__init__(minimum)
        self.fewest_items = fewest_items

    def __call__(self, df: Any) -> Any:
        """Whether to keep each row of a frame."""
        kept = super().__call__(df) & self._first_events(df)
        counts = df[names.HISTORY_ID][kept].value_counts()
        return kept & df[names.HISTORY_ID].isin(counts[counts >= self.fewest_items].index)

    def _first_events(self, df: Any) -> Any:
        history, item, time = names.HISTORY_ID, names.ITEM_ID, names.TIMESTAMP
        if not isinstance(df, pd.DataFrame):
            # Not run by our tests: they have no cuDF.
            ordered = df[[history, item, time]].sort_values([history, time])
            return ~ordered.duplicated([history, item]).sort_index()
        items = encode_column(pa.chunked_array([pa.array(df[item], from_pandas=True)]))
        codes = items.indices.fill_null(len(items.dictionary)).to_numpy().astype(np.int64)
        return first_events(df[history].to_numpy(), df[time].to_numpy(), codes)


class HistoryLists(ops.Groupby):
    """`nvtabular.ops.Groupby` from events to one row a history, lists oldest event first.

    Three things differ from upstream's operator:

    - it declares no dependency on its key. Upstream's makes the executor fetch the key from the
      raw input, over the parent's output of that name (groupby.py:148-150): an encoded key comes
      back raw, and after a filter its rows no longer match the others;
    - columns keep their names (upstream appends ``_list``);
    - the sort is stable, so events of equal time stay in the order they came in, and on CPU lists
      are cut from one sorted array instead of collected row by row (about 10 times faster).

    Args:
      user_columns: columns of which a history keeps its first value.
      list_columns: columns of which a history keeps all values.
      label: column of which events are 1 that belong to the lists (on CPU alone); None: all do. A
        history without such events has empty lists.
    """

    label_column: str | None = None  # of a pickle of an earlier version

    def __init__(
        self, user_columns: Sequence[str], list_columns: Sequence[str], label: str | None = None
    ) -> None:
        self.user_columns = list(user_columns)
        self.list_columns = list(list_columns)
        self.label_column = label
        super().__init__(
            groupby_cols=[names.HISTORY_ID],
            sort_cols=[names.TIMESTAMP],
            aggs={
                **{name: ["first"] for name in user_columns},
                **{name: ["list"] for name in list_columns},
            },
        )

    @property
    def dependencies(self) -> list[str]:
        """None: the key comes from the parents."""
        return []

    def column_mapping(self, col_selector: nvt.ColumnSelector) -> dict[str, list[str]]:
        """Each column under its own name; the key is dropped."""
        return {name: [name] for name in self.user_columns + self.list_columns}

    def _compute_dtype(self, col_schema: ColumnSchema, input_schema: Schema) -> ColumnSchema:
        return col_schema.with_dtype(input_schema[col_schema.name].dtype)

    def _compute_shape(self, col_schema: ColumnSchema, input_schema: Schema) -> ColumnSchema:
        is_list = col_schema.name in self.list_columns
        return col_schema.with_shape(DefaultShapes.LIST if is_list else DefaultShapes.SCALAR)

    def transform(self, col_selector: nvt.ColumnSelector, df: Any) -> Any:
        """One row for each value of the key, in the key's order."""
        if not isinstance(df, pd.DataFrame):
            return self._transform_cudf(df)
        keys = df[names.HISTORY_ID].to_numpy()
        times = df[names.TIMESTAMP].to_numpy()
        order = np.lexsort((times, keys))  # mergesort, so stable
        keys = keys[order]
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else keys[:0]
        bounds = np.r_[starts, len(keys)].astype(np.int64)
        histories = {}
        for name in self.user_columns:
            histories[name] = df[name].to_numpy()[order[starts]]
        if self.label_column is not None:
            listed = df[self.label_column].to_numpy()[order] == 1
            order, bounds = order[listed], np.r_[0, np.cumsum(listed)][bounds]
        for name in self.list_columns:
            histories[name] = _cut(df[name].to_numpy()[order], bounds)
        return pd.DataFrame(histories)

    def _transform_cudf(self, df: Any) -> Any:
        # Not run by our tests: they have no cuDF. `ops.Groupby` sorts by time only, so the order
        # that ingest gave to ties is made part of the sort.
        df = df.reset_index(drop=True)
        df["_order"] = df.index
        df = df.sort_values([names.HISTORY_ID, names.TIMESTAMP, "_order"], ignore_index=True)
        groups = df.groupby(names.HISTORY_ID, sort=True)
        lists = groups[self.list_columns].agg(list)
        return groups[self.user_columns].first().join(lists).reset_index(drop=True)


class TagColumns(ops.AddMetadata):
    """`nvtabular.ops.AddMetadata` with the tags of each column, in one node.

    One `AddTags` for each column would run everything before it once for each column: the
    executor keeps no node's result (merlin/dag/executors.py, `_run_upstream_transforms`).

    Args:
      columns: the columns and their tags.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        self.column_tags = {column.name: list(column.tags) for column in columns}

    def column_mapping(self, col_selector: nvt.ColumnSelector) -> dict[str, list[str]]:
        """The columns, in the order of the dataset."""
        return {name: [name] for name in self.column_tags}

    def transform(self, col_selector: nvt.ColumnSelector, df: Any) -> Any:
        """The same frame, columns in the order of the dataset."""
        return df[list(self.column_tags)]

    def _compute_tags(self, col_schema: ColumnSchema, input_schema: Schema) -> ColumnSchema:
        return col_schema.with_tags(self.column_tags[col_schema.name])


@dataclass(frozen=True)
class TypedColumns:
    """What a workflow needs to know of typed features.

    Attributes:
      encoded: columns that come encoded.
      min_counts: fewest events of a value with an id of its own, of columns that have their own.
      label: see `HistoryLists`.
    """

    encoded: tuple[str, ...] = ()
    min_counts: Mapping[str, int] = field(default_factory=dict)
    label: str | None = None


def build_workflow(
    columns: Sequence[Column],
    *,
    min_interactions: int,
    fewest_items: int | None = None,
    frequency_threshold: int,
    vocabulary_directory: str | os.PathLike[str],
    typed: TypedColumns = TypedColumns(),
    known: Mapping[str, Path] | None = None,
) -> nvt.Workflow:
    """The workflow from partitioned raw events to encoded, tagged histories.

    Filter (users) → Categorify → Groupby → tags. The filter comes first, so the vocabularies hold
    what the kept users did and nothing else.

    Args:
      columns: of the histories; every one but the key is a column of the events, too.
      min_interactions: fewest events of a user who is kept.
      fewest_items: None keeps all events of these users. A number leaves of several events with
        the same item only the first, and users with so many events or more after that.
      frequency_threshold: fewest events of an item (or value of an item feature) that gets an
        index of its own. Users are not subject to it: `min_interactions` is their threshold.
      vocabulary_directory: where fitting writes the vocabularies.
      typed: which of the columns come as they are to be, and what else is known of them.
      known: see `HistoryVocabulary`.
    """
    thresholds = {
        column.name: typed.min_counts.get(column.name, frequency_threshold if column.is_list else 0)
        for column in columns
        if column.is_categorical and column.name not in typed.encoded
    }
    categorical = list(thresholds)
    others = [*typed.encoded, *([typed.label] if typed.label else [])]
    events = [names.HISTORY_ID, *categorical, *others, names.TIMESTAMP]
    kept = events >> ops.Filter(f=_filter(min_interactions, fewest_items))
    encoded = kept[categorical] >> HistoryVocabulary(thresholds, vocabulary_directory, known)
    rest = kept[[names.HISTORY_ID, *others, names.TIMESTAMP]]
    # `a + b` changes `a` where `a` is a sum itself (merlin/dag/node.py); `encoded` is not.
    histories = (encoded + rest) >> HistoryLists(
        [column.name for column in columns if not column.is_list],
        [column.name for column in columns if column.is_list],
        typed.label,
    )
    return nvt.Workflow(histories >> TagColumns(columns))


def save_workflow(
    workflow: nvt.Workflow,
    directory: Path,
    options: dict[str, Any],
    beside: Callable[[Path], None] = lambda directory: None,
) -> None:
    """Saves a fitted workflow, its options, and an encoder of raw ids.

    ``directory/encoder`` is a second saved workflow, of `nvtabular.ops.Categorify` alone: it maps
    raw ids to indices on any frame and loads without this package.

    Args:
      workflow: fitted.
      directory: is created.
      options: see `workflows.saved.write_options`.
      beside: writes what else belongs to it there.
    """
    write_workflow(workflow, directory)
    beside(directory)
    categories = vocabulary_of(workflow).categories
    raw = Schema([_raw_column(workflow, name) for name in categories])
    save_encoder(categories, raw, directory / ENCODER_DIRECTORY)
    write_options(options, directory)


def save_encoder(categories: Mapping[str, str], raw: Schema, directory: Path) -> None:
    """Saves `nvtabular.ops.Categorify` with vocabularies, as a workflow of its own.

    Args:
      categories: files of the vocabularies, by column.
      raw: schema of what it encodes.
      directory: is created.
    """
    first = next(iter(categories.values()))
    encoder = ops.Categorify(dtype=np.dtype(np.int32), out_path=str(Path(first).parent.parent))
    _take_vocabularies(encoder, categories)
    write_workflow(nvt.Workflow(list(categories) >> encoder).fit_schema(raw), directory)


def save_values(categories: Mapping[str, str], directory: Path) -> None:
    """`save_encoder` of columns of single values."""
    raw = [ColumnSchema(name, dtype=raw_type(Path(p), name)) for name, p in categories.items()]
    save_encoder(categories, Schema(raw), directory / ENCODER_DIRECTORY)


def restore_workflow(
    vocabularies: Mapping[str, Path],
    columns: Sequence[Column],
    *,
    min_interactions: int,
    fewest_items: int | None,
    frequency_threshold: int,
    typed: TypedColumns = TypedColumns(),
) -> nvt.Workflow:
    """A fitted workflow from saved vocabularies: what `save_workflow` pickled, without the pickle.

    Args:
      vocabularies: see `saved_vocabularies`.
      columns: see `build_workflow`.
      min_interactions: see `build_workflow`; need not be the fit's.
      fewest_items: see `build_workflow`; need not be the fit's.
      frequency_threshold: of the fit; the vocabularies have it in them.
      typed: see `build_workflow`.
    """
    workflow = build_workflow(
        columns,
        min_interactions=min_interactions,
        fewest_items=fewest_items,
        frequency_threshold=frequency_threshold,
        vocabulary_directory=vocabularies[names.USER_ID].parent.parent,
        typed=typed,
    )
    paths = {name: str(path) for name, path in vocabularies.items()}
    _take_vocabularies(vocabulary_of(workflow), paths)
    dtypes = {column.name: md.dtype(column.dtype) for column in columns}
    types = {
        names.HISTORY_ID: md.int64,
        **{name: raw_type(path, name) for name, path in vocabularies.items()},
        **{name: dtypes[name] for name in typed.encoded},
        **({typed.label: md.int8} if typed.label else {}),
        names.TIMESTAMP: md.int64,
    }
    raw = [ColumnSchema(name, dtype=kind, dims=(None,)) for name, kind in types.items()]
    return workflow.fit_schema(Schema(raw))


def add_vocabularies(workflow: nvt.Workflow, files: Mapping[str, Path]) -> None:
    """Makes vocabularies part of a fitted workflow, beside those that it fitted itself."""
    operator = vocabulary_of(workflow)
    paths = {name: str(path) for name, path in files.items()}
    _take_vocabularies(operator, {**operator.categories, **paths})


def saved_vocabularies(directory: Path, columns: Sequence[str]) -> dict[str, Path]:
    """The vocabulary files of a saved workflow, by column.

    Raises:
      UserError: if one is not there, or is none.
    """
    paths = {}
    for name in columns:
        path = vocabulary_file(directory / VOCABULARY_DIRECTORY, name)
        read_ids(path, name)
        paths[name] = path
    return paths


def vocabulary_digests(directory: Path, columns: Sequence[str]) -> dict[str, str]:
    """What the ids of columns stand for, by the vocabularies of a saved workflow."""
    paths = saved_vocabularies(directory, columns)
    return {name: ids_digest(path, name) for name, path in paths.items()}


def vocabulary_of(workflow: nvt.Workflow) -> ops.Categorify:
    """The workflow's Categorify operator."""
    (node,) = Graph.get_nodes_by_op_type([workflow.output_node], ops.Categorify)
    return node.op


def vocabulary_sizes(workflow: nvt.Workflow) -> dict[str, int]:
    """Known values of each categorical column."""
    categories = vocabulary_of(workflow).categories
    return {name: open_parquet(path).metadata.num_rows for name, path in categories.items()}


def user_event_counts(workflow: nvt.Workflow) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Events of each known user when the workflow was fitted, in the order of their indices."""
    path = vocabulary_of(workflow).categories[names.USER_ID]
    table = read_parquet(path, [count_column(names.USER_ID)])
    return table.column(0).to_numpy().astype(np.int64)


def _filter(min_interactions: int, fewest_items: int | None) -> MinInteractions:
    if fewest_items is None:
        return MinInteractions(min_interactions)
    return DifferentInteractions(min_interactions, fewest_items)


def _cut(
    values: np.ndarray[Any, Any], bounds: np.ndarray[Any, np.dtype[np.int64]]
) -> np.ndarray[Any, Any]:
    """Slices `values` at `bounds` (one more than there are lists) into an array of arrays."""
    lists = np.empty(len(bounds) - 1, dtype=object)
    edges = bounds.tolist()
    for i in range(len(lists)):
        lists[i] = values[edges[i] : edges[i + 1]]
    return lists


def _raw_column(workflow: nvt.Workflow, name: str) -> ColumnSchema:
    """What the encoder takes: raw values, of bags lists of elements."""
    if name in vocabulary_columns(workflow):
        return workflow.input_schema[name]
    return ColumnSchema(name, dtype=md.object_, is_list=True, is_ragged=True)


def vocabulary_columns(workflow: nvt.Workflow) -> list[str]:
    """Names of the columns that the workflow itself encodes."""
    (node,) = Graph.get_nodes_by_op_type([workflow.output_node], ops.Categorify)
    return list(node.input_columns.names)


def _take_vocabularies(operator: ops.Categorify, paths: Mapping[str, str]) -> None:
    """Fits an operator with files that are there. As its `vocabs` their paths would be saved."""
    operator.fit_finalize(paths)
    operator.fitted = True
