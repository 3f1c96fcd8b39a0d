"""Requests of models over rows of N numbers and M categorical values.

A request is a plain dictionary, one row, in one of two forms::

    {"numerical": [3, null, 17], "categorical": ["68fd1e64", null]}
    {"num_0": 3, "num_1": null, "num_2": 17, "cat_0": "68fd1e64", "cat_1": null}

Lists are in the order of the dataset's schema (``describe`` prints it). Every feature must be
there: one that is left out by mistake would be scored all the same. A missing value is null.

A bundle with a workflow takes raw values: numbers, and strings (null or "" for missing); of a log
that was described column by column, values as they stood there (null for missing). One without
takes a row as the model reads it: numbers, and ids from 0 on, none of them null.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.serving.columns import RequestTable
from lookback.serving.encoding import Encoder
from lookback.serving.requests import (
    EncodedBatch,
    Request,
    RequestError,
    attempt,
    check_keys,
    is_list,
)


@dataclasses.dataclass(frozen=True)
class RowEncoder:
    """Encodes requests for one model.

    Attributes:
      numerical: names of the N numbers.
      categorical: names of the M categorical features.
      encoders: of each of them.
    """

    numerical: tuple[str, ...]
    categorical: tuple[str, ...]
    encoders: Mapping[str, Encoder]

    def check(self, index: int, request: Request) -> int:
        """Checks a request's shape, not its values.

        Args:
          index: to name it by.
          request: see the module.

        Returns:
          1, the row's score.

        Raises:
          RequestError: saying what was expected and what came.
        """
        if not _has_lists(request):
            names = (*self.numerical, *self.categorical)
            check_keys(index, "the request", request, needed=names, allowed=())
            return 1
        check_keys(index, "the request", request, needed=(NUMERICAL, CATEGORICAL), allowed=())
        for part, names in self._parts():
            values = request[part]
            if not is_list(values):
                raise RequestError(index, f"{part}: expected a list, received {values!r:.60}")
            if len(values) != len(names):
                raise RequestError(
                    index,
                    f"{part} has {len(values)} entries; expected {len(names)}, {names[0]} to "
                    f"{names[-1]}.",
                )
        return 1

    def encode(
        self, requests: Sequence[Request], counts: Sequence[int] | None = None
    ) -> EncodedBatch:
        """Encodes requests into one batch.

        Args:
          requests: at least one; see the module.
          counts: what `check` said of each; None: they are checked here.

        Returns:
          `numerical` float32 ``[B, N]``, `categorical` int32 ``[B, M]``.

        Raises:
          RequestError: naming the request and the field.
        """
        regular = isinstance(requests, RequestTable) and self._is_regular(requests)
        if counts is None and not regular:
            for index, request in enumerate(requests):
                self.check(index, request)
        numerical, categorical = (
            [
                self._encode(requests, *column, self.encoders[name].encode)
                for name, column in zip(names, self._columns(requests, part, names), strict=True)
            ]
            for part, names in self._parts()
        )
        inputs = {
            NUMERICAL: _matrix(numerical, len(requests), np.float32),
            CATEGORICAL: _matrix(categorical, len(requests), np.int32),
        }
        return EncodedBatch(inputs, (1,) * len(requests))

    def _parts(self) -> Sequence[tuple[str, tuple[str, ...]]]:
        return (NUMERICAL, self.numerical), (CATEGORICAL, self.categorical)

    def _is_regular(self, table: RequestTable) -> bool:
        """Whether all rows of a table have what `check` demands."""
        if set(table.names()) != {NUMERICAL, CATEGORICAL}:
            return set(table.names()) == {*self.numerical, *self.categorical}
        return all(
            table.holds_lists(part) and (table.several("", part).lengths == len(names)).all()
            for part, names in self._parts()
        )

    def _columns(
        self, requests: Sequence[Request], part: str, names: Sequence[str]
    ) -> list[tuple[str, int, Sequence[Any]]]:
        """Part, number and values ``[B]`` of each column."""
        if isinstance(requests, RequestTable):
            if part not in requests.names():
                return [(part, n, requests.one(name).values) for n, name in enumerate(names)]
            joined: Any = requests.several("", part).values
            places = np.arange(len(requests)) * len(names)
            return [(part, n, joined.take(pa.array(places + n))) for n in range(len(names))]
        rows = [_row(request, part, names) for request in requests]
        return [(part, number, [row[number] for row in rows]) for number in range(len(names))]

    def _encode(
        self,
        requests: Sequence[Request],
        part: str,
        number: int,
        values: Sequence[Any],
        encode: Callable[[Sequence[Any]], Any],
    ) -> Any:
        """Encodes a column of all requests at once."""
        try:
            return encode(values)
        except ValueError:
            # Once more one by one, to tell whose it is.
            name = dict(self._parts())[part][number]
            for index, request in enumerate(requests):
                field = f"{part}[{number}] ({name})" if _has_lists(request) else name
                attempt(index, field, encode, values[index : index + 1])
            raise


def _has_lists(request: Any) -> bool:
    return isinstance(request, Mapping) and (NUMERICAL in request or CATEGORICAL in request)


def _row(request: Request, part: str, names: Sequence[str]) -> list[Any]:
    values = request[part] if _has_lists(request) else [request[name] for name in names]
    # NumPy's numbers as Python's: the encoders tell types apart.
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _matrix(columns: Sequence[Any], rows: int, dtype: Any) -> Any:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), dtype)
