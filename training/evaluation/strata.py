"""For whom and for what a model is right: its AUC by history length, and by the item's popularity.

Rows are cut into strata of about equal count, and of each the AUC is that of its rows alone. Each
process counts its own rows in bins of the score, whose edges are quantiles of everybody's scores;
what travels is counts, never rows. Of at most `_SCORE_BINS` distinct scores the AUC is exact, of
more it is off by what ties within a bin may hide, less than half of one in `_SCORE_BINS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lookback.core.world import World
from lookback.training.evaluation.evaluator import Evaluator, ScoredBatch
from lookback.training.evaluation.found import LENGTH, POPULARITY, Stratum
from lookback.training.evaluation.metrics import ScoreAccumulator

STRATA = 8
"""As many points as a plot shows well; each still has an eighth of the rows."""
_SCORE_BINS = 2048
_SAMPLED = 1 << 17  # scores of a process that its quantiles are taken of


class StratifiedScores(Evaluator):
    """Keeps what rows are sorted into strata by, beside the scores that another evaluator keeps.

    Attributes:
      found: by what rows were sorted -> strata, by value; empty before `of_all`. A value that all
        rows have in common tells nothing, and is left out.
    """

    def __init__(self, scores: ScoreAccumulator, counts: NDArray[np.int64] | None) -> None:
        """Starts without rows.

        Args:
          scores: of the same batches: this process's.
          counts: how often each item occurs in training, by its id; None: unknown.
        """
        self._scores, self._counts = scores, counts
        self._values: dict[str, list[NDArray[np.int32]]] = {}
        self.found: Mapping[str, Sequence[Stratum]] = {}

    @staticmethod
    def needed(batch: ScoredBatch) -> tuple[tf.Tensor | None, ...]:
        """Logits ``[B, C]``, for their shape; lengths ``[B]``; items ``[B, C]`` or ``[B]``."""
        return batch.logits, batch.lengths, batch.ids[-1] if batch.ids else None

    def update(self, logits: NDArray, lengths: NDArray | None, items: NDArray | None) -> None:
        """Adds a batch."""
        shape = logits.shape
        if lengths is not None:
            self._add(LENGTH, np.broadcast_to(lengths[:, np.newaxis], shape))
        if items is not None and self._counts is not None:
            of_rows = self._counts[items]
            of_rows = of_rows if of_rows.ndim == 2 else of_rows[:, np.newaxis]
            self._add(POPULARITY, np.broadcast_to(of_rows, shape))

    def _add(self, name: str, values: NDArray) -> None:
        self._values.setdefault(name, []).append(values.reshape(-1).astype(np.int32))

    def of_all(self, world: World) -> StratifiedScores:
        """The same evaluator, with the strata of everybody's rows. A collective."""
        labels, logits = self._scores.labels(), self._scores.logits()
        places = np.searchsorted(_edges(logits, world), logits, side="right")
        found = {}
        for name in sorted({*_joined(world.gather(list(self._values)))}):
            own = np.concatenate([np.zeros(0, np.int32), *self._values.get(name, [])])
            strata = _strata(own, labels, places, world)
            if len(strata) > 1:
                found[name] = strata
        self._values = {}
        self.found = found
        return self

    def result(self) -> Mapping[str, float | int | None]:
        """No figures of the whole: see `found`."""
        return {}


def _edges(logits: NDArray[np.float32], world: World) -> NDArray[np.float32]:
    """At most `_SCORE_BINS` scores, evenly spaced among everybody's; all, if there are no more."""
    distinct = np.unique(logits[:: max(1, len(logits) // _SAMPLED)])
    told = world.gather(_thinned(distinct).tolist())
    return _thinned(np.unique(np.array(_joined(told), np.float32)))


def _thinned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if len(values) <= _SCORE_BINS:
        return values
    return values[np.linspace(0, len(values) - 1, _SCORE_BINS).astype(np.int64)]


def _strata(
    values: NDArray[np.int32], labels: NDArray[np.bool_], places: NDArray[np.int64], world: World
) -> list[Stratum]:
    """Strata of everybody's rows.

    Args:
      values: ``[N]``, of this process's rows.
      labels: ``[N]``.
      places: ``[N]``, bins of the scores.
      world: the processes.
    """
    own, counts = np.unique(values, return_counts=True)
    told = np.array(_joined(world.gather([*zip(own.tolist(), counts.tolist(), strict=True)])))
    if not told.size:  # nobody has a row, which the metrics say
        return []
    known, where = np.unique(told[:, 0], return_inverse=True)
    rows = np.bincount(where, told[:, 1]).astype(np.int64)
    before = np.cumsum(rows) - rows
    # A value's rows stay together: they go where the middle one of them would.
    number = (before + rows / 2) * STRATA // rows.sum()
    first = np.flatnonzero(np.diff(number, prepend=-1))  # of each stratum, which value
    stratum = np.searchsorted(first, np.searchsorted(known, values), side="right") - 1
    shape = (len(first), 2, _SCORE_BINS + 1)
    flat = np.ravel_multi_index((stratum, labels.astype(np.int64), places), shape)
    own_counts = np.bincount(flat, minlength=int(np.prod(shape))).astype(np.int64)
    every = world.concatenate(own_counts[np.newaxis]).sum(0).reshape(shape)
    lows, highs = known[first], known[np.append(first[1:], len(known)) - 1]
    return [
        Stratum(int(low), int(high), int(of.sum()), int(of[1].sum()), _auc(*of))
        for low, high, of in zip(lows, highs, every, strict=True)
    ]


def _auc(negatives: NDArray[np.int64], positives: NDArray[np.int64]) -> float | None:
    """The AUC of counts by increasing score; rows of one bin are ties, which count half."""
    pairs = int(negatives.sum()) * int(positives.sum())
    doubled = int((positives * (2 * (np.cumsum(negatives) - negatives) + negatives)).sum())
    return doubled / (2 * pairs) if pairs else None


def _joined(told: Sequence[Sequence]) -> list:
    return [value for of_rank in told for value in of_rank]
