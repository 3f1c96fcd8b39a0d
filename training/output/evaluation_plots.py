"""Plots of one evaluation: ROC, precision and recall, calibration, strata, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lookback.training.evaluation.found import (
    EVENTS,
    FOUND,
    LENGTH,
    POPULARITY,
    WEIGHT,
    AttentionFound,
    Stratum,
    largest,
)
from lookback.training.evaluation.metrics import Curves
from lookback.training.output.plots import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRATA_TITLES = {
    LENGTH: "by history length (events)",
    POPULARITY: "by the item's popularity (events in training)",
}
_DURATIONS = {
    "1 s": 1,
    "1 min": 60,
    "1 h": 3600,
    "1 d": 86400,
    "1 week": 7 * 86400,
    "30 d": 30 * 86400,
    "1 y": 365 * 86400,
    "10 y": 3652 * 86400,
}
_SMALL = 8  # points of type
_SQUARE = (4.4, 4.6)  # inches: three stand side by side on the page


def roc_plot(curves: Mapping[str, Curves]) -> Figure:
    """ROC curves, with their areas in the legend.

    Args:
      curves: name of an evaluation -> its curves.
    """
    figure = new_figure(_SQUARE)
    axis: Axes = figure.subplots()
    for (name, found), colour in _coloured(curves):
        roc = found.roc
        label = f"{name} (AUC {roc.auc:.4f})"
        axis.plot(
            roc.false_positive_rate, roc.true_positive_rate, color=colour, lw=1.8, label=label
        )
    axis.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--", label="chance (AUC 0.5)")
    axis.set(xlabel="False positive rate", ylabel="True positive rate", title="ROC")
    _square(axis, "lower right")
    return figure


def precision_recall_plot(curves: Mapping[str, Curves]) -> Figure:
    """Precision by recall; arguments as of `roc_plot`."""
    figure = new_figure(_SQUARE)
    axis: Axes = figure.subplots()
    for (name, found), colour in _coloured(curves):
        curve = found.precision_recall
        label = f"{name} (average precision {curve.average_precision:.4f})"
        axis.plot(curve.recall, curve.precision, color=colour, linewidth=1.8, label=label)
        axis.axhline(curve.share, color=colour, linewidth=1, linestyle="--")
    axis.set(xlabel="Recall", ylabel="Precision", title="Precision and recall")
    axis.plot([], [], color="0.5", lw=1, ls="--", label="chance: the share of positives")
    _square(axis, "best")
    return figure


def calibration_plot(curves: Mapping[str, Curves]) -> Figure:
    """Shares of positives by predicted probability; arguments as of `roc_plot`."""
    figure = new_figure(_SQUARE)
    axis: Axes = figure.subplots()
    most = 0.0
    for (name, found), colour in _coloured(curves):
        curve = found.reliability
        rows = int(curve.weight.sum())
        label = f"{name}, {len(curve.weight)} bins of {rows:,} rows"
        axis.plot(curve.predicted, curve.observed, "o-", color=colour, lw=1.6, ms=5, label=label)
        most = max(most, float(curve.predicted.max()), float(curve.observed.max()))
    axis.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--", label="calibrated")
    axis.set(xlabel="Mean predicted probability", ylabel="Share of positives", title="Calibration")
    _square(axis, "upper left", min(1.0, 1.08 * most))
    return figure


def strata_plot(strata: Mapping[str, Sequence[Stratum]], name: str, whole: float | None) -> Figure:
    """The AUC of strata, and their rows.

    Args:
      strata: by what rows were sorted.
      name: of the evaluation.
      whole: the AUC of all its rows; None: unknown.
    """
    figure = new_figure((5.6 * len(strata), 4.0))
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(1, len(strata))))
    for axis, (by, found) in zip(panels, strata.items(), strict=True):
        places = np.arange(len(found))
        counts = axis.twinx()
        counts.bar(places, [s.rows for s in found], color="0.88", width=0.8)
        counts.set_ylabel("Rows", color="0.45")
        counts.tick_params(axis="y", colors="0.45", labelsize=_SMALL)
        counts.set_ylim(0, 2.5 * max(s.rows for s in found))  # below the line
        axis.set_zorder(counts.get_zorder() + 1)
        axis.patch.set_visible(False)
        values = [np.nan if s.auc is None else s.auc for s in found]
        errors = [s.standard_error or 0.0 for s in found]
        label = f"{name} AUC, ± 1 standard error"
        axis.errorbar(places, values, errors, fmt="o-", color=COLOURS[0], capsize=3, label=label)
        if whole is not None:
            label = f"of all rows ({whole:.4f})"
            axis.axhline(whole, color=COLOURS[1], linewidth=1, linestyle="--", label=label)
        ticks = [f"{s.low:,}" if s.low == s.high else f"{s.low:,}-{s.high:,}" for s in found]
        axis.set_xticks(places, ticks, rotation=30, ha="right", fontsize=_SMALL)
        axis.set(title=f"AUC {STRATA_TITLES[by]}", ylabel="AUC")
        axis.grid(True, axis="y", linewidth=0.5, alpha=0.4)
        axis.legend(loc="best", frameon=False, fontsize=_SMALL)
    return figure


def attention_plot(found: AttentionFound, category_names: Mapping[int, str]) -> Figure:
    """Where, how old and of which category the events are that a model attends to.

    Args:
      found: what was counted.
      category_names: of categories; others are called by their row.
    """
    panels = [_recency]
    panels += [] if found.time_gap is None else [_time_gaps]
    figure = new_figure((4.8 * (len(panels) + (found.categories is not None)), 4.0))
    columns = len(panels) + (found.categories is not None)
    axes: list[Axes] = list(np.atleast_1d(figure.subplots(1, columns)))
    for axis, draw in zip(axes, panels, strict=False):
        draw(axis, found)
        axis.legend(loc="best", frameon=False, fontsize=_SMALL)
        axis.set_ylabel("Share")
        axis.set_ylim(bottom=0)
        axis.grid(True, linewidth=0.5, alpha=0.4)
    if found.categories is not None:
        _categories(axes[-1], found, found.categories, category_names)
    return figure


def shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts ``[3, N]`` as shares of their rows."""
    totals = counts.sum(-1, keepdims=True)
    return np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)


def _measures(found: AttentionFound) -> dict[int, tuple[str, str]]:
    """What is drawn of counts: in which colour, under which name."""
    shown = {EVENTS: ("0.6", "all events"), FOUND: (COLOURS[0], "found by the search")}
    if not found.searched:
        del shown[FOUND]
    return {**shown, WEIGHT: (COLOURS[1], "attention")}


def _recency(axis: Axes, found: AttentionFound) -> None:
    share = shares(found.recency)
    places = np.arange(1, share.shape[1] + 1)
    for row, (colour, label) in _measures(found).items():
        axis.plot(places, share[row], color=colour, linewidth=1.6, label=label)
    axis.set(xlabel="Place in the history, 1 the latest", title="Where")


def _time_gaps(axis: Axes, found: AttentionFound) -> None:
    assert found.time_gap is not None
    share = shares(found.time_gap)
    used = np.flatnonzero(found.time_gap.any(0))  # a candidate has an event
    # Bucket b, from 1 on, holds gaps of 2^(b - 1) - 1 seconds and more.
    edges = np.arange(share.shape[1] + 1)
    for row, (colour, label) in _measures(found).items():
        axis.stairs(
            share[row],
            edges,
            color=colour,
            linewidth=1.6,
            fill=row == EVENTS,
            alpha=0.5 if row == EVENTS else 1,
            label=label,
        )
    ticks = {text: 1 + np.log2(1 + seconds) for text, seconds in _DURATIONS.items()}
    low, high = int(used[0]), int(used[-1]) + 1
    shown = {text: place for text, place in ticks.items() if low <= place <= high}
    axis.set_xticks(list(shown.values()), list(shown), rotation=30, ha="right", fontsize=_SMALL)
    axis.set(xlim=(low, high), xlabel="Time before the candidate", title="How long ago")


def _categories(
    axis: Axes,
    found: AttentionFound,
    counts: NDArray[np.float64],
    names: Mapping[int, str],
) -> None:
    share, rows = shares(counts), largest(counts)
    measures = _measures(found)
    height = 0.8 / len(measures)
    for number, (row, (colour, label)) in enumerate(measures.items()):
        places = np.arange(len(rows)) + (number - (len(measures) - 1) / 2) * height
        axis.barh(places, share[row][rows], height, color=colour, label=label)
    axis.set_yticks(
        range(len(rows)), [names.get(row, f"row {row}") for row in rows], fontsize=_SMALL
    )
    axis.invert_yaxis()
    axis.set(xlabel="Share", title=f"Which {found.category}")
    axis.grid(True, axis="x", linewidth=0.5, alpha=0.4)
    axis.legend(loc="best", frameon=False, fontsize=_SMALL)


def _coloured(curves: Mapping[str, Curves]) -> list[tuple[tuple[str, Curves], str]]:
    return list(zip(curves.items(), COLOURS * len(curves), strict=False))


def _square(axis: Axes, legend: str, most: float = 1.0) -> None:
    axis.set(xlim=(0, most), ylim=(0, most), aspect="equal")
    axis.legend(loc=legend, frameon=False, fontsize=_SMALL)
    axis.grid(True, linewidth=0.5, alpha=0.4)
