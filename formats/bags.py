"""Bags: what a column of several categories an event (genres, tags) refers to by number.

    DIR/bags/NAME.parquet   column `ids`: list<int32>; the row is the number of the bag

An event holds one number, whatever its bag holds, and few bags occur often: see
docs/decisions/0020-typed-columns.md. A bag is the ids of its elements, ascending and distinct, at
most as many as the schema says (M). The numbers that every vocabulary reserves (padding, missing,
unknown) are empty bags; others follow by falling count of events.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import read_parquet
from lookback.core.errors import UserError
from lookback.formats.dataset_info import AGAIN
from lookback.formats.histories import lengths_of, values_of
from lookback.formats.vocabulary import FIRST_KNOWN, PADDING

BAGS_DIRECTORY = "bags"
IDS = "ids"


def bag_file(directory: Path, name: str) -> Path:
    """File of the bags of a column of a dataset."""
    return directory / BAGS_DIRECTORY / f"{name}.parquet"


def write_bags(
    directory: Path, name: str, lengths: npt.NDArray[Any], ids: npt.NDArray[np.int32]
) -> str:
    """Writes the bags of a column; gives their digest, for `histories.content_hash`.

    Args:
      directory: of the dataset.
      name: of the column.
      lengths: ``[R]``, of each bag by number; the first `FIRST_KNOWN` are 0.
      ids: of all elements, bag after bag.
    """
    file = bag_file(directory, name)
    file.parent.mkdir(exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    bags = pa.ListArray.from_arrays(offsets, ids.astype(np.int32, copy=False))
    pq.write_table(pa.table({IDS: bags}), file, compression="zstd")
    digest = hashlib.sha256(np.asarray(lengths, "<i8").tobytes())
    digest.update(ids.astype("<i4", copy=False).tobytes())
    return digest.hexdigest()


def read_bags(directory: Path, name: str, most: int, rows: int) -> npt.NDArray[np.int32]:
    """The bags of a column, each padded with 0 on the right: ``[R, M]``.

    Args:
      directory: of the dataset.
      name: of the column.
      most: M, the size of the largest bag that the schema allows.
      rows: of the table of the elements.

    Raises:
      UserError: if the file is missing, or does not hold bags of such elements.
    """
    file = bag_file(directory, name)
    try:
        column = read_parquet(file, [IDS])[IDS]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{file} cannot be read ({error}). {AGAIN}") from error
    if column.type != pa.list_(pa.int32()) or column.null_count:
        raise _no_bags(file, f"expected lists of int32 without nulls, found {column.type}")
    lengths, ids = lengths_of(column), values_of(column)
    reserved = lengths[:FIRST_KNOWN].tolist()
    if reserved != [0] * FIRST_KNOWN:
        raise _no_bags(file, f"expected {FIRST_KNOWN} empty bags first, found lengths {reserved}")
    if lengths.max() > most:
        raise _no_bags(file, f"expected at most {most} elements a bag, found {lengths.max()}")
    if len(ids) and not PADDING < int(ids.min()) <= int(ids.max()) < rows:
        found = f"[{ids.min()}, {ids.max()}]"
        raise _no_bags(file, f"expected elements in [1, {rows - 1}], found {found}")
    bag = np.repeat(np.arange(len(lengths)), lengths)
    if np.any((np.diff(ids) <= 0) & (bag[1:] == bag[:-1])):
        raise _no_bags(file, "expected the elements of a bag to ascend and to differ")
    return padded(lengths, ids, most)


def padded(lengths: npt.NDArray[Any], ids: npt.NDArray[Any], most: int) -> npt.NDArray[np.int32]:
    """Bags as rows, padded with 0 on the right: ``[R, M]``.

    Args:
      lengths: of each bag, at most M. ``[R]``
      ids: of all elements, bag after bag.
      most: M.
    """
    table = np.full((len(lengths), most), PADDING, np.int32)
    bag = np.repeat(np.arange(len(lengths)), lengths)
    first = np.cumsum(lengths) - lengths
    table[bag, np.arange(len(ids)) - first[bag]] = ids
    return table


def _no_bags(file: Path, found: str) -> UserError:
    return UserError(f"{file} does not hold the bags of this dataset: {found}. {AGAIN}")
