"""The same run with several seeds: how far its figures scatter, and whether options move them.

    lookback train ... --seeds 5 --compare "--amp"

Each run is a process of its own, ``RESULTS_DIR/<side>/seed-<seed>``, with its log and report. What
they found is summed up in ``seeds.json`` and drawn in ``seeds.png``. Two sides are compared by the
two-sample Kolmogorov-Smirnov test, as in the stability chapters of NVIDIA's SIM (full and
mixed precision): a small p-value says that the figures of one side are distributed otherwise than
those of the other. With few seeds it takes a large difference to show: of five and five no p-value
is below 0.0079.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.core.errors import UserError
from lookback.core.files import atomic_file, inside_ours
from lookback.training.children import TERMINAL_FILE, Start, last_words, run_process, summary_in
from lookback.training.evaluation.names import metric_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lookback.training.config import RunConfig

BASE, COMPARED = "base", "compared"
SUMMARY_FILE, PLOT_FILE = "seeds.json", "seeds.png"

Figures = Mapping[str, Sequence[Mapping[str, Any]]]
"""What each run found, by side."""


ALONE = ("--seeds", "none", "--compare", "none")
"""Arguments that make one run of a command line."""


def sides_of(compare: str | None) -> dict[str, list[str]]:
    """The arguments that each side has besides.

    Raises:
      UserError: if they cannot be split to words.
    """
    if compare is None:
        return {BASE: []}
    try:
        return {BASE: [], COMPARED: shlex.split(compare)}
    except ValueError as error:
        raise UserError(
            f"compare: expected options as on a command line, received {compare!r:.80} ({error})."
        ) from error


def run_seeds(
    argv: Sequence[str],
    run: RunConfig,
    results_dir: Path,
    start: Start = run_process,
) -> Path:
    """Runs a command line with several seeds, on one side or two.

    Args:
      argv: the arguments, those about seeds among them.
      run: what they say.
      results_dir: of all of it; ours to write in.
      start: runs a command line.

    Returns:
      The file with the figures.

    Raises:
      UserError: if a run fails; what others found stays in their directories.
    """
    assert run.seeds is not None
    sides = sides_of(run.compare)
    first = run.seed or 0
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for seed in range(first, first + run.seeds):
        for side, more in sides.items():  # in turn: what the machine does besides meets both
            directory = results_dir / side / f"seed-{seed}"
            found[side].append(_one(argv, more, seed, directory, run, start))
            shown = ", ".join(f"{n} {v:.4f}" for n, v in _metrics(found[side][-1]).items())
            print(f"{side}, seed {seed}: {shown}", flush=True)
    summary = summary_of(found)
    content = {
        "options": {BASE: "", **({} if run.compare is None else {COMPARED: run.compare})},
        "seeds": [*range(first, first + run.seeds)],
        "runs": found,
        "metrics": summary,
    }
    path = results_dir / SUMMARY_FILE
    with atomic_file(path, replaces=inside_ours) as file:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(summary))
    try:
        with atomic_file(results_dir / PLOT_FILE, replaces=inside_ours) as file:
            plot(found).savefig(file, format="png", dpi=150)
    except Exception as error:  # of matplotlib or the system; the figures are there
        print(f"warning: {results_dir / PLOT_FILE} was not drawn: {error}", file=sys.stderr)
    print(f"{run.seeds} seeds of {' and '.join(sides)} in {path}")
    return path


def summary_of(found: Figures) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation (of the sample), least and most of each metric, by side.

    Args:
      found: of every run, by side.

    Returns:
      By metric and side; of two sides also the p-value of the Kolmogorov-Smirnov test
      (``ks_p_value``) and how far the means are apart. A metric that a run lacks is left out.
    """
    import numpy as np
    from scipy.stats import ks_2samp

    metrics: dict[str, dict[str, Any]] = {}
    for name in _metrics(found[BASE][0]):
        values = {
            side: [run[name] for run in runs if isinstance(run.get(name), float | int)]
            for side, runs in found.items()
        }
        if any(len(values[side]) < len(runs) for side, runs in found.items()):
            continue
        metrics[name] = {
            side: {
                "mean": float(np.mean(of_side)),
                "std": float(np.std(of_side, ddof=1)) if len(of_side) > 1 else 0.0,
                "min": min(of_side),
                "max": max(of_side),
            }
            for side, of_side in values.items()
        }
        if COMPARED in values:
            metrics[name]["ks_p_value"] = float(ks_2samp(values[BASE], values[COMPARED]).pvalue)
            means = (metrics[name][side]["mean"] for side in (COMPARED, BASE))
            metrics[name]["difference"] = next(means) - next(means)
    return metrics


def table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary for a terminal."""
    lines = [f"{'metric':<28} {'side':<9} {'mean':>9} {'std':>9} {'min':>9} {'max':>9}"]
    for name, sides in summary.items():
        for side in (s for s in (BASE, COMPARED) if s in sides):
            found = sides[side]
            figures = " ".join(f"{found[n]:>9.5f}" for n in ("mean", "std", "min", "max"))
            lines.append(f"{name:<28} {side:<9} {figures}")
        if COMPARED in sides:
            lines.append(
                f"{'':<28} difference {sides['difference']:+.5f}, Kolmogorov-Smirnov p-value "
                f"{sides['ks_p_value']:.4f}"
            )
    return "\n".join(lines)


def plot(found: Figures) -> Figure:
    """Every run's figures, a panel a metric, a column a side."""
    from matplotlib.figure import Figure

    names = list(summary_of(found))
    figure = Figure(figsize=(3.2 * max(1, len(names)), 3.6), layout="constrained")
    for number, name in enumerate(names):
        axis = figure.add_subplot(1, len(names), number + 1)
        for place, runs in enumerate(found.values()):
            values = [run[name] for run in runs]
            axis.boxplot([values], positions=[place], widths=0.5, showfliers=False)
            axis.plot([place] * len(values), values, "o", color="#0072B2", alpha=0.6, markersize=4)
            axis.set_title(name, fontsize=9)
        axis.set_xticks(range(len(found)), list(found))
        axis.grid(True, axis="y", linewidth=0.5, alpha=0.4)
    return figure


def _one(
    argv: Sequence[str],
    more: Sequence[str],
    seed: int,
    directory: Path,
    run: RunConfig,
    start: Start,
) -> dict[str, Any]:
    """What one run found."""
    directory.mkdir(parents=True, exist_ok=True)
    words = [*argv, *more, *ALONE, "--seed", str(seed), "--results_dir", str(directory)]
    terminal = directory / TERMINAL_FILE
    status = start(words, terminal, lambda: False)
    if status:
        raise UserError(
            f"the run with seed {seed} in {directory} ended with exit status {status}: "
            f"{last_words(terminal)}"
        )
    return summary_in(directory / run.log_filename)


def _metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among a run's figures."""
    return {
        name: float(value)
        for name, value in figures.items()
        if metric_of(name) is not None and isinstance(value, float | int)
    }
