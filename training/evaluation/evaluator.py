"""An evaluation as an object: what it needs of a batch, what it keeps, what it makes of that."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from numpy.typing import NDArray

from lookback.core.world import World
from lookback.dataloading.evaluations import EvaluationKind
from lookback.training.evaluation.metrics import Curves, ScoreAccumulator
from lookback.training.evaluation.names import cutoff
from lookback.training.evaluation.ranking import RankAccumulator, ranks_of_positives


class ScoredBatch(NamedTuple):
    """One process's part of a batch, and what the model says of it.

    Attributes:
      labels: ``[B, C]``.
      logits: ``[B, C]``.
      groups: of GAUC, ``[B]``; None if the data has no user feature.
      weights: ``[B, C]``, of rankings: 0 for candidates that do not compete; None: all do.
      ids: the features `BatchSource.id_features`, ``[B]`` or ``[B, C]`` each.
      lengths: events of each row's history, int32 ``[B]``; None if rows have no histories.
    """

    labels: tf.Tensor
    logits: tf.Tensor
    groups: tf.Tensor | None
    weights: tf.Tensor | None
    ids: tuple[tf.Tensor, ...] = ()
    lengths: tf.Tensor | None = None


class Evaluator(abc.ABC):
    """Collects what one pass over a split gives, batch by batch, for figures that are exact."""

    @staticmethod
    @abc.abstractmethod
    def needed(batch: ScoredBatch) -> tuple[tf.Tensor | None, ...]:
        """What `update` takes of a batch; inside the graph."""

    @abc.abstractmethod
    def update(self, *found: Any) -> None:
        """Adds a batch: what `needed` gave, as NumPy arrays."""

    @abc.abstractmethod
    def of_all(self, world: World) -> Evaluator:
        """What all processes have collected together. A collective."""

    @abc.abstractmethod
    def result(self) -> Mapping[str, float | int | None]:
        """Figures by name; None for those that what was found does not have, as one class no AUC.

        Raises:
          UserError: if nothing was found.
        """

    def curves(self) -> Curves | None:
        """What there is to draw, where there is something."""
        return None


class BinaryEvaluator(Evaluator):
    """AUC, GAUC, log loss and calibration of labels and scores.

    Attributes:
      scores: that were collected.
    """

    def __init__(self, metrics: Sequence[str], scores: ScoreAccumulator | None = None) -> None:
        self._metrics = metrics
        self.scores = ScoreAccumulator() if scores is None else scores

    @staticmethod
    def needed(batch: ScoredBatch) -> tuple[tf.Tensor | None, ...]:
        """Labels and logits ``[B, C]`` of all candidates, and groups ``[B]``."""
        return batch.labels, batch.logits, batch.groups

    def update(self, labels: NDArray, logits: NDArray, groups: NDArray | None) -> None:
        """Adds a batch."""
        self.scores.update(labels, logits, groups)

    def of_all(self, world: World) -> BinaryEvaluator:
        """Every process gets all scores, batch by batch and rank by rank."""
        return BinaryEvaluator(self._metrics, self.scores.of_all(world))

    def result(self) -> Mapping[str, float | int | None]:
        """As `metrics.Evaluation` names them."""
        return self.scores.result(self._metrics).as_dict()

    def curves(self) -> Curves | None:
        """Of everything collected, if the area under the ROC curve is wanted and there is one."""
        return self.scores.curves() if self.has_auc else None

    @property
    def has_auc(self) -> bool:
        """Whether the area under the ROC curve is wanted."""
        return "auc" in self._metrics


class RankingEvaluator(Evaluator):
    """HR@K, NDCG@K and MRR of a positive among candidates, and their log loss."""

    def __init__(self, metrics: Sequence[str], ranks: RankAccumulator | None = None) -> None:
        self._metrics = metrics
        self._ranks = RankAccumulator() if ranks is None else ranks

    @staticmethod
    def needed(batch: ScoredBatch) -> tuple[tf.Tensor, ...]:
        """As of `ranks_of_positives`."""
        return ranks_of_positives(batch.labels, batch.logits, batch.weights)

    def update(self, ranks: NDArray, loss: float, candidates: int) -> None:
        """Adds a batch."""
        self._ranks.update(ranks, loss, candidates)

    def of_all(self, world: World) -> RankingEvaluator:
        """How often each rank occurred, whoever ranked: whole numbers."""
        return RankingEvaluator(self._metrics, self._ranks.of_all(world))

    def result(self) -> Mapping[str, float | int | None]:
        """As `ranking.Ranking` names them, for every K asked for."""
        cutoffs = [cutoff(name) or 1 for name in self._metrics]  # 1: what has no K has it the same
        figures = {
            name: value for k in cutoffs for name, value in self._ranks.result(k).as_dict().items()
        }
        wanted = (*self._metrics, "rankings")
        return {name: value for name, value in figures.items() if name in wanted}


EVALUATORS: dict[EvaluationKind, type[BinaryEvaluator] | type[RankingEvaluator]] = {
    "binary": BinaryEvaluator,
    "ranking": RankingEvaluator,
}
