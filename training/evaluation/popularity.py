"""What an evaluation would say of a model that knows nothing but how often items occur."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lookback.core.errors import UserError
from lookback.core.world import World
from lookback.training.evaluation.evaluator import Evaluator, ScoredBatch
from lookback.training.evaluation.metrics import ScoreAccumulator, auc


class PopularityEvaluator(Evaluator):
    """The AUC of the items' counts in training.

    It is the same in every evaluation of a split, whose negatives do not change: it is taken in the
    first, and later ones only fetch the ids.

    Attributes:
      auc: None before `of_all`, and where rows of one class only were collected.
    """

    def __init__(self, counts: NDArray[np.int64]) -> None:
        """Starts without rows.

        Args:
          counts: by the item's id.
        """
        self._counts = counts
        self._scores: ScoreAccumulator | None = ScoreAccumulator()
        self.auc: float | None = None

    @staticmethod
    def needed(batch: ScoredBatch) -> tuple[tf.Tensor, ...]:
        """Labels and items ``[B, C]``."""
        return batch.labels, batch.ids[-1]

    def update(self, labels: NDArray, items: NDArray) -> None:
        """Adds a batch."""
        if self._scores is not None:
            counts = self._counts[items].astype(np.float32)
            self._scores.update(labels, np.broadcast_to(counts, labels.shape))

    def of_all(self, world: World) -> PopularityEvaluator:
        """The same evaluator, with its figure. A collective, the first time."""
        if self._scores is not None:
            scores, self._scores = self._scores.of_all(world), None
            try:
                self.auc = auc(scores.labels(), scores.logits())
            except UserError:
                self.auc = None
        return self

    def result(self) -> Mapping[str, float | int | None]:
        """The AUC; nothing where there is none."""
        return {} if self.auc is None else {"auc": self.auc}
