"""The graphs of evaluations: a batch is scored, and evaluators take what they need of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import merlin.models.tf as mm
import tensorflow as tf

from lookback.dataloading.evaluations import CandidatePieces, EvaluationPass
from lookback.dataloading.sources import BatchSource, as_tensors
from lookback.models.click_model import contract_of, logits_of
from lookback.training.evaluation.evaluator import BinaryEvaluator, Evaluator, ScoredBatch
from lookback.training.xla import Compiled

Found = tuple[tf.Tensor | None, ...]


class EvaluationSteps:
    """Compiled evaluation steps of one model over one source of batches.

    Attributes:
      compiled: what XLA compiles of them; None without XLA.
    """

    def __init__(self, model: mm.Model, source: BatchSource, *, xla: bool = False) -> None:
        """Prepares the steps; they are traced when first run.

        Args:
          model: built.
          source: of batches.
          xla: compile what follows the lookups with XLA (`training.xla`).

        Raises:
          UserError: if XLA is wanted of a model that does not say which ids it looks up.
        """
        self._source = source
        self._score: Callable[[Any], tf.Tensor] = functools.partial(logits_of, model)
        self.compiled: Compiled | None = None
        if xla:
            lookups = contract_of(model).lookups
            self.compiled = Compiled(lookups, lambda _, features: logits_of(model, features))
            self._score = self.compiled
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
        feed = as_tensors(feed)
        features, labels, *weights = self._source.eval_batch(evaluation.name, feed)
        logits = self.logits(features, evaluation.pieces)
        groups = None
        if BinaryEvaluator in evaluators and self._source.grouped:
            groups = self._source.groups(evaluation.name, feed)
        ids = tuple(features[name] for name in self._source.id_features)
        batch = ScoredBatch(
            labels,
            logits,
            groups,
            weights[0] if weights else None,
            ids,
            self._source.history_lengths(features),
        )
        return [evaluator.needed(batch) for evaluator in evaluators]

    def logits(self, features: dict[str, tf.Tensor], pieces: CandidatePieces | None) -> tf.Tensor:
        """Logits ``[B, C]``: of all candidates at once, or of a piece of them after another."""
        if pieces is None:
            return self._score(features)
        rows, candidates = tf.unstack(tf.shape(features[pieces.features[0]])[:2])
        count = -(-candidates // pieces.size)

        def cut(values: tf.Tensor) -> tf.Tensor:  # [B, C] or, of bags, [B, C, M]
            bags = values.shape[2:]
            zeros = [[0, 0]] * len(bags)
            filled = tf.pad(values, [[0, 0], [0, count * pieces.size - candidates], *zeros])
            parts = tf.reshape(filled, [rows, count, pieces.size, *bags])
            return tf.transpose(parts, [1, 0, 2, *range(3, 3 + len(bags))])

        def score(piece: dict[str, tf.Tensor]) -> tf.Tensor:
            return tf.cast(self._score({**features, **piece}), tf.float32)

        # One at a time, for memory; and where looking up is a collective, in the same order.
        logits = tf.map_fn(
            score,
            {name: cut(features[name]) for name in pieces.features},
            parallel_iterations=1,
            fn_output_signature=tf.float32,
        )  # [count, B, size]
        logits = tf.reshape(tf.transpose(logits, [1, 0, 2]), [rows, count * pieces.size])
        return logits[:, :candidates]
