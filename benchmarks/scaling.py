"""How a training step's cost grows, held against what it should be: see `scaling_measures`.

A step must not take longer in larger tables where as many ids are looked up, and at most linearly
longer with longer histories. What contradicts that is printed, and ends the benchmark with status
1. Of batches and ranks nothing is held: a large batch leaves the caches, and ranks share the cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.core.errors import UserError

if TYPE_CHECKING:
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.scaling_sweep import Sweep

QUESTION = "How does a training step's cost grow with table rows, history length, batch and ranks?"

MODES = {"--predict": "lookback.benchmarks.scaling_prediction"}

SWEEPS: Mapping[str, tuple[Sequence[int], Sequence[int]]] = {
    "table_rows": ((10**4, 10**5, 10**6, 10**7, 10**8), (10**4, 10**5, 10**6)),
    "lengths": ((50, 100, 200, 500, 1000, 2000), (50, 200, 500)),
    "batches": ((1024, 4096, 16_384, 65_536), (1024, 4096)),
    "ranks": ((1, 2), ()),
}
"""What is measured by default, and with --quick."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument(
        "--predict",
        action="store_true",
        help="8 to 1,024 ranks from a model instead, with options of its own: --predict --help",
    )
    for name, (full, quick) in SWEEPS.items():
        default, fewer = (" ".join(map(str, values)) or "none" for values in (full, quick))
        parser.add_argument(
            f"--{name}", type=int, nargs="*", help=f"none: {default}; quick {fewer}", metavar="N"
        )
    parser.add_argument(
        "--model_type", choices=("sim", "dien", "din"), default="sim", help="of all but --ranks"
    )
    parser.add_argument(
        "--batch_size", type=int, default=1024, help="rows of a step by table rows and length"
    )
    parser.add_argument(
        "--ranks_batch_size", type=int, default=8192, help="rows of a step of all ranks together"
    )
    parser.add_argument(
        "--distinct_ids", type=int, default=5000, help="items that occur, whatever their table has"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.15, help="share by which a step may take longer"
    )
    parser.add_argument("--rounds", type=int, help="measurements of each (default 5; quick 3)")
    parser.add_argument("--cache_dir", type=Path, help="where generated data is kept")
    parser.add_argument(
        "--output", type=Path, help="directory for a plot of each sweep, NAME.png; none: no plots"
    )


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Measures each sweep, checks it and draws it.

    Args:
      args: as from `add_arguments`, with `quick`.

    Raises:
      UserError: if a sweep is too short to be one.
    """
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.scaling_plots import write_plots
    from lookback.benchmarks.scaling_sweep import exponent

    sweeps, failures = measured(args)
    rows: list[Sequence[object]] = []
    figures, ratios = dict[str, Any](), dict[str, float]()
    for name, sweep in sweeps.items():
        for value in sweep.values:
            timing, first = sweep.timings[value], value == sweep.values[0]
            growth = "" if first else f"{sweep.growth(sweep.values[0], value):.2f} x"
            seconds = sweep.seconds(value)
            label = sweep.size if first else ""
            rows.append((label, value, 1000 * seconds, round(timing.median), growth))
            figures[f"{name}_{value}"] = {"seconds_a_step": seconds, **timing.as_dict()}
        if len(sweep.values) > 1:
            ratios[f"{name}_exponent"] = exponent(sweep)
    files = write_plots(sweeps, args.output) if args.output else []
    return BenchmarkReport(
        title=f"A training step of {args.model_type.upper()}",
        columns=("", "value", "ms a step", "samples/s", "a step, over the first"),
        rows=rows,
        config={k: v for k, v in vars(args).items() if k not in ("output", "predict")},
        figures=figures,
        ratios=ratios,
        notes=[
            *(f"By {sweep.size}: {sweep.fixed}." for sweep in sweeps.values()),
            *(
                f"{value:,} {sweep.size} left out: {why}."
                for sweep in sweeps.values()
                for value, why in sweep.left_out.items()
            ),
            *(f"Wrote {file}." for file in files),
        ],
        failures=failures,
    )


def measured(args: argparse.Namespace) -> tuple[dict[str, Sweep], list[str]]:
    """The sweeps that are asked for, by name, and what contradicts the laws of their growth."""
    from lookback.benchmarks import scaling_measures as measures
    from lookback.benchmarks.scaling_sweep import growth_faults, superlinear_growth_faults

    known: dict[str, tuple[Callable[..., Sweep], Callable[..., list[str]] | None]] = {
        "table_rows": (measures.by_table_rows, growth_faults),
        "lengths": (measures.by_history_length, superlinear_growth_faults),
        "batches": (measures.by_batch, None),
        "ranks": (measures.by_ranks, None),
    }
    sweeps, failures = dict[str, "Sweep"](), list[str]()
    for name, (measure, check) in known.items():
        values = values_of(args, name)
        if not values:
            continue
        sweep = sweeps[name] = measure(args, values)
        if check is not None and len(sweep.values) > 1:
            failures += check(sweep, args.tolerance)
    return sweeps, failures


def values_of(args: argparse.Namespace, name: str) -> Sequence[int]:
    """What to measure of a sweep, ascending.

    Raises:
      UserError: if there is a single value, or one below 1.
    """
    given = getattr(args, name)
    values = sorted(set(SWEEPS[name][args.quick] if given is None else given))
    if len(values) == 1 or (values and values[0] < 1):
        raise UserError(
            f"--{name}: expected two sizes or more, each at least 1, or none to leave the sweep "
            f"out; got {' '.join(map(str, values))}."
        )
    return values
