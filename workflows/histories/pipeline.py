"""Histories, the way all datasets of them go: ingest → fit → transform → write."""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.files import require_readable
from lookback.formats import histories
from lookback.formats import history_columns as names
from lookback.formats.dataset_info import (
    HISTORIES,
    VOCABULARIES,
    WORKFLOW_DIRECTORY,
    write_info,
)
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.workflows.cluster import ResourcePlan, Runner, make_plan, open_runner
from lookback.workflows.histories.ingest import Events, ingest
from lookback.workflows.histories.reader import TEST_EVENTS, HistoryOptions, Reader
from lookback.workflows.order import Report, WorkflowOrder
from lookback.workflows.saved import saved_workflow
from lookback.workflows.text import BadLineCounter

WORKING_DIRECTORY = ".ingest"

HistoriesOrder = WorkflowOrder[Reader, HistoryOptions]


def run(order: HistoriesOrder) -> Report:
    """Raw data to dataset: ingest, fit, transform, write."""
    with _prepared(order) as job:
        workflow = _fit(job)
        _save(job, workflow, job.output / WORKFLOW_DIRECTORY)
        return _transform(job, workflow)


def fit(order: HistoriesOrder) -> Report:
    """Raw data to saved workflow, which is the output itself."""
    with _prepared(order) as job:
        workflow = _fit(job)
        _save(job, workflow, job.output)
        shutil.rmtree(job.working)  # nothing else follows
        return Report(order.output.path, job.plan, {"counts": job.counts()})


def transform(order: HistoriesOrder, workflow_directory: Path) -> Report:
    """Raw data to dataset with a saved workflow.

    Each user keeps a history of their own, whether the workflow knows them or not.
    """
    from lookback.workflows.histories import ops

    columns, options = order.reader.columns, order.options
    vocabularies = ops.saved_vocabularies(saved_workflow(workflow_directory), columns)
    with _prepared(order) as job:
        workflow = ops.restore_workflow(
            vocabularies,
            columns,
            min_interactions=options.min_interactions,
            fewest_items=options.fewest_items,
            frequency_threshold=options.frequency_threshold,
        )
        _save(job, workflow, job.output / WORKFLOW_DIRECTORY)
        return _transform(job, workflow)


@dataclass(frozen=True)
class _Job:
    """An order whose events are ingested."""

    order: HistoriesOrder
    output: Path
    plan: ResourcePlan
    runner: Runner
    events: Events
    bad_lines: BadLineCounter
    extra_counts: dict[str, int]

    @property
    def working(self) -> Path:
        return self.output / WORKING_DIRECTORY

    @property
    def saved_options(self) -> dict[str, Any]:
        """The options that go with the dataset and its workflow."""
        return {**self.order.options.content, **self.order.chosen}

    def counts(self) -> dict[str, Any]:
        events = self.events
        dropped = events.events - events.events_kept - events.events_repeated
        repeated = {
            "users_dropped_for_duplicates": events.users_short,
            "duplicate_events": events.events_repeated,
        }
        return {
            "users_read": events.users,
            "events_read": events.events,
            "users_dropped": events.users - events.users_kept,
            "events_dropped": dropped - events.exact_repeats,
            "exact_repeats": events.exact_repeats,
            **(repeated if self.order.options.duplicates == "first" else {}),
            "users_with_one_event": events.users_with_one_event,
            "held_out_ties": events.held_out_ties,
            "bad_lines": dict(sorted(self.bad_lines.reasons.items())),
            "events_without_features": dict(sorted(events.without_features.items())),
            **events.counts,
            **self.extra_counts,
        }


@contextmanager
def _prepared(order: HistoriesOrder) -> Iterator[_Job]:
    """Checks everything that can be checked, then ingests into the output's temporary directory."""
    reader, options, directory = order.reader, order.options, order.input
    require_readable(directory, "--input", takes_file=reader.takes_file)
    order.output.check()
    columns = reader.columns
    paths = reader.event_files(directory)
    remarks = reader.passed_over(directory, paths)
    lines = reader.count_events(paths)
    plan = make_plan(
        lines,
        workers=options.workers,
        memory=options.memory_limit,
        partition_events=options.partition_events,
    )
    with order.output.create() as output, warnings.catch_warnings():
        # It calls its CPU mode experimental each time; that mode is what the tests compare here.
        warnings.filterwarnings("ignore", message="Initializing an NVTabular Dataset in CPU mode")
        working = output / WORKING_DIRECTORY
        working.mkdir()
        with open_runner(
            plan.workers, scheduler=options.scheduler, progress=order.progress
        ) as runner:
            order.log(
                f"about {lines:,} lines in {len(paths)} file(s); {plan.partitions} partition(s) "
                f"of up to {plan.partition_events:,} events in {runner.place}, to stay within "
                f"{plan.memory / 2**30:.1f} GiB of memory"
            )
            for remark in remarks:
                order.log(remark)
            bad_lines = BadLineCounter(options.max_bad_lines)
            features, counts = reader.features(directory, runner, bad_lines)
            events = ingest(
                paths,
                reader.blocks,
                functools.partial(reader.parse_block, unit=options.time_unit),
                features,
                [column.name for column in columns],
                working,
                runner,
                partitions=plan.partitions,
                selection=options.selection,
                bad_lines=bad_lines,
            )
            _check_users(events, options)
            yield _Job(order, output, plan, runner, events, bad_lines, counts)


def _check_users(events: Events, options: HistoryOptions) -> None:
    if events.users_kept:
        return
    if events.users_short:
        raise UserError(
            f"None of the {events.users:,} users is left: {events.users_short:,} have "
            f"{options.min_interactions} or more events, but none of them events with "
            f"{options.fewest_items} different items, the fewest to split. Pass --duplicates keep "
            "to keep repeated ones."
        )
    raise UserError(
        f"None of the {events.users:,} users has {options.min_interactions} or more events; the "
        f"longest history has {events.longest}. Pass a smaller --min_interactions."
    )


def _events_dataset(job: _Job) -> Any:
    """The intermediate events as NVTabular takes them; a partition is a file."""
    import dask.dataframe as dd
    import nvtabular as nvt

    from lookback.workflows.cluster import has_gpu_frames

    meta = job.events.schema.empty_table().to_pandas()
    frame = dd.from_map(_read_events, list(job.events.files), meta=meta)
    return nvt.Dataset(frame, cpu=not has_gpu_frames())


def _read_events(file: Path) -> Any:
    from lookback.core.arrow_files import read_parquet

    return read_parquet(file).to_pandas()


def _fit(job: _Job) -> Any:
    from lookback.workflows.histories import ops

    options = job.order.options
    workflow = ops.build_workflow(
        job.order.reader.columns,
        min_interactions=options.min_interactions,
        fewest_items=options.fewest_items,
        frequency_threshold=options.frequency_threshold,
        vocabulary_directory=job.working,
    )
    job.order.log("fitting the vocabularies")
    workflow.fit(_events_dataset(job))
    sizes = ops.vocabulary_sizes(workflow)
    if not sizes[names.ITEM_ID]:
        raise UserError(
            f"No item has {options.frequency_threshold} or more events: every one would be "
            "out of the vocabulary. Pass a smaller --frequency_threshold."
        )
    return workflow


def _save(job: _Job, workflow: Any, directory: Path) -> None:
    from lookback.workflows.histories import ops

    ops.save_workflow(
        workflow, directory, {"dataset": job.order.dataset, "options": job.saved_options}
    )


def _transform(job: _Job, workflow: Any) -> Report:
    from dask import delayed

    from lookback.workflows.histories import ops, write

    columns = job.order.reader.columns
    ranges = write.user_ranges(ops.user_event_counts(workflow))
    encode = delayed(functools.partial(write.write_encoded, columns=columns, ranges=ranges))
    frames = workflow.transform(_events_dataset(job)).to_ddf().to_delayed()
    files = [job.working / f"encoded-{number:05d}.parquet" for number in range(len(frames))]
    tasks = [encode(frame, file) for frame, file in zip(frames, files, strict=True)]
    encoded = list(job.runner.compute(tasks, label="encoding"))
    directory = job.output / histories.HISTORIES_DIRECTORY
    directory.mkdir()
    parts = write.part_tasks(encoded, directory)
    written = list(job.runner.map(write.write_part, parts, label="writing", total=len(parts)))
    shutil.rmtree(job.working)

    sizes = ops.vocabulary_sizes(workflow)
    cardinalities = {column: size + FIRST_KNOWN for column, size in sizes.items()}
    totals = histories.read_totals(written, columns, cardinalities)
    items_digest = histories.write_catalogue(job.output, totals.catalogue)
    histories.write_workflow_schema(workflow.output_schema, columns, job.output)
    content = {
        "dataset": job.order.dataset,
        "options": job.saved_options,
        "counts": {
            "users": totals.users,
            "events": totals.events,
            "items": int((totals.item_counts > 0).sum()),
            **job.counts(),
            "unknown_ids": totals.unknown,
        },
        "cardinalities": cardinalities,
        "history_length": histories.length_summary(totals.lengths),
        "split": {
            "rule": "leave_last_out",
            "test": TEST_EVENTS,
            "validation": int(job.order.options.validation),
        },
        "negative_sampling": {
            "distributions": ["popularity", "uniform"],
            "popularity": "counts in items.parquet; training leaves held-out events out",
        },
        "content_hash": histories.content_hash(columns, cardinalities, totals, items_digest),
        VOCABULARIES: ops.vocabulary_digests(job.output / WORKFLOW_DIRECTORY, columns),
    }
    return Report(job.order.output.path, job.plan, write_info(job.output, HISTORIES, content))
