"""What requests for a user's candidates have in common: items, checked and encoded."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.formats.history_columns import TIMESTAMP
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.columns import CANDIDATES, Columns, Ragged, RequestTable
from lookback.serving.encoding import EncodedIds, Encoder, Int32, VocabularyEncoder
from lookback.serving.requests import Request, RequestError, check_keys, is_list

Inputs = dict[str, npt.NDArray[Any]]
IdEncoder = VocabularyEncoder | EncodedIds


class CandidateRequestEncoder(abc.ABC):
    """What encoders of such requests have in common: users apart from items, many at a time.

    Attributes:
      leaves_out: whether requests say what to leave out (and `seen` gives that), and no history.
    """

    leaves_out: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def ids(self) -> tuple[tuple[str, IdEncoder] | None, tuple[str, IdEncoder]]:
        """Names and encoders of the ids of users (None if the model reads none) and items."""

    @property
    @abc.abstractmethod
    def item_fields(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What must be said of an item, its id first, and what may be left out if it is known."""

    @property
    @abc.abstractmethod
    def whole_catalogue(self) -> Inputs | None:
        """All known items ``[I, ...]`` by item feature, by ascending id; None: they are unknown."""

    @abc.abstractmethod
    def check(self, index: int, request: Request, *, candidates: bool | None = None) -> int:
        """Checks a request's shape, not its ids.

        Args:
          index: to name it by.
          request: to check.
          candidates: whether it must name what to score, or must not; None: as `score` has it.

        Returns:
          How many scores it asks for; 0 without candidates.

        Raises:
          RequestError: saying what was expected and what came.
        """

    @abc.abstractmethod
    def counts_of(self, table: RequestTable, *, candidates: bool) -> list[int] | None:
        """`check` of all rows at once; None if one of them may not be as it must be."""

    @abc.abstractmethod
    def encode_users(self, columns: Columns) -> Inputs:
        """What of requests, which are checked, does not depend on candidates: ``[B, ...]``.

        Raises:
          RequestError: naming the request and the field.
        """

    @abc.abstractmethod
    def encode_items(self, columns: Columns) -> Inputs:
        """The candidates of requests, which are checked: ``[N, ...]`` by item feature.

        Raises:
          RequestError: naming the request and the field.
        """

    @abc.abstractmethod
    def seen(self, columns: Columns) -> Ragged:
        """The items that each request says its user has seen."""

    @property
    @abc.abstractmethod
    def optional(self) -> tuple[str, ...]:
        """Fields of requests themselves of which null, in a table, is the same as no value."""

    def check_all(self, requests: Sequence[Request], *, candidates: bool) -> list[int]:
        """`check` of all requests."""
        if isinstance(requests, RequestTable):
            counts = self.counts_of(requests, candidates=candidates)
            if counts is not None:
                return counts
        return [self.check(i, r, candidates=candidates) for i, r in enumerate(requests)]


class StoredValues:
    """Values as a dataset holds them: encoded, bags by number.

    Args:
      dtype: of what the model reads.
      bags: what the numbers of bags stand for, ``[R, M]``; None: they are no such numbers.
    """

    def __init__(self, dtype: str, bags: Int32 | None = None) -> None:
        self._dtype, self._bags = dtype, bags

    def encode(self, values: Any) -> npt.NDArray[Any]:
        """What the model reads of an Arrow array ``[N]``."""
        if values.null_count:
            raise ValueError("expected a dataset's column without nulls")
        stored = values.to_numpy(zero_copy_only=False)
        if self._bags is not None:
            return self._bags[stored.astype(np.int32)]
        return stored.astype(self._dtype)


@dataclasses.dataclass(frozen=True)
class StoredUsers:
    """How users of a dataset become requests.

    Attributes:
      columns: of the histories, by the fields of a request that they are.
      encoder: of such requests.
      moment: of all requests, in seconds; None where the model reads no times.
    """

    columns: Mapping[str, str]
    encoder: CandidateRequestEncoder
    moment: int | None = None

    def requests(self, histories: pa.Table) -> RequestTable:
        """The requests of some rows of histories, without candidates."""
        fields = {field: histories[column] for field, column in self.columns.items()}
        if self.moment is not None:
            fields[TIMESTAMP] = pa.array(np.full(len(histories), self.moment, np.int64))
        return RequestTable(pa.table(fields))


def check_items(
    index: int, part: str, items: Any, *, needed: Sequence[str], allowed: Sequence[str]
) -> int:
    """Checks that a part of a request is an object of lists, all of one length.

    Args:
      index: of the request.
      part: name of the part.
      items: the part.
      needed: names of the lists that must be there, the item id first.
      allowed: names of those that may be.

    Returns:
      Their length.

    Raises:
      RequestError: saying what was expected and what came.
    """
    check_keys(index, part, items, needed=needed, allowed=allowed)
    item_id = needed[0]
    for name, values in items.items():
        if not is_list(values):
            raise RequestError(index, f"{part}.{name}: expected a list, received {values!r:.60}")
    for name, values in items.items():
        if len(values) != len(items[item_id]):
            raise RequestError(
                index,
                f"{part}.{name} has {len(values)} entries and {part}.{item_id} "
                f"{len(items[item_id])}; they must be equally long.",
            )
    return len(items[item_id])


def check_candidates(
    index: int, request: Mapping[str, Any], *, needed: Sequence[str], allowed: Sequence[str]
) -> int:
    """Checks a request's candidates as `check_items` does; there must be one at least."""
    count = check_items(index, CANDIDATES, request[CANDIDATES], needed=needed, allowed=allowed)
    if not count:
        raise RequestError(index, f"{CANDIDATES}.{needed[0]} is empty; expected at least one.")
    return count


def known(encoder: Encoder, ids: Int32) -> tuple[bool, ...] | None:
    """Which of encoded items ``[C]`` are known, as `Scores.known` has it.

    Args:
      encoder: of the items.
      ids: that it gave.
    """
    return tuple((ids >= FIRST_KNOWN).tolist()) if isinstance(encoder, VocabularyEncoder) else None
