"""What remains of a run to look at: `results_dir/report/`.

index.html             all of it on one page that needs nothing else: plots, tables, options
learning_curve.png     of a run that trained: losses by step, and every metric that was evaluated
evaluation.png         of one that only evaluated: its metrics
roc.png, precision_recall.png, calibration.png
                       of the last evaluation, if it has an AUC
strata.png             its AUC by history length and by the item's popularity, if it has them
attention.png          what the model attends to in histories, if it attends to something
metrics.json           the run's figures: last values, every epoch, baselines

What does not apply is left out.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookback.core.files import atomic_file, inside_ours
from lookback.training.evaluation.found import largest
from lookback.training.outcome import Outcome
from lookback.training.output.evaluation_plots import (
    attention_plot,
    calibration_plot,
    precision_recall_plot,
    roc_plot,
    strata_plot,
)
from lookback.training.output.logging import LogRecord
from lookback.training.output.page import Page, Picture, page
from lookback.training.output.plots import TOTAL, evaluation_plot, learning_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INDEX = "index.html"
_DOTS_PER_INCH = 150


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """What a report says of the run itself.

    Attributes:
      title: a line.
      subtitle: another.
      options: every option, as it was.
      changed: the names of those that are not at their defaults.
      head_weight: of the head's cross entropy in the head's loss.
      category_names: of rows of the table of `AttentionFound.category`.
    """

    title: str = ""
    subtitle: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    changed: Sequence[str] = ()
    head_weight: float = 1.0
    category_names: Mapping[int, str] = dataclasses.field(default_factory=dict)


def write_report(
    results_dir: str | os.PathLike[str],
    records: Sequence[LogRecord],
    outcome: Outcome,
    run: RunDescription,
) -> Path:
    """Writes the report of a run; each file is whole or not there.

    Args:
      results_dir: the report goes to its subdirectory `report`.
      records: of `training.output.logging.read_log`.
      outcome: of the run; its summary is what metrics.json holds under "results".
      run: what else to say of it.

    Returns:
      The directory.
    """
    directory = Path(results_dir) / "report"
    directory.mkdir(parents=True, exist_ok=True)
    outcome = dataclasses.replace(outcome, summary=_finite(outcome.summary))
    text = json.dumps(_finite(_content(records, outcome)), indent=2, allow_nan=False)
    _write(directory / "metrics.json", text + "\n")
    pictures = [
        Picture(name, alt, _save(figure, directory / f"{name}.png"))
        for name, alt, figure in _figures(records, outcome, run)
    ]
    content = Page(
        title=run.title or "Run",
        subtitle=run.subtitle,
        outcome=outcome,
        epochs=_epochs(records),
        pictures=pictures,
        options=run.options,
        changed=run.changed,
    )
    _write(directory / INDEX, page(content))
    return directory


def category_names(outcome: Outcome, dataset_dir: Path) -> dict[int, str]:
    """Raw ids of the categories that the report shows, by row, where the dataset knows them."""
    found = outcome.attention
    if found is None or found.categories is None or found.category is None:
        return {}
    from lookback.formats.raw_ids import raw_ids_of  # brings Arrow, for which help need not wait

    raw, rows = raw_ids_of(dataset_dir, found.category), largest(found.categories)
    if raw is None:
        return {}
    known, special = (f(np.array(rows)).to_pylist() for f in (raw.take, raw.names_of))
    return {row: str(k or s) for row, k, s in zip(rows, known, special, strict=True)}


def shown_evaluation(outcome: Outcome) -> str | None:
    """The evaluation whose strata are drawn: of the test split, else the first that has any."""
    having = [name for name, strata in outcome.strata.items() if strata]
    if not having:
        return None
    return "test" if "test" in having else having[0]


def _figures(
    records: Sequence[LogRecord], outcome: Outcome, run: RunDescription
) -> list[tuple[str, str, Figure]]:
    """Name, description and figure of each plot that there is something to draw in."""
    baselines, curves = outcome.baselines, outcome.curves
    figures: list[tuple[str, str, Figure]] = []
    if any(TOTAL in record.data for record in records if len(record.step) == 2):
        drawn = learning_curve(records, baselines=baselines, head_weight=run.head_weight)
        figures.append(("learning_curve", "Losses and metrics in the course of training", drawn))
    else:
        drawn = evaluation_plot(outcome.summary, baselines=baselines)
        figures.append(("evaluation", "Metrics of the evaluation", drawn))
    if curves:
        figures += [
            ("roc", "ROC curves", roc_plot(curves)),
            ("precision_recall", "Precision by recall", precision_recall_plot(curves)),
            ("calibration", "Positives by predicted probability", calibration_plot(curves)),
        ]
    name = shown_evaluation(outcome)
    if name is not None:
        whole = outcome.summary.get(f"{name}_auc")
        drawn = strata_plot(outcome.strata[name], name, whole)
        figures.append(("strata", "AUC of strata", drawn))
    if outcome.attention is not None:
        drawn = attention_plot(outcome.attention, run.category_names)
        figures.append(("attention", "What the model attends to", drawn))
    return figures


def _epochs(records: Sequence[LogRecord]) -> list[dict[str, Any]]:
    return [{"epoch": r.step[0], **r.data} for r in records if len(r.step) == 1]


def _content(records: Sequence[LogRecord], outcome: Outcome) -> dict[str, Any]:
    """Of metrics.json."""
    curves = outcome.curves
    content: dict[str, Any] = {
        "results": dict(outcome.summary),
        "epochs": _epochs(records),
        "steps": sum(len(record.step) == 2 for record in records),
        "roc_auc": {name: found.roc.auc for name, found in curves.items()},
        "average_precision": {
            name: found.precision_recall.average_precision for name, found in curves.items()
        },
        "popularity": dict(outcome.baselines),
        "strata": {
            name: {by: [dataclasses.asdict(s) for s in found] for by, found in strata.items()}
            for name, strata in outcome.strata.items()
        },
    }
    if outcome.attention is not None:
        found = vars(outcome.attention)
        if outcome.attention.categories is not None:
            rows = largest(outcome.attention.categories)
            found = {**found, "categories": {row: found["categories"][:, row] for row in rows}}
        content["attention"] = found
    return content


def _write(path: Path, text: str) -> None:
    with atomic_file(path, replaces=inside_ours) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _save(figure: Figure, path: Path) -> str:
    """Writes a plot; gives it as the address of an image."""
    drawn = rendered(figure)
    with atomic_file(path, replaces=inside_ours) as temporary:
        temporary.write_bytes(drawn)
    return "data:image/png;base64," + base64.b64encode(drawn).decode("ascii")


def rendered(figure: Figure) -> bytes:
    """A plot as PNG: a quarter to three quarters of a second, most of it for text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    drawn = io.BytesIO()
    # No creation date or version in the file: equal runs give equal bytes.
    figure.savefig(drawn, dpi=_DOTS_PER_INCH, format="png", metadata={"Software": None})
    return drawn.getvalue()


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: NumPy's numbers as Python's, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value
