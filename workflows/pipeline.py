"""Raw data to dataset, for whichever kind of data: what is asked for, and who does it.

`fit` makes a saved workflow of raw data, `transform` a dataset of raw data and a workflow, and
`run` both at once. How that goes is the kind's affair: `histories.pipeline`, `tabular.pipeline`,
`tabular.row_pipeline`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError, shown
from lookback.core.options import options_of
from lookback.core.outputs import OutputKind as OutputKind
from lookback.workflows import DATASETS, ROW_DATASETS, TABULAR_DATASETS
from lookback.workflows.event_reader import EventReader
from lookback.workflows.histories.reader import HistoryOptions, Reader
from lookback.workflows.options import DatasetOptions
from lookback.workflows.order import Log, Report, Survey, WorkflowOrder
from lookback.workflows.output import DATASET, WORKFLOW, Output
from lookback.workflows.saved import (
    OPTIONS_FILE,
    read_saved_options,
    saved_workflow,
    verify_workflow,
)
from lookback.workflows.tabular.reader import TabularDatasetOptions
from lookback.workflows.tabular.row_reader import RowOptions


@dataclass(frozen=True)
class DataKind:
    """A kind of datasets.

    Attributes:
      readers: its datasets by name: dataclasses of their options.
      options: dataclass of the options that its datasets share.
      pipeline: module with `run(order)`, `fit(order)` and `transform(order, workflow)`.
    """

    readers: Mapping[str, type]
    options: type[DatasetOptions]
    pipeline: str

    def read(self, name: str, given: Mapping[str, Any]) -> tuple[Any, DatasetOptions]:
        """A dataset's reader and options.

        Args:
          name: of the dataset.
          given: options of either; the others have their defaults.

        Raises:
          UserError: if there is no such option, or a value is none.
        """
        reader = self.readers[name]
        own, shared = set(options_of(reader)), set(options_of(self.options))
        unknown = sorted(set(given) - own - shared)
        if unknown:
            raise UserError(
                f"Dataset {name!r} has no option {unknown[0]!r}. It has: "
                f"{', '.join(sorted(own)) or 'none'}; all of its kind have: "
                f"{', '.join(options_of(self.options))}."
            )
        return (
            reader(**{option: value for option, value in given.items() if option in own}),
            self.options(**{option: value for option, value in given.items() if option in shared}),
        )

    def saved(self, name: str, given: Mapping[str, Any], file: Path) -> dict[str, Any]:
        """The options of a saved workflow, which somebody else may have written.

        Only those that have a say in a dataset's content are taken: where work is done, such as at
        a Dask scheduler that runs code, is for whoever starts it to say.

        Args:
          name: of the dataset.
          given: what `file` says.
          file: names it in errors.

        Raises:
          UserError: if it has another option, or a value is none.
        """
        reader, shared = options_of(self.readers[name]), options_of(self.options)
        content = {option: shared[option] for option in self.options().content}
        known = {**content, **reader}
        for option in given:
            if option not in known:
                raise UserError(
                    f"{file}: expected options of what a dataset holds ({', '.join(known)}), "
                    f"received {shown(option)}. Remove it there; on the command line, give it "
                    "to `transform`."
                )
        return {
            option: known[option].read(value, f"{option} in {file}")
            for option, value in given.items()
        }

    def does(self) -> Any:
        """The module that does its work, which takes time to import."""
        return importlib.import_module(self.pipeline)


KEEP_LOG = "keep_log"
"""Option of histories that only those commands have that keep the log."""

KINDS = (
    DataKind(DATASETS, HistoryOptions, "lookback.workflows.histories.pipeline"),
    DataKind(TABULAR_DATASETS, TabularDatasetOptions, "lookback.workflows.tabular.pipeline"),
    DataKind(ROW_DATASETS, RowOptions, "lookback.workflows.tabular.row_pipeline"),
)


def kind_of(dataset: str) -> DataKind:
    """The kind of a dataset.

    Raises:
      UserError: if there is no such dataset.
    """
    for kind in KINDS:
        if dataset in kind.readers:
            return kind
    names = sorted(name for kind in KINDS for name in kind.readers)
    raise UserError(f"There is no dataset {shown(dataset)}. Choose of {', '.join(names)}.")


def run_dataset(
    name: str,
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    log: Log = lambda _: None,
    progress: bool = False,
    **options: Any,
) -> Report:
    """Raw data to dataset: fit and transform.

    Args:
      name: a key of `DATASETS`, `TABULAR_DATASETS` or `ROW_DATASETS`.
      input_dir: directory of raw files, or where the reader takes one a file.
      output_dir: the dataset to create.
      overwrite: replace a dataset of ours at `output_dir`, and what an unfinished run with other
        options left.
      log: takes a line of text for each thing worth knowing.
      progress: show progress bars where the error stream is a terminal.
      **options: fields of the kind's options and of the dataset's reader.

    Raises:
      UserError: about options, input, output or space.
    """
    kind = kind_of(name)
    target = _output(output_dir, DATASET, overwrite, input_dir)
    report: Report = kind.does().run(_order(kind, name, options, target, log, progress))
    return report


def survey_dataset(
    name: str,
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    **options: Any,
) -> Survey:
    """Checks what `run_dataset` checks before it reads, and writes nothing; see there."""
    kind = kind_of(name)
    target = _output(output_dir, DATASET, overwrite, input_dir)
    survey: Survey = kind.does().survey(_order(kind, name, options, target, lambda _: None, False))
    return survey


def fit_dataset(
    name: str,
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    log: Log = lambda _: None,
    progress: bool = False,
    **options: Any,
) -> Report:
    """Raw data to saved workflow; see `run_dataset`. `output_dir` becomes the workflow itself."""
    kind = kind_of(name)
    _refuse_kept(options)
    target = _output(output_dir, WORKFLOW, overwrite, input_dir)
    report: Report = kind.does().fit(_order(kind, name, options, target, log, progress))
    return report


def transform_dataset(
    workflow_dir: str | Path,
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    trusted: str | None = None,
    log: Log = lambda _: None,
    progress: bool = False,
    **options: Any,
) -> Report:
    """Raw data to dataset with a workflow that was fitted before.

    Dataset and options are those of the fit; values that the workflow does not know get the
    out-of-vocabulary index and are counted.

    Args:
      workflow_dir: a saved workflow, or a dataset that holds one.
      input_dir: directory of raw files of the same kind.
      output_dir: the dataset to create.
      overwrite: see `run_dataset`.
      trusted: see `saved.verify_workflow`.
      log: see `run_dataset`.
      progress: see `run_dataset`.
      **options: what to change of the fit's options; those that decide what a workflow is cannot
        be.

    Raises:
      UserError: about options, input, output or the workflow.
    """
    unverifiable = verify_workflow(workflow_dir, trusted)
    if unverifiable is not None:
        log(f"warning: {unverifiable}.")
    saved = read_saved_options(workflow_dir)
    name = saved["dataset"]
    kind = kind_of(name)
    fixed = sorted(fixed_by_fit(kind.readers[name], kind.options) & set(options))
    if fixed:
        raise UserError(f"{fixed[0]} is fixed by the fit; fit a new workflow to change it.")
    _refuse_kept(options)
    target = _output(output_dir, DATASET, overwrite, input_dir, workflow_dir)
    file = saved_workflow(workflow_dir) / OPTIONS_FILE
    fitted = kind.saved(name, saved["options"], file)
    order = _order(kind, name, with_changes(fitted, options), target, log, progress)
    if isinstance(order.reader, EventReader):
        _check_features(order.reader, kind.read(name, fitted)[0])
    report: Report = kind.does().transform(order, Path(workflow_dir))
    return report


def fixed_by_fit(*configs: type) -> set[str]:
    """Options that decide what a workflow is, so that a transformation cannot change them."""
    return {
        name
        for config in configs
        for name, option in options_of(config).items()
        if option.continued
    }


def with_changes(fitted: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a fit with changes to them.

    A new description of a log tells all of how its files are read: where it names no unit of times,
    that of the fit's files does not count.
    """
    unit = {"time_unit": None} if "events" in options else {}
    return {**fitted, **unit, **options}


def _refuse_kept(options: Mapping[str, Any]) -> None:
    if KEEP_LOG in options:
        raise UserError(
            f"{KEEP_LOG}: expected with `run` and `update`, which write a dataset that can be "
            f"updated, received {shown(options[KEEP_LOG])}. Leave it out."
        )


def _check_features(reader: EventReader, fitted: EventReader) -> None:
    """Refuses other features than those of the fit."""
    new, old = reader.feature_specs, fitted.feature_specs
    differ = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    labels = [r.explicit for r in (reader, fitted) if isinstance(r, Reader)]
    if differ or len(set(labels)) > 1:
        what = f"feature {differ[0]!r}" if differ else "labels"
        raise UserError(
            f"{what} is another than at the fit. A saved workflow takes other files and columns of "
            "the same features; describe them as at the fit, or fit a new workflow."
        )


def _output(path: str | Path, kind: OutputKind, overwrite: bool, *inputs: str | Path) -> Output:
    return Output(Path(path), kind, overwrite, tuple(map(Path, inputs)))


def _order(
    kind: DataKind,
    name: str,
    given: Mapping[str, Any],
    target: Output,
    log: Log,
    progress: bool,
) -> WorkflowOrder[Any, Any]:
    """The order; its input is the first thing that the output keeps apart from."""
    reader, options = kind.read(name, given)
    source, *others = target.inputs
    apart = dataclasses.replace(target, inputs=(*reader.inputs(source), *others))
    return WorkflowOrder(name, reader, options, source, apart, log, progress)
