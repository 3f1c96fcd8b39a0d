"""``python -m serving {score,sample,describe,benchmark}``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lookback.core import digests
from lookback.core.errors import UserError
from lookback.core.files import atomic_file
from lookback.serving.scores import Scores

# The modules behind the commands import pandas or TensorFlow, which takes seconds; --help and
# mistakes answer at once.

if TYPE_CHECKING:
    from lookback.serving.bundle import Bundle

LINES_AT_ONCE = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status: 2 for what the user can put right."""
    args = _parser().parse_args(arguments)
    try:
        args.command(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Python would report it once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving", description="Scores requests with an exported model."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    score = _command(commands, "score", "score requests, one JSON object a line", _score)
    score.add_argument(
        "--requests", default="-", metavar="FILE", help="JSON lines, - for standard input"
    )
    score.add_argument("--output", metavar="FILE", help="where to write; default: standard output")
    score.add_argument(
        "--format",
        choices=("auto", "json", "table"),
        default="auto",
        help="auto: a table on a terminal, JSON lines elsewhere",
    )
    sample = _command(commands, "sample", "make requests out of a dataset", _sample)
    sample.add_argument("--dataset_dir", required=True, type=Path, metavar="DIR", help="dataset")
    # Without defaults of their own, so that those of the other layout are told apart from none.
    for name, text in (
        ("users", "requests to make of histories (default: 3)"),
        (
            "candidates",
            "candidates of each; the first is the item of the user's last event; 0, for models "
            "over interactions: the whole catalogue but what the user had seen (default: 5)",
        ),
        ("rows", "requests to make of tabular test rows (default: 3)"),
    ):
        sample.add_argument(
            f"--{name}", type=int, default=argparse.SUPPRESS, metavar="N", help=text
        )
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="of the random draws")
    _command(commands, "describe", "print what a bundle holds", _describe)
    benchmark = _command(
        commands, "benchmark", "measure the latency of the model on random inputs", _benchmark
    )
    benchmark.add_argument(
        "--batch_sizes", type=_sizes, default="1,64,4096", metavar="N,N", help="rows of a batch"
    )
    for name, number, text in (
        ("steps", 200, "batches to measure, of each size"),
        ("warmup_steps", 20, "batches before them"),
        ("seed", 0, "of the inputs"),
    ):
        benchmark.add_argument(f"--{name}", type=int, default=number, metavar="N", help=text)
    benchmark.add_argument(
        "--format", choices=("table", "json"), default="table", help="json: a line for each size"
    )
    return parser


def _command(commands: Any, name: str, text: str, function: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument(
        "--export_dir", required=True, type=Path, metavar="DIR", help="what train.py exported"
    )
    digests.add_argument(command, "bundle.json")
    command.set_defaults(command=function)
    return command


def _score(args: argparse.Namespace) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    table = args.format == "table" or (
        args.format == "auto" and args.output is None and sys.stdout.isatty()
    )
    with contextlib.ExitStack() as stack:
        source = sys.stdin
        if args.requests != "-":
            try:
                source = stack.enter_context(Path(args.requests).open(encoding="utf-8"))
            except OSError as error:
                raise UserError(f"--requests {args.requests}: {error.strerror}.") from error
        output = sys.stdout
        if args.output is not None:
            inputs = [args.export_dir, *([] if source is sys.stdin else [Path(args.requests)])]
            output = stack.enter_context(_open_output(Path(args.output), inputs))
        from lookback.serving.bundle import Bundle
        from lookback.serving.layouts.registry import LAYOUTS

        bundle = Bundle.load(args.export_dir, args.trusted_digest)
        layout = LAYOUTS[bundle.manifest.layout]
        number = 0
        for lines in _chunks(source, "standard input" if source is sys.stdin else args.requests):
            for (_, request), scores in zip(lines, _score_lines(bundle, lines), strict=True):
                if table:
                    text = layout.table(number, request, bundle.manifest, scores)
                else:
                    answer = layout.answer(request, bundle.manifest, scores)
                    text = json.dumps(answer, ensure_ascii=False) + "\n"
                output.write(text)
                number += 1
            output.flush()


@contextlib.contextmanager
def _open_output(path: Path, inputs: Sequence[Path]) -> Iterator[TextIO]:
    """A file that appears under its name only when it is whole."""
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no directory {path.parent}.")
    with (
        atomic_file(path, inputs=inputs) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        yield file


def _chunks(source: TextIO, name: str) -> Iterator[list[tuple[str, Any]]]:
    """Requests with where they stand, some at a time, each alone if they come from a person."""
    size = 1 if source.isatty() else LINES_AT_ONCE
    chunk: list[tuple[str, Any]] = []
    for number, line in enumerate(source, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            chunk.append((where, json.loads(line)))
        except ValueError as error:
            raise UserError(
                f"{where}: not valid JSON ({error}). Expected one object a line."
            ) from error
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _score_lines(bundle: Bundle, lines: Sequence[tuple[str, Any]]) -> list[Scores]:
    from lookback.serving.requests import RequestError

    try:
        return bundle.score([request for _, request in lines])
    except RequestError as error:
        raise UserError(f"{lines[error.index][0]}: {error.detail}") from error


def _sample(args: argparse.Namespace) -> None:
    from lookback.serving.layouts.registry import LAYOUTS
    from lookback.serving.manifest import Manifest

    manifest = Manifest.read(args.export_dir, args.trusted_digest)
    layout = LAYOUTS[manifest.layout]
    counts = {name: n for name, n in vars(args).items() if name in ("users", "candidates", "rows")}
    foreign = [f"--{name}" for name in counts if name not in layout.sample_options]
    if foreign:
        options = ", ".join(f"--{name}" for name in layout.sample_options)
        raise UserError(
            f"{', '.join(foreign)}: {args.export_dir} is of layout {manifest.layout!r}, for which "
            f"the options are {options}."
        )
    for request in layout.sample(
        manifest, args.export_dir, args.dataset_dir, seed=args.seed, **counts
    ):
        print(json.dumps(request, ensure_ascii=False))


def _describe(args: argparse.Namespace) -> None:
    from lookback.serving.manifest import MANIFEST_FILE, Manifest, bundle_bytes

    manifest = Manifest.read(args.export_dir, args.trusted_digest)
    print(
        f"bundle      {args.export_dir}  ({bundle_bytes(args.export_dir) / 1e6:,.1f} MB, verified)"
    )
    digest = digests.digest_of(args.export_dir / MANIFEST_FILE)
    print(f"digest      {digest}  (of {MANIFEST_FILE}, for --trusted_digest)")
    print(f"model       {manifest.model_type}")
    for name, value in manifest.options.items():
        print(f"              {name} = {value}")
    print("dataset     " + ", ".join(f"{k} {v}" for k, v in manifest.dataset.items()))
    ids = "raw (encoded by the bundle)" if manifest.ids == "raw" else "encoded (no workflow)"
    print(f"ids         {ids}")
    for role, names in manifest.roles.items():
        for name in names:
            rows = manifest.cardinalities.get(name)
            print(f"{role:<12}{name}" + (f": {rows:,} rows" if rows is not None else ""))
    print("inputs")
    for name, shape in manifest.inputs.items():
        axes = ["B", *("C" if axis is None else str(axis) for axis in shape[1:])]
        print(f"              {name} {manifest.input_type(name)} [{', '.join(axes)}]")
    print(f"outputs       logit, probability float32 {manifest.output_axes}")
    print("versions    " + ", ".join(f"{k} {v}" for k, v in manifest.versions.items()))


def _benchmark(args: argparse.Namespace) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    from lookback.serving.benchmark import BenchmarkOptions, as_table, measure
    from lookback.serving.bundle import Bundle

    options = BenchmarkOptions(args.batch_sizes, args.steps, args.warmup_steps, args.seed)
    rows = measure(Bundle.load(args.export_dir, args.trusted_digest), options)
    if args.format == "json":
        for row in rows:
            print(json.dumps(row), flush=True)
    else:
        print(as_table(list(rows)))


def _sizes(text: str) -> tuple[int, ...]:
    """Whole numbers, separated by commas."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected sizes such as 1,64,4096, received {text!r}"
        ) from error


if __name__ == "__main__":
    # Merlin warns on import that it found neither PyTorch nor Triton, which nobody asked for.
    warnings.filterwarnings("ignore", message=".*dtype mappings did not load.*")
    sys.exit(main())
