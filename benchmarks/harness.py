"""What every benchmark needs: fair timing, the machine's own limits, and one way to report."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lookback.core import rates
from lookback.core.devices import cores
from lookback.core.processes import resident_peak

# Packages whose versions decide how fast things run; those not installed are left out.
_PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "merlin-models", "numpy", "pyarrow")
_PIPE_WIDTH = 140
_QUANTILES = (0.9, 0.95, 0.99)  # of latencies
# Instruction sets that the CPU kernels for matrix products choose by.
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclasses.dataclass(frozen=True)
class BenchmarkReport:
    """A benchmark's answer.

    Attributes:
      title: of the table.
      columns: headings.
      rows: cells; numbers are formatted, strings printed as they are.
      config: what was measured: sizes, seeds, options.
      figures: every measured number by name, with its unit in the name.
      ratios: figures put into proportion, by name.
      notes: lines printed below the table.
      failures: what was found to be as it must not be; the program then ends with status 1.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ratios: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    failures: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Timing:
    """Measured rates of one contender, in units a second, one a round."""

    rates: tuple[float, ...]

    @property
    def median(self) -> float:
        """The rate to report: a round that another process disturbed does not move it much."""
        return statistics.median(self.rates)

    @property
    def lowest(self) -> float:
        """The slowest round."""
        return min(self.rates)

    @property
    def highest(self) -> float:
        """The fastest round."""
        return max(self.rates)

    def over(self, other: Timing) -> float:
        """How many times faster than `other`: the median of the rounds' ratios.

        Both contenders of a round ran within seconds of each other, so a machine that slows down
        for a while slows both.
        """
        return statistics.median(a / b for a, b in zip(self.rates, other.rates, strict=True))

    def as_dict(self) -> dict[str, float]:
        """Median, lowest and highest, for figures."""
        return {"median": self.median, "lowest": self.lowest, "highest": self.highest}


def interleave(
    contenders: Mapping[str, Callable[[], int]],
    *,
    rounds: int = 5,
    warmup: int = 1,
    min_seconds: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times contenders in turn: A B A B, not A A B B.

    Args:
      contenders: by name, a function that does some work to its end (a contender on a GPU has to
        wait for its result) and returns how many units it did: samples, rows, steps.
      rounds: measurements of each contender.
      warmup: calls of each contender before the first measurement: tracing, compiling, caches.
      min_seconds: a measurement repeats the call until this much time has passed.
      clock: returns seconds.

    Returns:
      Rates by name, in the order given.
    """
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        for _ in range(warmup):
            contender()
    for _ in range(rounds):
        for name, contender in contenders.items():
            units, start = 0, clock()
            while True:
                units += contender()
                elapsed = clock() - start
                if elapsed >= min_seconds:
                    break
            rates[name].append(units / elapsed)
    return {name: Timing(tuple(values)) for name, values in rates.items()}


def latencies(
    work: Callable[[], object],
    steps: int,
    *,
    warmup: int = 5,
    max_seconds: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Mean and upper quantiles of the time of single calls, in milliseconds, and their number.

    Args:
      work: does one batch to its end.
      steps: calls that count.
      warmup: calls before them.
      max_seconds: of calls that count, after which no further one begins.
      clock: returns seconds.
    """

    def timed() -> float:
        start = clock()
        work()
        return clock() - start

    for _ in range(warmup):
        work()
    return latency_figures(timed, steps, max_seconds=max_seconds)


def latency_figures(
    timed: Callable[[], float], steps: int, *, max_seconds: float = float("inf")
) -> dict[str, float]:
    """As `latencies`, of a warm function that does a batch and returns the seconds it took."""
    times: list[float] = []
    while len(times) < steps and sum(times) < max_seconds:
        times.append(timed())
    quantiles = {f"p{round(100 * q)}": 1000 * float(np.quantile(times, q)) for q in _QUANTILES}
    return {"mean": 1000 * float(np.mean(times)), **quantiles, "calls": len(times)}


def latency_note(size: int, label: str, found: Mapping[str, float]) -> str:
    """A line of a report with what `latencies` found."""
    shown = ", ".join(f"{name} {found[name]:.2f}" for name in found if name != "calls")
    return f"latency of batch {size:,}, {label}, ms: {shown} ({found['calls']:,.0f} calls)"


def gemm_peak(dtype: str = "float32", *, size: int = rates.SIDE, repeats: int = 5) -> float:
    """FLOP/s of this machine's best square matrix product in TensorFlow.

    Args:
      dtype: "float32" or "bfloat16".
      size: rows and columns.
      repeats: measurements, of which the best counts.
    """
    work = {"gemm": gemm(dtype, size=size)}
    return interleave(work, rounds=repeats, warmup=2)["gemm"].highest


def gemm(dtype: str, *, size: int = rates.SIDE) -> Callable[[], int]:
    """The product of `core.rates.gemm`, for `interleave`: its FLOPs; arguments as above."""
    product = rates.gemm(dtype, size)

    def work() -> int:
        float(product())
        return rates.gemm_flops(size)

    return work


def machine_info() -> dict[str, Any]:
    """The machine and the software that a figure was measured with."""
    info: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in _cpu_flags()],
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "os": platform.platform(),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            info[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is not None:
        info["kernels"] = kernels_used()
        info["gpus"] = [
            tensorflow.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tensorflow.config.list_physical_devices("GPU")
        ]
    return info


def kernels_used() -> dict[str, str]:
    """What models run with here: operations of ours, and at which level, or TensorFlow's alone.

    Returns:
      "operations": "C++" or "TensorFlow"; by precision, "history_step_...": the kind of CPU whose
      fused steps models over histories take, such as "avx512", or "TensorFlow".
    """
    from lookback.kernels import loader

    used = {"operations": "C++" if loader.cpu_kernels() is not None else "TensorFlow"}
    for dtype in ("float32", "bfloat16"):
        used[f"history_step_{dtype}"] = loader.history_level(dtype) or "TensorFlow"
    return used


def print_report(
    name: str,
    report: BenchmarkReport,
    machine: Mapping[str, Any],
    *,
    seconds: float | None = None,
    console: Console | None = None,
) -> None:
    """Prints the table for a reader, then one JSON line for a program, which is the last line.

    Args:
      name: of the benchmark.
      report: its answer.
      machine: from `machine_info`.
      seconds: that the benchmark took.
      console: where to; the standard output unless given.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:  # rich would take a pipe for 80 columns wide
            console = Console(width=_PIPE_WIDTH)
    table = Table(title=report.title, title_justify="left")
    for index, column in enumerate(report.columns):
        first = index == 0
        # The first column alone may be wrapped, but not to nothing.
        table.add_column(
            column,
            justify="left" if first else "right",
            no_wrap=not first,
            min_width=len(column) if first else None,
        )
    for row in report.rows:
        table.add_row(*map(format_cell, row))
    console.print(table)
    for note in (*report.notes, *(f"FAILED: {failure}" for failure in report.failures)):
        console.print(note, markup=False, highlight=False)
    parts = [str(machine["cpu"]), f"{machine['cores']} cores"]
    parts += [f"{machine['memory_bytes'] / 2**30:.0f} GiB", *machine.get("gpus", ())]
    if "kernels" in machine:
        parts.append("kernels: " + ", ".join(map(" ".join, machine["kernels"].items())))
    if "load_1min_before" in machine:
        parts.append(f"load {machine['load_1min_before']:.1f} before")
    if seconds is not None:
        parts.append(f"took {seconds:.0f} s")
    console.print(", ".join(parts), markup=False, highlight=False)
    line = {
        "benchmark": name,
        "machine": dict(machine),
        "config": report.config,
        "figures": report.figures,
        "ratios": report.ratios,
        "failures": list(report.failures),
        "seconds": seconds,
        "peak_rss_bytes": resident_peak(),
    }
    # Not through rich, which would wrap the line.
    console.file.write(json.dumps(line, default=_to_json, allow_nan=False) + "\n")
    console.file.flush()


def format_cell(value: object) -> str:
    """A table cell: thousands separated, four digits of anything small; strings as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return "" if value is None else str(value)
    number = float(value)
    if number == 0 or abs(number) >= 1000 or isinstance(value, (int, np.integer)):
        return f"{number:,.0f}"
    return f"{number:.4g}"


def _to_json(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def _cpu_field(field: str) -> str:
    """The first value of a field in /proc/cpuinfo, empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(values, "")


def _cpu_model() -> str:
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set(_cpu_field("flags").split())
