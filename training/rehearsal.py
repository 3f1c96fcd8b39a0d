"""What a run would take, found out by some of its steps: ``--dry_run`` of training.

Data, model and optimizer are those of the run, so what they take is measured, not estimated; what
takes time is measured for a few steps, after the first, which are traced, and multiplied.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lookback.core.processes import resident_peak
from lookback.core.sizes import format_size
from lookback.core.world import World
from lookback.dataloading.sources import BatchSource
from lookback.training.config import RunConfig
from lookback.training.milestones import Milestones, Position
from lookback.training.steps import Steps

TRACED_STEPS = 2
"""First steps that are not measured: the first is traced, the second allocates what is kept."""

MEASURED_STEPS = 10
MEASURED_EVALUATION_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What a run would take.

    Attributes:
      start: seconds to open data and model, tracing included.
      train_steps: of an epoch.
      step: seconds, their median.
      epochs: of the run.
      evaluations: by split, how often it is evaluated and the seconds that takes once.
      peak: bytes of memory, the most at once, of each process.
      checkpoint: bytes on disk.
      checkpoints: how many are kept.
      model: bytes of what is exported, but for vocabularies; None: nothing is.
    """

    start: float
    train_steps: int
    step: float
    epochs: float
    evaluations: Mapping[str, tuple[int, float]]
    peak: Sequence[int]
    checkpoint: int
    checkpoints: int
    model: int | None

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        evaluated = sum(times * seconds for times, seconds in self.evaluations.values())
        return self.start + self.epochs * self.train_steps * self.step + evaluated

    def lines(self) -> list[str]:
        """For people."""
        steps = round(self.epochs * self.train_steps)
        evaluated = "; ".join(
            f"{name}: {times} x {seconds:,.0f} s"
            for name, (times, seconds) in self.evaluations.items()
        )
        memory = ", ".join(format_size(peak) for peak in self.peak)
        each = "" if len(self.peak) == 1 else f" ({len(self.peak)} processes, each its own)"
        disk = []
        if self.checkpoints:
            disk.append(f"{self.checkpoints} checkpoint(s) of {format_size(self.checkpoint)}")
        if self.model is not None:
            disk.append(f"an export of {format_size(self.model)} and its vocabularies")
        return [
            "dry run: nothing was written; a run of these options takes about",
            f"  time    {self.seconds:,.0f} s: {self.start:,.0f} s to start, {steps:,} steps of "
            f"{1000 * self.step:,.1f} ms{'; ' if evaluated else ''}{evaluated}",
            f"  memory  {memory} at its peak{each}",
            f"  disk    {' and '.join(disk) or 'logs and a report alone'}",
        ]


def rehearse(
    steps: Steps,
    source: BatchSource,
    config: RunConfig,
    evaluations: Mapping[str, Callable[[int], Any]],
    watched: str | None,
    sizes: tuple[int, int],
    began: float,
    world: World,
) -> Rehearsal:
    """Takes some steps of training and of each evaluation; the model changes, nothing is written.

    Args:
      steps: of training.
      source: of batches.
      config: of the run.
      evaluations: what makes the given number of steps of a pass, by its name.
      watched: the split that is evaluated on the way, if any is.
      sizes: bytes of a checkpoint, and of the model alone, that this process holds.
      began: when the process began with the run (`time.perf_counter`).
      world: the processes that train together.
    """
    seconds = []
    taken = steps.train(itertools.islice(source.train_feeds(0, 0), TRACED_STEPS + MEASURED_STEPS))
    since = time.perf_counter()
    for _, result in taken:
        for value in result.values():
            value.numpy()  # waits for it
        seconds.append(time.perf_counter() - since)
        since = time.perf_counter()
    measured = seconds[TRACED_STEPS:] or seconds[-1:]
    traced = sum(seconds) - sum(measured)
    found: dict[str, tuple[int, float]] = {}
    for name, take in evaluations.items():
        total = source.eval_steps(name)
        since = time.perf_counter()
        take(1)
        first = time.perf_counter() - since
        since = time.perf_counter()
        count = min(MEASURED_EVALUATION_STEPS, total)
        take(count)
        one = (time.perf_counter() - since) / max(count, 1)
        traced += max(first - one, 0)
        # With what is watched, training's own split is looked at, if it is at all.
        on_the_way = watched is not None and (name.startswith(watched) or name == "train")
        times = _evaluations_of(config, source.train_steps(), watched) if on_the_way else 1
        found[name] = (times, one * total)
    checkpoint, model = map(sum, zip(*world.gather(sizes), strict=True))
    each = source.train_steps()
    most = config.epochs if config.max_steps is None else config.max_steps / max(each, 1)
    started = time.perf_counter() - began - sum(measured)
    return Rehearsal(
        start=max(started, traced),
        train_steps=each,
        step=statistics.median(measured),
        epochs=min(config.epochs, most),
        evaluations=found,
        peak=world.gather(resident_peak()),
        checkpoint=checkpoint,
        checkpoints=0 if config.save_checkpoint_path is None else config.keep_checkpoints,
        model=None if config.export_dir is None else model,
    )


def _evaluations_of(config: RunConfig, steps: int, watched: str | None) -> int:
    """How often a run evaluates what it watches: after epochs, and every so many steps."""
    milestones = Milestones(config, steps, watched=watched)
    most = config.epochs
    if config.max_steps is not None:
        most = min(most, math.ceil(config.max_steps / max(steps, 1)))
    due = sum(milestones.evaluation_is_due(Position(epoch=epoch)) for epoch in range(1, most + 1))
    return max(due, 1) + (0 if config.test_freq is None else most * steps // config.test_freq)
