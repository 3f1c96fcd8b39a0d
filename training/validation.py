"""The evaluations on the way of training: what they keep, and when they end it."""

from __future__ import annotations

import dataclasses

from lookback.training.checkpointing import RunCheckpoints
from lookback.training.config import RunConfig
from lookback.training.evaluation.run_evaluation import RunEvaluation
from lookback.training.milestones import Milestones, Position
from lookback.training.outcome import Outcome
from lookback.training.output.logging import RunLogger
from lookback.training.signals import TerminationRequest


class Validation:
    """Evaluates what a run watches, and keeps the checkpoint of the best evaluation so far."""

    def __init__(
        self,
        config: RunConfig,
        evaluation: RunEvaluation,
        checkpoints: RunCheckpoints,
        milestones: Milestones,
        log: RunLogger,
    ) -> None:
        """Takes the parts of a run.

        Args:
          config: of the run.
          evaluation: of its splits.
          checkpoints: keep the best.
          milestones: say when to evaluate, and which figures end training.
          log: shows the progress.
        """
        self._config, self._evaluation, self._checkpoints = config, evaluation, checkpoints
        self._milestones, self._log, self._best = milestones, log, evaluation.best

    @property
    def exhausted(self) -> bool:
        """Whether as many evaluations in a row were no better as end training."""
        return self._best is not None and self._best.exhausted

    def ends(self, found: Outcome | None) -> bool:
        """Whether training ends with an evaluation; None: there was none."""
        return found is not None and (self._milestones.reached(found.summary) or self.exhausted)

    def run(self, position: Position, termination: TerminationRequest | None) -> Outcome | None:
        """Evaluates what is watched on the way; None if nothing is.

        Args:
          position: of the run.
          termination: ends the evaluation between two batches.

        Raises:
          TerminatedError: if termination was requested.
        """
        splits = self._evaluation.splits
        watched = () if splits.watched is None else (splits.watched,)
        if not watched and not self._config.eval_train:
            return None
        found = self._evaluation.run(self._log, termination, watched)
        if self._best is not None and self._best.add(position.total_steps, found.summary):
            self._checkpoints.keep_as_best(position)
        return found

    def run_within_epoch(
        self, position: Position, termination: TerminationRequest | None
    ) -> Outcome | None:
        """As `run`; logs the figures beside those of the last step."""
        found = self.run(position, termination)
        if found is not None:
            self._log.step(position.epoch, position.step - 1, found.summary)
        return found

    def run_if_missed(self, position: Position, termination: TerminationRequest) -> Outcome | None:
        """Evaluates where a run goes on, if that is due: checkpoints precede their evaluations."""
        best, milestones = self._best, self._milestones
        if best is None or not position.total_steps or best.knows(position.total_steps):
            return None
        due = milestones.test_is_due if position.step else milestones.evaluation_is_due
        return self.run(position, termination) if due(position) else None

    def finish(
        self, found: Outcome | None, position: Position, termination: TerminationRequest
    ) -> Outcome:
        """Evaluates the rest at the end of training, of the model that will be exported.

        Args:
          found: by the evaluation at this position, if there was one.
          position: of the run.
          termination: ends an evaluation between two batches.
        """
        best, splits = self._best, self._evaluation.splits
        if best is not None:
            found = found or self.run(position, termination)
            if self.exhausted or self._config.export_best:
                ended = "early stopping: " if self.exhausted else ""
                self._log.message(f"{ended}the best {best}")
        if self._config.export_best and self._checkpoints.take_best(position, self._log):
            found = None
        if found is None:
            return self._evaluation.run(self._log, termination)
        last = self._evaluation.run(self._log, termination, splits.last, and_train=False)
        return dataclasses.replace(
            last,
            summary={**found.summary, **last.summary},
            curves={**found.curves, **last.curves},
            strata={**found.strata, **last.strata},
        )
