"""What evaluations find beside metrics: strata of rows, and what a model attends to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LENGTH, POPULARITY = "history_length", "item_popularity"
"""By what rows are sorted into strata."""
SHOWN_CATEGORIES = 10
EVENTS, FOUND, WEIGHT = range(3)
"""Rows of the counts below: all events, those that a search finds, and what attention gives."""

Counts = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Stratum:
    """Rows of which a value is within bounds.

    Attributes:
      low: the least value of its rows.
      high: the largest.
      rows: how many.
      positives: how many of them are labelled 1.
      auc: of its rows; None if they are of one class.
    """

    low: int
    high: int
    rows: int
    positives: int
    auc: float | None

    @property
    def standard_error(self) -> float | None:
        """Of the AUC (Hanley and McNeil 1982, "The meaning ... of the area under a ROC curve")."""
        if self.auc is None:
            return None
        a, positives, negatives = self.auc, self.positives, self.rows - self.positives
        one, two = a / (2 - a), 2 * a**2 / (1 + a)
        spread = (positives - 1) * (one - a**2) + (negatives - 1) * (two - a**2)
        return float(np.sqrt((a * (1 - a) + spread) / (positives * negatives)))


@dataclasses.dataclass(frozen=True)
class AttentionFound:
    """What was counted; each ``[3, N]`` has a row for `EVENTS`, `FOUND` and `WEIGHT`.

    Attributes:
      split: whose.
      candidates: how many positive ones with at least one event.
      searched: whether the model searches; else its `FOUND` are all events.
      recency: by an event's place, from the latest; N slots.
      time_gap: by the log bucket of the time gap (`TIME_GAP_BUCKETS`); None without times.
      same_category: ``[3]``, of the candidate's category; None without a category.
      categories: by category, the table's rows; None likewise.
      category: its feature.
    """

    split: str
    candidates: int
    searched: bool
    recency: Counts
    time_gap: Counts | None
    same_category: Counts | None
    categories: Counts | None
    category: str | None


def largest(counts: Counts, number: int = SHOWN_CATEGORIES) -> Sequence[int]:
    """The values with the most of what attention gives, of `number` at most that have any."""
    weight = counts[WEIGHT]
    order = np.argsort(-weight, kind="stable")[:number]
    return [int(value) for value in order if weight[value] > 0]
