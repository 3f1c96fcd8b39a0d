"""Calibration: whether predicted probabilities equal the observed shares of positives."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What `calibration` computes.

    Attributes:
      ratio: mean predicted probability / observed share of positives; 1 is perfect, above 1 the
        model promises too much (He et al. 2014, "Practical lessons from predicting clicks on ads
        at Facebook", section 3). None if no row is positive.
      error: expected calibration error: rows are sorted by probability and cut into bins of equal
        count (to one); the mean over rows of ``|mean predicted - share of positives|`` of their
        bin (Naeini et al. 2015, with bins of equal count in place of equal width).
    """

    ratio: float | None
    error: float


@dataclasses.dataclass(frozen=True)
class ReliabilityCurve:
    """Rows sorted by predicted probability and cut into K bins of equal count (to one).

    Attributes:
      predicted: ``[K]``, the bin's mean probability.
      observed: ``[K]``, its share of positives.
      weight: ``[K]``, of its rows: how many they are, if all weigh 1.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    weight: NDArray[np.float64]


def reliability_curve(
    labels: NDArray[np.bool_],
    logits: NDArray[np.floating],
    weights: NDArray[np.floating] | None = None,
    *,
    bins: int = 10,
) -> ReliabilityCurve:
    """Compares the probabilities of logits with labels, bin by bin.

    The order of rows does not matter: those of equal scores are sorted by label.

    Args:
      labels: ``[N]``.
      logits: ``[N]``, finite.
      weights: ``[N]``, above 0; None: 1 each. Bins count rows, whatever these weigh.
      bins: how many; fewer if there are fewer rows.
    """
    weight = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    order = np.lexsort((weight, labels, logits))
    weight = weight[order]
    observed = weight * labels[order]
    # 1 / (1 + exp(-x)) without overflow.
    predicted = weight * np.exp(-np.logaddexp(0.0, -logits[order].astype(np.float64)))
    sums = [
        [part.sum() for part in np.array_split(values, min(bins, len(labels)))]
        for values in (predicted, observed, weight)
    ]
    of_bins = np.array(sums, np.float64)
    return ReliabilityCurve(of_bins[0] / of_bins[2], of_bins[1] / of_bins[2], of_bins[2])


def calibration(
    labels: NDArray[np.bool_],
    logits: NDArray[np.floating],
    weights: NDArray[np.floating] | None = None,
    *,
    bins: int = 10,
) -> Calibration:
    """Sums a reliability curve up; arguments as of `reliability_curve`."""
    curve = reliability_curve(labels, logits, weights, bins=bins)
    predicted, observed = curve.predicted * curve.weight, curve.observed * curve.weight
    error = np.abs(predicted - observed).sum() / curve.weight.sum()
    ratio = float(predicted.sum() / observed.sum()) if labels.any() else None
    return Calibration(ratio, float(error))
