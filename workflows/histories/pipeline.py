"""Histories, the way all datasets of them go: ingest → fit → transform → write."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookback.core.arrow_files import read_parquet
from lookback.core.errors import UserError
from lookback.core.files import require_readable
from lookback.formats import histories
from lookback.formats import history_columns as names
from lookback.formats.bags import write_bags
from lookback.formats.dataset_info import (
    EXPLICIT,
    FEATURES,
    HISTORIES,
    LABELS,
    LONGEST_BAGS,
    SPLITS,
    UPDATE,
    VOCABULARIES,
    WORKFLOW_DIRECTORY,
    impression_count,
    read_histories_info,
    write_info,
)
from lookback.formats.impressions import IMPRESSIONS_DIRECTORY
from lookback.formats.transforms import Transform
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.workflows.cluster import ResourcePlan, Runner, make_plan, open_runner, takes_gpu
from lookback.workflows.histories.continued import Continued, write_log
from lookback.workflows.histories.gather import PART, Selection
from lookback.workflows.histories.ingest import Events, ingest
from lookback.workflows.histories.reader import HistoryOptions, Reader
from lookback.workflows.histories.rules import TRAIN, LeaveLast
from lookback.workflows.order import Report, Survey, WorkflowOrder
from lookback.workflows.saved import saved_workflow
from lookback.workflows.text import BadLineCounter

if TYPE_CHECKING:
    from lookback.workflows.histories.fitted import Before, FittedFeatures
    from lookback.workflows.histories.typed import Encoding
    from lookback.workflows.histories.write import Encoded

WORKING_DIRECTORY = ".ingest"

HistoriesOrder = WorkflowOrder[Reader, HistoryOptions]


def run(order: HistoriesOrder) -> Report:
    """Raw data to dataset: ingest, fit, transform, write."""
    with _prepared(order, order.reader, keep_log=order.options.keep_log) as job:
        workflow, features = _fit(job)
        _save(job, workflow, features, job.output / WORKFLOW_DIRECTORY)
        return _transform(job, workflow, features)


def fit(order: HistoriesOrder) -> Report:
    """Raw data to saved workflow, which is the output itself."""
    with _prepared(order, order.reader) as job:
        workflow, features = _fit(job)
        _save(job, workflow, features, job.output)
        shutil.rmtree(job.working)  # nothing else follows
        return Report(order.output.path, job.plan, {"counts": job.counts()})


def transform(order: HistoriesOrder, workflow_directory: Path) -> Report:
    """Raw data to dataset with a saved workflow.

    Each user keeps a history of their own, whether the workflow knows them or not.
    """
    from lookback.workflows.histories import ops
    from lookback.workflows.histories.fitted import fitted_before, restore_features

    columns, specs = order.reader.columns, order.reader.feature_specs
    before = fitted_before(saved_workflow(workflow_directory), columns, specs)
    with _prepared(order, order.reader) as job:
        features = restore_features(
            job.events.files, specs, job.selection, before, job.working, job.runner
        )
        workflow = ops.restore_workflow(
            before.vocabularies, columns, **_workflow_options(job, features.transforms)
        )
        _save(job, workflow, features, job.output / WORKFLOW_DIRECTORY)
        return _transform(job, workflow, features)


def update(order: HistoriesOrder, dataset: Path) -> Report:
    """A dataset's log and raw data that came since to a dataset that goes on from it.

    Ids keep their rows and new ones follow; what else was fitted stays as it was.

    Args:
      order: its input is what came since.
      dataset: has the log, see `formats.kept_log`.
    """
    from lookback.workflows.histories import ops
    from lookback.workflows.histories.fitted import fitted_before

    reader = Continued.of(order.reader, order.input, dataset)
    saved = saved_workflow(dataset)
    before = fitted_before(saved, reader.columns, reader.feature_specs)
    with _prepared(order, reader, keep_log=order.options.keep_log) as job:
        workflow, features = _fit(job, before)
        _save(job, workflow, features, job.output / WORKFLOW_DIRECTORY)
        sizes = ops.vocabulary_sizes(workflow)
        said = {
            "of": read_histories_info(dataset)["content_hash"],
            "new_events": job.events.new_events,
            **({"new_impressions": job.events.new_impressions} if reader.explicit else {}),
            "new_training": job.events.new_training,
            "seen_again": job.events.seen_again,
            "new_ids": {name: sizes[name] - n for name, n in before.sizes.items()},
        }
        return _transform(job, workflow, features, {UPDATE: said})


@dataclass(frozen=True)
class _Job:
    """An order whose events are ingested; `reader` read them."""

    order: HistoriesOrder
    reader: Reader
    output: Path
    plan: ResourcePlan
    runner: Runner
    events: Events
    selection: Selection
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
            "events_dropped": dropped - events.exact_repeats - events.rare_events,
            "exact_repeats": events.exact_repeats,
            **(repeated if self.order.options.duplicates == "first" else {}),
            "users_with_one_event": events.users_with_one_event,
            "held_out_ties": events.held_out_ties,
            "bad_lines": dict(sorted(self.bad_lines.reasons.items())),
            "events_without_features": dict(sorted(events.without_features.items())),
            **self._typed_counts(),
            **events.counts,
            **self.extra_counts,
        }

    def _typed_counts(self) -> dict[str, Any]:
        """What is counted of typed events alone."""
        events, typed = self.events, self.selection.typed
        if typed is None:
            return {}
        rules = typed.rules
        return {
            **({"events_of_rare_items": events.rare_events} if rules.min_events_per_item else {}),
            **({"users_of_sessions": events.people_kept} if rules.session_gap is not None else {}),
            **({"missing_values": dict(events.missing)} if events.missing else {}),
            **(
                dict(zip(map(impression_count, SPLITS), events.impressions, strict=True))
                if typed.explicit
                else {}
            ),
        }


def survey(order: HistoriesOrder) -> Survey:
    """Checks everything that `run` checks before it reads."""
    return _survey(order, order.reader)


def _survey(order: HistoriesOrder, reader: Reader) -> Survey:
    """The same with another reader than the order's."""
    options, directory = order.options, order.input
    require_readable(directory, "--input", takes_file=reader.takes_file)
    order.output.check()
    options.selection(reader)
    _takes_gpu(options, reader)  # or it cannot, and says why before anything is read
    paths = reader.event_files(directory)
    remarks = reader.passed_over(directory, paths)
    lines = reader.count_events(paths)
    plan = make_plan(
        lines,
        workers=options.workers,
        memory=options.memory_limit,
        partition_events=options.partition_events,
        features=len(reader.feature_specs),
    )
    return Survey(paths, lines, plan, remarks)


@contextmanager
def _prepared(order: HistoriesOrder, reader: Reader, keep_log: bool = False) -> Iterator[_Job]:
    """Checks everything that can be checked, then ingests into the output's temporary directory.

    Args:
      order: says how.
      reader: of the events.
      keep_log: whether to write all that is read beside the histories, see `formats.kept_log`.
    """
    options, directory = order.options, order.input
    columns, selection = reader.columns, options.selection(reader)
    survey = _survey(order, reader)
    paths, lines, plan = survey.paths, survey.lines, survey.plan
    with order.output.create() as output, warnings.catch_warnings():
        # It calls its CPU mode experimental each time; that mode is what the tests compare here.
        warnings.filterwarnings("ignore", message="Initializing an NVTabular Dataset in CPU mode")
        working = output / WORKING_DIRECTORY
        working.mkdir()
        with open_runner(
            plan.workers,
            scheduler=options.scheduler,
            progress=order.progress,
            gpu=_takes_gpu(options, reader),
        ) as runner:
            order.log(
                f"about {lines:,} lines in {len(paths)} file(s); {plan.partitions} partition(s) "
                f"of up to {plan.partition_events:,} events in {runner.place}, to stay within "
                f"{plan.memory / 2**30:.1f} GiB of memory"
            )
            for remark in survey.remarks:
                order.log(remark)
            bad_lines = BadLineCounter(options.max_bad_lines)
            features, counts = reader.features(directory, runner, bad_lines)
            events = ingest(
                paths,
                reader.blocks,
                functools.partial(reader.parse_block, unit=options.unit),
                features,
                [column.name for column in columns if column.name != names.SPLIT],
                working,
                runner,
                partitions=plan.partitions,
                selection=selection,
                bad_lines=bad_lines,
                keep_log=keep_log,
            )
            _check_users(events, options, selection)
            if keep_log:
                write_log(events.kept_logs, features, output, runner)
            yield _Job(order, reader, output, plan, runner, events, selection, bad_lines, counts)


def _check_users(events: Events, options: HistoryOptions, selection: Selection) -> None:
    if any(events.impressions) and not any(events.parts):
        raise UserError(
            f"None of the {sum(events.impressions):,} impressions has a positive label, expected "
            "some: histories are what was clicked. Check the column of the labels and its values "
            "that are positive (events.label of a description), as they are written in the files; "
            "in YAML, yes and no are true and false unless they are in quotes."
        )
    if events.users_kept:
        return
    if events.users_short:
        raise UserError(
            f"None of the {events.users:,} users is left: {events.users_short:,} have "
            f"{options.min_interactions} or more events, but none of them events with "
            f"{selection.fewest_items} different items, the fewest to split. Pass --duplicates "
            "keep to keep repeated ones."
        )
    raise UserError(
        f"None of the {events.users:,} users has {options.min_interactions} or more events; the "
        f"longest history has {events.longest}. Pass a smaller --min_interactions (of "
        "a log's YAML: filters.min_events_per_user)."
    )


def _check_parts(events: Events, selection: Selection) -> None:
    """Refuses a split that leaves a part without anything, so that nothing can be fitted to it.

    New data that a saved workflow encodes may well be of one part alone.
    """
    counts = events.impressions if any(events.impressions) else events.parts
    empty = [name for name in selection.split.expected if not counts[SPLITS.index(name)]]
    if empty:
        raise UserError(
            f"Split: expected something in each part, received nothing for {empty[0]} "
            f"({', '.join(f'{name} {n:,}' for name, n in zip(SPLITS, counts, strict=True))}) with "
            f"{selection.split}. Give others: under split of the YAML, or to update by option."
        )


def _events_dataset(job: _Job, features: FittedFeatures, *, training: bool = False) -> Any:
    """The intermediate events as NVTabular takes them; a partition is a file.

    Args:
      job: whose events.
      features: encode them.
      training: whether to take those of the training part alone.
    """
    import dask.dataframe as dd
    import nvtabular as nvt

    read = functools.partial(
        _read_events,
        encoding=features.encoding,
        training=training,
        split=any(column.name == names.SPLIT for column in job.reader.columns),
    )
    empty = job.working / "empty.parquet"
    pq.write_table(job.events.schema.empty_table(), empty)
    frame = dd.from_map(read, list(job.events.files), meta=read(empty))
    return nvt.Dataset(frame, cpu=not _takes_gpu(job.order.options, job.reader))


def _takes_gpu(options: HistoryOptions, reader: Reader) -> bool:
    """Whether the workflow runs on the GPU."""
    explicit = "impressions, whose labels are explicit, are worked on by CPUs alone"
    return takes_gpu(options.device, explicit if reader.explicit else None)


def _read_events(file: Path, encoding: Encoding | None, training: bool, split: bool) -> Any:
    table = read_parquet(file)
    if encoding is None:
        return table.to_pandas()
    if training:
        table = table.filter(pc.equal(table[PART], TRAIN))
    table = encoding.encode(table)
    if split:
        table = table.append_column(names.SPLIT, table[PART])
    return table.drop([PART]).to_pandas(integer_object_nulls=True)


def _workflow_options(job: _Job, transforms: Mapping[str, Transform]) -> dict[str, Any]:
    """What a workflow is made with; of typed events those that are kept are chosen already."""
    from lookback.workflows.histories.fitted import columns_of_workflow

    selection, reader = job.selection, job.reader
    threshold = job.order.options.frequency_threshold
    is_typed = selection.typed is not None
    return {
        "min_interactions": 1 if is_typed else selection.min_interactions,
        "fewest_items": None if is_typed else selection.fewest_items,
        "frequency_threshold": threshold,
        "typed": columns_of_workflow(
            reader.columns, reader.feature_specs, transforms, selection, threshold
        ),
    }


def _fit(job: _Job, before: Before | None = None) -> tuple[Any, FittedFeatures]:
    from lookback.workflows.histories import ops
    from lookback.workflows.histories.fitted import fit_features

    threshold = job.order.options.frequency_threshold
    _check_parts(job.events, job.selection)
    job.order.log("fitting the vocabularies")
    features = fit_features(
        job.events.files,
        job.reader.feature_specs,
        job.selection,
        threshold,
        job.working,
        job.runner,
        before,
    )
    workflow = ops.build_workflow(
        job.reader.columns,
        vocabulary_directory=job.working,
        known=None if before is None else before.vocabularies,
        **_workflow_options(job, features.transforms),
    )
    training = not isinstance(job.selection.split, LeaveLast)
    workflow.fit(_events_dataset(job, features, training=training))
    ops.add_vocabularies(workflow, features.elements)
    sizes = ops.vocabulary_sizes(workflow)
    if not sizes[names.ITEM_ID]:
        raise UserError(
            f"No item has {threshold} or more events: every one would be out of the vocabulary. "
            "Pass a smaller --frequency_threshold."
        )
    return workflow, features


def _save(job: _Job, workflow: Any, features: FittedFeatures, directory: Path) -> None:
    from lookback.workflows.histories import ops, typed

    specs = job.reader.feature_specs

    def beside(directory: Path) -> None:
        if specs:
            typed.save_features(features.transforms, specs, directory)

    ops.save_workflow(
        workflow, directory, {"dataset": job.order.dataset, "options": job.saved_options}, beside
    )


def _transform(
    job: _Job,
    workflow: Any,
    features: FittedFeatures,
    said: Mapping[str, Any] = MappingProxyType({}),
) -> Report:
    """Encodes and writes; `said` is what dataset.json says beside what follows from the data."""
    from dask import delayed

    from lookback.workflows.histories import ops, write

    columns = job.reader.columns
    ranges = write.user_ranges(ops.user_event_counts(workflow))
    encode = delayed(functools.partial(write.write_encoded, columns=columns, ranges=ranges))
    frames = workflow.transform(_events_dataset(job, features)).to_ddf().to_delayed()
    files = [job.working / f"encoded-{number:05d}.parquet" for number in range(len(frames))]
    tasks = [encode(frame, file) for frame, file in zip(frames, files, strict=True)]
    encoded = list(job.runner.compute(tasks, label="encoding"))
    directory = job.output / histories.HISTORIES_DIRECTORY
    directory.mkdir()
    parts = write.part_tasks(encoded, directory)
    written = list(job.runner.map(write.write_part, parts, label="writing", total=len(parts)))
    impressions = _write_impressions(job, workflow, features, encoded, written)
    shutil.rmtree(job.working)
    content = {**_content(job, workflow, features, written, impressions), **said}
    return Report(job.order.output.path, job.plan, write_info(job.output, HISTORIES, content))


def _write_impressions(
    job: _Job,
    workflow: Any,
    features: FittedFeatures,
    encoded: Sequence[Encoded],
    written: Sequence[Path],
) -> list[Path]:
    """The files of impressions, where labels are explicit."""
    from lookback.workflows.histories import ops, write

    if job.selection.typed is None or not job.selection.typed.explicit:
        return []
    assert features.encoding is not None
    from lookback.workflows.histories.impressions import ImpressionEncoder, write_impressions

    users = job.working / "users.npy"
    ids = [read_parquet(file, [names.USER_ID])[names.USER_ID].to_numpy() for file in written]
    np.save(users, np.concatenate(ids))
    encoder = ImpressionEncoder(
        columns=job.reader.columns,
        encoding=features.encoding,
        vocabulary=ops.vocabulary_of(workflow),
        vocabulary_columns=tuple(ops.vocabulary_columns(workflow)),
        ranges=write.user_ranges(ops.user_event_counts(workflow)),
        users=users,
        directory=job.working,
    )
    return write_impressions(job.events.files, encoded, encoder, job.output, job.runner)


def _content(
    job: _Job,
    workflow: Any,
    features: FittedFeatures,
    written: Sequence[Path],
    impressions: Sequence[Path],
) -> dict[str, Any]:
    """What dataset.json says; writes what else of the dataset follows from all of it."""
    from lookback.workflows.histories import ops, typed
    from lookback.workflows.histories.fitted import vocabulary_names

    columns, specs = job.reader.columns, job.reader.feature_specs
    rows = features.rows()
    rows |= {name: size + FIRST_KNOWN for name, size in ops.vocabulary_sizes(workflow).items()}
    cardinalities = {name: rows[name] for name in names.categorical_names(columns)}
    totals = histories.read_totals(written, columns, cardinalities)
    others = {
        f"bags/{name}": write_bags(job.output, name, bags.lengths, bags.ids)
        for name, bags in features.bags.items()
    }
    catalogue = totals.catalogue
    if impressions:
        from lookback.workflows.histories.impressions import describe_impressions

        others[IMPRESSIONS_DIRECTORY], catalogue = describe_impressions(
            impressions, columns, totals
        )
    items_digest = histories.write_catalogue(job.output, catalogue)
    schema = workflow.output_schema.select_by_name(
        [*ops.vocabulary_columns(workflow), names.TIMESTAMP]
    )
    histories.write_workflow_schema(schema, columns, job.output, cardinalities)
    said: dict[str, Any] = {}
    if specs:
        said[FEATURES] = typed.features_json(features.transforms, specs)
        others[FEATURES] = json.dumps(said[FEATURES])
    if impressions:
        said[LABELS] = EXPLICIT
    cut = {name: bags.cut for name, bags in features.bags.items()}
    longest = {name: int(bags.lengths.max(initial=0)) for name, bags in features.bags.items()}
    events = np.array(job.events.parts)
    return {
        "dataset": job.order.dataset,
        "options": job.saved_options,
        "counts": {
            "users": totals.users,
            "events": totals.events,
            "items": int((totals.item_counts > 0).sum()),
            **job.counts(),
            **({"bags_cut": cut, LONGEST_BAGS: longest} if cut else {}),
            "unknown_ids": totals.unknown,
        },
        "cardinalities": cardinalities,
        **said,
        "history_length": histories.length_summary(totals.lengths),
        "split": job.selection.split.to_json(events),
        "negative_sampling": {
            "distributions": ["popularity", "uniform"],
            "popularity": "counts in items.parquet; training leaves held-out events out",
        },
        "content_hash": histories.content_hash(
            columns, cardinalities, totals, items_digest, others
        ),
        VOCABULARIES: ops.vocabulary_digests(
            job.output / WORKFLOW_DIRECTORY,
            vocabulary_names(columns, features.transforms),
        ),
    }
