"""The passes over the text: count by day, rank the values, transform by day.

A pass hands blocks to tasks (`workflows.tabular.tasks`) and leaves a record of each finished day.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.files import sync
from lookback.core.manifests import FILES
from lookback.formats.part_files import part_name
from lookback.formats.tabular_files import column_names, write_description
from lookback.workflows.cluster import ResourcePlan, Runner
from lookback.workflows.order import Log
from lookback.workflows.tabular import tasks
from lookback.workflows.tabular.counts import Run, write_vocabulary
from lookback.workflows.tabular.reader import RawFiles, TabularDatasetOptions, TabularReader
from lookback.workflows.tabular.state import Working
from lookback.workflows.text import BadLineCounter, Block, blocks


@dataclass(frozen=True)
class TabularJob:
    """A run: what it reads, where it writes, and what does the work."""

    name: str
    reader: TabularReader
    files: RawFiles
    options: TabularDatasetOptions
    plan: ResourcePlan
    runner: Runner
    working: Working
    log: Log
    bad_lines: BadLineCounter
    rows: dict[str, list[int]] = field(default_factory=dict)
    """Rows of each block, by the name of its file; filled by counting."""

    @property
    def shape(self) -> tasks.Shape:
        """N and M."""
        return tasks.Shape(self.reader.numerical, self.reader.categorical)

    @property
    def saved(self) -> dict[str, Any]:
        """The options that go with the dataset and its workflow."""
        return {**self.options.content, **asdict(self.reader)}

    def blocks(self, path: Path) -> Iterator[Block]:
        """The blocks of a file; the same ones in each pass."""
        return blocks(path, self.options.block_size)

    def block_count(self, path: Path) -> int | None:
        """Number of blocks, where it is known before the file is read."""
        return None if path.suffix == ".gz" else -(-path.stat().st_size // self.options.block_size)

    def held_out(self, path: Path) -> tuple[int, int]:
        """Row of a file at which validation begins, and row at which test does."""
        rows = sum(self.rows[path.name])
        if path != self.files.paths[-1]:
            return rows, rows
        last_day = rows // self.files.last_day
        return rows - last_day, rows - last_day + last_day // 2


def fit(job: TabularJob, directory: Path) -> dict[str, int]:
    """Counts all days, ranks the values, saves the workflow; gives the numbers of known values."""
    runs = _count(job, keep_counts=True)
    record = job.working.record("fitted", "workflow")
    if record is not None:
        return dict(record["sizes"])
    from lookback.workflows.tabular import ops

    _, names = column_names(0, job.reader.categorical)
    vocabulary = job.working.path / "vocabulary"
    shutil.rmtree(vocabulary, ignore_errors=True)
    vocabulary.mkdir()
    rank = functools.partial(_rank, threshold=job.options.frequency_threshold)
    items = [
        ([run[column] for run in runs], vocabulary / f"{name}.arrow")
        for column, name in enumerate(names)
    ]
    known = job.runner.map(rank, items, label="ranking", total=len(items))
    sizes = dict(zip(names, known, strict=True))
    workflow = ops.build_workflow(
        job.reader.numerical,
        job.reader.categorical,
        frequency_threshold=job.options.frequency_threshold,
        vocabulary_directory=vocabulary,
        sizes=sizes,
    )
    shutil.rmtree(directory, ignore_errors=True)
    ops.save_workflow(workflow, directory, {"dataset": job.name, "options": job.saved})
    shutil.rmtree(vocabulary)
    job.working.finish("fitted", "workflow", {"sizes": sizes}, job.working.entries(directory))
    job.log(f"{sum(sizes.values()):,} known values in {len(sizes)} columns")
    return sizes


def _rank(item: tuple[list[Run], Path], threshold: int) -> int:
    runs, path = item
    return write_vocabulary(runs, threshold, path)


def _count(job: TabularJob, *, keep_counts: bool) -> list[list[Run]]:
    """Goes through all days; gives the counts of each that is counted, a run for each column."""
    counted = []
    last = job.files.paths[-1]
    train_only = keep_counts and job.options.vocabulary == "train"
    if train_only and job.files.last_day > 1:
        _count_day(job, last, "rows", rows=0)  # to know where its last day begins
    for path in job.files.paths:
        rows: int | None = None if keep_counts else 0
        if train_only and path == last:
            rows = job.held_out(path)[0] if job.files.last_day > 1 else 0
        record = _count_day(job, path, "counts", rows)
        if record["runs"]:
            counted.append([Run(**run) for run in record["runs"]])
    return counted


def _count_day(job: TabularJob, path: Path, stage: str, rows: int | None) -> dict[str, Any]:
    """Counts one file, unless that is done already.

    Args:
      job: the run.
      path: the file.
      stage: under which it is recorded.
      rows: how many of its rows to count the values of; None for all.
    """
    counter = job.bad_lines if stage == "counts" else BadLineCounter(job.options.max_bad_lines)
    record = job.working.record(stage, path.name)
    if record is None:
        for left in job.working.counts.glob(f"{path.name}.*"):
            shutil.rmtree(left)  # of a run that was killed
        directory = Path(tempfile.mkdtemp(prefix=f"{path.name}.", dir=job.working.counts))
        found = _count_blocks(job, path, directory, rows, counter)
        if not sum(part.rows for part in found):
            raise UserError(f"{path} has no rows. Fetch it again, or move it away.")
        runs = list(_merge_day(job, path, directory, [part.runs for part in found if part.runs]))
        record = {
            "rows": [part.rows for part in found],
            "runs": [run.to_json() for run in runs],
            "bad": counter.reasons,
            "examples": counter.examples,
        }
        job.working.finish(stage, path.name, record, job.working.entries(directory))
    else:
        job.log(f"{path.name}: counted before ({sum(record['rows']):,} rows)")
        counter.reasons = dict(record["bad"])
        counter.examples = list(record["examples"])
    job.rows[path.name] = record["rows"]
    return record


def _count_blocks(
    job: TabularJob, path: Path, directory: Path, rows: int | None, counter: BadLineCounter
) -> list[tasks.Counted]:
    def items() -> Iterator[tasks.CountTask]:
        left = rows
        for number, block in enumerate(job.blocks(path)):
            # Blocks beyond `rows` are cut off by what the blocks before turn out to hold.
            stem = None if left == 0 else directory / f"block-{number:05d}"
            limit = None
            if left is not None and left > 0:
                limit = min(left, known[number])
                left -= limit
            yield tasks.CountTask(block, stem, limit)

    known = job.rows.get(path.name, [])
    count = functools.partial(tasks.count_block, shape=job.shape)
    found = []
    for part in job.runner.map(
        count,
        items(),
        label=f"counting {path.name}",
        total=job.block_count(path),
        carries_data=path.suffix == ".gz",
    ):
        counter.add(path, part.parsed)
        found.append(part)
    return found


def _merge_day(
    job: TabularJob, path: Path, directory: Path, runs: list[list[Run]]
) -> Iterator[Run]:
    """Adds up the counts of a day's blocks, column by column, and removes those of the blocks."""
    items = [
        (list(of_column), directory / f"cat_{column}")
        for column, of_column in enumerate(zip(*runs, strict=True))
    ]
    label = f"adding up {path.name}"
    yield from job.runner.map(tasks.merge_column, items, label=label, total=len(items))
    for file in directory.glob("block-*"):
        file.unlink()


def transform(job: TabularJob, workflow: Path) -> dict[str, Any]:
    """Writes all days with a saved workflow, then the description."""
    from lookback.workflows.tabular import ops

    if not job.rows:
        _count(job, keep_counts=False)
    totals = {"train": 0, "validation": 0, "test": 0}
    _, names = column_names(0, job.reader.categorical)
    unknown = dict.fromkeys(names, 0)
    fitted = job.working.record("fitted", "workflow") or {FILES: {}}
    written = dict(fitted[FILES])
    first_part = 0
    for path in job.files.paths:
        record = job.working.record("written", path.name)
        if record is None:
            record = write_day(job, path, workflow, first_part)
            job.working.finish("written", path.name, record, record[FILES])
        else:
            job.log(f"{path.name}: transformed before")
        written |= record[FILES]
        first_part += len(job.rows[path.name])
        for split, rows in record["rows"].items():
            totals[split] += rows
        for name, count in zip(names, record["unknown"], strict=True):
            unknown[name] += count
    sizes = ops.known_values(ops.restore_workflow(workflow))
    counts = {
        **totals,
        "bad_lines": dict(sorted(job.bad_lines.reasons.items())),
        "unknown_ids": unknown,
    }
    return write_description(
        job.working.data,
        dataset=job.name,
        options=job.saved,
        counts=counts,
        cardinalities={name: sizes[name] + 1 for name in names},
        numerical=job.reader.numerical,
        vocabularies=ops.vocabulary_digests(workflow, names),
        known=job.working.of_data(written),
    )


def write_day(job: TabularJob, path: Path, workflow: Path, first_part: int) -> dict[str, Any]:
    """Transforms one file; gives the rows of each split, the unknown ids of each column, files."""
    day = job.files.paths.index(path)
    validation, test = job.held_out(path)
    bounds = (("train", 0, validation), ("validation", validation, test), ("test", test, None))

    def items() -> Iterator[tasks.WriteTask]:
        before = 0
        for number, (block, rows) in enumerate(
            zip(job.blocks(path), job.rows[path.name], strict=True)
        ):
            splits = tuple(
                (split, max(start - before, 0), min(rows if stop is None else stop - before, rows))
                for split, start, stop in bounds
            )
            splits = tuple(split for split in splits if split[1] < split[2])
            yield tasks.WriteTask(
                block, first_part + number, (job.options.seed, day, number), splits
            )
            before += rows

    write = functools.partial(
        tasks.write_block, shape=job.shape, workflow=workflow, data=job.working.data
    )
    synced: list[Future[None]] = []
    totals: dict[str, int] = {}
    files: dict[str, Any] = {}
    unknown = [0] * job.reader.categorical
    with ThreadPoolExecutor(1) as disk:
        for number, part in enumerate(
            job.runner.map(
                write,
                items(),
                label=f"transforming {path.name}",
                total=len(job.rows[path.name]),
                carries_data=path.suffix == ".gz",
            ),
            start=first_part,
        ):
            for split, rows in part.rows.items():
                totals[split] = totals.get(split, 0) + rows
                # While the next blocks are computed: the disk is the slower of the two.
                synced.append(disk.submit(sync, job.working.data / split / part_name(number)))
            unknown = [a + b for a, b in zip(unknown, part.unknown, strict=True)]
            files |= {f"{job.working.data.name}/{name}": e for name, e in part.files.items()}
    for done in synced:
        done.result()
    return {"rows": totals, "unknown": unknown, FILES: files}
