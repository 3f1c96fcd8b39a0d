"""Logs of rows whose columns are typed: parse → join → fit → write, on any number of processes.

Beside `tabular.pipeline`, which takes lines of integers and hashes with one transformation for all,
here each column has its own, fitted as those of histories are (`histories.typed`), to the rows of
the training part. Vocabularies are those of histories, too: raw values stay known.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from lookback.core.arrow_files import read_parquet
from lookback.core.errors import UserError
from lookback.core.files import require_readable
from lookback.formats.dataset_info import SPLITS, WORKFLOW_DIRECTORY
from lookback.formats.tabular_files import write_description
from lookback.formats.transforms import Buckets, Hashed, Number, Transform, Vocabulary
from lookback.formats.vocabulary import FIRST_KNOWN, ids_digest, read_ids
from lookback.workflows.cluster import ResourcePlan, Runner, make_plan, open_runner
from lookback.workflows.histories import typed
from lookback.workflows.histories.gather import PART, store_features
from lookback.workflows.histories.ingest import common_schema
from lookback.workflows.histories.rules import TRAIN
from lookback.workflows.histories.value_counts import COUNT, count_where
from lookback.workflows.order import Report, Survey, WorkflowOrder
from lookback.workflows.saved import saved_workflow, write_options
from lookback.workflows.tabular.row_reader import RowOptions, RowReader
from lookback.workflows.tabular.row_tasks import (
    Joined,
    PartWriter,
    RowEncoding,
    RowJoiner,
    RowPiece,
    parse_rows,
    part_tasks,
)
from lookback.workflows.text import READ_HERE, BadLineCounter, summed

WORKING_DIRECTORY = ".rows"

RowOrder = WorkflowOrder[RowReader, RowOptions]


def run(order: RowOrder) -> Report:
    """Raw data to dataset: parse, join, fit, write."""
    with _prepared(order) as job:
        encoding = _fit(job, job.output / WORKFLOW_DIRECTORY)
        return _write(job, encoding)


def fit(order: RowOrder) -> Report:
    """Raw data to saved workflow, which is the output itself."""
    with _prepared(order) as job:
        _fit(job, job.output)
        shutil.rmtree(job.working)  # nothing else follows
        return Report(order.output.path, job.plan, {"counts": job.counts()})


def transform(order: RowOrder, workflow_directory: Path) -> Report:
    """Raw data to dataset with a saved workflow."""
    saved = saved_workflow(workflow_directory)
    transforms = typed.read_features(saved, order.reader.feature_specs)
    encoding = RowEncoding(transforms, _vocabularies(saved, transforms))
    with _prepared(order) as job:
        _save(job, encoding, job.output / WORKFLOW_DIRECTORY)
        return _write(job, encoding)


@dataclass(frozen=True)
class _Job:
    """An order whose rows are read, and have their features and parts."""

    order: RowOrder
    output: Path
    plan: ResourcePlan
    runner: Runner
    pieces: Sequence[RowPiece]
    joined: Sequence[Joined]
    bad_lines: BadLineCounter
    extra_counts: Mapping[str, int]

    @property
    def working(self) -> Path:
        return self.output / WORKING_DIRECTORY

    @property
    def files(self) -> list[Path]:
        return [piece.file for piece in self.pieces]

    @property
    def saved_options(self) -> dict[str, Any]:
        """The options that go with the dataset and its workflow."""
        return {**self.order.options.content, **self.order.chosen}

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Of each part of the split."""
        return np.sum([joined.rows for joined in self.joined], axis=0)

    @property
    def positives(self) -> npt.NDArray[np.int64]:
        """Rows of label 1, likewise."""
        return np.sum([joined.positives for joined in self.joined], axis=0)

    def counts(self) -> dict[str, Any]:
        return {
            **dict(zip(SPLITS, self.rows.tolist(), strict=True)),
            "positives": dict(zip(SPLITS, self.positives.tolist(), strict=True)),
            "bad_lines": dict(sorted(self.bad_lines.reasons.items())),
            "missing_values": summed([joined.missing for joined in self.joined]),
            "events_without_features": summed([joined.without for joined in self.joined]),
            **summed([piece.parsed.counts for piece in self.pieces]),
            **self.extra_counts,
        }


def survey(order: RowOrder) -> Survey:
    """Checks everything that `run` checks before it reads."""
    reader, options, directory = order.reader, order.options, order.input
    require_readable(directory, "--input")
    order.output.check()
    paths = reader.event_files(directory)
    remarks = reader.passed_over(directory, paths)
    lines = reader.count_events(paths)
    plan = make_plan(
        lines,
        workers=options.workers,
        memory=options.memory_limit,
        features=len(reader.feature_specs),
    )
    return Survey(paths, lines, plan, remarks)


@contextmanager
def _prepared(order: RowOrder) -> Iterator[_Job]:
    """Checks all that can be checked, then reads rows into the output's temporary directory."""
    reader, options, directory = order.reader, order.options, order.input
    known_before = survey(order)
    paths, lines, plan = known_before.paths, known_before.lines, known_before.plan
    with order.output.create() as output:
        working = output / WORKING_DIRECTORY
        working.mkdir()
        with open_runner(
            plan.workers, scheduler=options.scheduler, progress=order.progress
        ) as runner:
            order.log(f"about {lines:,} lines in {len(paths)} file(s), in {runner.place}")
            for remark in known_before.remarks:
                order.log(remark)
            bad_lines = BadLineCounter(options.max_bad_lines)
            known, counts = reader.features(directory, runner, bad_lines)
            pieces = _parse(order, paths, working, runner, bad_lines)
            joiner = RowJoiner(
                schema=common_schema([piece.parsed.table.schema for piece in pieces]),
                features=store_features(known, working),
                columns=tuple(reader.feature_specs),
                split=reader.row_split,
                ticks=options.ticks,
                total=sum(piece.rows for piece in pieces),
            )
            firsts = np.cumsum([0, *(piece.rows for piece in pieces)])[:-1].tolist()
            tasks = [(piece.file, first) for piece, first in zip(pieces, firsts, strict=True)]
            joined = list(runner.map(joiner.join, tasks, label="joining", total=len(tasks)))
            yield _Job(order, output, plan, runner, pieces, joined, bad_lines, counts)


def _parse(
    order: RowOrder, paths: Sequence[Path], working: Path, runner: Runner, bad: BadLineCounter
) -> list[RowPiece]:
    """Reads all blocks; gives those that have rows."""
    reader = order.reader
    parse = functools.partial(
        parse_rows,
        parser=functools.partial(reader.parse_block, unit=order.options.unit),
        directory=working,
    )
    pieces = []
    for piece in runner.map(
        parse,
        (block for path in paths for block in reader.blocks(path)),
        label="parsing",
        carries_data=any(path.suffix in READ_HERE for path in paths),
    ):
        bad.add(piece.path, piece.parsed)
        pieces.append(piece)
    if not any(piece.rows for piece in pieces):
        left_out = {**bad.reasons, **summed([piece.parsed.counts for piece in pieces])}
        reasons = "; ".join(f"{count:,}: {why}" for why, count in left_out.items() if count)
        why = f"Left out were {reasons}." if reasons else "The input is empty. Check --input."
        raise UserError(f"No rows are left of {', '.join(map(str, paths))}. {why}")
    return [piece for piece in pieces if piece.rows]


def _check_fit(job: _Job) -> None:
    """Refuses rows that nothing can be learned or said of."""
    rows, positives = job.rows.tolist(), job.positives.tolist()
    shown = ", ".join(f"{name} {count:,}" for name, count in zip(SPLITS, rows, strict=True))
    split = job.order.reader.row_split
    empty = [name for name in split.expected if not rows[SPLITS.index(name)]]
    if empty:
        raise UserError(
            f"Split: expected rows in each part, received none for {empty[0]} ({shown}) with "
            f"{split}. Choose it otherwise."
        )
    if positives[TRAIN] in (0, rows[TRAIN]):
        found = "0" if positives[TRAIN] == 0 else "1"
        raise UserError(
            f"All of the {rows[TRAIN]:,} rows to train on have the label {found}, expected both 0 "
            "and 1. Check the column of the labels and its values that are positive "
            "(events.label), and the split."
        )


def _fit(job: _Job, directory: Path) -> RowEncoding:
    """Fits all features to the training rows, and saves what was fitted."""
    from lookback.workflows.histories.vocabulary_files import write_vocabularies

    _check_fit(job)
    job.order.log("fitting the features")
    specs, threshold = job.order.reader.feature_specs, job.order.options.frequency_threshold
    numbers = typed.fit_numbers(job.files, specs, False, job.runner)
    transforms = {name: spec.unfitted or numbers[name] for name, spec in specs.items()}
    thresholds = {
        name: threshold if specs[name].min_count is None else specs[name].min_count or 0
        for name in _with_vocabulary(transforms)
    }
    count = functools.partial(_count, columns=tuple(thresholds))
    found = job.runner.map(count, job.files, label="counting", total=len(job.files))
    counts = typed.all_together(({}, counted) for counted in found)[1]
    counts = {name: own.filter(pc.greater(own[COUNT], 0)) for name, own in counts.items()}
    paths = write_vocabularies(counts, job.working, thresholds, known={})
    encoding = RowEncoding(transforms, {name: Path(path) for name, path in paths.items()})
    for name, path in encoding.vocabularies.items():
        if not len(read_ids(path, name)):
            job.order.log(
                f"WARNING: {name}: no value has {thresholds[name]} or more rows to train on, so "
                "all are unknown (min_count, --frequency_threshold)"
            )
    _save(job, encoding, directory)
    return encoding


def _count(file: Path, columns: tuple[str, ...]) -> dict[str, Any]:
    """Task: how often each value occurs in training rows, by column."""
    table = read_parquet(file, [*columns, PART])
    training = table[PART].to_numpy() == TRAIN
    return {name: count_where(table[name], {COUNT: training}) for name in columns}


def _save(job: _Job, encoding: RowEncoding, directory: Path) -> None:
    from lookback.workflows.histories import ops

    directory.mkdir(exist_ok=True)
    typed.save_features(encoding.transforms, job.order.reader.feature_specs, directory)
    if encoding.vocabularies:
        ops.save_values({n: str(path) for n, path in encoding.vocabularies.items()}, directory)
    write_options({"dataset": job.order.dataset, "options": job.saved_options}, directory)


def _vocabularies(saved: Path, transforms: Mapping[str, Transform]) -> dict[str, Path]:
    """The vocabulary files of a saved workflow."""
    from lookback.workflows.histories import ops

    return ops.saved_vocabularies(saved / ops.ENCODER_DIRECTORY, _with_vocabulary(transforms))


def _write(job: _Job, encoding: RowEncoding) -> Report:
    """Writes all parts, then the description."""
    transforms = encoding.transforms
    numerical = [name for name, made in transforms.items() if isinstance(made, Number)]
    categorical = [name for name in transforms if name not in numerical]
    writer = PartWriter(encoding, (numerical, categorical), job.output, job.order.options.seed)
    tasks = part_tasks(job.files, [piece.rows for piece in job.pieces])
    unknown = summed(list(job.runner.map(writer.write, tasks, label="writing", total=len(tasks))))
    shutil.rmtree(job.working)
    specs = job.order.reader.feature_specs
    saved = _vocabularies(job.output / WORKFLOW_DIRECTORY, transforms)
    metadata = write_description(
        job.output,
        dataset=job.order.dataset,
        options=job.saved_options,
        counts={**job.counts(), "unknown_ids": unknown},
        cardinalities={name: _table_rows(name, transforms[name], saved) for name in categorical},
        numerical=numerical,
        vocabularies={name: ids_digest(path, name) for name, path in saved.items()},
        features=typed.features_json(transforms, specs),
    )
    return Report(job.order.output.path, job.plan, metadata)


def _table_rows(name: str, made: Transform, vocabularies: Mapping[str, Path]) -> int:
    if isinstance(made, Vocabulary):
        return FIRST_KNOWN + len(read_ids(vocabularies[name], name))
    assert isinstance(made, Hashed | Buckets)  # no list: a description of rows has none
    return made.rows


def _with_vocabulary(transforms: Mapping[str, Transform]) -> list[str]:
    return [name for name, made in transforms.items() if isinstance(made, Vocabulary)]
