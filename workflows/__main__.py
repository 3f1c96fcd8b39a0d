"""``python -m workflows {generate,run,fit,transform,export,describe}``."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lookback.core.errors import UserError
from lookback.workflows import DATASETS, GENERATORS, TABULAR_DATASETS
from lookback.workflows.cluster import forgo_tensorflow, parse_bytes
from lookback.workflows.histories.pipeline import MIN_INTERACTIONS, Options, Reader, Report
from lookback.workflows.tabular.export import DATASET_TYPES
from lookback.workflows.tabular.reader import TabularOptions

SIZES = ("memory_limit", "block_size")
"""Options that are numbers of bytes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status: 2 for what the user can put right."""
    args, rest = _parser().parse_known_args(arguments)
    try:
        if args.name == "generate":
            _generate(args.dataset, rest)
        elif rest:
            raise UserError(
                f"{args.name} has no option {rest[0]}. `python -m workflows {args.name} --help` "
                "lists them."
            )
        else:
            args.command(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; --output was not written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    return 0


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A kind of datasets, and what does its work.

    Attributes:
      readers: its datasets.
      options: class of the options that its datasets share.
      pipeline: module with `run_dataset`, `fit_dataset` and `transform_dataset`.
      print_report: prints what a run or a transformation did.
    """

    readers: Mapping[str, Any]
    options: Any
    pipeline: str
    print_report: Callable[[Report], None]

    def option_names(self, dataset: str) -> set[str]:
        """Options that a dataset takes."""
        classes = (self.options, self.readers[dataset])
        return {field.name for cls in classes for field in dataclasses.fields(cls)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workflows",
        description="Turns raw data into datasets that train.py reads.",
        epilog="Each command has its own --help.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _command(commands, "run", "ingest, fit and transform: raw data to dataset", _run)
    fit = _command(commands, "fit", "raw data to saved workflow, and nothing else", _fit)
    transform = _command(
        commands, "transform", "new raw data to dataset with a saved workflow", _transform
    )
    export = _command(commands, "export", "dataset to the layout of other tools", _export)
    describe = _command(commands, "describe", "print what a dataset holds", _describe)
    # Its options are the generator's own, and so is its help: they are parsed in a second step.
    generate = commands.add_parser(
        "generate", help="write raw data of a known structure", add_help=False, allow_abbrev=False
    )
    generate.set_defaults(name="generate")
    generate.add_argument("--dataset", choices=sorted(GENERATORS), default="synthetic")
    for command in (run, fit):
        names = sorted(name for kind in _kinds() for name in kind.readers)
        command.add_argument("--dataset", required=True, choices=names)
    transform.add_argument(
        "--workflow", required=True, metavar="DIR", help="saved workflow, or dataset that has one"
    )
    export.add_argument(
        "--dataset_type", required=True, choices=sorted(DATASET_TYPES), help="layout to write"
    )
    for command in (run, fit, transform):
        _add_paths(command, "raw files (of interactions also a single one)")
        _add_common(command, fits=command is not transform)
    _add_paths(export, "a tabular dataset")
    for reader in dict.fromkeys(DATASETS.values()):
        for command in (run, fit):
            group = command.add_argument_group(f"options of {_names(reader)}")
            reader.add_arguments(group)  # type: ignore[arg-type]
    for name, tabular in TABULAR_DATASETS.items():
        for command in (run, fit):
            group = command.add_argument_group(f"more options of {name}")
            tabular.add_arguments(group, _defaults(tabular))
    describe.add_argument("directory", metavar="DIR", help="a dataset")
    return parser


def _command(commands: Any, name: str, text: str, function: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        # What is not given is not there, so it is known which options are: see `_options`.
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    command.set_defaults(command=function, name=name)
    return command


def _add_paths(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--input", required=True, metavar="DIR", help=what)
    command.add_argument("--output", required=True, metavar="DIR", help="directory to write")
    _add_overwrite(command)


def _add_overwrite(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--overwrite",
        action="store_true",
        default=False,
        help="replace --output if such a command wrote it, and all that is in it",
    )


def _add_common(command: argparse.ArgumentParser, fits: bool) -> None:
    """Options of all datasets of a kind; for `transform` the default is what the fit had."""
    histories, tabular = _defaults(Options), _defaults(TabularOptions)

    block_size = f"{tabular['block_size'] >> 20}MiB"

    def default(value: object) -> str:
        return f"default: {value}" if fits else "default: that of the fit"

    both = command.add_argument_group("options of all datasets")
    if fits:
        both.add_argument(
            "--frequency_threshold",
            type=int,
            metavar="N",
            help="values (items, and features of items) that occur less often share an index "
            f"(default: {histories['frequency_threshold']}; of tabular datasets "
            f"{tabular['frequency_threshold']})",
        )
    both.add_argument(
        "--max_bad_lines",
        type=int,
        metavar="N",
        help=f"leave out up to N lines that cannot be read ({default(histories['max_bad_lines'])})",
    )
    group = command.add_argument_group(f"options of {', '.join(DATASETS)}")
    group.add_argument(
        "--min_interactions",
        type=int,
        metavar="N",
        help=f"leave out users with fewer events ({default(MIN_INTERACTIONS)}, as the seed's)",
    )
    own = {
        name: reader.duplicates
        for name, reader in DATASETS.items()
        if reader.duplicates != Reader.duplicates
    }
    text = "".join(f"; of {name} {value}" for name, value in own.items())
    group.add_argument(
        "--duplicates",
        metavar="keep|first",
        help="of a user's events with the same item keep all, or the first in time alone "
        f"({default(Reader.duplicates + text)})",
    )
    group.add_argument(
        "--validation",
        action=argparse.BooleanOptionalAction,
        help=f"keep the event before a user's last for validation ({default('no')})",
    )
    group = command.add_argument_group(f"options of {', '.join(TABULAR_DATASETS)}")
    if fits:
        group.add_argument(
            "--vocabulary",
            metavar="all|train",
            help=f"rows to count the values of ({default(tabular['vocabulary'])})",
        )
    group.add_argument(
        "--seed", type=int, metavar="N", help=f"of the shuffle ({default(tabular['seed'])})"
    )
    group.add_argument(
        "--block_size",
        metavar="SIZE",
        help=f"text that is read, shuffled and written as one part ({default(block_size)})",
    )
    _add_where(command)


def _add_where(command: argparse.ArgumentParser) -> None:
    where = command.add_argument_group("where it runs (no influence on the result)")
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (of tabular datasets: threads); 0: this one alone; default: by size",
    )
    where.add_argument("--scheduler", metavar="ADDRESS", help="an existing Dask cluster")
    where.add_argument("--memory_limit", metavar="SIZE", help="such as 6GB; default: what is free")
    where.add_argument(
        "--partition_events",
        type=int,
        metavar="N",
        help=f"of {', '.join(DATASETS)}; default: follows from the memory",
    )


def _kinds() -> Iterator[_Kind]:
    yield _Kind(DATASETS, Options, "lookback.workflows.histories.pipeline", _print_histories)
    yield _Kind(
        TABULAR_DATASETS, TabularOptions, "lookback.workflows.tabular.pipeline", _print_tabular
    )


def _kind(dataset: str) -> _Kind:
    for kind in _kinds():
        if dataset in kind.readers:
            return kind
    raise UserError(f"There is no dataset {dataset!r} in this version.")


def _defaults(options: Any) -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(options)}


def _names(reader: Any) -> str:
    return ", ".join(name for name, found in DATASETS.items() if found is reader)


def _options(args: argparse.Namespace, dataset: str) -> dict[str, Any]:
    """The options given, which must be of the kind and the dataset chosen."""
    own = _kind(dataset).option_names(dataset)
    known = {
        name for kind in _kinds() for entry in kind.readers for name in kind.option_names(entry)
    }
    chosen: dict[str, Any] = {}
    for name, value in vars(args).items():
        if name not in known or value is None:
            continue
        if name not in own:
            raise UserError(f"--{name} is no option of the dataset {dataset!r}.")
        chosen[name] = parse_bytes(value) if name in SIZES else value
    chosen["progress"] = True
    return chosen


def _log(text: str) -> None:
    print(text, file=sys.stderr)


def _run(args: argparse.Namespace) -> None:
    kind, options = _kind(args.dataset), _options(args, args.dataset)
    report = importlib.import_module(kind.pipeline).run_dataset(
        args.dataset, args.input, args.output, overwrite=args.overwrite, log=_log, **options
    )
    kind.print_report(report)


def _fit(args: argparse.Namespace) -> None:
    kind, options = _kind(args.dataset), _options(args, args.dataset)
    report = importlib.import_module(kind.pipeline).fit_dataset(
        args.dataset, args.input, args.output, overwrite=args.overwrite, log=_log, **options
    )
    print(f"workflow: {report.directory}")


def _transform(args: argparse.Namespace) -> None:
    from lookback.workflows.saved import read_saved_options

    dataset = read_saved_options(args.workflow)["dataset"]
    kind, options = _kind(dataset), _options(args, dataset)
    report = importlib.import_module(kind.pipeline).transform_dataset(
        args.workflow, args.input, args.output, overwrite=args.overwrite, log=_log, **options
    )
    kind.print_report(report)


def _generate(dataset: str, rest: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m workflows generate --dataset {dataset}",
        description="Writes raw data that `run --dataset` of the same name reads.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write")
    _add_overwrite(parser)
    GENERATORS[dataset].add_arguments(parser)
    GENERATORS[dataset].generate(parser.parse_args(rest))


def _export(args: argparse.Namespace) -> None:
    rows = DATASET_TYPES[args.dataset_type](args.input, args.output, overwrite=args.overwrite)
    print(f"{args.dataset_type}: {args.output}, {rows:,} rows")


def _describe(args: argparse.Namespace) -> None:
    from lookback.workflows.describe import describe

    describe(args.directory)


def _print_tabular(report: Report) -> None:
    counts = report.metadata["counts"]
    rows = ", ".join(f"{split} {counts[split]:,}" for split in ("train", "validation", "test"))
    bad = sum(counts["bad_lines"].values())
    print(f"dataset: {report.directory}")
    print(f"rows: {rows}; rows of all tables: {sum(report.metadata['cardinalities'].values()):,}")
    if bad:
        print(f"left out {bad:,} bad lines: {counts['bad_lines']}")
    print(f"content hash: {report.metadata['content_hash']}")


def _print_histories(report: Report) -> None:
    counts = report.metadata["counts"]
    bad = sum(counts["bad_lines"].values())
    unknown = {name: count for name, count in counts["unknown_ids"].items() if count}
    print(f"dataset: {report.directory}")
    print(
        f"kept {counts['users']:,} users, {counts['events']:,} events, {counts['items']:,} items; "
        f"dropped {counts['users_dropped']:,} users with {counts['events_dropped']:,} events"
    )
    if "duplicate_events" in counts:
        print(
            f"dropped {counts['duplicate_events']:,} repeated events (same user and item, later); "
            f"too few were left of {counts['users_dropped_for_duplicates']:,} of the dropped users"
        )
    if bad:
        print(f"left out {bad:,} bad lines: {counts['bad_lines']}")
    if unknown:
        print(f"out of vocabulary: {unknown}")
    if counts.get("duplicate_item_metadata"):
        print(f"{counts['duplicate_item_metadata']:,} repeated items in the metadata: first counts")
    for name, count in counts["events_without_features"].items():
        if count:
            print(f"{count:,} of the events read have no {name}: their id has no metadata")
    print(f"content hash: {report.metadata['content_hash']}")


if __name__ == "__main__":
    forgo_tensorflow()  # here and not in `main`: a process of others may need it later
    warnings.filterwarnings("ignore", message=".*dtype mappings did not load.*")
    sys.exit(main())
