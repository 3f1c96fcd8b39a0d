"""Many users at a time: scores of their candidates, or the best of I items for each of them.

Arrays from end to end. A model over histories meets each user once for a whole block of items, so
that what depends on the history alone is computed once for all of them.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.core.errors import UserError
from lookback.formats.vocabulary import FIRST_KNOWN, PADDING
from lookback.serving.columns import CANDIDATES, Columns, columns_of
from lookback.serving.encoding import VocabularyEncoder
from lookback.serving.layouts.candidates import CandidateRequestEncoder, Inputs, StoredUsers
from lookback.serving.manifest import HISTORY_SUFFIX
from lookback.serving.offline.items import Int64, RankedItems
from lookback.serving.requests import EncodedBatch
from lookback.serving.scores import Float32

PAIRS_A_BATCH = 16384
"""Pairs of user and item that the model scores at once."""
LOGITS_AT_ONCE = 1 << 24
"""That are kept to find the best among: 64 MiB."""

ROW, SCORE, RANK = "row", "score", "rank"
"""Columns of what is written, beside the ids."""

Counts = collections.Counter[str]


class PairScorer(Protocol):
    """What a `serving.bundle.Bundle` is to those who rank with it."""

    encoder: Any

    def predict(self, inputs: Mapping[str, npt.NDArray[Any]]) -> tuple[Float32, Float32]:
        """Logits and probabilities of one encoded batch."""

    def scores_of(self, batch: EncodedBatch) -> tuple[Float32, Float32]:
        """Those of any number of requests, joined."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of every user.

    Attributes:
      items: what is ranked for all of them; None: each request names its candidates.
      top_k: how many are kept, the best ones; None: all.
      exclude_seen: whether items of the user's history are left out.
    """

    items: RankedItems | None = None
    top_k: int | None = None
    exclude_seen: bool = False


class OfflineRanking:
    """Scores users by the table.

    Args:
      bundle: of a model that scores items of a user.
      asked: of every user.
      stored: how rows of a dataset become requests, if they are that.
    """

    def __init__(self, bundle: PairScorer, asked: Asked, stored: StoredUsers | None = None) -> None:
        self._bundle, self._asked, self._stored = bundle, asked, stored
        self._names: CandidateRequestEncoder = bundle.encoder
        self._encoder = self._names if stored is None else stored.encoder
        if asked.exclude_seen and self._encoder.leaves_out and stored is None:
            raise UserError(
                "exclude_seen: the bundle's requests hold no histories, so what a user has seen is "
                "known from a dataset alone (dataset_dir). Give one, or name in each request what "
                "it leaves out (exclude)."
            )

    def score(self, rows: Any, first: int = 0) -> tuple[pa.Table, Counts]:
        """Scores some users.

        Args:
          rows: requests, as objects or a `RequestTable`; of a dataset, a table of its histories.
          first: number of the first of them among all, from 0 on.

        Returns:
          A row a user and item, best first: the raw ids, `SCORE` (the probability), `RANK` from 1
          on. Users whom the model knows no id of have the number of their `ROW`, from 1 on.
          And what was found on the way, by name.

        Raises:
          RequestError: naming the request (of these) and what is wrong with it.
          UserError: if the model gives no finite score.
        """
        requests = rows if self._stored is None else self._stored.requests(rows)
        asked, columns = self._asked, columns_of(requests)
        own = asked.items is None
        counts = self._encoder.check_all(requests, candidates=own)
        shared = self._encoder.encode_users(columns)
        found = Counts(users=len(requests))
        self._count_unknown(shared, found)
        item_id, ids = self._names.ids[1]
        if asked.items is None:
            items = self._encoder.encode_items(columns)
            found["unknown_candidates"] += _unknown(ids, items[item_id])
            logits, scores = self._bundle.scores_of(EncodedBatch(shared, counts, items))
            users, raw, score, rank = self._of_own(columns, np.asarray(counts), logits, scores)
            found["pairs"] += len(logits)
        else:
            users, places, score, rank = self._best(columns, shared, asked.items)
            raw = asked.items.raw.take(pa.array(places))
            found["pairs"] += len(requests) * len(asked.items)
        found["rows"] += len(users)
        found["without_items"] += len(requests) - len(np.unique(users))
        name, of_users = self._users(columns, len(requests), first)
        table = pa.table(
            {
                name: of_users.take(pa.array(users)),
                item_id: raw.cast(ids.raw(np.zeros(0, np.int32)).type),
                SCORE: pa.array(score, pa.float32()),
                RANK: pa.array(rank, pa.int32()),
            }
        )
        return table, found

    def _users(self, columns: Columns, count: int, first: int) -> tuple[str, pa.Array]:
        """What names the users, and that of each."""
        user, _ = self._names.ids
        if user is None:
            return ROW, pa.array(np.arange(first + 1, first + count + 1))
        name, ids = user
        values: Any = columns.one(name).values
        if self._stored is not None:
            return name, ids.raw(values.to_numpy(zero_copy_only=False))
        raw = values if isinstance(values, pa.Array) else pa.array(values)
        return name, raw.cast(ids.raw(np.zeros(0, np.int32)).type)

    def _count_unknown(self, shared: Inputs, found: Counts) -> None:
        user, (item_id, items) = self._names.ids
        if user is not None:
            found["unknown_users"] += _unknown(user[1], shared[user[0]])
        history = shared.get(f"{item_id}{HISTORY_SUFFIX}")
        if history is not None:
            found["events"] += int(np.count_nonzero(history))
            found["unknown_events"] += _unknown(items, history)

    def _of_own(
        self, columns: Columns, counts: Int64, logits: Float32, scores: Float32
    ) -> tuple[Int64, pa.Array, Float32, Int64]:
        """Users, items, scores and ranks of the candidates that are kept, user by user."""
        require_finite(logits)
        given = columns.several(CANDIDATES, self._names.ids[1][0])
        raw = given.values if isinstance(given.values, pa.Array) else pa.array(given.values)
        kept = np.ones(len(logits), np.bool_)
        if self._asked.exclude_seen:
            seen = self._encoder.seen(columns)
            kept = ~_pairs_among(given.owners, raw, seen.owners, seen.values)
        owners = given.owners
        keys: Any = (-logits, owners)
        order = np.lexsort(keys)  # equal scores stay in their order
        order = order[kept[order]]
        lengths = np.bincount(owners[order], minlength=len(counts))
        rank = np.arange(len(order)) - np.repeat(lengths.cumsum() - lengths, lengths) + 1
        best = rank <= (self._asked.top_k or len(rank))
        order = order[best]
        return owners[order], raw.take(pa.array(order)), scores[order], rank[best]

    def _best(
        self, columns: Columns, shared: Inputs, items: RankedItems
    ) -> tuple[Int64, Int64, Float32, Int64]:
        """Users, places of items, scores and ranks of the best items of all, user by user."""
        count = len(columns)
        rows, places = np.zeros(0, np.int64), np.zeros(0, np.int64)
        seen = self._encoder.seen(columns)
        if self._asked.exclude_seen or (self._encoder.leaves_out and self._stored is None):
            rows, places = items.places_of(seen, encoded=self._stored is not None)
        k = min(self._asked.top_k or len(items), len(items))
        step = max(1, LOGITS_AT_ONCE // len(items))
        found = []
        for start in range(0, count, step):
            some = {name: values[start : start + step] for name, values in shared.items()}
            logits = self._logits(some, items.inputs, min(step, count - start))
            require_finite(logits)
            inside = (rows >= start) & (rows < start + step)
            logits[rows[inside] - start, places[inside]] = -np.inf
            found.append(best_of(logits, k, start))
        users, best, score, rank = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return users, best, score, rank

    def _logits(self, shared: Inputs, items: Mapping[str, npt.NDArray[Any]], users: int) -> Float32:
        """Logits ``[B, I]`` of all items."""
        size = len(next(iter(items.values())))
        wide = min(size, PAIRS_A_BATCH)
        high = max(1, PAIRS_A_BATCH // wide)
        logits = np.empty((users, size), np.float32)
        for top in range(0, users, high):
            some = {name: values[top : top + high] for name, values in shared.items()}
            b = min(high, users - top)
            for left in range(0, size, wide):
                block = {
                    n: np.broadcast_to(v[left : left + wide], (b, *v[left : left + wide].shape))
                    for n, v in items.items()
                }
                logit, _ = self._bundle.predict({**some, **block})
                logits[top : top + high, left : left + wide] = logit
        return logits


def best_of(logits: Float32, k: int, first: int = 0) -> tuple[Int64, Int64, Float32, Int64]:
    """The k best of each row; of equal ones, those that come first.

    Args:
      logits: -inf of what is out of question. ``[B, I]``
      k: at most I.
      first: is added to the numbers of rows.

    Returns:
      Rows, places in them, probabilities and ranks, from 1 on, row by row: ``[N]`` each.
    """
    import tensorflow as tf

    values, places = tf.math.top_k(logits, k)  # of equal ones it takes the lower index first
    probability = tf.sigmoid(values).numpy()
    kept = np.isfinite(values.numpy())  # [B, k]
    rows, rank = np.nonzero(kept)
    return rows + first, places.numpy()[kept].astype(np.int64), probability[kept], rank + 1


def _pairs_among(
    rows: Int64, values: pa.Array, of_rows: Int64, of_values: Sequence[Any]
) -> npt.NDArray[np.bool_]:
    """Which pairs of row and value ``[N]`` are among others ``[M]``."""
    others = of_values if isinstance(of_values, pa.Array) else pa.array(of_values, values.type)
    joined = pa.concat_arrays([values, others.cast(values.type)]).dictionary_encode("encode")
    codes = joined.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    keys = np.r_[rows, of_rows] * (len(joined.dictionary) + 1) + codes
    return np.isin(keys[: len(rows)], keys[len(rows) :])


def _unknown(encoder: Any, ids: npt.NDArray[Any]) -> int:
    """How many encoded ids are of nothing that the bundle knows; 0 where it cannot say."""
    if not isinstance(encoder, VocabularyEncoder):
        return 0
    return int(np.count_nonzero((ids > PADDING) & (ids < FIRST_KNOWN)))


def require_finite(logits: Float32) -> None:
    """Refuses a model whose scores say nothing.

    Raises:
      UserError: if one is no finite number.
    """
    if not np.isfinite(logits).all():
        raise UserError(
            "The bundle's model gives a score that is no finite number, so its ranking says "
            "nothing. Export a model whose evaluation is sound."
        )
