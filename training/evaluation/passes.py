"""Goes over splits with a model: each pass feeds what evaluates it, and gives an outcome."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import merlin.models.tf as mm
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from lookback.core.world import World, agree
from lookback.dataloading.evaluations import EvaluationPass
from lookback.dataloading.sources import BatchSource
from lookback.training.evaluation.choice import MetricChoice
from lookback.training.evaluation.evaluator import EVALUATORS, BinaryEvaluator, Evaluator
from lookback.training.evaluation.found import Stratum
from lookback.training.evaluation.metrics import Curves
from lookback.training.evaluation.popularity import PopularityEvaluator
from lookback.training.evaluation.steps import EvaluationSteps
from lookback.training.evaluation.strata import StratifiedScores
from lookback.training.outcome import Outcome
from lookback.training.output.logging import RunLogger
from lookback.training.signals import TerminationRequest


class Evaluations:
    """Evaluations of one model on one source of batches; processes call the same methods."""

    def __init__(
        self,
        model: mm.Model,
        source: BatchSource,
        choice: MetricChoice,
        world: World,
        *,
        xla: bool = False,
    ) -> None:
        """Prepares them.

        Args:
          model: maps features to logits ``[B, C]``.
          source: of batches.
          choice: metrics of each pass.
          world: the processes that evaluate together.
          xla: as of `EvaluationSteps`.
        """
        self._source, self._choice, self._world = source, choice, world
        self._steps = EvaluationSteps(model, source, xla=xla)
        self._popularities: dict[EvaluationPass, list[PopularityEvaluator]] = {}
        self._baselines: dict[str, float] = {}

    def run(
        self,
        passes: Sequence[EvaluationPass],
        log: RunLogger,
        termination: TerminationRequest | None = None,
    ) -> Outcome:
        """Goes over splits; figures carry the pass's name in front.

        Args:
          passes: of the source.
          log: shows the progress.
          termination: ends the evaluation between two batches.

        Raises:
          TerminatedError: if termination was requested.
        """
        figures: dict[str, Any] = {}
        curves: dict[str, Curves] = {}
        strata: dict[str, Mapping[str, Sequence[Stratum]]] = {}
        for evaluation in passes:
            name = evaluation.name
            left_out = self._source.left_out(name).figures
            figures |= {f"{name}_{reason}": count for reason, count in left_out.items()}
            for evaluator in self.evaluated(evaluation, log, termination):
                if isinstance(evaluator, StratifiedScores):
                    strata[name] = evaluator.found

                def measure(name: str = name, found: Evaluator = evaluator) -> dict[str, Any]:
                    if self._world.rank != 0:
                        return {}
                    drawn = found.curves()
                    if drawn is not None:
                        curves[name] = drawn
                    return {f"{name}_{figure}": value for figure, value in found.result().items()}

                figures |= agree(self._world, measure)[0]
        return Outcome(figures, curves, dict(self._baselines), strata)

    def evaluated(
        self,
        evaluation: EvaluationPass,
        log: RunLogger,
        termination: TerminationRequest | None = None,
        most: int | None = None,
    ) -> list[Evaluator]:
        """One pass over a split: evaluators with what all ranks found; the rest as of `run`.

        Args:
          evaluation: of the source.
          log: shows the progress.
          termination: ends the evaluation between two batches.
          most: steps to take of it; None: all.
        """
        evaluators: list[Evaluator] = [
            EVALUATORS[kind](metrics) for kind, metrics in self._choice[evaluation].items()
        ]
        name = evaluation.name
        popularity = self._popularity(evaluation)
        evaluators += [
            StratifiedScores(evaluator.scores, self._item_counts)
            for evaluator in evaluators
            if isinstance(evaluator, BinaryEvaluator) and evaluator.has_auc
        ]
        fed = [*evaluators, *popularity]
        kinds = [type(evaluator) for evaluator in fed]
        with log.track(f"evaluating {name}", self._source.eval_steps(name)) as advance:
            for feed in itertools.islice(self._source.eval_feeds(name), most):
                found = self._steps.run(evaluation, feed, kinds)
                for evaluator, needed in zip(fed, found, strict=True):
                    evaluator.update(*map(_as_numpy, needed))
                advance(1)
                if termination is not None:
                    termination.check()
        for evaluator in popularity:
            self._baselines |= evaluator.of_all(self._world).figures_of(name)
        return [evaluator.of_all(self._world) for evaluator in evaluators]

    @functools.cached_property
    def _item_counts(self) -> NDArray[np.int64] | None:
        """See `BatchSource.item_counts`, which goes through all events."""
        return self._source.item_counts()

    def _popularity(self, evaluation: EvaluationPass) -> list[PopularityEvaluator]:
        """The evaluator of item counts, for a pass over items that have them."""
        if evaluation not in self._popularities:
            self._popularities[evaluation] = PopularityEvaluator.of_counts(
                self._item_counts, self._choice[evaluation]
            )
        return self._popularities[evaluation]


def _as_numpy(found: tf.Tensor | None) -> Any:
    return None if found is None else found.numpy()
