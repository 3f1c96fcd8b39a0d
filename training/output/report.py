"""What remains of a run to look at: `results_dir/report/`.

learning_curve.png   of a run that trained: losses by step, and every metric that was evaluated
evaluation.png       of one that only evaluated: its metrics
roc.png              ROC curves of the last evaluation
metrics.json         the run's figures: last values, every epoch, baselines
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lookback.core.files import atomic_file, inside_ours
from lookback.training.evaluation.metrics import RocCurve
from lookback.training.evaluation.names import metric_of
from lookback.training.output.logging import LogRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DOTS_PER_INCH = 150
_TOTAL = "total_loss"
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


def write_report(
    results_dir: str | os.PathLike[str],
    records: Sequence[LogRecord],
    *,
    metrics: Mapping[str, Any],
    roc: Mapping[str, RocCurve] | None = None,
    baselines: Mapping[str, float] | None = None,
    head_weight: float = 1.0,
    title: str = "",
) -> Path:
    """Writes the report of a run; each file is whole or not there.

    Args:
      results_dir: the report goes to its subdirectory `report`.
      records: of `training.output.logging.read_log`.
      metrics: what metrics.json holds under "results", e.g. the summary.
      roc: name ("test", "train") -> curve; without it there is no roc.png.
      baselines: what ranking by the items' popularity gives, by the metric's name ("test_auc").
      head_weight: of the head's cross entropy in the head's loss.
      title: above the plots; may have several lines.

    Returns:
      The directory.
    """
    directory = Path(results_dir) / "report"
    directory.mkdir(parents=True, exist_ok=True)
    epochs = [record for record in records if len(record.step) == 1]
    steps = [record for record in records if len(record.step) == 2]
    content = {
        "results": dict(metrics),
        "epochs": [{"epoch": record.step[0], **record.data} for record in epochs],
        "steps": len(steps),
        "roc_auc": {name: curve.auc for name, curve in (roc or {}).items()},
        "popularity": dict(baselines or {}),
    }
    with atomic_file(directory / "metrics.json", replaces=inside_ours) as temporary:
        text = json.dumps(_finite(content), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    if any(_TOTAL in record.data for record in steps):
        figure = learning_curve(records, baselines=baselines, head_weight=head_weight, title=title)
        _save(figure, directory / "learning_curve.png")
    else:
        figure = evaluation_plot(metrics, baselines=baselines, title=title)
        _save(figure, directory / "evaluation.png")
    if roc:
        _save(roc_plot(roc, title=title), directory / "roc.png")
    return directory


def learning_curve(
    records: Sequence[LogRecord],
    *,
    baselines: Mapping[str, float] | None = None,
    head_weight: float = 1.0,
    title: str = "",
) -> Figure:
    """Losses by step, of training and of evaluations on one scale, and evaluated metrics by epoch.

    Args:
      records: of steps and epochs.
      baselines: what ranking by the items' popularity gives, by the metric's name.
      head_weight: of the head's cross entropy in the head's loss, as evaluations have none.
      title: above the plots.
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
    figure = _figure((4.8 * (1 + len(panels)), 4.3), title)
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
    title: str = "",
) -> Figure:
    """Bars of the metrics that lie between 0 and 1; the other figures in words below.

    Args:
      metrics: of an evaluation, by name.
      baselines: what ranking by the items' popularity gives, by the metric's name.
      title: above the plot.
    """
    numbers = {n: v for n, v in metrics.items() if isinstance(v, int | float) and not _is_nan(v)}
    shares = {n: float(v) for n, v in numbers.items() if _scale_of(n) in ("AUC", "Ranking")}
    bars = {_words(name): value for name, value in shares.items()}
    references = {f"popularity, {_words(n)}": v for n, v in (baselines or {}).items()}
    if any(_scale_of(name) == "AUC" for name in shares):
        references["chance (AUC)"] = 0.5
    figure = _figure((7.2, 1.6 + 0.34 * (len(bars) + len(references) + 2)), title)
    axis: Axes = figure.subplots()
    names = [*bars, *references]
    values = [*bars.values(), *references.values()]
    colours = [_COLOURS[0]] * len(bars) + ["0.7"] * len(references)
    axis.barh(range(len(names)), values, color=colours, height=0.65)
    for place, value in enumerate(values):
        axis.text(value + 0.01, place, f"{value:.4f}", va="center", fontsize=9)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.1), title="Evaluation")
    others = [f"{_words(n)} {_number(v)}" for n, v in numbers.items() if n not in shares]
    axis.set_xlabel("\n".join([*_lines(others)]))
    if not names:
        _note(axis, "no AUC, HR, NDCG or MRR was evaluated")
    axis.grid(True, axis="x", linewidth=0.5, alpha=0.4)
    return figure


def roc_plot(curves: Mapping[str, RocCurve], *, title: str = "") -> Figure:
    """ROC curves, with their areas in the legend.

    Args:
      curves: name -> curve.
      title: above the plot.
    """
    figure = _figure((5.2, 5.4), title)
    axis: Axes = figure.subplots()
    for (name, curve), colour in zip(curves.items(), _COLOURS * len(curves), strict=False):
        axis.plot(
            curve.false_positive_rate,
            curve.true_positive_rate,
            color=colour,
            linewidth=1.8,
            label=f"{name} (AUC {curve.auc:.4f})",
        )
    axis.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle="--", label="chance (AUC 0.5)")
    axis.set(
        xlabel="False positive rate",
        ylabel="True positive rate",
        title="ROC",
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
    )
    axis.legend(loc="lower right", frameon=False)
    axis.grid(True, linewidth=0.5, alpha=0.4)
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
    if name != _TOTAL:
        y = y / head_weight
    per_epoch = _steps_an_epoch(steps)
    label = "training" if name == _TOTAL else f"training, {name.replace('_', ' ')}"
    window = max(1, len(y) // 50)
    smooth = y
    if window > 1:
        axis.plot(x, y, color=_COLOURS[0], linewidth=0.8, alpha=0.35)
        # A mean over rows; it stands where its window ends: it knows nothing of what comes after.
        kernel = np.ones(window)
        smooth = np.convolve(y * rows, kernel, "valid") / np.convolve(rows, kernel, "valid")
        label += f", mean of {window} steps"
    mark = "o" if len(smooth) <= 30 else None
    axis.plot(
        x[window - 1 :],
        smooth,
        color=_COLOURS[0],
        linewidth=1.8,
        marker=mark,
        markersize=4,
        label=label,
    )
    shown = [smooth]
    for (metric, curve), colour in zip(evaluated.items(), _COLOURS[1:] * 9, strict=False):
        axis.plot(
            curve.x * per_epoch,
            curve.y,
            color=colour,
            marker="o",
            markersize=5,
            linewidth=1.6,
            label=f"{_words(metric)} (last {curve.y[-1]:.4f})",
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
        _note(axis, "not evaluated")
        return
    for (name, curve), colour in zip(curves.items(), _COLOURS * len(curves), strict=False):
        label = f"{_words(name)} (last {curve.y[-1]:.4f})"
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
    names = next((list(record.data) for record in steps if _TOTAL in record.data), [_TOTAL])
    following = names[names.index(_TOTAL) + 1 :][:1]
    return following[0] if following and following[0].endswith("loss") else _TOTAL


def _steps_an_epoch(records: Sequence[LogRecord]) -> int:
    """Steps of an epoch are numbered from 0 in each; the longest one gives their number."""
    return 1 + max((record.step[1] for record in records if len(record.step) == 2), default=0)


def _scale_of(name: str) -> str | None:
    """The panel of a figure."""
    metric = metric_of(name)
    return next((scale for scale, metrics in _SCALES.items() if metric in metrics), None)


def _words(name: str) -> str:
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


def _figure(size: tuple[float, float], title: str) -> Figure:
    # Not pyplot: it keeps figures in a global list and may look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _note(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", color="0.4", transform=axis.transAxes)


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with atomic_file(path, replaces=inside_ours) as temporary:
        # No creation date or version in the file: equal runs give equal bytes.
        figure.savefig(temporary, dpi=_DOTS_PER_INCH, format="png", metadata={"Software": None})


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: NumPy's numbers as Python's, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value
