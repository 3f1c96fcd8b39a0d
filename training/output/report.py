"""What remains of a run to look at: `results_dir/report/` with two plots and a file of figures.

learning_curve.png   training loss by step, and AUC by epoch
roc.png              ROC curves of the last evaluation
metrics.json         the run's figures: last values, every epoch, options
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lookback.core.files import atomic_file, inside_ours
from lookback.training.evaluation.metrics import RocCurve, ScoreAccumulator
from lookback.training.output.logging import LogRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DOTS_PER_INCH = 150


def write_report(
    results_dir: str | os.PathLike[str],
    records: Sequence[LogRecord],
    *,
    metrics: Mapping[str, Any],
    roc: Mapping[str, RocCurve] | None = None,
    loss: str = "total_loss",
    title: str = "",
) -> Path:
    """Writes the report of a run; each file is whole or not there.

    Args:
      results_dir: the report goes to its subdirectory `report`.
      records: of `training.output.logging.read_log`. Epochs' metrics with "auc" are plotted.
      metrics: what metrics.json holds under "results", e.g. the summary.
      roc: name ("test", "train") -> curve; without it there is no roc.png.
      loss: the metric of steps to plot; without it in the records, AUC alone is plotted.
      title: a line above the plots.

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
    }
    with atomic_file(directory / "metrics.json", replaces=inside_ours) as temporary:
        text = json.dumps(_finite(content), indent=2, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    _save(learning_curve(steps, epochs, loss=loss, title=title), directory / "learning_curve.png")
    if roc:
        _save(roc_plot(roc, title=title), directory / "roc.png")
    return directory


def write_scores(path: Path, scores: ScoreAccumulator) -> Path:
    """Writes every scored row as parquet: group (user), label, logit, probability.

    Args:
      path: the file to write, whole or not at all.
      scores: rows in the order in which they were scored.

    Returns:
      `path`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    logits = scores.logits()
    columns = {"label": scores.labels().astype("int8"), "logit": logits}
    columns["probability"] = 1 / (1 + np.exp(-logits.astype("float64")))
    groups = scores.groups()
    if groups is not None:
        columns = {"group": groups, **columns}
    with atomic_file(path, replaces=inside_ours) as temporary:
        pq.write_table(pa.table(columns), temporary)
    return path


def learning_curve(
    steps: Sequence[LogRecord],
    epochs: Sequence[LogRecord],
    *,
    loss: str = "total_loss",
    title: str = "",
) -> Figure:
    """Training loss by step (as logged, and smoothed), and every AUC by epoch.

    Args:
      steps: records of steps.
      epochs: records of epochs.
      loss: which metric of the steps.
      title: a line above the plots.
    """
    from matplotlib.ticker import MaxNLocator

    position, values = _loss_curve(steps, loss)
    aucs = _auc_curves(epochs)
    figure = _figure((9.6, 4.0) if len(values) else (5.4, 4.0), title)
    axes = list(np.atleast_1d(figure.subplots(1, 2 if len(values) else 1)))

    if len(values):
        _plot_loss(axes[0], position, values, loss)
    panel: Axes = axes[-1]
    for (name, points), colour in zip(aucs.items(), _COLOURS * len(aucs), strict=False):
        x, y = zip(*points, strict=True)
        words = [word.upper() if word.endswith("auc") else word for word in name.split("_")]
        label = f"{' '.join(words)} (last {y[-1]:.4f})"
        panel.plot(x, y, marker="o", markersize=4, linewidth=1.6, color=colour, label=label)
    panel.set(xlabel="Epoch", ylabel="AUC", title="Evaluation")
    if aucs:
        panel.legend(loc="best", frameon=False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    else:
        _note(panel, "not evaluated")
    for axis in axes:
        axis.grid(True, linewidth=0.5, alpha=0.4)
    return figure


def roc_plot(curves: Mapping[str, RocCurve], *, title: str = "") -> Figure:
    """ROC curves, with their areas in the legend.

    Args:
      curves: name -> curve.
      title: a line above the plot.
    """
    figure = _figure((5.2, 5.0), title)
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


def _plot_loss(axis: Axes, position: NDArray, values: NDArray, loss: str) -> None:
    window = max(1, len(values) // 50)
    noisy = window > 1
    axis.plot(
        position,
        values,
        color=_COLOURS[0],
        linewidth=0.8 if noisy else 1.6,
        alpha=0.35 if noisy else 1.0,
        marker=None if len(values) > 30 else "o",
        markersize=4,
        label="each logged step",
    )
    if noisy:
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        # A mean stands where its window ends: it knows nothing of what comes after.
        axis.plot(
            position[window - 1 :],
            mean,
            color=_COLOURS[0],
            linewidth=1.8,
            label=f"mean of {window} steps",
        )
        axis.legend(loc="best", frameon=False)
        # The first steps of a run tower above the rest; the rest is what one wants to see.
        low, high = np.percentile(values, [0, 99])
        margin = 0.08 * max(high - low, 1e-6)
        axis.set_ylim(low - margin, max(high, float(mean.max())) + margin)
    axis.set(xlabel="Training step", ylabel=f"{loss.replace('_', ' ').capitalize()} (nats)")
    axis.set_title("Training")


def _loss_curve(steps: Sequence[LogRecord], loss: str) -> tuple[NDArray, NDArray]:
    """`(global step, value)` of the steps that have a finite loss, [N] each.

    The steps of an epoch are numbered from 0 in each epoch; the longest one gives their number.
    """
    having = [record for record in steps if record.data.get(loss) is not None]
    per_epoch = 1 + max((record.step[1] for record in steps), default=0)
    points = sorted(
        (record.step[0] * per_epoch + record.step[1], record.data[loss]) for record in having
    )
    position = np.array([point[0] for point in points], np.int64)
    return position, np.array([point[1] for point in points], np.float64)


def _auc_curves(epochs: Sequence[LogRecord]) -> dict[str, list[tuple[int, float]]]:
    """Metric -> (epoch from 1, value), for each AUC in the records of epochs."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in sorted(epochs, key=lambda record: record.step):
        for name, value in record.data.items():
            if name.endswith("auc") and value is not None:
                curves.setdefault(name, []).append((record.step[0] + 1, value))
    return curves


def _figure(size: tuple[float, float], title: str) -> Figure:
    # Not pyplot: it keeps figures in a global list and may look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    if title:
        figure.suptitle(title)
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
