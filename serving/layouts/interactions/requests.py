"""Requests of models over a user id and an item id: candidates to rank, or the whole catalogue.

A request is a plain dictionary, in one of two forms::

    {"user_id": "A2SUAM1J3GNN3B", "candidates": {"item_id": ["B002", "B003"]}}
    {"user_id": "A2SUAM1J3GNN3B", "k": 10, "exclude": ["B001", "B007"]}

The first is answered with its candidates, best first, the second with the `k` best items (10 where
it is left out) of the catalogue but for those in `exclude`. A bundle holds no histories: what a
user has seen is left out only if the request says so. Users and items that the workflow did not
know share the row of unknown ids: of each item the answer says whether it is `known`, and none that
is not is among the `k` best.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lookback.serving.columns import (
    CANDIDATES,
    Columns,
    Ragged,
    RequestTable,
    columns_of,
    encode_ragged,
)
from lookback.serving.encoding import Int32, VocabularyEncoder
from lookback.serving.layouts.candidates import (
    CandidateRequestEncoder,
    IdEncoder,
    Inputs,
    check_candidates,
)
from lookback.serving.requests import EncodedBatch, Request, RequestError, check_keys, is_list

K = "k"
EXCLUDE = "exclude"
DEFAULT_K = 10


@dataclasses.dataclass(frozen=True)
class InteractionsRequestEncoder(CandidateRequestEncoder):
    """Encodes requests for one model.

    Attributes:
      user_id: name of the users' ids.
      item_id: name of the items' ids.
      users: their vocabulary.
      items: their vocabulary.
      catalogue: items ``[I]`` to rank where a request names no candidates, encoded.
    """

    user_id: str
    item_id: str
    users: VocabularyEncoder
    items: VocabularyEncoder
    catalogue: Int32

    leaves_out: ClassVar[bool] = True

    @property
    def ids(self) -> tuple[tuple[str, IdEncoder] | None, tuple[str, IdEncoder]]:
        """All there is."""
        return (self.user_id, self.users), (self.item_id, self.items)

    @property
    def item_fields(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The id."""
        return (self.item_id,), ()

    @property
    def optional(self) -> tuple[str, ...]:
        """What is left out."""
        return (EXCLUDE,)

    @property
    def whole_catalogue(self) -> Inputs | None:
        """Of the bundle."""
        return {self.item_id: np.sort(self.catalogue)}

    def check(self, index: int, request: Request, *, candidates: bool | None = None) -> int:
        """As `CandidateRequestEncoder` has it; `score` ranks the catalogue without candidates."""
        needed: tuple[str, ...] = (self.user_id,)
        allowed: tuple[str, ...] = (CANDIDATES, K, EXCLUDE)
        if candidates is not None:  # what is ranked, and how much of it, is said once for all
            needed, allowed = (*needed, *([CANDIDATES] if candidates else ())), (EXCLUDE,)
        check_keys(index, "the request", request, needed=needed, allowed=allowed)
        if CANDIDATES in request:
            for name in (K, EXCLUDE):
                if name in request:
                    raise RequestError(
                        index,
                        f"{name}: only for a request without {CANDIDATES}, which ranks the whole "
                        f"catalogue. Leave out {name} or {CANDIDATES}.",
                    )
            return check_candidates(index, request, needed=(self.item_id,), allowed=())
        k, excluded = request.get(K, DEFAULT_K), request.get(EXCLUDE, ())
        # Python takes True for 1.
        if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
            raise RequestError(
                index, f"{K}: expected a whole number of at least 1, received {k!r:.60}."
            )
        if not is_list(excluded):
            raise RequestError(index, f"{EXCLUDE}: expected a list, received {excluded!r:.60}")
        return len(self.catalogue) if candidates is None else 0

    def encode(
        self, requests: Sequence[Request], counts: Sequence[int] | None = None
    ) -> EncodedBatch:
        """Encodes requests into one batch.

        Args:
          requests: at least one; see the module.
          counts: what `check` said of each; None: they are checked here.

        Returns:
          int32: user ids ``[B]``, item ids ``[N]``.

        Raises:
          RequestError: naming the request and the field.
        """
        if counts is None:
            for index, request in enumerate(requests):
                self.check(index, request)
        columns = columns_of(requests)
        given = _split(
            self.encode_items(columns)[self.item_id], columns.several(CANDIDATES, self.item_id)
        )
        seen = self.seen(columns)
        excluded = _split(encode_ragged(self.items, EXCLUDE, seen), seen)
        rows = [
            candidates if CANDIDATES in request else self._without(left_out)
            for request, candidates, left_out in zip(requests, given, excluded, strict=True)
        ]
        items = {self.item_id: np.concatenate(rows)}
        return EncodedBatch(self.encode_users(columns), tuple(map(len, rows)), items)

    def encode_users(self, columns: Columns) -> Inputs:
        """The user ids ``[B]`` of requests, which are checked."""
        return {self.user_id: encode_ragged(self.users, self.user_id, columns.one(self.user_id))}

    def encode_items(self, columns: Columns) -> Inputs:
        """The candidates ``[N]`` of requests, which are checked."""
        items = columns.several(CANDIDATES, self.item_id)
        return {self.item_id: encode_ragged(self.items, f"{CANDIDATES}.{self.item_id}", items)}

    def seen(self, columns: Columns) -> Ragged:
        """The items that each request leaves out."""
        return columns.several("", EXCLUDE)

    def counts_of(self, table: RequestTable, *, candidates: bool) -> list[int] | None:
        """By the lengths of the lists."""
        optional = () if candidates else (EXCLUDE,)
        if not {self.user_id} <= set(table.names()) <= {self.user_id, *optional}:
            return None
        if bool(table.names(CANDIDATES)) != candidates or not table.holds_lists(EXCLUDE):
            return None
        if not candidates:
            return [0] * len(table)
        counts = table.lengths(CANDIDATES, (self.item_id,), ())
        return None if counts is None or not counts.all() else counts.tolist()

    def _without(self, excluded: Int32) -> Int32:
        """The catalogue but for some items."""
        return (
            self.catalogue[~np.isin(self.catalogue, excluded)] if len(excluded) else self.catalogue
        )


def _split(values: npt.NDArray[Any], of: Ragged) -> list[npt.NDArray[Any]]:
    """Values ``[N]`` by request."""
    return np.split(values, of.ends[:-1])
