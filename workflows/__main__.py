"""``python -m workflows {generate,run,fit,transform,describe}``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from errors import UserError
from workflows import DATASETS, GENERATORS
from workflows.base import MIN_INTERACTIONS, Options, Report
from workflows.cluster import forgo_tensorflow, parse_bytes


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
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workflows",
        description="Turns raw interactions into histories that train.py reads.",
        epilog="Each command has its own --help.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _command(commands, "run", "ingest, fit and transform: raw data to dataset", _run)
    fit = _command(commands, "fit", "raw data to saved workflow, and nothing else", _fit)
    transform = _command(
        commands, "transform", "new raw data to dataset with a saved workflow", _transform
    )
    describe = _command(commands, "describe", "print what a dataset holds", _describe)
    # Its options are the generator's own, and so is its help: they are parsed in a second step.
    generate = commands.add_parser(
        "generate", help="write raw data of a known structure", add_help=False, allow_abbrev=False
    )
    generate.set_defaults(name="generate")
    generate.add_argument("--dataset", choices=sorted(GENERATORS), default=min(GENERATORS))
    for command in (run, fit):
        command.add_argument("--dataset", required=True, choices=sorted(DATASETS))
    transform.add_argument(
        "--workflow", required=True, metavar="DIR", help="saved workflow, or dataset that has one"
    )
    for command in (run, fit, transform):
        command.add_argument("--input", required=True, metavar="DIR", help="raw files")
        command.add_argument("--output", required=True, metavar="DIR", help="directory to write")
        command.add_argument("--overwrite", action="store_true", help="replace --output")
        _add_common(command, changes_only=command is transform)
    for reader in dict.fromkeys(DATASETS.values()):
        for command in (run, fit):
            group = command.add_argument_group(f"options of {_names(reader)}")
            reader.add_arguments(group)  # type: ignore[arg-type]
    describe.add_argument("directory", metavar="DIR", help="a dataset")
    return parser


def _command(commands: Any, name: str, text: str, function: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(command=function, name=name)
    return command


def _add_common(command: argparse.ArgumentParser, changes_only: bool) -> None:
    """Options of all datasets; for `transform` the default is what the fit had."""
    defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Options)}
    if changes_only:
        defaults = dict.fromkeys(defaults)
    command.add_argument(
        "--min_interactions",
        type=int,
        default=defaults["min_interactions"],
        metavar="N",
        help=f"leave out users with fewer events (seed: {MIN_INTERACTIONS})",
    )
    if not changes_only:
        command.add_argument(
            "--frequency_threshold",
            type=int,
            default=0,
            metavar="N",
            help="items with fewer events share the out-of-vocabulary index",
        )
    command.add_argument(
        "--validation",
        action=argparse.BooleanOptionalAction,
        default=defaults["validation"],
        help="keep the event before a user's last for validation",
    )
    command.add_argument(
        "--max_bad_lines",
        type=int,
        default=defaults["max_bad_lines"],
        metavar="N",
        help="leave out up to N lines that cannot be read, instead of none",
    )
    where = command.add_argument_group("where it runs (no influence on the result)")
    where.add_argument(
        "--workers", type=int, metavar="N", help="processes; 0: this one alone; default: by size"
    )
    where.add_argument("--scheduler", metavar="ADDRESS", help="an existing Dask cluster")
    where.add_argument("--memory_limit", metavar="SIZE", help="such as 6GB; default: what is free")
    where.add_argument(
        "--partition_events", type=int, metavar="N", help="default: follows from the memory"
    )


def _names(reader: Any) -> str:
    return ", ".join(name for name, found in DATASETS.items() if found is reader)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The options given, of all datasets and of the chosen one."""
    chosen = {}
    own: set[str] = set()
    foreign: set[str] = set()
    for name, reader in DATASETS.items():
        fields = {field.name for field in dataclasses.fields(reader)}
        if name == getattr(args, "dataset", None):
            own = fields
        foreign |= fields
    common = {field.name for field in dataclasses.fields(Options)}
    for name, value in vars(args).items():
        if name in foreign - own and value is not None:
            raise UserError(f"--{name} is no option of the dataset {args.dataset!r}.")
        if name in common | own and value is not None:
            chosen[name] = value
    if args.memory_limit is not None:
        chosen["memory_limit"] = parse_bytes(args.memory_limit)
    chosen["progress"] = True
    return chosen


def _log(text: str) -> None:
    print(text, file=sys.stderr)


def _run(args: argparse.Namespace) -> None:
    from workflows.base import run_dataset

    options = _options(args)
    report = run_dataset(
        args.dataset, args.input, args.output, overwrite=args.overwrite, log=_log, **options
    )
    _print_report(report)


def _fit(args: argparse.Namespace) -> None:
    from workflows.base import fit_dataset

    options = _options(args)
    report = fit_dataset(
        args.dataset, args.input, args.output, overwrite=args.overwrite, log=_log, **options
    )
    print(f"workflow: {report.directory}")


def _transform(args: argparse.Namespace) -> None:
    from workflows.base import transform_dataset

    options = _options(args)
    report = transform_dataset(
        args.workflow, args.input, args.output, overwrite=args.overwrite, log=_log, **options
    )
    _print_report(report)


def _generate(dataset: str, rest: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=f"python -m workflows generate --dataset {dataset}",
        description="Writes raw data that `run --dataset` of the same name reads.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write")
    parser.add_argument("--overwrite", action="store_true", help="replace --output")
    GENERATORS[dataset].add_arguments(parser)
    GENERATORS[dataset].generate(parser.parse_args(rest))


def _describe(args: argparse.Namespace) -> None:
    from workflows.describe import describe

    describe(args.directory)


def _print_report(report: Report) -> None:
    counts = report.metadata["counts"]
    bad = sum(counts["bad_lines"].values())
    unknown = {name: count for name, count in counts["unknown_ids"].items() if count}
    print(f"dataset: {report.directory}")
    print(
        f"kept {counts['users']:,} users, {counts['events']:,} events, {counts['items']:,} items; "
        f"dropped {counts['users_dropped']:,} users with {counts['events_dropped']:,} events"
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
