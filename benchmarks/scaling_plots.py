"""Plots of `scaling`: seconds of a step by size, both logarithmic, and linear growth beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lookback.benchmarks.scaling_sweep import Sweep
from lookback.core.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_plots(sweeps: Mapping[str, Sweep], directory: Path) -> list[Path]:
    """Writes ``NAME.png`` of each sweep; returns the files."""
    from lookback.training.output.report import rendered

    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for name, sweep in sweeps.items():
        files.append(directory / f"{name}.png")
        with atomic_file(files[-1]) as temporary:
            temporary.write_bytes(rendered(plot(sweep)))
    return files


def plot(sweep: Sweep) -> Figure:
    """Medians with the fastest and slowest round of each value, and linear growth from the first.

    Args:
      sweep: measured, of one value or more.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    values = list(sweep.values)
    middle = [sweep.seconds(value) for value in values]
    fastest = [sweep.samples[value] / sweep.timings[value].highest for value in values]
    slowest = [sweep.samples[value] / sweep.timings[value].lowest for value in values]
    axes.plot(values, middle, marker="o", label="a step: median, fastest and slowest round")
    axes.fill_between(values, fastest, slowest, alpha=0.2)
    linear = [middle[0] * value / values[0] for value in values]
    axes.plot(values, linear, linestyle=":", color="grey", label="linear")
    axes.set(xscale="log", yscale="log", xlabel=sweep.size, ylabel="seconds", title=sweep.fixed)
    axes.title.set_fontsize("small")
    # Linear growth over five decades would press what was measured flat.
    axes.set_ylim(min(fastest) / 2, max(slowest) * 2)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure
