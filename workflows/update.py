"""Tomorrow's data: a dataset and raw data that came since, to a dataset that goes on from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError, shown
from lookback.core.manifests import WHOLLY, Verification
from lookback.core.options import Option, options_of
from lookback.formats.dataset_info import UPDATE_DIRECTORY, WORKFLOW_DIRECTORY, read_info
from lookback.formats.kept_log import event_files
from lookback.formats.verification import verify_dataset
from lookback.workflows import DATASETS
from lookback.workflows.datasets.log import LogReader
from lookback.workflows.histories.reader import HistoryOptions, Reader
from lookback.workflows.histories.rules import TimeSplit
from lookback.workflows.log.values import Moment
from lookback.workflows.options import WHERE
from lookback.workflows.order import Log, Report, WorkflowOrder
from lookback.workflows.output import DATASET, Output
from lookback.workflows.pipeline import DataKind, kind_of, with_changes
from lookback.workflows.saved import OPTIONS_FILE, read_saved_options
from lookback.workflows.times import STEPS

_SPLIT = "split"  # may be moved: see `_with_split`


def update_dataset(
    dataset_dir: str | Path,
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    test_from: str | None = None,
    validation_from: str | None = None,
    overwrite: bool = False,
    verification: Verification = WHOLLY,
    log: Log = lambda _: None,
    progress: bool = False,
    **options: Any,
) -> Report:
    """A dataset of histories and raw data that came since, to a dataset of both.

    It holds what `run_dataset` of all the raw data would give, but that ids of the dataset keep
    their rows, new ones follow, and numbers, quantiles and hashes stay as they were fitted. Events
    have `formats.history_columns.NEW`. Where files of items and users describe one again, the newer
    row counts.

    Args:
      dataset_dir: the dataset, which keeps its log.
      input_dir: raw data of the same kind, in files named as those that the dataset was made of; of
        a log also a file of events, of whatever name.
      output_dir: the dataset to create.
      test_from: first moment of the test, where the split is by time; None: as it was.
      validation_from: likewise of the validation part; None: as it was, but moved as far as
        `test_from` is.
      overwrite: see `run_dataset`.
      verification: how far the dataset's files are compared with their digests.
      log: see `run_dataset`.
      progress: likewise.
      **options: where work is done, and how new files are read, where they differ; what a dataset
        holds cannot be changed.

    Raises:
      UserError: about options, input, output or the dataset.
    """
    directory, source = Path(dataset_dir), Path(input_dir)
    name, kind, before = _options_of(directory, verification)
    reader, chosen = kind.read(name, with_changes(before, options))
    assert isinstance(chosen, HistoryOptions)
    old = kind.read(name, before)
    _check_same(options, (reader, chosen), old)
    asked = {"test_from": test_from, "validation_from": validation_from}
    reader = _with_split(reader, old[0], chosen.time_unit, asked)
    order = WorkflowOrder(
        name,
        reader,
        chosen,
        source,
        Output(Path(output_dir), DATASET, overwrite, (*_inputs(reader, source), directory)),
        log,
        progress,
    )
    report: Report = kind.does().update(order, directory)
    return report


def _options_of(
    directory: Path, verification: Verification
) -> tuple[str, DataKind, dict[str, Any]]:
    """Name, kind and options of a dataset that can be updated.

    Raises:
      UserError: if it cannot, saying why.
    """
    info = read_info(directory)
    name = str(info.get("dataset"))
    kind = kind_of(name)
    if name not in DATASETS:
        raise UserError(
            f"{directory} is of dataset {name}, rows without histories, which cannot be updated: "
            f"expected one of {', '.join(DATASETS)}. Write it again with `workflows run`, of all "
            "data."
        )
    event_files(directory)
    verify_dataset(directory, verification, (WORKFLOW_DIRECTORY, UPDATE_DIRECTORY))
    saved = read_saved_options(directory)
    file = directory / WORKFLOW_DIRECTORY / OPTIONS_FILE
    return name, kind, kind.saved(name, saved["options"], file)


def _check_same(options: Mapping[str, Any], new: tuple[Any, Any], old: tuple[Any, Any]) -> None:
    """Refuses options that would make something else of the dataset."""
    free = {*old[0].says_where, *HistoryOptions.says_where, _SPLIT}
    for config, before in zip(new, old, strict=True):
        for name, option in options_of(type(config)).items():
            if name not in options or name in free or option.scope == WHERE:
                continue
            asked, was = getattr(config, name), getattr(before, name)
            if asked != was:
                raise UserError(
                    f"{name}: expected {_written(option, was)}, as the dataset was made with, "
                    f"received {_written(option, asked)}. Leave it out; to change it, write the "
                    "dataset again with `workflows run`, of all data."
                )
    reader, before = new[0], old[0]
    specs, was = reader.feature_specs, before.feature_specs
    differ = [name for name in dict.fromkeys([*was, *specs]) if specs.get(name) != was.get(name)]
    if differ:
        raise UserError(
            f"Feature {differ[0]!r}: expected as the dataset was made with, received another. New "
            "files may have other names and columns; describe the same features of them."
        )
    if (new[1].time_unit == STEPS) != (old[1].time_unit == STEPS):
        raise UserError(
            f"time_unit: expected {'steps' if old[1].time_unit == STEPS else 'times'}, as the "
            f"dataset has, received {new[1].time_unit or 'times'}. Convert the new times."
        )


def _written(option: Option, value: Any) -> str:
    return shown(option.write(value))


def _inputs(reader: Reader, source: Path) -> tuple[Path, ...]:
    """What came, which the output keeps apart from."""
    if not source.exists():
        return (source,)
    return reader.of_new(source)[0].inputs(source)


def _with_split(
    reader: Reader, old: Reader, unit: str | None, asked: Mapping[str, str | None]
) -> Reader:
    """The reader with its split by time moved, where that is asked for.

    Args:
      reader: of what came.
      old: of the dataset.
      unit: of its times.
      asked: moments by the name of the option.

    Raises:
      UserError: if the split is another one, or is moved back.
    """
    was = old.rules.split
    moments: dict[str, Any] = {
        name: _moment(text, name, unit) for name, text in asked.items() if text is not None
    }
    if moments and not isinstance(was, TimeSplit):
        raise UserError(
            f"--{next(iter(moments))}: expected of a dataset that is split by time, received "
            f"{shown(asked[next(iter(moments))])} for one that is split otherwise. Leave it out."
        )
    if not isinstance(reader, LogReader):
        return reader
    split = reader.split
    if [*moments] == ["test_from"] and split.validation_from is not None:
        moved = moments["test_from"].seconds - (split.test_from or Moment(0)).seconds
        moments["validation_from"] = Moment(split.validation_from.seconds + moved)
    split = dataclasses.replace(split, **moments) if moments else split
    now = split.rule
    if now == was:
        return dataclasses.replace(reader, split=split)
    if not (isinstance(now, TimeSplit) and isinstance(was, TimeSplit)):
        raise UserError(
            "split: expected as the dataset was made with, or the same by time with later "
            "moments, received another. Leave it out, or write the dataset again with "
            "`workflows run`, of all data."
        )
    if now.held_out_from < was.held_out_from:
        raise UserError(
            f"split: expected to hold out events from {was.held_out_from} on or later, as the "
            f"dataset trains on those before, received {now.held_out_from}. Choose later moments."
        )
    return dataclasses.replace(reader, split=split)


def _moment(text: str, name: str, unit: str | None) -> Moment:
    moment: Moment = Moment.read(int(text) if text.isdecimal() else text, f"--{name}")
    if unit == STEPS and moment.is_date:
        raise UserError(f"--{name}: times are steps: expected a step, received {shown(text)}.")
    return moment
