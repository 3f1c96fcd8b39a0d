"""The graphs of evaluations: a batch is scored, and evaluators take what they need of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import merlin.models.tf as mm
import tensorflow as tf

from lookback.dataloading.evaluations import EvaluationPass
from lookback.dataloading.sources import BatchSource
from lookback.training.evaluation.evaluator import Evaluator, ScoredBatch

Found = tuple[tf.Tensor | None, ...]


class EvaluationSteps:
    """Compiled evaluation steps of one model over one source of batches."""

    def __init__(self, model: mm.Model, source: BatchSource) -> None:
        """Prepares the steps; they are traced when first run.

        Args:
          model: built.
          source: of batches.
        """
        self._model, self._source = model, source
        self._compiled: dict[Any, Any] = {}

    def run(
        self, evaluation: EvaluationPass, feed: Any, evaluators: Sequence[type[Evaluator]]
    ) -> list[Found]:
        """Scores this process's part of one batch.

        Args:
          evaluation: of the source.
          feed: of the evaluation.
          evaluators: which are to be fed.

        Returns:
          What each of them needs.
        """
        key = (evaluation, tuple(evaluators))
        if key not in self._compiled:
            step = functools.partial(self._step, *key)
            # No AutoGraph, as in `training.steps`.
            self._compiled[key] = tf.function(step, reduce_retracing=True, autograph=False)
        found: list[Found] = self._compiled[key](feed)
        return found

    def _step(
        self, evaluation: EvaluationPass, evaluators: Sequence[type[Evaluator]], feed: Any
    ) -> list[Found]:
        features, labels, *weights = self._source.eval_batch(evaluation.name, feed)
        logits = self._model(features, training=False)
        group = self._source.group_feature
        groups = None if group is None else features[group]
        batch = ScoredBatch(labels, logits, groups, weights[0] if weights else None)
        return [evaluator.needed(batch) for evaluator in evaluators]
