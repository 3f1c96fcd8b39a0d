"""What an evaluation would say of a model that knows nothing but how often items occur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lookback.core.world import World
from lookback.dataloading.evaluations import EvaluationKind
from lookback.training.evaluation.evaluator import EVALUATORS, Evaluator, ScoredBatch

_OF_PROBABILITIES = ("log_loss", "calibration")
"""Metrics of scores that say how likely a click is; a count does not."""


class PopularityEvaluator(Evaluator):
    """The metrics that a pass evaluates, with the items' counts in training for scores.

    They are the same in every evaluation of a split, whose negatives do not change: they are taken
    in the first, and later ones only fetch what it would need.

    Attributes:
      figures: by name, without those that there are not; None before `of_all`.
    """

    def __init__(
        self, counts: NDArray[np.int64], choice: Mapping[EvaluationKind, Sequence[str]]
    ) -> None:
        """Starts without rows.

        Args:
          counts: by the item's id.
          choice: names of the metrics, by the kind that computes them; see `of_counts`.
        """
        # Places among the distinct counts, which order and tie as the counts do: a float32 holds
        # every one of them.
        self._scores = np.unique(counts, return_inverse=True)[1].astype(np.float32)
        self._names = [name for names in choice.values() for name in names]
        self._evaluators: list[Evaluator] = [
            EVALUATORS[kind](names) for kind, names in choice.items()
        ]
        self.figures: Mapping[str, float | int] | None = None

    @classmethod
    def of_counts(
        cls, counts: NDArray[np.int64] | None, choice: Mapping[EvaluationKind, Sequence[str]]
    ) -> list[PopularityEvaluator]:
        """The evaluator of a pass, or none where items have no counts, or metrics no use for them.

        Args:
          counts: by the item's id; None: unknown.
          choice: names of the pass's metrics, by the kind that computes them.
        """
        of_order = {
            kind: [name for name in names if name not in _OF_PROBABILITIES]
            for kind, names in choice.items()
        }
        of_order = {kind: names for kind, names in of_order.items() if names}
        return [] if counts is None or not of_order else [cls(counts, of_order)]

    @staticmethod
    def needed(batch: ScoredBatch) -> tuple[tf.Tensor | None, ...]:
        """Labels ``[B, C]``, items ``[B, C]`` or ``[1, C]``, groups ``[B]``, weights ``[B, C]``."""
        return batch.labels, batch.ids[-1], batch.groups, batch.weights

    def update(
        self,
        labels: NDArray,
        items: NDArray,
        groups: NDArray | None = None,
        weights: NDArray | None = None,
    ) -> None:
        """Adds a batch."""
        if self.figures is None:
            scores = np.broadcast_to(self._scores[items], labels.shape)
            batch = ScoredBatch(labels, scores, groups, weights)
            for evaluator in self._evaluators:
                needed = evaluator.needed(batch)
                evaluator.update(*(None if v is None else np.asarray(v) for v in needed))

    def of_all(self, world: World) -> PopularityEvaluator:
        """The same evaluator, with its figures. A collective, the first time."""
        if self.figures is None:
            evaluators, self._evaluators = [e.of_all(world) for e in self._evaluators], []
            found = {name: v for e in evaluators for name, v in e.result().items()}
            self.figures = {n: v for n in self._names if (v := found[n]) is not None}
        return self

    def result(self) -> Mapping[str, float | int | None]:
        """The figures."""
        return self.figures or {}

    def figures_of(self, name: str) -> dict[str, float]:
        """The figures that there are, with the evaluation's name in front."""
        return {
            f"{name}_{figure}": float(v) for figure, v in self.result().items() if v is not None
        }


def popularity_line(figures: Mapping[str, float]) -> str:
    """Figures of popularity in a line for people; "" of none.

    Args:
      figures: by name.
    """
    listed = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
    return listed and f"ranking by the items' popularity in training gives  {listed}"
