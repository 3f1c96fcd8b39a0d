"""What a user should know of a run that ended well: it may have learnt nothing."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from lookback.training.config import RunConfig

FEWEST_STEPS = 50
"""Of an epoch: Adam moves a weight by about its rate a step, from where it began."""
LEAST_AUC = 0.55
"""Chance is 0.5."""
LEAST_FALL = 0.001
"""Of the training loss, as a fraction: less is noise."""
_COMPARED = 50  # losses at either end


class LossTrend:
    """Whether a loss fell, from its first values and its last."""

    def __init__(self) -> None:
        """Begins with no value."""
        self._first: list[float] = []
        self._last: collections.deque[float] = collections.deque(maxlen=_COMPARED)
        self._count = 0

    def add(self, loss: float) -> None:
        """Adds the next step's."""
        if len(self._first) < _COMPARED:
            self._first.append(loss)
        self._last.append(loss)
        self._count += 1

    def ends(self) -> tuple[float, float] | None:
        """Means of as many first and last values, apart from each other; None of too few."""
        number = min(_COMPARED, self._count // 2)
        if number < 2:
            return None
        return sum(self._first[:number]) / number, sum([*self._last][-number:]) / number


def warnings_of(
    figures: Mapping[str, Any],
    splits: Sequence[str],
    steps: int,
    losses: LossTrend | None,
    run: RunConfig,
) -> list[str]:
    """A line, with a remedy, for each sign that a model learnt little or nothing.

    Args:
      figures: of the run, by name.
      splits: that were evaluated.
      steps: of an epoch.
      losses: of training; None: of a run that was continued, which may have fallen before.
      run: its options.
    """
    found = []
    if steps < FEWEST_STEPS:
        found.append(
            f"an epoch has {steps} steps of {run.update_batch_size:,} rows, expected "
            f"{FEWEST_STEPS} or more to learn in. Lower --global_batch_size, or raise --epochs."
        )
    for split in splits:
        auc = figures.get(f"{split}_auc")
        if auc is not None and auc < LEAST_AUC:
            found.append(
                f"{split}_auc is {auc:.4f}, where chance is 0.5. Train for more --epochs, change "
                f"--lr ({run.lr:g}), or see whether the data says anything of its labels."
            )
    ends = None if losses is None else losses.ends()
    if ends is not None and ends[1] > ends[0] * (1 - LEAST_FALL):
        found.append(
            f"the training loss did not fall: {ends[0]:.4f} in the first steps, {ends[1]:.4f} in "
            f"the last. Change --lr ({run.lr:g}), or lower --warmup_steps ({run.warmup_steps:,})."
        )
    return found
