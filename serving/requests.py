"""What requests of every layout have in common: errors by number, encoding to one batch.

A request is a plain dictionary; `requests` of each layout in `serving.layouts` says what is in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from lookback.core.errors import UserError

Request = Mapping[str, Any]


class NumberedError(UserError):
    """One of several things that came together is not as it must be.

    Args:
      index: of it.
      detail: what is wrong with it.
    """

    of: ClassVar[str]
    """What they are."""

    def __init__(self, index: int, detail: str) -> None:
        super().__init__(f"{self.of}[{index}]: {detail}")
        self.index = index
        self.detail = detail


class RequestError(NumberedError):
    """It is a request."""

    of = "requests"


@dataclasses.dataclass(frozen=True)
class EncodedBatch:
    """Requests as the model takes them.

    Attributes:
      shared: inputs of the signature that all scores of a request have in common, by name; the
        first axis is the request.
      counts: how many scores each request gets. ``[B]``
      items: the others, of what is to be scored, request after request: ``[N, ...]``. Without any,
        a request is a row, and gets one score.
    """

    shared: dict[str, npt.NDArray[Any]]
    counts: Sequence[int] | npt.NDArray[np.int64]
    items: dict[str, npt.NDArray[Any]] = dataclasses.field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        """Of the signature; those of items ``[B, C, ...]``, 0 beyond a request's own."""
        counts = np.asarray(self.counts, np.int64)
        width = max(1, *counts.tolist())
        return {**self.shared, **{n: padded(v, counts, width) for n, v in self.items.items()}}

    def distinct(self) -> tuple[EncodedBatch, npt.NDArray[np.int64]]:
        """The batch with each item of a request once, as they come first.

        Returns:
          It, and which of its items each item of this one is: ``[N]``.
        """
        counts = np.asarray(self.counts, np.int64)
        owners = np.repeat(np.arange(len(counts)), counts)
        if not self.items or not len(owners):
            return self, owners
        columns = [owners, *self.items.values()]
        whole = np.concatenate([_bytes_of(column) for column in columns], axis=1)
        rows = whole.view(f"V{whole.shape[1]}")[:, 0]
        _, first, found = np.unique(rows, return_index=True, return_inverse=True)
        if len(first) == len(rows):
            return self, np.arange(len(rows))
        order = np.argsort(first)  # `np.unique` sorts by value
        ranks = np.argsort(order)
        kept = first[order]
        return EncodedBatch(
            self.shared,
            np.bincount(owners[kept], minlength=len(counts)),
            {name: values[kept] for name, values in self.items.items()},
        ), ranks[found]


class RequestEncoder(Protocol):
    """Turns requests of one layout into the inputs of one model."""

    def check(self, index: int, request: Request) -> int:
        """Checks a request's shape, not its values.

        Args:
          index: to name it by.
          request: to check.

        Returns:
          How many scores it asks for.

        Raises:
          RequestError: saying what was expected and what came.
        """

    def encode(
        self, requests: Sequence[Request], counts: Sequence[int] | None = None
    ) -> EncodedBatch:
        """Encodes requests into one batch.

        Args:
          requests: at least one. They may be a `serving.columns.RequestTable`, of which whoever
            cares for speed reads columns.
          counts: what `check` said of each; None: they are checked here.

        Raises:
          RequestError: naming the request and the field.
        """


def _bytes_of(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Rows ``[N, ...]`` as bytes ``[N, b]``, which differ of equal numbers only for 0 and -0."""
    rows = np.ascontiguousarray(values.reshape(len(values), -1))
    return rows.view(np.uint8).reshape(len(rows), -1)


def padded(
    values: npt.NDArray[Any], lengths: npt.NDArray[np.int64], width: int, *, left: bool = False
) -> npt.NDArray[Any]:
    """Lists of different lengths as rows ``[B, width, ...]``, padded with 0 on one side.

    Args:
      values: of all lists, one after another. ``[N, ...]``
      lengths: of each, at most `width`. ``[B]``
      width: of the rows.
      left: whether the padding comes first.
    """
    rows = np.zeros((len(lengths), width, *values.shape[1:]), values.dtype)
    ends = np.cumsum(lengths)
    first = width - ends if left else lengths - ends
    places = np.arange(len(values)) + np.repeat(first, lengths)
    rows[np.repeat(np.arange(len(lengths)), lengths), places] = values
    return rows


def check_keys(
    index: int, where: str, value: Any, *, needed: Sequence[str], allowed: Sequence[str]
) -> None:
    """Raises a `RequestError` unless `value` is an object of these keys; `where` names it."""
    if not isinstance(value, Mapping):
        raise RequestError(index, f"{where}: expected an object, received {value!r:.60}")
    missing = [name for name in needed if name not in value]
    unknown = [name for name in value if name not in needed and name not in allowed]
    if missing or unknown:
        faults = [f"{name!r} is missing" for name in missing]
        faults += [f"{name!r} is unknown" for name in unknown]
        optional = f", optionally {', '.join(allowed)}" if allowed else ""
        raise RequestError(
            index, f"{where}: {', '.join(faults)}. Expected {', '.join(needed)}{optional}."
        )


def is_list(value: Any) -> bool:
    """Whether it is a list, or as good as one."""
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 1)


def attempt(
    index: int, field: str, function: Callable[[Sequence[Any]], Any], values: Sequence[Any]
) -> None:
    """Calls a function for its ValueError, which becomes a `RequestError` that names the field."""
    try:
        function(values)
    except ValueError as error:
        raise RequestError(index, f"{field}: {error}.") from error
