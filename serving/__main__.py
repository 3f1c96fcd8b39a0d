"""``python -m serving {score,sample,describe}``."""

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

from errors import UserError
from fs import atomic_file

# The modules behind the commands import pandas or TensorFlow, which takes seconds; --help and
# mistakes answer at once.
if TYPE_CHECKING:
    from serving.bundle import Bundle, Scores

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
        prog="python -m serving", description="Scores raw ids with an exported model."
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
    sample = _command(commands, "sample", "make requests out of a dataset's users", _sample)
    sample.add_argument("--dataset_dir", required=True, type=Path, metavar="DIR", help="dataset")
    sample.add_argument("--users", type=int, default=3, metavar="N", help="requests to make")
    sample.add_argument(
        "--candidates",
        type=int,
        default=5,
        metavar="N",
        help="candidates of each; the first is the item of the user's last event",
    )
    sample.add_argument("--seed", type=int, default=0, metavar="N", help="of the random draws")
    _command(commands, "describe", "print what a bundle holds", _describe)
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
        from serving.bundle import Bundle

        bundle = Bundle.load(args.export_dir)
        output = sys.stdout
        if args.output is not None:
            output = stack.enter_context(_open_output(Path(args.output)))
        write = _write_table if table else _write_json
        for lines in _chunks(source, "standard input" if source is sys.stdin else args.requests):
            for (_, request), scores in zip(lines, _score_lines(bundle, lines), strict=True):
                write(output, request, bundle, scores)
            output.flush()


@contextlib.contextmanager
def _open_output(path: Path) -> Iterator[TextIO]:
    """A file that appears under its name only when it is whole."""
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no directory {path.parent}.")
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
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
    from serving.requests import RequestError

    try:
        return bundle.score([request for _, request in lines])
    except RequestError as error:
        raise UserError(f"{lines[error.index][0]}: {error.detail}") from error


def _ranked(request: Any, bundle: Bundle, scores: Scores) -> list[dict[str, Any]]:
    """The candidates, best first; equal ones in the request's order."""
    features = [name for name in bundle.manifest.item_features if name in request["candidates"]]
    order = (-scores.logit).argsort(kind="stable").tolist()
    return [
        {
            **{name: request["candidates"][name][i] for name in features},
            "probability": float(scores.probability[i]),
            "logit": float(scores.logit[i]),
        }
        for i in order
    ]


def _write_json(output: TextIO, request: Any, bundle: Bundle, scores: Scores) -> None:
    user = {name: request[name] for name in bundle.manifest.user_features}
    result = {**user, "candidates": _ranked(request, bundle, scores)}
    output.write(json.dumps(result, ensure_ascii=False) + "\n")


def _write_table(output: TextIO, request: Any, bundle: Bundle, scores: Scores) -> None:
    user = "  ".join(f"{name} {request[name]}" for name in bundle.manifest.user_features)
    item_id = bundle.manifest.item_features[0]
    events = len(request["history"][item_id])
    ranked = _ranked(request, bundle, scores)
    columns = [name for name in ranked[0] if name not in ("probability", "logit")]
    widths = {name: max(len(name), *(len(str(row[name])) for row in ranked)) for name in columns}
    output.write(f"{user}  ({events} event{'s' * (events != 1)} of history)\n")
    header = "  ".join(f"{name:<{widths[name]}}" for name in columns)
    output.write(f"  rank  {header}  probability     logit\n")
    for rank, row in enumerate(ranked, start=1):
        cells = "  ".join(f"{row[name]!s:<{widths[name]}}" for name in columns)
        output.write(f"  {rank:>4}  {cells}  {row['probability']:11.4f}  {row['logit']:8.4f}\n")
    output.write("\n")


def _sample(args: argparse.Namespace) -> None:
    from serving.sample import sample_requests

    requests = sample_requests(
        args.export_dir,
        args.dataset_dir,
        users=args.users,
        candidates=args.candidates,
        seed=args.seed,
    )
    for request in requests:
        print(json.dumps(request, ensure_ascii=False))


def _describe(args: argparse.Namespace) -> None:
    from serving.manifest import Manifest, bundle_bytes

    manifest = Manifest.read(args.export_dir)
    print(
        f"bundle      {args.export_dir}  ({bundle_bytes(args.export_dir) / 1e6:,.1f} MB, verified)"
    )
    print(f"model       {manifest.model_type}")
    for name, value in manifest.options.items():
        print(f"              {name} = {value}")
    print("dataset     " + ", ".join(f"{k} {v}" for k, v in manifest.dataset.items()))
    ids = "raw (encoded by the bundle)" if manifest.ids == "raw" else "encoded (no workflow)"
    print(f"ids         {ids}")
    for role, names in (("user", manifest.user_features), ("item", manifest.item_features)):
        for name in names:
            print(f"{role:<12}{name}: {manifest.cardinalities[name]:,} rows")
    print("inputs")
    letters = dict.fromkeys(manifest.user_features, "B")
    for name, shape in manifest.inputs.items():
        sizes = letters.get(name) or f"B, {'C' if shape[1] is None else shape[1]}"
        print(f"              {name} int32 [{sizes}]")
    print("outputs       logit, probability float32 [B, C]")
    print("versions    " + ", ".join(f"{k} {v}" for k, v in manifest.versions.items()))


if __name__ == "__main__":
    # Merlin warns on import that it found neither PyTorch nor Triton, which nobody asked for.
    warnings.filterwarnings("ignore", message=".*dtype mappings did not load.*")
    sys.exit(main())
