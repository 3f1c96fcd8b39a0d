"""The program `serving`: what is done with bundles."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, TextIO

from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.core.files import atomic_file
from lookback.core.limits import MOST_ROWS, MOST_STEPS
from lookback.core.options import Command, CommandLine, Program, option
from lookback.formats.dataset_info import WORKFLOW_DIRECTORY
from lookback.formats.verification import DatasetChecks, verify_dataset
from lookback.serving.client.command import QUERY
from lookback.serving.offline.commands import SCORE_FILE
from lookback.serving.request_lines import request_chunks
from lookback.serving.scores import Scores
from lookback.serving.server.run import ServeOptions, serve
from lookback.serving.skew.command import VERIFY
from lookback.serving.store.commands import COMMANDS as STORE_COMMANDS

# The modules behind the commands import pandas or TensorFlow, which takes seconds; --help and
# mistakes answer at once.

if TYPE_CHECKING:
    from lookback.serving.bundle import Bundle


@dataclasses.dataclass(frozen=True)
class BundleOptions:
    """The bundle that a command reads."""

    scope: ClassVar[str] = "bundle"
    export_dir: Path = option(help="what train.py exported")
    trusted_digest: str | None = option(
        None, help="open it only if this is the SHA-256 of its bundle.json"
    )


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """What is scored, and how it is written."""

    scope: ClassVar[str] = "requests and scores"
    requests: str = option("-", help="JSON lines, - for standard input")
    output: Path | None = option(None, help="where to write; none: standard output")
    format: Literal["auto", "json", "table"] = option(
        "auto", help="auto: a table on a terminal, JSON lines elsewhere"
    )

    @property
    def as_table(self) -> bool:
        """Whether people will read it."""
        on_terminal = self.output is None and sys.stdout.isatty()
        return self.format == "table" or (self.format == "auto" and on_terminal)


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Which requests are made. What is None is as its layout has it."""

    scope: ClassVar[str] = "requests"
    dataset_dir: Path = option(help="dataset")
    users: int | None = option(None, help="requests to make of histories; none: 3", limit=MOST_ROWS)
    candidates: int | None = option(
        None,
        help="candidates of each; the first is the item of the user's last event; 0, for models "
        "over interactions: the whole catalogue but what the user had seen; none: 5",
        limit=MOST_ROWS,
    )
    rows: int | None = option(
        None, help="requests to make of tabular test rows; none: 3", limit=MOST_ROWS
    )
    seed: int = option(0, help="of the random draws", at_least=0)

    def counts(self) -> dict[str, int]:
        """The numbers that were given, by name."""
        given = {name: getattr(self, name) for name in ("users", "candidates", "rows")}
        return {name: number for name, number in given.items() if number is not None}


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """What is measured."""

    scope: ClassVar[str] = "measurement"
    batch_sizes: tuple[int, ...] = option(
        (1, 64, 4096), help="rows of a batch", at_least=1, limit=MOST_ROWS
    )
    steps: int = option(200, help="batches to measure, of each size", at_least=1, limit=MOST_STEPS)
    warmup_steps: int = option(20, help="batches before them", at_least=0, limit=MOST_STEPS)
    seed: int = option(0, help="of the inputs", at_least=0)
    format: Literal["table", "json"] = option("table", help="json: a line for each size")

    def __post_init__(self) -> None:
        """Validates."""
        if not self.batch_sizes:
            raise UserError("--batch_sizes: expected sizes such as 1,64,4096, received none.")


def _score(source: BundleOptions, options: ScoreOptions) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    with contextlib.ExitStack() as stack:
        lines_of: BinaryIO = sys.stdin.buffer
        if options.requests != "-":
            try:
                lines_of = stack.enter_context(Path(options.requests).open("rb"))
            except OSError as error:
                raise UserError(f"--requests {options.requests}: {error.strerror}.") from error
        output = sys.stdout
        if options.output is not None:
            read = [] if options.requests == "-" else [Path(options.requests)]
            output = stack.enter_context(_open_output(options.output, [source.export_dir, *read]))
        from lookback.serving.bundle import Bundle
        from lookback.serving.layouts.registry import LAYOUTS

        bundle = Bundle.load(source.export_dir, source.trusted_digest)
        layout, table = LAYOUTS[bundle.manifest.layout], options.as_table
        name = "standard input" if options.requests == "-" else options.requests
        number = 0
        for lines in request_chunks(lines_of, name):
            for (_, request), scores in zip(lines, _score_lines(bundle, lines), strict=True):
                if table:
                    text = layout.table(number, request, bundle.manifest, scores)
                else:
                    answer = layout.answer(request, bundle.manifest, scores)
                    text = json.dumps(answer, ensure_ascii=False) + "\n"
                output.write(text)
                number += 1
            output.flush()
        if table and number:
            print(f"probability: {layout.probability_of(bundle.manifest)}", file=sys.stderr)


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


def _score_lines(bundle: Bundle, lines: Sequence[tuple[str, Any]]) -> list[Scores]:
    from lookback.serving.requests import RequestError

    try:
        return bundle.score([request for _, request in lines])
    except RequestError as error:
        raise UserError(f"{lines[error.index][0]}: {error.detail}") from error


def _sample(source: BundleOptions, options: SampleOptions, checks: DatasetChecks) -> None:
    from lookback.serving.layouts.registry import LAYOUTS
    from lookback.serving.manifest import Manifest

    export_dir, counts = source.export_dir, options.counts()
    manifest = Manifest.read(export_dir, source.trusted_digest)
    layout = LAYOUTS[manifest.layout]
    foreign = [f"--{name}" for name in counts if name not in layout.sample_options]
    if foreign:
        known = ", ".join(f"--{name}" for name in layout.sample_options)
        raise UserError(
            f"{', '.join(foreign)}: {export_dir} is of layout {manifest.layout!r}, for which "
            f"the options are {known}."
        )
    note = checks.begin(options.dataset_dir)
    if note is not None:
        print(note, file=sys.stderr)
    for parts in (None, (WORKFLOW_DIRECTORY,)):
        verify_dataset(options.dataset_dir, checks.verification, parts)
    for request in layout.sample(
        manifest, export_dir, options.dataset_dir, seed=options.seed, **counts
    ):
        print(json.dumps(request, ensure_ascii=False))


def _describe(source: BundleOptions) -> None:
    from lookback.serving.layouts.registry import LAYOUTS
    from lookback.serving.manifest import MANIFEST_FILE, Manifest, bundle_bytes

    manifest = Manifest.read(source.export_dir, source.trusted_digest)
    megabytes = bundle_bytes(source.export_dir) / 1e6
    print(f"bundle      {source.export_dir}  ({megabytes:,.1f} MB, verified)")
    digest = digest_of(source.export_dir / MANIFEST_FILE)
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
    for name in manifest.inputs:
        print(f"              {name} {manifest.input_type(name)} {manifest.axes_of(name)}")
    print(f"outputs       logit, probability float32 {manifest.output_axes}")
    print(f"              probability: {LAYOUTS[manifest.layout].probability_of(manifest)}")
    print("versions    " + ", ".join(f"{k} {v}" for k, v in manifest.versions.items()))


def _schema(source: BundleOptions) -> None:
    from lookback.serving.layouts.registry import LAYOUTS
    from lookback.serving.manifest import Manifest
    from lookback.serving.schemas import schemas_of

    manifest = Manifest.read(source.export_dir, source.trusted_digest)
    encoder = LAYOUTS[manifest.layout].load_encoder(source.export_dir, manifest)
    print(json.dumps(schemas_of(manifest, encoder), indent=1, ensure_ascii=False))


def _benchmark(source: BundleOptions, options: BenchmarkOptions) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    from lookback.serving.benchmark import as_table, measure
    from lookback.serving.bundle import Bundle

    rows = measure(
        Bundle.load(source.export_dir, source.trusted_digest),
        batch_sizes=options.batch_sizes,
        steps=options.steps,
        warmup_steps=options.warmup_steps,
        seed=options.seed,
    )
    if options.format == "json":
        for row in rows:
            print(json.dumps(row), flush=True)
    else:
        print(as_table(list(rows)))


PROGRAM = Program(
    "python -m serving",
    "Scores requests with an exported model.",
    {
        "score": Command(
            "score requests, one JSON object a line",
            CommandLine((BundleOptions, ScoreOptions)),
            _score,
        ),
        "score-file": SCORE_FILE,
        **STORE_COMMANDS,
        "serve": Command("answer requests over HTTP", CommandLine((ServeOptions,)), serve),
        "sample": Command(
            "make requests out of a dataset",
            CommandLine((BundleOptions, SampleOptions, DatasetChecks)),
            _sample,
        ),
        "describe": Command("print what a bundle holds", CommandLine((BundleOptions,)), _describe),
        "schema": Command(
            "print what requests and answers of a bundle are, as JSON Schema",
            CommandLine((BundleOptions,)),
            _schema,
        ),
        "query": QUERY,
        "verify": VERIFY,
        "benchmark": Command(
            "measure the latency of the model on random inputs",
            CommandLine((BundleOptions, BenchmarkOptions)),
            _benchmark,
        ),
    },
)
