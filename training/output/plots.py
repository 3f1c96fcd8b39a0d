"""Plots of a run's course: losses and metrics by step and epoch, or those of one evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lookback.training.evaluation.names import metric_of
from lookback.training.output.logging import LogRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TOTAL = "total_loss"
_LOG_LOSS = "log_loss"
_SCALES: Mapping[str, tuple[str, ...]] = {
    "AUC": ("auc", "gauc"),
    "Ranking": ("hr@K", "ndcg@K", "mrr"),
    "Calibration": ("calibration",),
}
"""Panel -> the metrics (`training.evaluation.names`) that share its axis; `_LOG_LOSS` is drawn with
the losses of training."""


class Curve(NamedTuple):
    """One line: places ``[N]`` and values ``[N]``."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]


def learning_curve(
    records: Sequence[LogRecord],
    *,
    baselines: Mapping[str, float] | None = None,
    head_weight: float = 1.0,
) -> Figure:
    """Losses by step, of training and of evaluations on one scale, and evaluated metrics by epoch.

    Args:
      records: of steps and epochs.
      baselines: what ranking by the items' popularity gives, by the metric's name.
      head_weight: of the head's cross entropy in the head's loss, as evaluations have none.
    """
    steps = [record for record in records if len(record.step) == 2]
    evaluated = evaluations(records)
    panels = {
        scale: {name: curve for name, curve in evaluated.items() if metric_of(name) in metrics}
        for scale, metrics in _SCALES.items()
    }
    panels = {scale: curves for scale, curves in panels.items() if curves}
    if not panels:
        panels = {"": {}}
    figure = new_figure((4.8 * (1 + len(panels)), 4.3))
    axes: list[Axes] = list(np.atleast_1d(figure.subplots(1, 1 + len(panels))))
    losses = {name: curve for name, curve in evaluated.items() if metric_of(name) == _LOG_LOSS}
    _plot_losses(axes[0], steps, losses, head_weight)
    for axis, (scale, curves) in zip(axes[1:], panels.items(), strict=True):
        _plot_metrics(axis, scale, curves, baselines or {})
    for axis in axes:
        axis.grid(True, linewidth=0.5, alpha=0.4)
    return figure


def evaluation_plot(
    metrics: Mapping[str, Any],
    *,
    baselines: Mapping[str, float] | None = None,
) -> Figure:
    """Bars of the metrics that lie between 0 and 1; the other figures in words below.

    Args:
      metrics: of an evaluation, by name.
      baselines: what ranking by the items' popularity gives, by the metric's name.
    """
    numbers = {n: v for n, v in metrics.items() if isinstance(v, int | float) and not _is_nan(v)}
    shares = {n: float(v) for n, v in numbers.items() if _scale_of(n) in ("AUC", "Ranking")}
    bars = {words_of(name): value for name, value in shares.items()}
    references = {f"popularity, {words_of(n)}": v for n, v in (baselines or {}).items()}
    if any(_scale_of(name) == "AUC" for name in shares):
        references["chance (AUC)"] = 0.5
    figure = new_figure((7.2, 1.6 + 0.34 * (len(bars) + len(references) + 2)))
    axis: Axes = figure.subplots()
    names = [*bars, *references]
    values = [*bars.values(), *references.values()]
    colours = [COLOURS[0]] * len(bars) + ["0.7"] * len(references)
    axis.barh(range(len(names)), values, color=colours, height=0.65)
    for place, value in enumerate(values):
        axis.text(value + 0.01, place, f"{value:.4f}", va="center", fontsize=9)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.1), title="Evaluation")
    others = [f"{words_of(n)} {_number(v)}" for n, v in numbers.items() if n not in shares]
    axis.set_xlabel("\n".join([*_lines(others)]))
    if not names:
        note(axis, "no AUC, HR, NDCG or MRR was evaluated")
    axis.grid(True, axis="x", linewidth=0.5, alpha=0.4)
    return figure


def evaluations(records: Sequence[LogRecord]) -> dict[str, Curve]:
    """The curve of each evaluated metric over epochs done, which may be fractions.

    Args:
      records: of epochs, and of steps after which the run was evaluated.
    """
    per_epoch = _steps_an_epoch(records)
    points: dict[str, dict[float, float]] = {}
    for record in records:
        if not record.step:
            continue
        done = record.step[0] + 1.0
        if len(record.step) == 2:
            done = record.step[0] + (record.step[1] + 1) / per_epoch
        for name, value in record.data.items():
            if value is not None and (_scale_of(name) or metric_of(name) == _LOG_LOSS):
                points.setdefault(name, {})[done] = float(value)
    return {
        name: Curve(*np.array(sorted(of_name.items()), np.float64).T)
        for name, of_name in points.items()
    }


def training_loss(steps: Sequence[LogRecord], name: str) -> tuple[Curve, NDArray[np.float64]]:
    """A loss by steps done, and the rows ``[N]`` of each.

    A batch of less than half of the usual rows, as the last of an epoch, has a loss that jumps for
    that reason alone: its rows are counted to the step before.

    Args:
      steps: records of steps.
      name: of the loss.
    """
    per_epoch = _steps_an_epoch(steps)
    having = sorted(
        (r.step[0] * per_epoch + r.step[1] + 1, r.data[name], r.data.get("rows") or 1)
        for r in steps
        if r.data.get(name) is not None
    )
    usual = float(np.median([rows for *_, rows in having])) if having else 1.0
    x: list[float] = []
    y: list[float] = []
    weights: list[float] = []
    for place, value, rows in having:
        if x and rows < usual / 2:
            both = weights[-1] + rows
            y[-1] = (y[-1] * weights[-1] + value * rows) / both
            weights[-1] = both
            continue
        x.append(place)
        y.append(value)
        weights.append(rows)
    curve = Curve(np.array(x, np.float64), np.array(y, np.float64))
    return curve, np.array(weights, np.float64)


def _plot_losses(
    axis: Axes,
    steps: Sequence[LogRecord],
    evaluated: Mapping[str, Curve],
    head_weight: float,
) -> None:
    name = _head_loss(steps)
    (x, y), rows = training_loss(steps, name)
    if name != TOTAL:
        y = y / head_weight
    per_epoch = _steps_an_epoch(steps)
    label = "training" if name == TOTAL else f"training, {name.replace('_', ' ')}"
    window = max(1, len(y) // 50)
    smooth = y
    if window > 1:
        axis.plot(x, y, color=COLOURS[0], linewidth=0.8, alpha=0.35)
        # A mean over rows; it stands where its window ends: it knows nothing of what comes after.
        kernel = np.ones(window)
        smooth = np.convolve(y * rows, kernel, "valid") / np.convolve(rows, kernel, "valid")
        label += f", mean of {window} steps"
    mark = "o" if len(smooth) <= 30 else None
    axis.plot(
        x[window - 1 :],
        smooth,
        color=COLOURS[0],
        linewidth=1.8,
        marker=mark,
        markersize=4,
        label=label,
    )
    shown = [smooth]
    for (metric, curve), colour in zip(evaluated.items(), COLOURS[1:] * 9, strict=False):
        axis.plot(
            curve.x * per_epoch,
            curve.y,
            color=colour,
            marker="o",
            markersize=5,
            linewidth=1.6,
            label=f"{words_of(metric)} (last {curve.y[-1]:.4f})",
        )
        shown.append(curve.y)
    values = np.concatenate(shown)
    if len(values):
        # The first steps of a run tower above the rest; the rest is what one wants to see.
        low, high = float(values.min()), float(np.percentile(values, 99))
        high = max(high, *(float(found.max()) for found in shown[1:]), low)
        margin = 0.08 * max(high - low, 1e-6)
        axis.set_ylim(low - margin, high + margin)
    axis.set(xlabel="Training step", ylabel="Loss (nats)", title="Loss")
    axis.legend(loc="best", frameon=False, fontsize=8)


def _plot_metrics(
    axis: Axes, scale: str, curves: Mapping[str, Curve], baselines: Mapping[str, float]
) -> None:
    from matplotlib.ticker import MaxNLocator

    if not curves:
        axis.set(title="Evaluation")
        note(axis, "not evaluated")
        return
    for (name, curve), colour in zip(curves.items(), COLOURS * len(curves), strict=False):
        label = f"{words_of(name)} (last {curve.y[-1]:.4f})"
        if name in baselines:
            axis.axhline(baselines[name], color=colour, linewidth=1, linestyle="--")
            label = label[:-1] + f"; popularity, dashed: {baselines[name]:.4f})"
        axis.plot(*curve, marker="o", markersize=4, linewidth=1.6, color=colour, label=label)
    if scale == "AUC":
        axis.axhline(0.5, color="0.5", linewidth=1, linestyle=":", label="chance (0.5)")
    axis.set(xlabel="Epoch", title=scale)
    axis.legend(loc="best", frameon=False, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _head_loss(steps: Sequence[LogRecord]) -> str:
    """The loss that evaluations' log loss compares with: the head's, without what a model adds.

    A step tells the total, then the head's, then added ones.
    """
    names = next((list(record.data) for record in steps if TOTAL in record.data), [TOTAL])
    following = names[names.index(TOTAL) + 1 :][:1]
    return following[0] if following and following[0].endswith("loss") else TOTAL


def _steps_an_epoch(records: Sequence[LogRecord]) -> int:
    """Steps of an epoch are numbered from 0 in each; the longest one gives their number."""
    return 1 + max((record.step[1] for record in records if len(record.step) == 2), default=0)


def _scale_of(name: str) -> str | None:
    """The panel of a figure."""
    metric = metric_of(name)
    return next((scale for scale, metrics in _SCALES.items() if metric in metrics), None)


def words_of(name: str) -> str:
    """A figure's name for people: test_catalogue_hr@10 is "test catalogue HR@10"."""
    upper = ("auc", "gauc", "mrr")
    words = (
        word.upper() if word in upper or word.startswith(("hr@", "ndcg@")) else word
        for word in name.split("_")
    )
    return " ".join(words)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _lines(facts: Sequence[str], a_line: int = 4) -> list[str]:
    return ["   ".join(facts[i : i + a_line]) for i in range(0, len(facts), a_line)]


def _is_nan(value: float) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure.

    Args:
      size: width and height in inches.
    """
    # Not pyplot: it keeps figures in a global list and may look for a display.
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def note(axis: Axes, text: str) -> None:
    """Writes something in the middle of an empty plot."""
    axis.text(0.5, 0.5, text, ha="center", va="center", color="0.4", transform=axis.transAxes)
