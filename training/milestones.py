"""When a run is evaluated, and when it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lookback.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
      epoch: from 0; the number of epochs when training is done.
      step: steps of this epoch that are done.
      total_steps: steps done in all epochs.
      updates_before: updates that the optimizer had applied before the run, where it started from a
        trained model with its state.
    """

    epoch: int = 0
    step: int = 0
    total_steps: int = 0
    updates_before: int = 0

    @property
    def after_a_step(self) -> Position:
        """Where the run stands after the next step, of this epoch."""
        return dataclasses.replace(self, step=self.step + 1, total_steps=self.total_steps + 1)

    @property
    def next_epoch(self) -> Position:
        """Where the run stands once this epoch is done."""
        return dataclasses.replace(self, epoch=self.epoch + 1, step=0)

    def __str__(self) -> str:
        """For people, who count from 1."""
        steps = f"{self.step:,} steps of epoch {self.epoch + 1}"
        return steps if self.step or not self.epoch else f"epoch {self.epoch}"


class Milestones:
    """What the configuration says about evaluations on the way, and about an early end."""

    def __init__(
        self,
        config: RunConfig,
        steps_an_epoch: int,
        goals: Mapping[str, float] | None = None,
        watched: str | None = None,
    ) -> None:
        """Reads the configuration.

        Args:
          config: of the run.
          steps_an_epoch: training steps.
          goals: figures of the watched split, by name, at any of which training may end.
          watched: the split that is evaluated on the way; None: none is.
        """
        self._config = config
        self._goals = goals or {}
        self._watched = watched
        self._steps_an_epoch = steps_an_epoch

    def test_is_due(self, position: Position) -> bool:
        """Whether to evaluate after the step that led here (`--test_freq`)."""
        every = self._config.test_freq
        return every is not None and position.total_steps % every == 0 and self._late(position)

    def evaluation_is_due(self, position: Position) -> bool:
        """Whether to evaluate after the epoch that led here."""
        every, epoch = self._config.eval_every, position.epoch
        if epoch == self._config.epochs:
            return True
        return every is not None and epoch % every == 0 and self._late(position)

    def out_of_steps(self, position: Position) -> bool:
        """Whether as many steps are done as the run may have (`--max_steps`)."""
        most = self._config.max_steps
        return most is not None and position.total_steps >= most

    def reached(self, figures: Mapping[str, Any]) -> bool:
        """Whether an evaluation's figures are what the run was for."""
        if self._watched is None:
            return False
        found = {name: figures[f"{self._watched}_{name}"] for name in self._goals}
        # None: what was found does not have the figure, as one class has no AUC.
        return any(v is not None and v >= self._goals[name] for name, v in found.items())

    def _late(self, position: Position) -> bool:
        done = position.epoch + position.step / self._steps_an_epoch
        return done >= self._config.test_after
