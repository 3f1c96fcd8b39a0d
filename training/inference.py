"""Scores of an evaluation split, and how fast they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import merlin.models.tf as mm

from lookback.core.world import SOLO, World
from lookback.dataloading.evaluations import EvaluationPass
from lookback.dataloading.sources import BatchSource
from lookback.training.config import RunConfig
from lookback.training.evaluation.scored_rows import ScoredRows
from lookback.training.evaluation.steps import EvaluationSteps
from lookback.training.outcome import Outcome
from lookback.training.output.logging import RunLogger
from lookback.training.output.performance import PerformanceMeter, combined


class Inference:
    """Goes over a split with a trained model; its processes call the same methods."""

    def __init__(
        self,
        model: mm.Model,
        source: BatchSource,
        config: RunConfig,
        split: str,
        world: World = SOLO,
    ) -> None:
        """Takes a model whose variables are there.

        Args:
          model: maps features to logits ``[B, C]``.
          source: of batches.
          config: of the run.
          split: to score.
          world: the processes that score together.
        """
        self._model = model
        self._source = source
        self._config = config
        self._split = split
        self._world = world

    def score(self, log: RunLogger) -> tuple[Outcome, ScoredRows]:
        """Scores the split and reports speed and latency of a batch.

        Without `--benchmark` every row is scored once, after one unmeasured batch; with it, the
        split is gone over until the configured steps are done.

        Returns:
          The figures, and the scored rows (of one pass).
        """
        left_out = str(self._source.left_out(self._split))
        if left_out:
            log.message(f"left out of {self._split}: {left_out}")
        steps = EvaluationSteps(self._model, self._source, xla=self._config.xla)
        evaluation = self._source.evaluations(self._split)[0]
        rows = ScoredRows(self._source.id_features)
        if self._config.benchmark:
            config = self._config
            meter = PerformanceMeter(config.benchmark_warmup_steps, config.benchmark_steps)
        else:
            meter = PerformanceMeter()
            _scored(steps, evaluation, next(iter(self._source.eval_feeds(evaluation.name))))
        first_pass = True
        meter.start()
        while not meter.completed:
            for step, feed in enumerate(self._source.eval_feeds(evaluation.name)):
                scored = _scored(steps, evaluation, feed)
                if first_pass:
                    rows.update(*scored)
                log.step(0, step, {"samples/s": meter.step(int(scored[1].size))})
                if meter.completed:
                    break
            first_pass = False
            if meter.steps is None:
                break
        figures = combined(self._world.gather(meter.results()))
        return Outcome(figures, {}), rows.of_all(self._world)

    def benchmark(self, sources: Mapping[int, BatchSource], log: RunLogger) -> Outcome:
        """Measures throughput and latency of batches of several sizes.

        Args:
          sources: of the evaluation split, by the rows of their batches.
          log: tells what was found of each.

        Returns:
          Figures of a `PerformanceMeter` by name, in front of it ``batch_<rows>_``.
        """
        figures: dict[str, Any] = {}
        for size, source in sources.items():
            steps = EvaluationSteps(self._model, source, xla=self._config.xla)
            meter = PerformanceMeter(
                self._config.benchmark_warmup_steps, self._config.inference_benchmark_steps
            )
            evaluation = source.evaluations(self._split)[0]
            meter.start()
            while not meter.completed:
                for feed in source.eval_feeds(evaluation.name):
                    meter.step(int(_scored(steps, evaluation, feed)[1].size))
                    if meter.completed:
                        break
            found = combined(self._world.gather(meter.results()))
            del found["time"]
            figures |= {f"batch_{size}_{name}": value for name, value in found.items()}
            text = "  ".join(f"{name} {value:,.3f}" for name, value in found.items())
            log.message(f"batches of {size:,} rows (samples/s, ms)  {text}")
        return Outcome(figures, {})


def _scored(steps: EvaluationSteps, evaluation: EvaluationPass, feed: Any) -> list[Any]:
    """Labels, logits and ids of a batch, as `ScoredRows.update` takes them."""
    found = steps.run(evaluation, feed, [ScoredRows])[0]
    return [None if tensor is None else tensor.numpy() for tensor in found]
