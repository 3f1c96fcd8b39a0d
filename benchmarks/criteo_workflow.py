"""The Criteo workflow next to PySpark, on the same generated rows."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.core.devices import cores

if TYPE_CHECKING:
    import numpy.typing as npt

    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.peers.usage import Usage

QUESTION = "How fast does the Criteo workflow transform raw rows, how large does it grow, vs Spark?"

_TARGET_RATIO = 1.5  # rows/s over Spark's: the project's target
_ROWS, _QUICK_ROWS = 20_000_000, 500_000
_ROOT = Path(__file__).resolve().parents[1]

Vocabulary = tuple["npt.NDArray[Any]", "npt.NDArray[Any]", "npt.NDArray[Any]"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's options."""
    parser.add_argument("--rows", type=int, help=f"default {_ROWS:,} (quick {_QUICK_ROWS:,})")
    parser.add_argument("--days", type=int, help="raw files (default 24; quick 4)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the table sizes of T15")
    parser.add_argument("--frequency_threshold", type=int, default=15, help="NVIDIA's T")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each, in turn")
    parser.add_argument("--spark_memory", default="8g", help="of Spark's Java heap")
    parser.add_argument("--no_spark", action="store_true", help="measure ours alone")
    parser.add_argument("--cache_dir", type=Path, help="where generated rows and outputs are kept")


def run(args: argparse.Namespace) -> BenchmarkReport:
    """Generates the rows once, transforms them with both and compares the vocabularies.

    Args:
      args: as from `add_arguments`, with `quick`.
    """
    from lookback.benchmarks.data import cached
    from lookback.benchmarks.peers.client import missing
    from lookback.benchmarks.peers.usage import measure

    rows = args.rows or (_QUICK_ROWS if args.quick else _ROWS)
    days = args.days or (4 if args.quick else 24)
    raw = _raw_rows(rows, days, args.scale, args.cache_dir)
    work = cached("criteo_workflow", {"raw": raw.name}, args.cache_dir)
    commands = {"ours": _our_command(args, raw, work / "ours" / "dataset")}
    notes = [f"Target: ours {_TARGET_RATIO} x Spark. Peak memory is of all processes of each."]
    note = "Spark was not asked for." if args.no_spark else missing("spark_criteo")
    if note is None:
        commands["spark"] = _spark_command(args, raw, work / "spark" / "dataset")
    else:
        notes.append(note)
    usages: dict[str, list[Usage]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            shutil.rmtree(work / name, ignore_errors=True)
            (work / name).mkdir(parents=True)
            usages[name].append(measure(command, work / name, _ROOT))
    ratios: dict[str, Any] = {}
    if "spark" in usages:
        pairs = zip(usages["ours"], usages["spark"], strict=True)
        ratios["ours_over_spark"] = statistics.median(b.seconds / a.seconds for a, b in pairs)
        found = differing_columns(work / "ours" / "dataset", work / "spark" / "dataset")
        ratios["equal_vocabularies"] = not found
        notes.append(
            f"The vocabularies differ in {', '.join(found)}."
            if found
            else "Both vocabularies are equal: values, ids and counts of every column."
        )
        notes.append("Spark leaves the rows in their order, which spares it a sort.")
    return _report(args, rows, days, raw, usages, ratios, notes)


def _report(
    args: argparse.Namespace,
    rows: int,
    days: int,
    raw: Path,
    usages: dict[str, list[Usage]],
    ratios: dict[str, Any],
    notes: list[str],
) -> BenchmarkReport:
    from lookback.benchmarks.harness import BenchmarkReport
    from lookback.benchmarks.peers.usage import directory_bytes

    figures: dict[str, Any] = {"raw_bytes": directory_bytes(raw)}
    cells = []
    for name, runs in usages.items():
        seconds = statistics.median(usage.seconds for usage in runs)
        memory = max(usage.peak_memory_bytes for usage in runs)
        disk = max(usage.peak_disk_bytes for usage in runs)
        figures |= {
            f"{name}_rows_per_s": [rows / usage.seconds for usage in runs],
            f"{name}_seconds": [usage.seconds for usage in runs],
            f"{name}_peak_memory_bytes": memory,
            f"{name}_peak_disk_bytes": disk,
        }
        over = ratios.get("ours_over_spark") if name == "ours" else None
        cells.append(
            (
                *(name, round(rows / seconds), seconds, memory / 2**30, disk / 2**30),
                "" if over is None else f"{over:.2f} x",
            )
        )
    if "spark" in usages:
        figures["spark"] = json.loads(usages["spark"][-1].output.strip().splitlines()[-1])
    return BenchmarkReport(
        title=f"{rows:,} raw rows to parquet, frequency threshold {args.frequency_threshold}",
        columns=("by", "rows/s", "seconds", "peak GiB", "disk GiB", "over Spark"),
        rows=cells,
        config={
            "rows": rows,
            "days": days,
            "scale": args.scale,
            "frequency_threshold": args.frequency_threshold,
            "spark_memory": args.spark_memory,
            "rounds": args.rounds,
            "quick": args.quick,
        },
        figures=figures,
        ratios=ratios,
        notes=notes,
    )


def _raw_rows(rows: int, days: int, scale: float, cache_dir: Path | None) -> Path:
    from lookback.benchmarks.data import cached
    from lookback.workflows.generators.criteo_tables import ROWS
    from lookback.workflows.generators.synthetic_criteo import (
        SyntheticCriteoConfig,
        generate_criteo,
        scaled,
    )
    from lookback.workflows.generators.synthetic_criteo_law import CriteoLawConfig

    law = CriteoLawConfig(scaled(ROWS["t15"], scale))
    config = SyntheticCriteoConfig(law, rows, days)
    directory = cached("criteo_raw", {"config": repr(config)}, cache_dir)
    if not directory.exists():
        generate_criteo(config, directory)
    return directory


def _our_command(args: argparse.Namespace, raw: Path, output: Path) -> list[str]:
    command = [sys.executable, "-m", "workflows", "run", "--dataset", "criteo"]
    command += ["--input", str(raw), "--output", str(output)]
    return [*command, "--frequency_threshold", str(args.frequency_threshold)]


def _spark_command(args: argparse.Namespace, raw: Path, output: Path) -> list[str]:
    from lookback.benchmarks.peers.client import SOURCES, peer_python

    command = ["env", f"PYTHONPATH={SOURCES}", str(peer_python("spark_criteo"))]
    command += ["-m", "lookback.benchmarks.peers.spark_criteo"]
    command += ["--input", str(raw), "--output", str(output)]
    command += ["--threshold", str(args.frequency_threshold), "--memory", args.spark_memory]
    return [*command, "--cores", str(cores())]


def differing_columns(ours: Path, spark: Path) -> list[str]:
    """Columns whose vocabularies differ in a value, an id or a count.

    Args:
      ours: dataset that the workflow wrote.
      spark: directory that the Spark program wrote.
    """
    import numpy as np

    files = sorted((ours / "workflow").rglob("cat_*.arrow"))
    differing = []
    for file in files:
        number = int(file.stem.removeprefix("cat_"))
        a, b = _our_vocabulary(file), _spark_vocabulary(spark / "vocabulary" / f"column={number}")
        if not all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)):
            differing.append(file.stem)
    if not files:
        raise RuntimeError(f"{ours}/workflow has no vocabulary to compare.")
    return differing


def _our_vocabulary(file: Path) -> Vocabulary:
    """Value, id and count, by value; the key of 8 hexadecimal digits is their number."""
    import numpy as np

    from lookback.core.arrow_files import map_arrow

    table = map_arrow(file)
    key, number, count = (table[name].to_numpy() for name in ("key", "id", "count"))
    key = key.astype(np.int64)
    order = np.argsort(key)
    return key[order], number[order].astype(np.int64), count[order].astype(np.int64)


def _spark_vocabulary(directory: Path) -> Vocabulary:
    import numpy as np

    from lookback.core.arrow_files import read_parquet

    if not directory.exists():  # Spark writes no partition for a column without known values
        return (np.zeros(0, np.int64),) * 3
    table = read_parquet(directory, ["value", "id", "count"])
    key = np.array([int(text, 16) for text in table["value"].to_pylist()], np.int64)
    order = np.argsort(key)
    number, count = (table[name].to_numpy().astype(np.int64) for name in ("id", "count"))
    return key[order], number[order], count[order]
