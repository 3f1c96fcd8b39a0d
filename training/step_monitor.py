"""The results of training steps: read when they are needed, checked and logged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from lookback.core.devices import has_gpu
from lookback.core.errors import UserError
from lookback.core.files import atomic_file, inside_ours
from lookback.core.world import SOLO, World
from lookback.dataloading.sources import BatchSource
from lookback.training.milestones import Position
from lookback.training.output.logging import RunLogger
from lookback.training.output.performance import PerformanceMeter
from lookback.training.output.warnings import LossTrend


class StepMonitor:
    """Measures steps, logs every `log_every`th, and ends a run whose loss is not finite.

    A CPU has computed a step when its call returns. A GPU has only been given it, and to read its
    results is to wait for it: there they are read when a step is logged, or on demand.

    Attributes:
      losses: their trend.
    """

    def __init__(
        self,
        source: BatchSource,
        log: RunLogger,
        meter: PerformanceMeter,
        *,
        log_every: int,
        learning_rate: Callable[[], float],
        world: World = SOLO,
    ) -> None:
        """Begins with no step; a collective.

        Args:
          source: of the steps' batches.
          log: gets the losses, the learning rate and the speed.
          meter: is told of every step that was read.
          log_every: steps from one that is logged to the next.
          learning_rate: gives the present one.
          world: the processes that train together.
        """
        self._source, self._log, self._meter, self._world = source, log, meter, world
        self._log_every, self._learning_rate = log_every, learning_rate
        self.losses = LossTrend()
        # All ranks alike, as all must learn after the same step that one of them is to stop.
        self._runs_ahead = any(world.gather(has_gpu()))
        self._unread: list[tuple[Position, Mapping[str, tf.Tensor]]] = []

    def add(self, at: Position, tensors: Mapping[str, tf.Tensor], *, wait: bool = False) -> bool:
        """Adds a step; returns whether the run is to stop, as far as is known.

        Args:
          at: where the run stood before the step.
          tensors: of `Steps.train`.
          wait: read at once, this step and those before.

        Raises:
          UserError: see `read`.
        """
        self._unread.append((at, tensors))
        due = at.total_steps % self._log_every == 0
        return (wait or due or not self._runs_ahead) and self.read()

    def read(self) -> bool:
        """Reads the steps that were added since the last call; returns whether one says to stop.

        Raises:
          UserError: if a loss is not finite, naming the samples of the first such step.
        """
        taken, self._unread = self._unread, []
        if not taken:
            return False
        results = [{name: v.numpy().item() for name, v in tensors.items()} for _, tensors in taken]
        stopping = [result.pop("stop") for result in results]
        speed = self._meter.step(*(result["rows"] for result in results))
        for (position, _), result in zip(taken, results, strict=True):
            self._check_and_log(position, result, speed)
        return any(stopping)

    def _check_and_log(self, at: Position, result: dict[str, Any], speed: float) -> None:
        # An overflow is part of dynamic scaling: it skips a step, and is no fault.
        sound = result.pop("finite") | result.pop("adapts")
        if not sound or not math.isfinite(result["total_loss"]):
            raise self._not_finite(at, result["total_loss"])
        self.losses.add(result["total_loss"])
        if at.total_steps % self._log_every == 0:
            rows, rate = result.pop("rows"), self._learning_rate()
            self._log.step(
                at.epoch, at.step, {**result, "lr": rate, "rows": rows, "samples/s": speed}
            )

    def _not_finite(self, at: Position, loss: float) -> UserError:
        """The error of a step that broke the model; writes which samples the step had."""
        samples = self._source.describe(next(self._source.train_feeds(at.epoch, at.step)))
        directory = self._log.directory
        directory.mkdir(parents=True, exist_ok=True)
        suffix = "" if self._world.size == 1 else f".{self._world.rank}"
        path = directory / f"bad_batch{suffix}.json"
        with atomic_file(path, replaces=inside_ours) as temporary:
            temporary.write_text(json.dumps(samples))
        shown = "; ".join(f"{name}={values[:3]}" for name, values in samples.items())
        return UserError(
            f"The loss is {loss}, or its gradient is not finite, in epoch "
            f"{at.epoch + 1}, step {at.step + 1}. The batch's samples are in "
            f"{path}; the first: {shown}. "
            "The last checkpoint is unharmed. Lower --lr, or look at these samples."
        )
