"""Scores row by row, with the ids of whom and what they are of: for a file, not for figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lookback.core.world import World
from lookback.training.evaluation.evaluator import Evaluator, ScoredBatch
from lookback.training.evaluation.metrics import order_of_batches


class ScoredRows(Evaluator):
    """Keeps every row."""

    def __init__(self, ids: Sequence[str]) -> None:
        """Starts without rows.

        Args:
          ids: names of the features that a batch's `ids` are, in their order.
        """
        self._names = ("label", "logit", *ids)
        self._batches: list[list[NDArray]] = []

    @staticmethod
    def needed(batch: ScoredBatch) -> tuple[tf.Tensor, ...]:
        """Labels and logits ``[B, C]``, and ids ``[B]`` or ``[B, C]``."""
        return batch.labels, batch.logits, *batch.ids

    def update(self, *found: NDArray) -> None:
        """Adds a batch."""
        labels, *others = found
        columns = [labels]
        for values in others:
            per_row = values.reshape(len(labels), -1)  # [B, 1] or [B, C]
            columns.append(np.broadcast_to(per_row, labels.shape))
        self._batches.append([column.reshape(-1) for column in columns])

    def of_all(self, world: World) -> ScoredRows:
        """The rows of all ranks, batch by batch and rank by rank, on every rank. A collective."""
        if world.size == 1:
            return self
        sizes = world.gather([len(labels) for labels, *_ in self._batches])
        order = order_of_batches(sizes)
        everybody = ScoredRows(self._names[2:])
        everybody._batches = [
            [world.concatenate(column)[order] for column in self.columns().values()]
        ]
        return everybody

    def columns(self) -> Mapping[str, NDArray]:
        """``[N]``: float32 label and logit, and the encoded id of each feature, int32, by name."""
        columns = {}
        for place, name in enumerate(self._names):
            kind = np.float32 if place < 2 else np.int32
            pieces = [batch[place] for batch in self._batches]
            columns[name] = np.concatenate([np.zeros(0, kind), *pieces]).astype(kind)
        return columns

    def result(self) -> Mapping[str, float | int | None]:
        """Nothing: rows are no figures."""
        return {}
