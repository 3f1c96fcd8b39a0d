"""The contract of a dataset, and the way every dataset goes: ingest → fit → transform → write.

A dataset is a `Reader`: it finds the raw files, parses a block of lines, and says what is known
of users and items. All else is common to all datasets and lies here and in the modules that this
one calls.
"""

from __future__ import annotations

import abc
import argparse
import dataclasses
import functools
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from lookback.core.errors import UserError
from lookback.formats import histories
from lookback.formats import history_columns as names
from lookback.formats.dataset_info import HISTORIES, write_info
from lookback.formats.history_columns import Column, history_columns
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.workflows.cluster import Plan, Runner, make_plan, open_runner
from lookback.workflows.histories.ingest import Events, Features, ingest
from lookback.workflows.output import DATASET, WORKFLOW, Output
from lookback.workflows.saved import WORKFLOW_DIRECTORY, read_saved_options, saved_workflow
from lookback.workflows.text import BadLineCounter, Block, Parsed, blocks, estimate_lines

MIN_INTERACTIONS = 20  # seed 001: `--shortest_sequence_for_user` 20
TEST_EVENTS = 1  # of each user, the last
WORKING_DIRECTORY = ".ingest"

Duplicates = Literal["keep", "first"]


@dataclass(frozen=True)
class Reader(abc.ABC):
    """Reads one kind of raw data. A subclass is a frozen dataclass; its fields are its options.

    An instance must pickle: it travels to the tasks.

    Attributes:
      user_features: names of the columns about users, beside their id.
      item_features: names of the columns about items, beside their id.
      duplicates: what becomes of a user's further events with an item, unless told otherwise.
      takes_file: whether the input may be a single file instead of a directory.
    """

    user_features: ClassVar[tuple[str, ...]] = ()
    item_features: ClassVar[tuple[str, ...]] = ()
    duplicates: ClassVar[Duplicates] = "keep"
    takes_file: ClassVar[bool] = False

    @staticmethod
    @abc.abstractmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds an option for each field of the dataclass, under its name."""

    @abc.abstractmethod
    def event_files(self, directory: Path) -> list[Path]:
        """The files of events in `directory`, in order.

        Raises:
          UserError: if there are none, or it is not clear which.
        """

    def count_events(self, paths: list[Path]) -> int:
        """About how many events the files hold."""
        return estimate_lines(paths)

    def blocks(self, path: Path) -> Iterator[Block]:
        """Cuts a file to blocks, in order."""
        return blocks(path)

    @abc.abstractmethod
    def parse_block(self, block: Block) -> Parsed:
        """Parses a block.

        Returns:
          a table of `user_id`, `item_id` (string or int64) and `timestamp` (seconds, int64 or
          float64, not negative), without nulls, and the bad lines.
        """

    @abc.abstractmethod
    def features(
        self, directory: Path, runner: Runner, bad_lines: BadLineCounter
    ) -> tuple[list[Features], dict[str, int]]:
        """What is known of users and items, and counts to report."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the dataset."""
        return history_columns(self.user_features, self.item_features)


@dataclass(frozen=True)
class Options:
    """Options that all datasets share.

    Attributes:
      min_interactions: users with fewer events are left out.
      frequency_threshold: items (and values of item features) with fewer events among the kept
        users share the out-of-vocabulary index; 0 gives each its own.
      validation: whether the event before a user's last is kept for validation.
      duplicates: of several events of a user with the same item `keep` all, or the `first` in time
        alone. `min_interactions` counts all; users who have fewer events after it than a split
        takes (one to train on and those held out) are left out as well. None is the reader's.
      max_bad_lines: how many lines that are not what they should be to leave out.
      workers: processes; None chooses by the input's size, 0 means this process alone.
      scheduler: address of a Dask cluster to use.
      memory_limit: bytes to stay within; None takes what is free.
      partition_events: events of a partition; None follows from the memory.
      progress: show progress bars where the error stream is a terminal.
    """

    min_interactions: int = MIN_INTERACTIONS
    frequency_threshold: int = 0
    validation: bool = False
    duplicates: Duplicates | None = None
    max_bad_lines: int = 0
    workers: int | None = None
    scheduler: str | None = None
    memory_limit: int | None = None
    partition_events: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("min_interactions", 1),
            ("frequency_threshold", 0),
            ("max_bad_lines", 0),
            ("workers", 0),
            ("partition_events", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} must be {least} or more, not {value}.")
        if self.duplicates not in (None, *get_args(Duplicates)):
            raise UserError(f"--duplicates must be keep or first, not {self.duplicates!r}.")

    @property
    def fewest_items(self) -> int | None:
        """Fewest different items of a user who is kept; None where repeated ones are kept."""
        return 1 + TEST_EVENTS + self.validation if self.duplicates == "first" else None

    @property
    def content(self) -> dict[str, Any]:
        """The options that have a say in the output."""
        chosen = (
            "min_interactions",
            "frequency_threshold",
            "validation",
            "duplicates",
            "max_bad_lines",
        )
        return {name: getattr(self, name) for name in chosen}


@dataclass(frozen=True)
class Report:
    """What a run did.

    Attributes:
      directory: what it wrote.
      plan: how it was cut to the machine.
      metadata: content of ``dataset.json`` (of `fit`: what is known so far).
    """

    directory: Path
    plan: Plan
    metadata: Mapping[str, Any]


Log = Callable[[str], None]


def _silent(_: str) -> None:
    pass


def make_reader(name: str, options: Mapping[str, Any] | None = None) -> Reader:
    """A dataset's reader.

    Raises:
      UserError: if there is no such dataset or option.
    """
    from lookback.workflows import DATASETS

    if name not in DATASETS:
        raise UserError(f"There is no dataset {name!r}. Choose of {', '.join(sorted(DATASETS))}.")
    reader = DATASETS[name]
    known = {field.name for field in dataclasses.fields(reader)}
    unknown = sorted(set(options or {}) - known)
    if unknown:
        raise UserError(
            f"Dataset {name!r} has no option {unknown[0]!r}. It has: "
            f"{', '.join(sorted(known)) or 'none'}; all datasets have: "
            f"{', '.join(field.name for field in dataclasses.fields(Options))}."
        )
    return reader(**(options or {}))


def split_options(options: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
    """Separates the common options from a dataset's own."""
    common = {field.name for field in dataclasses.fields(Options)}
    return (
        Options(**{name: value for name, value in options.items() if name in common}),
        {name: value for name, value in options.items() if name not in common},
    )


def run_dataset(
    name: str,
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    log: Log = _silent,
    **options: Any,
) -> Report:
    """Raw data to dataset: ingest, fit, transform, write.

    Args:
      name: a key of `DATASETS`.
      input_dir: directory of raw files, or where the reader takes one a file.
      output_dir: the dataset to create.
      overwrite: replace a dataset of ours at `output_dir`.
      log: takes a line of text for each thing worth knowing.
      **options: fields of `Options` and of the dataset's reader.

    Raises:
      UserError: about options, input or output.
    """
    common, own = split_options(options)
    reader = make_reader(name, own)
    raw = Path(input_dir)
    target = Output(Path(output_dir), DATASET, overwrite, (raw,))
    with _prepared(reader, raw, target, common, log) as job:
        workflow = _fit(job)
        _save(job, workflow, name, own, job.output / WORKFLOW_DIRECTORY)
        return _transform(job, workflow, name, {**job.options.content, **own})


def fit_dataset(
    name: str,
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    log: Log = _silent,
    **options: Any,
) -> Report:
    """Raw data to saved workflow; see `run_dataset`. `output_dir` becomes the workflow itself."""
    common, own = split_options(options)
    reader = make_reader(name, own)
    raw = Path(input_dir)
    target = Output(Path(output_dir), WORKFLOW, overwrite, (raw,))
    with _prepared(reader, raw, target, common, log) as job:
        workflow = _fit(job)
        _save(job, workflow, name, own, job.output)
        return Report(Path(output_dir), job.plan, {"counts": job.counts()})


def transform_dataset(
    workflow_dir: str | Path,
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    log: Log = _silent,
    **options: Any,
) -> Report:
    """Raw data to dataset with a workflow that was fitted before.

    Dataset and options are those of the fit; ids that the workflow does not know get the
    out-of-vocabulary index and are counted. Each user keeps a history of their own, known or not.

    Args:
      workflow_dir: a saved workflow, or a dataset that holds one.
      input_dir: directory of raw files of the same kind.
      output_dir: the dataset to create.
      overwrite: replace a dataset of ours at `output_dir`.
      log: takes a line of text for each thing worth knowing.
      **options: fields of `Options` (without `frequency_threshold`), of the reader, or both, to
        be changed from the fit's.

    Raises:
      UserError: about options, input, output or the workflow.
    """
    saved = read_saved_options(workflow_dir)
    name = saved["dataset"]
    if "frequency_threshold" in options:
        raise UserError("frequency_threshold is fixed by the fit; fit a new workflow to change it.")
    common, own = split_options({**saved["options"], **options})
    reader = make_reader(name, own)
    raw = Path(input_dir)
    target = Output(Path(output_dir), DATASET, overwrite, (raw, Path(workflow_dir)))
    from lookback.workflows.histories import ops

    vocabularies = ops.saved_vocabularies(saved_workflow(workflow_dir), reader.columns)
    with _prepared(reader, raw, target, common, log) as job:
        workflow = ops.restore_workflow(
            vocabularies,
            reader.columns,
            min_interactions=common.min_interactions,
            fewest_items=job.options.fewest_items,
            frequency_threshold=common.frequency_threshold,
        )
        _save(job, workflow, name, own, job.output / WORKFLOW_DIRECTORY)
        return _transform(job, workflow, name, {**job.options.content, **own})


@dataclass(frozen=True)
class _Job:
    """A run whose events are ingested."""

    output: Path
    final: Path
    reader: Reader
    options: Options
    plan: Plan
    runner: Runner
    events: Events
    bad_lines: BadLineCounter
    extra_counts: dict[str, int]
    log: Log

    @property
    def working(self) -> Path:
        return self.output / WORKING_DIRECTORY

    def counts(self) -> dict[str, Any]:
        events = self.events
        repeated = {
            "users_dropped_for_duplicates": events.users_short,
            "duplicate_events": events.events_repeated,
        }
        return {
            "users_read": events.users,
            "events_read": events.events,
            "users_dropped": events.users - events.users_kept,
            "events_dropped": events.events - events.events_kept - events.events_repeated,
            **(repeated if self.options.duplicates == "first" else {}),
            "users_with_one_event": events.users_with_one_event,
            "bad_lines": dict(sorted(self.bad_lines.reasons.items())),
            "events_without_features": dict(sorted(events.without_features.items())),
            **self.extra_counts,
        }


@contextmanager
def _prepared(
    reader: Reader, directory: Path, target: Output, options: Options, log: Log
) -> Iterator[_Job]:
    """Checks everything that can be checked, then ingests into the output's temporary directory."""
    if reader.takes_file and not directory.exists():
        raise UserError(f"--input {directory} does not exist. Give a raw file, or a directory.")
    if not reader.takes_file and not directory.is_dir():
        raise UserError(f"--input {directory} is not a directory. Give the one with the raw files.")
    target.check()
    options = dataclasses.replace(options, duplicates=options.duplicates or reader.duplicates)
    columns = reader.columns
    paths = reader.event_files(directory)
    lines = reader.count_events(paths)
    plan = make_plan(
        lines,
        workers=options.workers,
        memory=options.memory_limit,
        partition_events=options.partition_events,
    )
    with target.create() as output, warnings.catch_warnings():
        # It calls its CPU mode experimental each time; that mode is what the tests compare here.
        warnings.filterwarnings("ignore", message="Initializing an NVTabular Dataset in CPU mode")
        working = output / WORKING_DIRECTORY
        working.mkdir()
        with open_runner(
            plan.workers,
            scheduler=options.scheduler,
            progress=options.progress,
        ) as runner:
            where = f"{runner.workers} workers" if runner.client else "this process"
            log(
                f"about {lines:,} lines in {len(paths)} file(s); {plan.partitions} partition(s) "
                f"of up to {plan.partition_events:,} events in {where}, to stay within "
                f"{plan.memory / 2**30:.1f} GiB of memory"
            )
            bad_lines = BadLineCounter(options.max_bad_lines)
            features, counts = reader.features(directory, runner, bad_lines)
            events = ingest(
                paths,
                reader.blocks,
                reader.parse_block,
                features,
                [column.name for column in columns],
                working,
                runner,
                partitions=plan.partitions,
                min_interactions=options.min_interactions,
                fewest_items=options.fewest_items,
                bad_lines=bad_lines,
            )
            _check_users(events, options)
            yield _Job(
                output,
                target.path,
                reader,
                options,
                plan,
                runner,
                events,
                bad_lines,
                counts,
                log,
            )


def _check_users(events: Events, options: Options) -> None:
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

    workflow = ops.build_workflow(
        job.reader.columns,
        min_interactions=job.options.min_interactions,
        fewest_items=job.options.fewest_items,
        frequency_threshold=job.options.frequency_threshold,
        vocabulary_directory=job.working,
    )
    job.log("fitting the vocabularies")
    workflow.fit(_events_dataset(job))
    sizes = ops.vocabulary_sizes(workflow)
    if not sizes[names.ITEM_ID]:
        raise UserError(
            f"No item has {job.options.frequency_threshold} or more events: every one would be "
            "out of the vocabulary. Pass a smaller --frequency_threshold."
        )
    return workflow


def _save(job: _Job, workflow: Any, name: str, own: Mapping[str, Any], directory: Path) -> None:
    from lookback.workflows.histories import ops

    given = {**job.options.content, **own}
    ops.save_workflow(workflow, directory, {"dataset": name, "options": given})
    if directory == job.output:  # `fit`: nothing else follows
        shutil.rmtree(job.working)


def _transform(job: _Job, workflow: Any, name: str, options: dict[str, Any]) -> Report:
    from dask import delayed

    from lookback.workflows.histories import ops, write

    columns = job.reader.columns
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
        "dataset": name,
        "options": options,
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
            "validation": int(job.options.validation),
        },
        "negative_sampling": {
            "distributions": ["popularity", "uniform"],
            "popularity": "counts in items.parquet; training leaves held-out events out",
        },
        "content_hash": histories.content_hash(columns, cardinalities, totals, items_digest),
    }
    return Report(job.final, job.plan, write_info(job.output, HISTORIES, content))
