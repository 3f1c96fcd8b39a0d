"""Vocabularies: files of the raw values that a workflow knows, and the ids they have.

Two formats. Of histories, as NVTabular's Categorify writes them (``unique.NAME.parquet``): the
known ids in the order of their indices, which follow `FIRST_KNOWN`. Of tabular data, ours
(``NAME.arrow``): int64 *keys* in ascending order with their ids, from 1, and counts.

The law of keys. A categorical value is

- no value: `MISSING`, -1;
- exactly eight hexadecimal digits in lower case, as Criteo has them: the number they stand for;
- anything else: 62 bits of its hash, with bit 62 set, so it cannot meet a number. Two values of
  one column share a key with a probability of n^2 / 2^63 for n values: 1 in 92,000 for 10 million.

So keys sort as Criteo's values do, and values can be told from keys only where they are digits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookback.core.arrow_files import map_arrow, open_parquet
from lookback.core.errors import UserError

# NVTabular 23.8 reserves these indices of every vocabulary (nvtabular/ops/categorify.py:45-48).
PADDING = 0
NULL = 1
OUT_OF_VOCABULARY = 2
FIRST_KNOWN = 3

UNKNOWN = 0
"""Id, in tabular data, of rare, unknown and missing values; known ones follow from 1."""

MISSING = -1
HEX_DIGITS = 8
HASHED = 1 << 62
"""Bit of the keys that are hashes."""

_BITS = (1 << 64) - 1
_PRIME = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd
_MIX_1 = 0xBF58476D1CE4E5B9  # splitmix64's finaliser
_MIX_2 = 0x94D049BB133111EB

_KEY_TYPES = (pa.uint32(), pa.int64())


def id_file(name: str) -> str:
    """File of the known ids of a feature of histories."""
    return f"unique.{name}.parquet"


def count_column(name: str) -> str:
    """Column of that file which tells how often each id was there when the workflow was fitted."""
    return f"{name}_size"


def key_file(name: str) -> str:
    """File of the known values of a column of tabular data."""
    return f"{name}.arrow"


def read_ids(path: Path, feature: str) -> pa.Array:
    """The known ids of a feature of histories, from index `FIRST_KNOWN` on.

    Args:
      path: of a file that NVTabular's Categorify, or ours, wrote.
      feature: the column that holds the ids; the pandas index must be their indices.

    Raises:
      UserError: if the file is not as expected.
    """
    try:
        with open_parquet(path) as file:
            table = file.read()
        if table.column_names[:2] != [feature, count_column(feature)]:
            raise _no_vocabulary(path, f"the columns {table.column_names}")
        (index,) = (table.schema.pandas_metadata or {})["index_columns"]
        start, values = index["start"], together(table[feature])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _no_vocabulary(path, error) from error
    types = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    known = any(is_type(values.type) for is_type in types) or not len(values)
    if start != FIRST_KNOWN or not known or values.null_count:
        raise _no_vocabulary(
            path,
            f"expected integers or strings without nulls, numbered from {FIRST_KNOWN}, as by "
            f"NVTabular 23.8's Categorify without buckets, found {values.type} from {start}",
        )
    return values


def encode_ids(values: pa.Array, known: pa.Array) -> npt.NDArray[np.int32]:
    """Indices of raw values of histories: of unknown ones `OUT_OF_VOCABULARY`, of nulls `NULL`.

    Args:
      values: strings or integers ``[N]``.
      known: the known ones, in the order of their indices, see `read_ids`.

    Returns:
      ``[N]``
    """
    if not len(known):  # then it has no type either
        known = pa.array([], values.type)
    if pa.types.is_string(values.type) and not pa.types.is_string(known.type):
        known = known.cast(values.type)  # numbers, but among the new ids is text
    elif values.type != known.type:
        values = values.cast(known.type)
    found = pc.index_in(values, value_set=known)
    indices = found.fill_null(OUT_OF_VOCABULARY - FIRST_KNOWN).to_numpy().astype(np.int32)
    indices += np.int32(FIRST_KNOWN)
    if values.null_count:
        indices[values.is_null().to_numpy(zero_copy_only=False)] = NULL
    return indices


class Keys(NamedTuple):
    """The known values of a column of tabular data, mapped from their file.

    Attributes:
      keys: uint32 or int64 ``[K]``, ascending.
      ids: int32 ``[K]``, a permutation of 1 to K.
      counts: int64 ``[K]``.
    """

    keys: npt.NDArray[Any]
    ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]


def read_keys(path: Path) -> Keys:
    """Maps a file of `write_keys`; it is read as far as it is asked for.

    Raises:
      UserError: if the file is not as expected.
    """
    try:
        table = map_arrow(path)
    except (OSError, pa.ArrowException) as error:
        raise _no_vocabulary(path, error) from error
    expected = ({"key": kind, "id": pa.int32(), "count": pa.int64()} for kind in _KEY_TYPES)
    types = dict(zip(table.schema.names, table.schema.types, strict=True))
    if types not in expected or any(column.null_count for column in table.columns):
        raise _no_vocabulary(
            path,
            "expected keys uint32 or int64, ids int32 and counts int64 without nulls, found "
            f"{', '.join(f'{name} {kind}' for name, kind in types.items())}",
        )
    return Keys(*(together(table[name]).to_numpy() for name in table.column_names))


def write_keys(path: Path, keys: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> None:
    """Ranks known values by falling count, those of equal count by key, and writes them.

    Args:
      path: of the file.
      keys: ``[K]``, ascending.
      counts: ``[K]``.
    """
    if keys.dtype != np.uint32:
        keys = keys.astype(np.int64)
    ids = np.empty(len(keys), np.int32)
    # Keys ascend, and a stable sort leaves those of equal count in that order.
    ids[np.argsort(-counts, kind="stable")] = np.arange(1, len(keys) + 1, dtype=np.int32)
    table = pa.table({"key": keys, "id": ids, "count": counts})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def ids_digest(path: Path, feature: str) -> str:
    """SHA-256 of what the ids of a feature of histories stand for: its raw ids, in order.

    Args:
      path: see `read_ids`.
      feature: likewise.
    """
    values = read_ids(path, feature)
    if pa.types.is_integer(values.type) or not len(values):
        return _digest(b"integers", values.cast(pa.int64()).to_numpy().astype("<i8", copy=False))
    lengths = pc.binary_length(values).to_numpy().astype("<i8", copy=False)
    _, offsets, data = values.cast(pa.large_string()).buffers()
    bounds = np.frombuffer(offsets, np.int64)[values.offset :][[0, len(values)]]
    return _digest(b"strings", lengths, np.frombuffer(data, np.uint8)[slice(*bounds)])


def keys_digest(path: Path) -> str:
    """SHA-256 of what the ids of a column of tabular data stand for: its keys, with their ids."""
    keys = read_keys(path)
    return _digest(b"keys", keys.keys.astype("<i8"), keys.ids.astype("<i4", copy=False))


def key_of(value: str | None) -> int:
    """Key of a raw value, see the module.

    Raises:
      ValueError: if it cannot be written as UTF-8.
    """
    if not value:
        return MISSING
    if len(value) == HEX_DIGITS and not value.strip("0123456789abcdef"):
        return int(value, 16)
    data = value.encode()
    return hashed_key(data, 0, len(data), int)


def hashed_key(data: Any, start: int, stop: int, word: Callable[[int], Any]) -> int:
    """Key of the bytes ``data[start:stop]``, which are not hexadecimal digits.

    The workflow compiles this very function, where words wrap by themselves.

    Args:
      data: bytes, or uint8.
      start: of the value.
      stop: where it ends.
      word: makes a number of 64 bits without sign: ``int``, ``np.uint64`` where it is compiled.
    """
    code = word(stop - start)
    for i in range(start, stop):
        code = (code ^ data[i]) * _PRIME & _BITS
        code ^= code >> 29
    code = (code ^ (code >> 30)) * _MIX_1 & _BITS
    code = (code ^ (code >> 27)) * _MIX_2 & _BITS
    code ^= code >> 31
    key: int = code & (HASHED - 1) | HASHED
    return key


def hashed_keys(values: pa.Array) -> npt.NDArray[np.int64]:
    """`hashed_key` of each of some strings, without nulls: all their first bytes, then the next.

    Args:
      values: ``[N]``

    Returns:
      ``[N]``
    """
    _, offsets, data = values.cast(pa.large_string()).buffers()
    bounds = np.frombuffer(offsets, np.int64)[values.offset :][: len(values) + 1]
    text = np.frombuffer(data or b"", np.uint8)
    lengths = np.diff(bounds)
    order = np.argsort(-lengths, kind="stable")  # the longest first: in front those that go on
    starts, code = bounds[:-1][order], lengths[order].astype(np.uint64)
    longer = len(values) - np.cumsum(np.bincount(lengths, minlength=1))
    for place, count in enumerate(longer[:-1].tolist()):
        part = (code[:count] ^ text[starts[:count] + place]) * np.uint64(_PRIME)
        code[:count] = part ^ (part >> np.uint64(29))
    code = (code ^ (code >> np.uint64(30))) * np.uint64(_MIX_1)
    code = (code ^ (code >> np.uint64(27))) * np.uint64(_MIX_2)
    code ^= code >> np.uint64(31)
    keys = np.empty(len(values), np.int64)
    keys[order] = code & np.uint64(HASHED - 1) | np.uint64(HASHED)
    return keys


def together(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, which `combine_chunks` does not give of one without chunks."""
    values = column.combine_chunks()
    return pa.array([], values.type) if isinstance(values, pa.ChunkedArray) else values


def _digest(kind: bytes, *arrays: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256(kind)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _no_vocabulary(path: Path, found: object) -> UserError:
    return UserError(
        f"{path} does not hold the known values as this version of Lookback saves them ({found}). "
        "The workflow is damaged, or of a version that left them to workflow.pkl, which is code "
        "and is not loaded. Save it again with `python -m workflows fit`, or the whole dataset "
        "with `run`."
    )
