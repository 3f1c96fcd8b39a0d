"""The program `embeddings`: checkpoints without the run, and where tables would lie."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from lookback.checkpoints.format import Checkpoint
from lookback.checkpoints.manifest import MANIFEST, find_checkpoint, listed
from lookback.checkpoints.reshard import reshard, row_wise_plan, tables_of
from lookback.checkpoints.table_export import export_table
from lookback.core.digests import digest_of
from lookback.core.limits import MOST_PARTS
from lookback.core.options import Command, CommandLine, Program, option, require_one
from lookback.core.outputs import check_directory, check_file
from lookback.core.sizes import format_size
from lookback.embeddings.commands_plan import PLAN
from lookback.embeddings.plans import load_plan


@dataclasses.dataclass(frozen=True)
class Source:
    """The checkpoint that a command reads."""

    scope: ClassVar[str] = "input"
    checkpoint: Path = option(
        help="checkpoint, or directory of checkpoints (the latest counts)", positional=True
    )
    trusted_digest: str | None = option(
        None, help=f"open it only if this is the SHA-256 of its {MANIFEST}"
    )

    def open(self) -> Checkpoint:
        """Opens it; its checksums are not compared yet."""
        path = find_checkpoint(self.checkpoint)
        return Checkpoint(path, verify=False, trusted_digest=self.trusted_digest)


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """What is printed."""

    scope: ClassVar[str] = "output"
    verify: bool = option(False, help="compare all checksums")
    json: bool = option(False, help="print JSON")


@dataclasses.dataclass(frozen=True)
class ReshardOptions:
    """The new layout, and where it goes."""

    scope: ClassVar[str] = "output"
    output: Path = option(help="directory of checkpoints to create")
    ranks: int | None = option(
        None, help="every table row-wise over so many ranks", at_least=1, at_most=MOST_PARTS
    )
    plan: Path | None = option(None, help="each table as this plan (YAML) places it")

    def __post_init__(self) -> None:
        """Validates."""
        require_one(self, "ranks", "plan")


@dataclasses.dataclass(frozen=True)
class TableExportOptions:
    """The table, and where it goes."""

    scope: ClassVar[str] = "output"
    table: str = option(help="table to write")
    output: Path = option(help="file to create: .npy or .parquet")
    dataset_dir: Path | None = option(
        None,
        help="dataset, or bundle, that the model was trained on: gives the raw ids of the rows "
        "(.parquet only); none: rows are numbers",
    )


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint holds, for JSON."""
    tables = tables_of(checkpoint)
    of_tables = {t for table in tables.values() for t in (table.tensor, *table.slots.values())}
    others: dict[str, dict[str, int]] = {}
    for name, spec in checkpoint.specs.items():
        if name not in of_tables:
            kind = others.setdefault(name.partition("/")[0], {"tensors": 0, "bytes": 0})
            kind["tensors"] += 1
            kind["bytes"] += spec.size
    pieces = [piece for held in checkpoint.pieces.values() for piece in held]
    return {
        "path": str(checkpoint.path),
        "digest": checkpoint.digest,
        "step": checkpoint.step,
        "format_version": checkpoint.format_version,
        "meta": checkpoint.meta,
        "tables": [
            {
                "name": table.name,
                **_describe_tensor(checkpoint, table.tensor),
                "slots": {
                    slot: _describe_tensor(checkpoint, tensor)
                    for slot, tensor in table.slots.items()
                },
            }
            for table in tables.values()
        ],
        "others": others,
        "files": {
            name: {"bytes": size, "pieces": sum(piece.file == name for piece in pieces)}
            for name, size in checkpoint.files.items()
        },
    }


def _describe_tensor(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    spec = checkpoint.specs[name]
    return {
        "rows": spec.row_count,
        "dim": spec.column_count,
        "dtype": str(spec.dtype),
        "bytes": spec.size,
        "pieces": [
            {
                "file": piece.file,
                "rows": [held.rows.start, held.rows.stop, held.rows.step],
                "columns": [held.columns.start, held.columns.stop],
            }
            for piece in checkpoint.pieces[name]
            for held in [piece.region]
        ],
    }


def _inspect(source: Source, options: InspectOptions) -> None:
    checkpoint = source.open()
    if options.verify:
        checkpoint.verify()
    content = describe(checkpoint)
    if options.json:
        print(json.dumps({**content, "verified": options.verify}, indent=1))
        return
    print(f"{content['path']}: step {content['step']}, format {content['format_version']}")
    print(f"digest {content['digest']} (of {MANIFEST}, for --trusted_digest)")
    for key, value in checkpoint.meta.items():
        print(f"{key}: {_brief(value)}")
    _print_tables(content["tables"])
    for kind, found in content["others"].items():
        print(f"{kind}: {found['tensors']} other tensors, {format_size(found['bytes'])}")
    for name, file in content["files"].items():
        print(f"{name}: {file['pieces']} pieces, {format_size(file['bytes'])}")
    if options.verify:
        print("verified: every piece has its checksum")


def _print_tables(tables: Sequence[dict[str, Any]]) -> None:
    if not tables:
        return
    lines = [["table", "rows", "dim", "type", "bytes", "layout", "optimizer state"]]
    for table in tables:
        slots = [
            f"{name} {'' if slot['dim'] == table['dim'] else '(a row) '}"
            f"{format_size(slot['bytes'])}"
            for name, slot in table["slots"].items()
        ]
        lines.append(
            [
                table["name"],
                f"{table['rows']:,}",
                str(table["dim"]),
                table["dtype"],
                format_size(table["bytes"]),
                _layout(table),
                ", ".join(slots) or "none",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for line in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    print()


def _layout(table: dict[str, Any]) -> str:
    """How a table is cut, in words."""
    pieces = [p for p in table["pieces"] if range(*p["rows"])]
    files = len({piece["file"] for piece in pieces})
    cut = []
    if len({tuple(piece["rows"]) for piece in pieces}) > 1:
        cut.append("rows")
    if len({tuple(piece["columns"]) for piece in pieces}) > 1:
        cut.append("columns")
    if not cut:
        return f"whole in {pieces[0]['file']}" if pieces else "no rows"
    return f"{' and '.join(cut)} over {files} {'file' if files == 1 else 'files'}"


def _brief(value: Any) -> str:
    """A fact about the run in one line: what is nested deeper is left to --json."""
    if not isinstance(value, dict):
        return str(value)
    facts = [f"{k}={v}" for k, v in value.items() if not isinstance(v, dict | list)]
    return listed(facts, at_most=8)


def _reshard(source: Source, options: ReshardOptions) -> None:
    began = time.perf_counter()
    checkpoint = source.open()
    if options.plan is not None:
        plan = load_plan(options.plan)
    else:
        assert options.ranks is not None  # `ReshardOptions` has one of the two
        plan = row_wise_plan(checkpoint, options.ranks)
    check_directory(options.output, None, inputs=[source.checkpoint, checkpoint.path])
    checkpoint.verify()  # else damage would be copied, with checksums that say all is well
    path = reshard(checkpoint, plan, options.output)
    size = format_size(sum(spec.size for spec in checkpoint.specs.values()))
    print(
        f"wrote {path}: {len(checkpoint)} tensors, {size}, for {plan.ranks} ranks, in "
        f"{time.perf_counter() - began:.1f} s; digest {digest_of(path / MANIFEST)}"
    )


def _export(source: Source, options: TableExportOptions) -> None:
    checkpoint = source.open()
    check_file(options.output, None, [source.checkpoint, checkpoint.path])
    tensor = f"table/{options.table}"
    checkpoint.verify(names=[tensor] if tensor in checkpoint else [])
    table = export_table(checkpoint, options.table, options.output, options.dataset_dir)
    print(f"wrote {options.output}: table {table.name}, {table.spec}")


PROGRAM = Program(
    "python -m embeddings",
    "Plans where embedding tables lie, and works on checkpoints of them.",
    {
        "plan": PLAN,
        "inspect": Command(
            "print what a checkpoint holds", CommandLine((Source, InspectOptions)), _inspect
        ),
        "reshard": Command(
            "lay a checkpoint out for another number of ranks",
            CommandLine((Source, ReshardOptions)),
            _reshard,
        ),
        "export-table": Command(
            "write a table as one file", CommandLine((Source, TableExportOptions)), _export
        ),
    },
)
"""The commands on checkpoints, and `plan`, which lies lower."""
