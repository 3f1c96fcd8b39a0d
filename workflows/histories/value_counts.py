"""How often each value occurs: counted in parts, and put together in any order to the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.workflows.histories.gather import encode_column

VALUE = "value"
COUNT = "count"


def count_values(values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The distinct values of a column and how often each occurs; nulls are not values."""
    found = values.drop_null().value_counts()
    return pa.table({VALUE: found.field("values"), COUNT: found.field("counts")})


def count_where(values: pa.ChunkedArray, wheres: Mapping[str, npt.NDArray[Any]]) -> pa.Table:
    """The distinct values of a column and how often each occurs among some rows.

    Args:
      values: ``[N]``, with nulls, which are not values.
      wheres: bool ``[N]`` by name of the count.
    """
    encoded = encode_column(values)
    known = encoded.indices.is_valid().to_numpy(zero_copy_only=False)
    codes = encoded.indices.fill_null(0).to_numpy()
    size = len(encoded.dictionary)
    counts = {
        name: np.bincount(codes[known & where], minlength=size) for name, where in wheres.items()
    }
    return pa.table({VALUE: encoded.dictionary, **counts})


def merge_counts(parts: Sequence[pa.Table]) -> pa.Table:
    """Counts of all parts together, a row a value in no certain order."""
    table = pa.concat_tables(parts)
    values = encode_column(table[VALUE])
    codes = values.indices.to_numpy()
    size = len(values.dictionary)
    # Sums of float64 are exact below 2^53. (Arrow's own group_by warns on each table that
    # came from another process that its buffers are not aligned.)
    sums = {
        name: np.bincount(codes, weights=table[name].to_numpy(), minlength=size).astype(np.int64)
        for name in table.column_names
        if name != VALUE
    }
    return pa.table({VALUE: values.dictionary, **sums})
