"""Tables of clicks, label + integers + hashed categorical values, the way all of them go.

    count (by day) → merge → vocabulary, NVTabular workflow → transform (by day) → description

Every stage is a pass over blocks of text by tasks in threads (or on Dask), with memory that
does not depend on the size of the files; each finished day is on disk, and a run that was killed
goes on after it (`workflows.tabular.state`).
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from lookback.core.devices import cores
from lookback.core.errors import UserError
from lookback.core.files import require_readable
from lookback.formats.dataset_info import FORMAT_VERSION, WORKFLOW_DIRECTORY
from lookback.workflows.cluster import (
    BYTES_PER_PROCESS,
    FREE,
    MEMORY_SHARE,
    RAISE,
    ResourcePlan,
    available_memory,
    open_runner,
)
from lookback.workflows.order import Report, Survey, WorkflowOrder
from lookback.workflows.output import full_disk_explained, megabytes
from lookback.workflows.passed_over import files_not_read
from lookback.workflows.saved import (
    OPTIONS_FILE,
    read_saved_options,
    saved_workflow,
)
from lookback.workflows.tabular import passes
from lookback.workflows.tabular.counts import MERGED_AT_ONCE
from lookback.workflows.tabular.passes import TabularJob
from lookback.workflows.tabular.reader import RawFiles, TabularDatasetOptions, TabularReader
from lookback.workflows.tabular.state import (
    Working,
    check_space,
    open_working,
)
from lookback.workflows.text import BadLineCounter, estimate_lines

MEMORY_OF_A_BLOCK = 7
"""Bytes that a worker takes for each byte of its block: text, frame, ids and their copies
(two threads on 64 MiB stayed within it)."""

MEMORY_OF_AN_ENTRY = 50  # of a merge: key, count and their sorted and packed copies
WORTH_THREADS = 128 << 20
"""Bytes of text; below this a run takes a few seconds, and one thread leaves the machine free."""

UNPACKED = 3  # Criteo's days shrink to about a third with gzip
BLOCK_UNIQUE, DAY_UNIQUE = 0.25, 0.05
"""Assumed shares of the values that are distinct in a block, and in a day: the disk that counts
take. Where it is more, a full disk is told when it comes."""


_GO_ON = (
    "Days that were finished are kept there: free some space, then run the same command again and "
    "it goes on. Or remove that directory."
)

TabularOrder = WorkflowOrder[TabularReader, TabularDatasetOptions]


def run(order: TabularOrder) -> Report:
    """Raw data to dataset: count, fit, transform, write.

    ``OUTPUT.partial`` beside the output holds what is finished.
    """
    with _prepared("run", order) as job:
        _require_training_rows(job.files)
        passes.fit(job, job.working.data / WORKFLOW_DIRECTORY)
        metadata = passes.transform(job, job.working.data / WORKFLOW_DIRECTORY)
        return Report(order.output.path, job.plan, metadata)


def fit(order: TabularOrder) -> Report:
    """Raw data to saved workflow, which is the output itself."""
    with _prepared("fit", order) as job:
        if order.options.vocabulary == "train":
            _require_training_rows(job.files)
        sizes = passes.fit(job, job.working.data)
        return Report(order.output.path, job.plan, {"known_values": sizes})


def transform(order: TabularOrder, workflow_directory: Path) -> Report:
    """Raw data, be it a single day, to dataset with a saved workflow."""
    from lookback.workflows.tabular import ops

    directory = saved_workflow(workflow_directory)
    identity = (directory / OPTIONS_FILE).stat()
    command = f"transform with {directory.resolve()} of {identity.st_mtime_ns}"
    workflow = ops.restore_workflow(directory)
    with _prepared(command, order) as job:
        own_copy = job.working.data / WORKFLOW_DIRECTORY
        if job.working.record("fitted", "workflow") is None:
            shutil.rmtree(own_copy, ignore_errors=True)
            ops.save_workflow(workflow, own_copy, read_saved_options(workflow_directory))
            job.working.finish("fitted", "workflow", {}, job.working.entries(own_copy))
        metadata = passes.transform(job, own_copy)
        return Report(order.output.path, job.plan, metadata)


def survey(order: TabularOrder) -> Survey:
    """Checks everything that `run` checks before it reads, but for an unfinished run's rest."""
    require_readable(order.input, "--input")
    order.output.check()
    files = order.reader.files(order.input)
    _require_training_rows(files)
    lines = max(1, estimate_lines(list(files.paths)))
    remarks = files_not_read(order.input, files.paths)
    return Survey(files.paths, lines, _plan(files, order.options), remarks)


@contextmanager
def _prepared(command: str, order: TabularOrder) -> Iterator[TabularJob]:
    """Checks all that can be checked before there is work to do."""
    reader, options = order.reader, order.options
    require_readable(order.input, "--input")
    files = reader.files(order.input)
    for remark in files_not_read(order.input, files.paths):
        order.log(remark)
    plan = _plan(files, options)
    stats = [(path.name, path.stat()) for path in files.paths]
    identity = {
        "command": command,
        "format_version": FORMAT_VERSION,
        "dataset": order.dataset,
        "options": {**options.content, **asdict(reader)},
        "input": [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats],
    }
    with open_working(order.output, identity) as working, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing an NVTabular Dataset in CPU mode")
        _check_disk(working, files, reader)
        with (
            # The loops over a block let go of the interpreter's lock, so threads do.
            open_runner(
                plan.workers, threads=True, scheduler=options.scheduler, progress=order.progress
            ) as runner,
            full_disk_explained(working.path, _GO_ON),
        ):
            order.log(
                f"{len(files.paths)} file(s) in blocks of {megabytes(options.block_size)} in "
                f"{runner.place}, to stay within {plan.memory / 2**30:.1f} GiB of memory"
            )
            counter = BadLineCounter(options.max_bad_lines)
            yield TabularJob(
                order.dataset, reader, files, options, plan, runner, working, order.log, counter
            )


def _plan(files: RawFiles, options: TabularDatasetOptions) -> ResourcePlan:
    """Chooses workers so that their blocks fit the memory."""
    asked = options.memory_limit
    memory, remedy = (available_memory(), FREE) if asked is None else (asked, RAISE)
    sizes = [
        path.stat().st_size * (UNPACKED if path.suffix == ".gz" else 1) for path in files.paths
    ]
    block = min(options.block_size, max(sizes)) * MEMORY_OF_A_BLOCK
    each = max(block, min(MERGED_AT_ONCE, sum(sizes)) * MEMORY_OF_AN_ENTRY)
    workers = options.workers
    if workers is None:
        affordable = (int(memory * MEMORY_SHARE) - BYTES_PER_PROCESS) // each
        workers = min(cores(), affordable) if sum(sizes) > WORTH_THREADS else 0
        workers = workers if workers > 1 else 0
    needed = int((max(workers, 1) * each + BYTES_PER_PROCESS) / MEMORY_SHARE)
    if needed > memory:
        raise UserError(
            f"{megabytes(memory)} of memory is too little for {workers or 1} worker(s) with blocks "
            f"of {megabytes(options.block_size)}: about {megabytes(needed)} are needed. {remedy}, "
            f"or lower {'--workers or ' if workers else ''}--block_size."
        )
    lines = max(1, estimate_lines(list(files.paths)))
    pieces = sum(-(-size // options.block_size) for size in sizes)
    return ResourcePlan(workers, memory, -(-lines // pieces), pieces)


def _check_disk(working: Working, files: RawFiles, reader: TabularReader) -> None:
    """Estimates what the run takes at its height, and checks that the disk has it."""
    rows = [estimate_lines([path]) for path in files.paths]
    row = 4 * (1 + reader.numerical + reader.categorical)
    values = 8 * reader.categorical  # a key and its count
    counts = int(max(rows) * values * BLOCK_UNIQUE + sum(rows) * values * DAY_UNIQUE)
    check_space(
        working,
        sum(rows) * row + counts,
        what=f"about {sum(rows):,} rows of up to {row} bytes, and {megabytes(counts)} of counts",
    )


def _require_training_rows(files: RawFiles) -> None:
    if len(files.paths) == 1 and files.last_day == 1:
        raise UserError(
            f"{files.paths[0]} is the only day, and the last day is for validation and test: "
            "nothing is left to train on. Add days before it, or `transform` it with a workflow."
        )
