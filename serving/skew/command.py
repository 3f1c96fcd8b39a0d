"""The command `verify`: whether serving computes what training did."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.core.limits import MOST_ROWS
from lookback.core.options import SET, Command, CommandLine, option
from lookback.formats.verification import DatasetChecks, verify_dataset
from lookback.serving.client.client import Client

if TYPE_CHECKING:
    from lookback.serving.skew.comparison import Comparison

TOLERANCES = {"float32": 1e-6}
"""Of a model that computes in this type: a few units in the last place."""
HALF_TOLERANCE = 2e-2
"""Of others: two units of bfloat16, which has 8 bits, for sums in another order."""


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """What is compared with what."""

    scope: ClassVar[str] = "comparison"
    bundle: Path = option(help="what train.py exported", positional=True)
    dataset_dir: Path = option(help="the dataset that the model was trained on")
    server: str | None = option(
        None, help="address of a running server, whose scores are compared; none: the bundle's own"
    )
    model: str | None = option(
        None,
        help="name of the bundle on the server; none: that of its directory",
        needs={"server": SET},
    )
    samples: int = option(
        10_000,
        help="scores to compare, as far as the dataset has so many: of the test first",
        at_least=1,
        limit=MOST_ROWS,
    )
    tolerance: float | None = option(
        None,
        help="of numbers and logits: absolute up to 1, relative above; none: 1e-6 of models that "
        "compute in float32, 0.02 of others",
        at_least=0,
    )
    trusted_digest: str | None = option(
        None, help="open the bundle only if this is the SHA-256 of its bundle.json"
    )


def verify(options: VerifyOptions, checks: DatasetChecks) -> int:
    """Compares, prints what was found, and gives 1 where anything differs.

    Raises:
      UserError: if bundle, dataset and server do not belong together.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
    note = checks.begin(options.dataset_dir)
    if note is not None:
        print(note, file=sys.stderr)
    verify_dataset(options.dataset_dir, checks.verification)
    from lookback.serving.bundle import Bundle
    from lookback.serving.layouts.registry import LAYOUTS
    from lookback.serving.skew.comparison import compare, of_bundle, of_server
    from lookback.serving.skew.offline_model import model_of

    bundle = Bundle.load(options.bundle, options.trusted_digest)
    layout = LAYOUTS[bundle.manifest.layout]
    model, dtype, table_dtypes = model_of(bundle)
    tolerance = options.tolerance
    if tolerance is None:
        tolerance = TOLERANCES.get(dtype, HALF_TOLERANCE)
    logits_of = of_bundle(bundle)
    if options.server is not None:
        name = options.model or options.bundle.resolve().name
        client = Client(options.server)
        _require_same(client, name, options.bundle)
        logits_of = of_server(client, name)
    # What was raw is told from the dataset's own vocabularies, not from the bundle's.
    encoder = layout.load_encoder(options.dataset_dir, bundle.manifest)
    batches = layout.offline(bundle.manifest, encoder, options.dataset_dir, options.samples)
    found = compare(bundle, model, batches, tolerance, logits_of)
    if not found.samples:
        raise UserError(
            f"{options.dataset_dir} has no sample that a request can say ({found.skipped:,} were "
            "tried): its vocabularies hold hashes alone. Compare with requests of raw data."
        )
    where = "the bundle" if options.server is None else options.server
    print(comparison_text(found, where, f"{tolerance:g} ({dtype})"))
    if rounded := sorted(table_dtypes - {"float32"}):
        print(
            f"training's side has the tables as they were exported ({', '.join(rounded)}): what "
            "that rounding costs, the export printed"
        )
    return int(found.differs)


def comparison_text(found: Comparison, where: str, tolerance: str) -> str:
    """What was found, in lines.

    Args:
      found: by `compare`.
      where: what scored online.
      tolerance: that was applied.
    """
    lines = [
        f"compared {found.samples:,} scores and their features, in {found.requests:,} requests: "
        f"training's against those of {where}"
    ]
    if found.skipped:
        lines.append(f"left out {found.skipped:,} rows whose raw values the vocabularies lack")
    if found.shown:
        rows = [["user", "candidate", "what differs", "training", "serving"]]
        rows += [[*map(_cell, dataclasses.astuple(one))] for one in found.shown]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {'  '.join(cells)}".rstrip())
    largest = f"the largest difference of two logits is {found.largest:.2e}, allowed {tolerance}"
    if found.differs:
        lines.append(
            f"DIFFERENT: {found.features:,} values of features, {found.scores:,} scores; {largest}"
        )
    else:
        lines.append(f"the same: {largest}")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _require_same(client: Client, name: str, bundle: Path) -> None:
    from lookback.serving.manifest import MANIFEST_FILE

    served, own = client.schema(name)["digest"], digest_of(bundle / MANIFEST_FILE)
    if served != own:
        raise UserError(
            f"--server: expected {name} to be the bundle {bundle} (digest {own}), and it is "
            f"another (digest {served}). Serve this one, or verify that one."
        )


VERIFY = Command(
    "compare what is served with what training computes",
    CommandLine((VerifyOptions, DatasetChecks)),
    verify,
    "Compares features and scores of a dataset's samples as training computes them with what a "
    "bundle, or a running server, computes from raw ids. Exit status 1 if anything differs.",
)
