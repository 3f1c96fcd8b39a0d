"""Requests as columns: each field of all of them at once, whether they are objects or a table.

What encodes requests reads them here, so that it has no loop over requests, events or candidates:
a table's fields are Arrow arrays from the file to the model.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lookback.core.errors import UserError
from lookback.serving.encoding import Encoder
from lookback.serving.requests import Request, attempt

HISTORY, CANDIDATES = PARTS = ("history", "candidates")
"""Parts of a request that are objects of lists, all of one length."""

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Ragged:
    """A list of values of each request, request after request.

    Attributes:
      values: of all of them, a list or an Arrow array. ``[N]``
      lengths: how many each has. ``[B]``
      given: which requests have the field; the length of others is 0. Bool ``[B]``.
    """

    values: Sequence[Any]
    lengths: Int64
    given: npt.NDArray[np.bool_]

    @property
    def ends(self) -> Int64:
        """Where each request's values end: ``[B]``."""
        return self.lengths.cumsum()

    @property
    def owners(self) -> Int64:
        """Whose each value is: numbers of requests, ``[N]``."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def row(self, index: int) -> Sequence[Any]:
        """The values of one request."""
        end = int(self.ends[index])
        return self.values[end - int(self.lengths[index]) : end]

    def newest(self, most: int) -> Ragged:
        """The last values of each request, at most so many."""
        kept = np.arange(len(self.values)) >= np.repeat(self.ends - most, self.lengths)
        if kept.all():
            return self
        if isinstance(self.values, pa.Array):
            values: Sequence[Any] = self.values.filter(pa.array(kept))
        else:
            values = list(itertools.compress(self.values, kept.tolist()))
        return Ragged(values, np.minimum(self.lengths, most), self.given)


class RequestObjects:
    """Columns of requests that are objects, checked already.

    Args:
      requests: B of them.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def __len__(self) -> int:
        return len(self._requests)

    def one(self, name: str) -> Ragged:
        """A field of one value, or of none where it is not given."""
        values = [(request[name],) for request in self._requests if name in request]
        return _joined(values, [name in request for request in self._requests])

    def several(self, part: str, name: str) -> Ragged:
        """A list of a part of requests; part "": of the requests themselves."""
        parts = [request.get(part, {}) if part else request for request in self._requests]
        values = [own[name] for own in parts if name in own]
        return _joined(values, [name in own for own in parts])


class RequestTable(Sequence[Request]):
    """Requests in a table: a row each, as objects too.

    A part of a request is a column of structs (``history``), or a column for each of its lists
    (``history.item_id``). A list that is null is one that is not given, and so is a null time.

    Args:
      table: of B rows.
      optional: columns of the requests themselves of which null is the same as no value.
    """

    def __init__(self, table: pa.Table, optional: Sequence[str] = ()) -> None:
        self._table = table
        flat = table.flatten()
        repeated = sorted({n for n in flat.column_names if flat.column_names.count(n) > 1})
        if repeated:
            raise UserError(f"expected columns of different names, received {repeated} twice.")
        self._columns = {name: _plain(flat[name]) for name in flat.column_names}
        self._optional = optional

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> RequestTable: ...

    def __getitem__(self, index: int | slice) -> Request | RequestTable:
        """A row as an object, or some rows."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            return RequestTable(self._table.slice(start, stop - start), self._optional)
        request: dict[str, Any] = {}
        for name, column in self._columns.items():
            value = column[index].as_py()
            part, dot, own = name.partition(".")
            if dot and part in PARTS:
                request.setdefault(part, {}).update({} if value is None else {own: value})
            elif value is not None or name not in self._optional:
                request[name] = value
        return request

    def names(self, part: str = "") -> list[str]:
        """The columns of a part; "": of the requests themselves."""
        split = [name.partition(".") for name in self._columns]
        if part:
            return [own for of, dot, own in split if dot and of == part]
        return [
            name
            for name, (of, dot, _) in zip(self._columns, split, strict=True)
            if not (dot and of in PARTS)
        ]

    def one(self, name: str) -> Ragged:
        """A column of one value, or of none where an optional one is null."""
        column = self._columns.get(name)
        if column is None:
            return _nothing(len(self))
        if name not in self._optional or not column.null_count:
            return Ragged(column, np.ones(len(self), np.int64), np.ones(len(self), np.bool_))
        given = column.is_valid()
        mask = given.to_numpy(zero_copy_only=False)
        return Ragged(column.filter(given), mask.astype(np.int64), mask)

    def several(self, part: str, name: str) -> Ragged:
        """A column of lists; part "": of the requests themselves."""
        column = self._columns.get(f"{part}.{name}" if part else name)
        if column is None:
            return _nothing(len(self))
        given = column.is_valid().to_numpy(zero_copy_only=False)
        lengths = pc.list_value_length(column).fill_null(0)
        return Ragged(
            _plain(column.flatten()), lengths.to_numpy(zero_copy_only=False).astype(np.int64), given
        )

    def holds_lists(self, name: str) -> bool:
        """Whether a column of the requests themselves, if there is such, is one of lists."""
        return name not in self._columns or pa.types.is_list(self._columns[name].type)

    def lengths(
        self, part: str, needed: Sequence[str], allowed: Sequence[str], of_all: Sequence[str] = ()
    ) -> Int64 | None:
        """How long the lists of a part are; None if a row is not as it must be.

        Args:
          part: of the requests.
          needed: lists that must be given, the first of them says how long all are.
          allowed: those that may be.
          of_all: of these, the ones that must be given where that one is not empty.
        """
        names = self.names(part)
        if not set(needed) <= set(names) <= {*needed, *allowed}:
            return None
        columns = {name: self._columns[f"{part}.{name}"] for name in names}
        if not all(pa.types.is_list(column.type) for column in columns.values()):
            return None
        lengths = {n: pc.list_value_length(c).fill_null(-1).to_numpy() for n, c in columns.items()}
        longest: Int64 = lengths[needed[0]].astype(np.int64)
        for name, found in lengths.items():
            must = name in needed or (longest > 0 if name in of_all else False)
            if np.any(np.where(found < 0, must, found != longest)):
                return None
        absent = set(of_all) - set(names)
        return None if absent and longest.any() else longest


Columns = RequestObjects | RequestTable


def columns_of(requests: Sequence[Request]) -> Columns:
    """Requests by column."""
    return requests if isinstance(requests, RequestTable) else RequestObjects(requests)


def encode_ragged(encoder: Encoder, field: str, ragged: Ragged) -> npt.NDArray[Any]:
    """Encodes a field of all requests at once: ``[N, ...]``.

    Args:
      encoder: of the values.
      field: its name in a request.
      ragged: its values.

    Raises:
      RequestError: naming the request and the field.
    """
    try:
        return encoder.encode(ragged.values)
    except ValueError:
        # Once more one by one, to tell whose it is.
        for index in np.flatnonzero(ragged.given).tolist():
            attempt(index, field, encoder.encode, ragged.row(index))
        raise


def _joined(lists: Sequence[Sequence[Any]], given: Sequence[bool]) -> Ragged:
    mask = np.array(given, np.bool_)
    lengths = np.zeros(len(mask), np.int64)
    lengths[mask] = [len(values) for values in lists]
    return Ragged(list(itertools.chain.from_iterable(lists)), lengths, mask)


def _nothing(rows: int) -> Ragged:
    return Ragged([], np.zeros(rows, np.int64), np.zeros(rows, np.bool_))


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array of the simplest type for its values."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return column.cast(pa.list_(kind.value_type))
    return column
