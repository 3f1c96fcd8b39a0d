"""Ranking metrics: HR@K, NDCG@K and MRR of one positive among candidates, exact across ranks.

What is kept of an evaluation is how often each rank occurred: whole numbers, so that the figures
depend neither on the order of the batches nor on who ranked whom.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from lookback.core.errors import UserError
from lookback.core.world import World


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What `RankAccumulator.result` computes.

    Attributes:
      k: how many candidates are shown.
      hr: hit ratio, the share of rankings whose positive is among the first k.
      ndcg: mean of ``1 / log2(rank + 2)`` of positives among the first k, 0 of others; the ideal
        gain of one positive is 1 (He et al. 2017, section 4.1).
      mrr: mean of ``1 / (rank + 1)``, of all positives.
      log_loss: mean binary cross entropy of the candidates, in nats.
      rankings: how many there were.
    """

    k: int
    hr: float
    ndcg: float
    mrr: float
    log_loss: float
    rankings: int

    def as_dict(self) -> dict[str, float | int]:
        """Flat figures for a log line: `hr@10`, `ndcg@10`, ..."""
        return {
            f"hr@{self.k}": self.hr,
            f"ndcg@{self.k}": self.ndcg,
            "mrr": self.mrr,
            "log_loss": self.log_loss,
            "rankings": self.rankings,
        }


def ranks_of_positives(
    labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The rank of each row's positive, inside the graph.

    Args:
      labels: ``[B, C]``, one 1 in each row.
      logits: ``[B, C]``.
      weights: ``[B, C]``; candidates of weight 0 do not take part. None: all do.

    Returns:
      Ranks ``[B]`` (int32): how many candidates score as much as the positive or more (ties count
      against it), so 0 is the best; the sum of the candidates' cross entropies []; and how many
      candidates took part [].
    """
    logits = tf.cast(logits, tf.float32)
    chosen = labels > 0
    positive = tf.reduce_max(tf.where(chosen, logits, logits.dtype.min), 1, keepdims=True)
    competes = tf.logical_not(chosen)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(labels, tf.float32), logits)
    if weights is None:
        taking_part = tf.size(labels)
    else:
        competes &= weights > 0
        losses = tf.where(weights > 0, losses, 0.0)
        taking_part = tf.math.count_nonzero(weights, dtype=tf.int32)
    # Not "at least as large", which a score that is no number would never be.
    beats = competes & tf.logical_not(logits < positive)
    ranks = tf.reduce_sum(tf.cast(beats, tf.int32), 1)
    return ranks, tf.reduce_sum(losses), taking_part


class RankAccumulator:
    """Counts ranks batch by batch."""

    def __init__(self) -> None:
        self._counts = np.zeros(0, np.int64)
        self._loss = 0.0
        self._candidates = 0

    def update(self, ranks: ArrayLike, loss: float, candidates: int) -> None:
        """Adds a batch, see `ranks_of_positives`.

        Raises:
          UserError: if the loss is not finite, and so a logit is not.
        """
        if not np.isfinite(loss):
            raise UserError(
                f"The evaluation's log loss is {loss}: a logit is not finite. The model has "
                "diverged; lower --lr, or load an earlier checkpoint."
            )
        counts = np.bincount(np.asarray(ranks, np.int64))
        self._counts = _sum(self._counts, counts)
        self._loss += float(loss)
        self._candidates += int(candidates)

    def of_all(self, world: World) -> RankAccumulator:
        """The counts of all ranks together. A collective."""
        everybody = RankAccumulator()
        for counts, loss, candidates in world.gather(
            (self._counts.tolist(), self._loss, self._candidates)
        ):
            everybody._counts = _sum(everybody._counts, np.array(counts, np.int64))
            everybody._loss += loss
            everybody._candidates += candidates
        return everybody

    def result(self, k: int) -> Ranking:
        """The metrics of everything counted.

        Args:
          k: how many candidates are shown.

        Raises:
          UserError: if nothing was counted.
        """
        total = int(self._counts.sum())
        if not total:
            raise UserError("Ranking metrics need at least one user with a held-out item.")
        rank = np.arange(len(self._counts))
        gain = 1 / np.log2(rank[:k] + 2)
        return Ranking(
            k=k,
            hr=int(self._counts[:k].sum()) / total,
            ndcg=float((self._counts[:k] * gain).sum()) / total,
            mrr=float((self._counts / (rank + 1)).sum()) / total,
            log_loss=self._loss / self._candidates,
            rankings=total,
        )


def _sum(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of two vectors, the shorter one filled up with zeros."""
    total = np.zeros(max(len(one), len(other)), np.int64)
    total[: len(one)] += one
    total[: len(other)] += other
    return total
