"""What a run of a workflow would take, found out on a sample: `workflows run --dry_run`.

The beginning of each file goes through the very run, in a process of its own and a directory that
is removed, at two sizes. What memory, disk and time grow by between the two is what an event takes,
and the rest is what a run takes whatever its size. An event counts for memory as long as its
partition does (`ResourcePlan`); what stays of those that went before are the vocabularies' entries.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.core.files import located
from lookback.core.processes import resident_peak
from lookback.core.sizes import format_size
from lookback.workflows import ROW_DATASETS, TABULAR_DATASETS
from lookback.workflows.cluster import forgo_tensorflow
from lookback.workflows.log.splits import SplitRule
from lookback.workflows.log.values import Share
from lookback.workflows.order import Log, Survey
from lookback.workflows.pipeline import run_dataset, survey_dataset
from lookback.workflows.text import estimate_lines

SAMPLES = (50_000, 400_000)
"""Events of the two samples. The larger one has a whole block of text (`text.BLOCK_BYTES`) where
lines are of 80 bytes or more: what a block takes stops to grow there."""

BYTES_PER_ENTRY = 400
"""Of each user and item of a vocabulary, at the fit: the value as Python has it, its count and row,
and the copies that merging and sorting make. `benchmarks limited_memory` in one process: 1 M events
of 30,000 entries took 655 MiB, 5 M of 150,000 in as large partitions 705 MiB."""

_POLL_SECONDS = 0.02

_SPLIT_OF_ROWS = SplitRule(by="rows", validation=Share(0.1), test=Share(0.1))


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a run took.

    Attributes:
      lines: about how many it read.
      memory: bytes that were resident at once.
      disk: bytes that lay below its directory at once.
      output: bytes that it left there.
      seconds: it took, without the start of the interpreter.
      entries: of the vocabularies, reserved rows left out.
    """

    lines: int
    memory: int
    disk: int
    output: int
    seconds: float
    entries: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
      lines: about how many it would read.
      memory: bytes that are resident at once, of all its processes.
      processes: how many those are.
      disk: bytes that it writes at most at once, with what it removes again.
      output: bytes that stay.
      seconds: it takes.
      sampled: lines of the larger sample.
      notes: what is not as in the run.
    """

    lines: int
    memory: int
    processes: int
    disk: int
    output: int
    seconds: float
    sampled: int
    notes: Sequence[str] = ()

    def report(self, free: int) -> list[str]:
        """For people.

        Args:
          free: bytes on the output's disk.
        """
        processes = "" if self.processes == 1 else f" in {self.processes} processes"
        lacks = " - TOO LITTLE" if self.disk > free else ""
        return [
            f"dry run: nothing was written; from {self.sampled:,} of about {self.lines:,} lines, "
            "a run takes about",
            f"  memory  {format_size(self.memory)} at its peak{processes}",
            f"  disk    {format_size(self.output)} of output, {format_size(self.disk)} at its peak "
            f"({format_size(free)} are free{lacks})",
            f"  time    {self.seconds:,.0f} s",
            *self.notes,
        ]


def rehearse(
    dataset: str,
    source: Path,
    output: Path,
    *,
    overwrite: bool = False,
    log: Log = lambda _: None,
    **options: Any,
) -> Estimate:
    """Checks what a run checks before it reads, runs two samples, and says what all would take.

    Args:
      dataset: its name in the registry.
      source: its input.
      output: the dataset that is not created.
      overwrite: see `run_dataset`.
      log: is told what a run says of its input.
      **options: of the run.

    Raises:
      UserError: if the run would be refused, or even a sample cannot be worked on.
    """
    survey = survey_dataset(dataset, source, output, overwrite=overwrite, **options)
    for remark in survey.remarks:
        log(remark)
    found, notes = _samples(dataset, survey, source, options)
    last = found[-1]
    if len(found) == 1:  # all of it
        return Estimate(
            last.lines, last.memory, 1, last.disk, last.output, last.seconds, last.lines, notes
        )
    workers = survey.plan.workers
    return extrapolated(
        found[0],
        last,
        lines=survey.lines,
        held=min(survey.lines, max(workers, 1) * -(-survey.lines // survey.plan.partitions)),
        workers=max(workers, 1),
        processes=1 if dataset in TABULAR_DATASETS or not workers else workers + 1,
        notes=notes,
    )


def extrapolated(
    first: Measured,
    last: Measured,
    *,
    lines: int,
    held: int,
    workers: int,
    processes: int,
    notes: Sequence[str] = (),
) -> Estimate:
    """What all would take, by a line through two samples.

    Args:
      first: the smaller sample.
      last: the larger one.
      lines: of all.
      held: lines whose partitions are in memory at once.
      workers: partitions that are worked on at once.
      processes: each takes what a run takes whatever its size.
      notes: see `Estimate`.
    """
    apart = max(last.lines - first.lines, 1)

    def line(begin: float, end: float, at: float) -> tuple[float, float]:
        each = max(end - begin, 0) / apart
        return end - each * last.lines, each * at

    process, partitions = line(first.memory, last.memory, held)
    entries = _entries_at(first, last, lines) - _entries_at(first, last, held)
    start, work = line(first.seconds, last.seconds, lines)
    output = sum(line(first.output, last.output, lines))
    return Estimate(
        lines,
        int(processes * process + partitions + BYTES_PER_ENTRY * max(entries, 0)),
        processes,
        int(max(sum(line(first.disk, last.disk, lines)), output)),
        int(output),
        start + work / workers,
        last.lines,
        notes,
    )


def _entries_at(first: Measured, last: Measured, lines: int) -> float:
    """Entries of the vocabularies after so many lines, by a power of them through two samples.

    Ids come again, the more the more events there are (Heaps' law): of 50 M generated events a
    straight line foretold 12.1 GB of memory, and the run took 1.04 GB.
    """
    if not 0 < first.entries < last.entries or first.lines >= last.lines:
        return last.entries * min(1.0, lines / max(last.lines, 1))
    power = math.log(last.entries / first.entries) / math.log(last.lines / first.lines)
    return float(last.entries * (lines / last.lines) ** min(power, 1.0))


def _samples(
    dataset: str, survey: Survey, source: Path, options: Mapping[str, Any]
) -> tuple[list[Measured], list[str]]:
    """Runs them; gives what they took, and what is not as in the run."""
    found: list[Measured] = []
    notes: list[str] = []
    for size in SAMPLES:
        if found and found[-1].lines >= survey.lines:
            break
        try:
            found.append(measure(dataset, survey, source, size, options))
        except UserError as error:
            relaxed, said = _relaxed(dataset, options)
            if not said:
                raise
            found.append(measure(dataset, survey, source, size, relaxed))
            notes = [f"  note    a sample had {said}, as the run's rules refuse it: {error}"]
    return found, notes


def _relaxed(dataset: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Rules for beginnings of files, as of time, which lack later ones and most events of a user.

    Returns:
      The options, and in words what is other in them.
    """
    if dataset in ROW_DATASETS:
        return {**options, "split": _SPLIT_OF_ROWS}, "a split by rows"
    if "min_interactions" not in options:
        return {}, ""
    split = {"split": SplitRule()} if "split" in options else {}
    relaxed = {**options, "min_interactions": 2, **split}
    return relaxed, "users of 2 events, with a split of leave-last-out"


def free_space(output: Path) -> int:
    """Bytes that are free where a directory is to be."""
    path = located(output)
    return shutil.disk_usage(next(place for place in path.parents if place.exists())).free


def measure(
    dataset: str, survey: Survey, source: Path, size: int, options: Mapping[str, Any]
) -> Measured:
    """Runs a sample in a new process."""
    with tempfile.TemporaryDirectory(prefix="workflows-dry-run-") as name:
        directory = Path(name)
        sample = directory / "input"
        lines = _sample(survey, source, sample, size)
        place = sample if source.is_dir() else sample / source.name
        work = directory / "work"
        work.mkdir()
        options = {**options, "workers": 0, "scheduler": None}
        # Spawned: what this process has in memory is not its.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_run, dataset, place, work, lines, options).result()


def _run(
    dataset: str, source: Path, work: Path, lines: int, options: Mapping[str, Any]
) -> Measured:
    """Task: in a new process."""
    forgo_tensorflow()
    warnings.filterwarnings("ignore", message=".*dtype mappings did not load.*")
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            most[0] = max(most[0], _bytes(work))

    watcher = threading.Thread(target=watch)
    began = time.perf_counter()
    watcher.start()
    try:
        report = run_dataset(dataset, source, work / "output", **options)
    finally:
        done.set()
        watcher.join()
    seconds = time.perf_counter() - began
    sizes = report.metadata.get("cardinalities", {})
    output = _bytes(work)
    return Measured(
        lines, resident_peak(), max(most[0], output), output, seconds, sum(sizes.values())
    )


def _bytes(directory: Path) -> int:
    """What files take; some may go while they are counted."""
    total = 0
    for root, _, files in os.walk(directory):
        for name in files:
            try:
                total += (Path(root) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def _sample(survey: Survey, source: Path, target: Path, size: int) -> int:
    """Writes an input with the beginnings of the files of events, all else linked.

    Returns:
      About how many lines these have.
    """
    target.mkdir()
    share = min(size / max(survey.lines, 1), 1.0)
    base = source if source.is_dir() else source.parent
    events = {path: path.relative_to(base) for path in survey.paths if path.is_relative_to(base)}
    if len(events) < len(survey.paths):
        outside = next(path for path in survey.paths if path not in events)
        raise UserError(
            f"--dry_run: expected files below {base}, received {outside}. Move it there, or run "
            "without --dry_run."
        )
    if source.is_dir():
        _link(source, target, set(events))
    lines = 0
    for path, name in events.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        lines += head(path, file, share)
    return lines


def _link(source: Path, target: Path, without: set[Path]) -> None:
    for root, _, files in os.walk(source):
        for name in files:
            path = Path(root) / name
            if path not in without:
                link = target / path.relative_to(source)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())


def head(path: Path, file: Path, share: float) -> int:
    """Writes the beginning of a file; gives its lines."""
    if path.suffix == ".parquet":
        stored = open_parquet(path)
        rows = max(1, int(stored.metadata.num_rows * share))
        batches = []
        for batch in stored.iter_batches(min(rows, 1 << 16)):
            batches.append(batch)
            if sum(map(len, batches)) >= rows:
                break
        table = pa.Table.from_batches(batches, stored.schema_arrow).slice(0, rows)
        pq.write_table(table, file)
        return len(table)
    lines = max(2, int(estimate_lines([path]) * share))  # a header and a row
    quoted = ".csv" in path.suffixes
    written = quotes = 0
    packed = path.suffix == ".gz"
    with (
        cast(BinaryIO, gzip.open(path) if packed else path.open("rb")) as whole,
        cast(BinaryIO, gzip.open(file, "wb", 1) if packed else file.open("wb")) as head,
    ):
        for line in whole:
            head.write(line)
            written += 1
            quotes += line.count(b'"') if quoted else 0
            if written >= lines and not quotes % 2:
                break
    return written
