"""The commands of ``python -m workflows``: what each is given, and what it does with that."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookback.core.files import atomic_file
from lookback.core.options import (
    Command,
    CommandLine,
    ConfigFile,
    Program,
    changed,
    changes,
    check_options,
    option,
    without,
)
from lookback.formats.dataset_info import TABULAR, is_tabular
from lookback.formats.verification import TRUSTED, DatasetChecks
from lookback.workflows import GENERATORS
from lookback.workflows.datasets.interactions import InteractionsReader
from lookback.workflows.datasets.log import LogReader
from lookback.workflows.feature_spec_export import export_feature_spec
from lookback.workflows.feature_spec_import import import_feature_spec
from lookback.workflows.histories.reader import HistoryOptions
from lookback.workflows.log.document import described
from lookback.workflows.log.files import meant_by
from lookback.workflows.log.recipes import list_recipes, recipe_of
from lookback.workflows.log.schema import SCHEMA
from lookback.workflows.options import DatasetOptions
from lookback.workflows.order import Report
from lookback.workflows.pipeline import (
    KEEP_LOG,
    KINDS,
    fit_dataset,
    fixed_by_fit,
    run_dataset,
    transform_dataset,
)
from lookback.workflows.rehearsal import free_space, rehearse
from lookback.workflows.saved import OPTIONS_FILE, workflow_digest
from lookback.workflows.summaries import print_digest, print_histories, print_tabular
from lookback.workflows.update import update_dataset


@dataclass(frozen=True)
class OutputOptions:
    """What every command that writes has."""

    scope = "what to write"

    output: Path = option(help="directory to write")
    overwrite: bool = option(
        False, help="replace --output if such a command wrote it, and all that is in it"
    )


@dataclass(frozen=True)
class InputOptions:
    """What every command that reads raw data has."""

    scope = "what to read"

    input: Path = option(
        help="directory of raw files (of interactions also a single one; of a log that of its "
        "YAML, or in an update also a file of events)"
    )


@dataclass(frozen=True)
class RunOptions:
    """Whether the work is done."""

    scope = "what to write"

    dry_run: bool = option(
        False,
        help="write nothing: say from a sample what memory, disk and time the run would take",
    )


@dataclass(frozen=True)
class DatasetChoice:
    """Which dataset the raw data are."""

    scope = "what to read"

    dataset: str = option(help="what the raw data are")


@dataclass(frozen=True)
class GeneratorChoice:
    """Which dataset is generated."""

    scope = "what to write"

    dataset: str = option("synthetic", help="what to generate: `run --dataset` of this name reads")


@dataclass(frozen=True)
class WorkflowChoice:
    """Which workflow transforms."""

    scope = "what to read"

    workflow: Path = option(help="saved workflow, or dataset that has one")
    trusted_dataset_digest: str | None = option(
        None,
        help="SHA-256 that options.json of the workflow must have, or dataset.json of the dataset; "
        "none: any",
        none=("",),
    )


@dataclass(frozen=True)
class UpdateOptions:
    """Which dataset goes on, and until when it trains."""

    scope = "what to read"

    dataset: Path = option(help="dataset of histories to go on from, with the log that it keeps")
    test_from: str | None = option(
        None,
        help="split by time: first moment of the test, a date, a time of ISO 8601, or seconds; "
        "none: as it was",
    )
    validation_from: str | None = option(
        None, help="likewise of the validation part; none: moved as far as --test_from is"
    )


@dataclass(frozen=True)
class ImportOptions:
    """What of NVIDIA's recipes is imported."""

    scope = "what to read"

    path: Path = option(
        help="feature_spec.yaml of SIM's or DLRM's channels, or the directory that holds it",
        positional=True,
    )


@dataclass(frozen=True)
class FeatureSpecExportOptions:
    """What is exported for NVIDIA's recipes."""

    scope = "what to read"

    directory: Path = option(help="materialised samples, or a tabular dataset", positional=True)


@dataclass(frozen=True)
class PrebatchOptions:
    """How records are batched; names are those of NVIDIA's SIM."""

    scope = "what to write"

    prebatch_train_size: int | None = option(
        None,
        help="training samples of a record (materialised samples); none (or 0): one",
        at_least=1,
        none=(0,),
    )
    prebatch_test_size: int | None = option(
        None,
        help="the same of the test's",
        at_least=1,
        none=(0,),
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class InitOptions:
    """Files of a log that nobody has described."""

    scope = "what to read"

    files: tuple[str, ...] = option(
        help="files of a log: CSV, JSON lines or parquet; events, items, users",
        positional=True,
        nonempty=True,
    )
    output: Path | None = option(None, help="YAML file to write; none: print it")


@dataclass(frozen=True)
class RecipeOptions:
    """Which description of a public log."""

    scope = "what to read"

    name: str | None = option(None, help="which one; none: list them", positional=True)
    output: Path | None = option(None, help="YAML file to write; none: print it")


@dataclass(frozen=True)
class DescribeOptions:
    """What is described."""

    scope = "what to read"

    directory: Path = option(help="a dataset", positional=True)


def _run(
    choice: DatasetChoice,
    source: InputOptions,
    target: OutputOptions,
    asked: RunOptions,
    options: DatasetOptions,
    reader: Any,
) -> None:
    if asked.dry_run:
        found = rehearse(
            choice.dataset,
            source.input,
            target.output,
            overwrite=target.overwrite,
            log=_log,
            **vars(options),
            **vars(reader),
        )
        print("\n".join(found.report(free_space(target.output))))
        return
    _print(_of_raw_data(run_dataset, choice, source, target, options, reader))


def _fit(
    choice: DatasetChoice,
    source: InputOptions,
    target: OutputOptions,
    options: DatasetOptions,
    reader: Any,
) -> None:
    report = _of_raw_data(fit_dataset, choice, source, target, options, reader)
    print(f"workflow: {report.directory}")
    print(f"digest: {workflow_digest(report.directory)} (of {OPTIONS_FILE}, for --{TRUSTED})")


def _of_raw_data(
    work: Callable[..., Report],
    choice: DatasetChoice,
    source: InputOptions,
    target: OutputOptions,
    options: DatasetOptions,
    reader: Any,
) -> Report:
    return work(
        choice.dataset,
        source.input,
        target.output,
        overwrite=target.overwrite,
        log=_log,
        progress=True,
        **vars(options),
        **vars(reader),
    )


def _transform(
    choice: WorkflowChoice, source: InputOptions, target: OutputOptions, *options: Any
) -> None:
    given: dict[str, Any] = {}
    for chosen in options:
        given |= changed(chosen)
    report = transform_dataset(
        choice.workflow,
        source.input,
        target.output,
        overwrite=target.overwrite,
        trusted=choice.trusted_dataset_digest,
        log=_log,
        progress=True,
        **given,
    )
    _print(report)


def _update(
    asked: UpdateOptions,
    source: InputOptions,
    target: OutputOptions,
    checks: DatasetChecks,
    *options: Any,
) -> None:
    _say(checks.begin(asked.dataset))
    given: dict[str, Any] = {}
    for chosen in options:
        given |= changed(chosen)
    report = update_dataset(
        asked.dataset,
        source.input,
        target.output,
        test_from=asked.test_from,
        validation_from=asked.validation_from,
        overwrite=target.overwrite,
        verification=checks.verification,
        log=_log,
        progress=True,
        **given,
    )
    _print(report)


def _generate(choice: GeneratorChoice, target: OutputOptions, *options: Any) -> None:
    GENERATORS[choice.dataset].generate(target.output, target.overwrite, *options)


def _import(asked: ImportOptions, target: OutputOptions) -> None:
    done = import_feature_spec(asked.path, target.output, overwrite=target.overwrite)
    rows = ", ".join(f"{split} {count:,}" for split, count in done.rows.items())
    print(f"{done.kind}: {target.output}, {rows} rows")
    for note in done.notes:
        print(note)
    print(f"to train: python train.py --dataset_dir {target.output} {done.trained_by}")
    if is_tabular(target.output):
        print_digest(target.output)


def _export_feature_spec(
    asked: FeatureSpecExportOptions,
    prebatch: PrebatchOptions,
    target: OutputOptions,
    checks: DatasetChecks,
) -> None:
    _say(checks.begin(asked.directory))
    rows = export_feature_spec(
        asked.directory,
        target.output,
        prebatch={
            "train": prebatch.prebatch_train_size,
            "test": prebatch.prebatch_test_size,
        },
        overwrite=target.overwrite,
        verification=checks.verification,
    )
    print(f"{target.output}: {rows:,} rows")
    if is_tabular(asked.directory):
        print("numbers are float16 there, as NVIDIA's reader wants them")
        print_digest(target.output)


def _describe(asked: DescribeOptions, checks: DatasetChecks) -> None:
    from lookback.workflows.describe import describe

    _say(checks.begin(asked.directory))
    describe(asked.directory, verification=checks.verification)


def _init(asked: InitOptions) -> None:
    from lookback.workflows.log.propose import propose

    paths = [path for name in asked.files for path in meant_by(name)]
    proposal = propose(paths, Path() if asked.output is None else asked.output.parent)
    if asked.output is None:
        print(proposal.text, end="")
    else:
        with atomic_file(asked.output, inputs=paths) as temporary:
            temporary.write_text(proposal.text, encoding="utf-8")
    written = "" if asked.output is None else f"; proposed {asked.output}"
    _log(f"looked at {proposal.rows:,} rows of {len(paths)} file(s){written}")
    for key, choices in proposal.open.items():
        _log(f"set {key} ({choices})")
    if proposal.open:
        _log("Until that is done the description does not load.")


def _recipes(asked: RecipeOptions) -> None:
    if asked.name is None:
        for name, said in list_recipes().items():
            print(f"{name:16} {said}")
        return
    text = recipe_of(asked.name).read_text(encoding="utf-8")
    if asked.output is None:
        print(text, end="")
        return
    with atomic_file(asked.output) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _schema() -> None:
    print(SCHEMA.read_text(encoding="utf-8"), end="")


def _say(note: str | None) -> None:
    if note is not None:
        _log(note)


def _print(report: Report) -> None:
    """Says what was written."""
    tabular = report.metadata["format"] == TABULAR
    (print_tabular if tabular else print_histories)(report)


def _log(text: str) -> None:
    print(text, file=sys.stderr)


OF_RAW_DATA = CommandLine(
    (DatasetChoice, InputOptions, OutputOptions),
    chooser="dataset",
    variants={
        name: (kind.options, reader) for kind in KINDS for name, reader in kind.readers.items()
    },
    must_choose=True,
    document=described,
)

OF_RUN = dataclasses.replace(OF_RAW_DATA, configs=(*OF_RAW_DATA.configs, RunOptions))

OF_FIT = dataclasses.replace(
    OF_RAW_DATA,
    variants={
        name: (without(options, KEEP_LOG), reader)
        for name, (options, reader) in OF_RAW_DATA.variants.items()
    },
)


def _of_new_files(file: ConfigFile) -> Mapping[str, Any]:
    """What a description of new files says; that they are of a log, the dataset knows."""
    said = described(file)
    return said if said is file.content else {n: v for n, v in said.items() if n != "dataset"}


PROGRAM = Program(
    "python -m workflows",
    "Turns raw data into datasets that train.py reads.",
    {
        "run": Command("ingest, fit and transform: raw data to dataset", OF_RUN, _run),
        "fit": Command("raw data to saved workflow, and nothing else", OF_FIT, _fit),
        "transform": Command(
            "new raw data to dataset with a saved workflow",
            CommandLine(
                (
                    *(WorkflowChoice, InputOptions, OutputOptions),
                    *(
                        changes(
                            without(kind.options, *fixed_by_fit(kind.options), KEEP_LOG),
                            "as at the fit",
                        )
                        for kind in KINDS
                    ),
                    changes(LogReader, "as at the fit"),
                ),
                document=described,
            ),
            _transform,
        ),
        "update": Command(
            "dataset and raw data that came since to a dataset that goes on from it",
            CommandLine(
                (
                    *(UpdateOptions, InputOptions, OutputOptions, DatasetChecks),
                    changes(
                        without(HistoryOptions, *fixed_by_fit(HistoryOptions)), "the dataset's"
                    ),
                    *(
                        changes(reader, "the dataset's")
                        for reader in (LogReader, InteractionsReader)
                    ),
                ),
                document=_of_new_files,
            ),
            _update,
        ),
        "import-feature-spec": Command(
            "dataset of NVIDIA's recipes (feature_spec.yaml) to dataset",
            CommandLine((ImportOptions, OutputOptions)),
            _import,
        ),
        "export-feature-spec": Command(
            "materialised samples or tabular dataset to files of NVIDIA's recipes",
            CommandLine((FeatureSpecExportOptions, PrebatchOptions, OutputOptions, DatasetChecks)),
            _export_feature_spec,
        ),
        "init": Command(
            "propose the YAML that describes the files of a log", CommandLine((InitOptions,)), _init
        ),
        "recipes": Command(
            "list YAMLs of public logs as their publishers ship them, or print one",
            CommandLine((RecipeOptions,)),
            _recipes,
        ),
        "schema": Command(
            "print the JSON Schema of the YAML that describes a log", CommandLine(()), _schema
        ),
        "describe": Command(
            "print what a dataset holds", CommandLine((DescribeOptions, DatasetChecks)), _describe
        ),
        "generate": Command(
            "write raw data of a known structure",
            CommandLine(
                (GeneratorChoice, OutputOptions),
                chooser="dataset",
                variants={name: generator.OPTIONS for name, generator in GENERATORS.items()},
            ),
            _generate,
        ),
    },
)
