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
from typing import Any

import numpy as np

from lookback.serving.encoding import Int32, VocabularyEncoder
from lookback.serving.layouts.candidates import CANDIDATES, check_candidates, encode_lists, padded
from lookback.serving.requests import EncodedBatch, Request, RequestError, check_keys, is_list

K = "k"
EXCLUDE = "exclude"
DEFAULT_K = 10


@dataclasses.dataclass(frozen=True)
class InteractionsRequestEncoder:
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

    def check(self, index: int, request: Request) -> int:
        """Checks a request's shape, not its ids.

        Args:
          index: to name it by.
          request: see the module.

        Returns:
          How many items are scored for it, at most.

        Raises:
          RequestError: saying what was expected and what came.
        """
        allowed = (CANDIDATES, K, EXCLUDE)
        check_keys(index, "the request", request, needed=(self.user_id,), allowed=allowed)
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
        return len(self.catalogue)

    def encode(self, requests: Sequence[Request]) -> EncodedBatch:
        """Encodes requests into one batch.

        Args:
          requests: at least one; see the module.

        Returns:
          int32: user ids ``[B]``, item ids ``[B, C]`` (0 beyond a request's own).

        Raises:
          RequestError: naming the request and the field.
        """
        for index, request in enumerate(requests):
            self.check(index, request)
        users = encode_lists(self.users, self.user_id, [[r[self.user_id]] for r in requests])
        given = encode_lists(
            self.items,
            f"{CANDIDATES}.{self.item_id}",
            [r[CANDIDATES][self.item_id] if CANDIDATES in r else () for r in requests],
        )
        excluded = encode_lists(self.items, EXCLUDE, [r.get(EXCLUDE, ()) for r in requests])
        rows = [
            candidates if CANDIDATES in request else self._without(left_out)
            for request, candidates, left_out in zip(requests, given, excluded, strict=True)
        ]
        counts = tuple(map(len, rows))
        # One column at least: a request may exclude all there is.
        inputs: dict[str, Any] = {
            self.user_id: np.concatenate(users),
            self.item_id: padded(rows, max(1, *counts), left=False),
        }
        return EncodedBatch(inputs, counts)

    def _without(self, excluded: Int32) -> Int32:
        """The catalogue but for some items."""
        return (
            self.catalogue[~np.isin(self.catalogue, excluded)] if len(excluded) else self.catalogue
        )
