"""What a run evaluates, by which metrics, and what it logs of the figures besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import merlin.models.tf as mm

from lookback.core.world import SOLO, World
from lookback.dataloading.evaluations import EvaluationPass
from lookback.dataloading.modes import EVALUATION_MODES
from lookback.dataloading.sources import BatchSource
from lookback.training.best import BestEvaluation, best_by
from lookback.training.config import RunConfig
from lookback.training.evaluation.choice import check_cutoffs, check_goals, choose
from lookback.training.evaluation.passes import Evaluations
from lookback.training.evaluation.popularity import popularity_line
from lookback.training.evaluation.splits import choose_splits
from lookback.training.outcome import Outcome
from lookback.training.output.logging import RunLogger
from lookback.training.signals import TerminationRequest

_ABSENT = {
    "auc": "its rows are all of one class",
    "gauc": "no user has rows of both classes",
    "calibration": "none of its rows is labelled 1",
}
"""Figures that what was evaluated may not have -> why."""


class RunEvaluation:
    """Evaluates the splits of a run.

    Attributes:
      splits: of the run.
      best: tells the best of the evaluations on the way; None where none is better than another.
      evaluator: goes over one pass at a time.
    """

    def __init__(
        self,
        model: mm.Model,
        source: BatchSource,
        config: RunConfig,
        goals: Mapping[str, float],
        world: World = SOLO,
    ) -> None:
        """Refuses now what could not be evaluated, or would say nothing, after training.

        Args:
          model: maps features to logits ``[B, C]``; need not be built yet.
          source: of batches.
          config: of the run.
          goals: figures of an evaluation, by name, at any of which training ends.
          world: the processes that evaluate together.

        Raises:
          UserError: naming the split, the metric or the goal.
        """
        self._source, self._config, self._goals = source, config, goals
        self.splits = choose_splits(config, source.held_out, goals)
        passes = self.passes(self.splits.all)
        self._choice = choose(passes, config.metrics, grouped=source.grouped)
        self.best = self._check(passes)
        self.evaluator = Evaluations(model, source, self._choice, world, xla=config.xla)
        self._logged: set[str] = set()

    def passes(self, splits: Sequence[str], *, and_train: bool = True) -> list[EvaluationPass]:
        """How splits are evaluated, each in the ways that the source has.

        Args:
          splits: by name.
          and_train: the training set, too, if the run evaluates it.
        """
        of_train = ["train"] if self._config.eval_train and and_train else []
        return [f for split in (*splits, *of_train) for f in self._source.evaluations(split)]

    def run(
        self,
        log: RunLogger,
        termination: TerminationRequest | None = None,
        splits: Sequence[str] | None = None,
        *,
        and_train: bool = True,
    ) -> Outcome:
        """Evaluates splits; figures carry the split's name in front.

        Args:
          log: shows the progress.
          termination: ends the evaluation between two batches.
          splits: which; None: all of the run's.
          and_train: on the training set, too, if the run is to.

        Raises:
          TerminatedError: if termination was requested.
        """
        self.log_left_out(log)
        passes = self.passes(self.splits.all if splits is None else splits, and_train=and_train)
        outcome = self.evaluator.run(passes, log, termination)
        figures = outcome.summary
        for name, value in figures.items():
            for figure, reason in _ABSENT.items():
                if value is None and name.endswith(f"_{figure}"):
                    self._log_once(log, f"{name} is absent: {reason}")
        baselines = {name: v for name, v in outcome.baselines.items() if name in figures}
        self._log_once(log, popularity_line(baselines))
        return outcome

    def log_left_out(self, log: RunLogger) -> None:
        """Logs which samples neither training nor the evaluations count, and why."""
        for name in ("train", *(found.name for found in self._choice)):
            left_out = str(self._source.left_out(name))
            self._log_once(log, left_out and f"left out of {name}: {left_out}")

    def _log_once(self, log: RunLogger, text: str) -> None:
        if text and text not in self._logged:
            self._logged.add(text)
            log.message(text)

    def _check(self, passes: Sequence[EvaluationPass]) -> BestEvaluation | None:
        """Refuses what cannot be evaluated; gives what tells the best evaluation of training."""
        config, source, watched = self._config, self._source, self.splits.watched
        trains = config.mode == "train" and not config.benchmark
        if trains or config.mode != "train":
            for evaluation in passes:
                source.eval_steps(evaluation.name)
        if trains or config.mode in EVALUATION_MODES:
            check_cutoffs(self._choice)
        if not trains or watched is None:
            return None
        classes = source.both_classes(watched)
        check_goals(self._goals, self._choice, watched, both_classes=classes)
        return best_by(
            config.early_stopping, config.patience, self._choice, watched, both_classes=classes
        )
