"""Calibration: whether predicted probabilities are the shares of positives that come of them."""

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


def calibration(
    labels: NDArray[np.bool_],
    logits: NDArray[np.floating],
    weights: NDArray[np.floating] | None = None,
    *,
    bins: int = 10,
) -> Calibration:
    """Compares the probabilities of logits with labels.

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
    gaps = np.array_split(predicted - observed, bins)
    error = sum(abs(gap.sum()) for gap in gaps) / weight.sum()
    ratio = float(predicted.sum() / observed.sum()) if labels.any() else None
    return Calibration(ratio, float(error))
