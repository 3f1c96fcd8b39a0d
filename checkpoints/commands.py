"""``python -m embeddings {inspect,reshard,export-table}``: checkpoints, without the run."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookback.checkpoints.format import Checkpoint, find_checkpoint
from lookback.checkpoints.manifest import MANIFEST, listed
from lookback.checkpoints.reshard import reshard, row_wise_plan, tables_of
from lookback.checkpoints.table_export import export_table
from lookback.core import digests
from lookback.core.outputs import check_directory, check_file
from lookback.core.sizes import format_size


def add_parsers(subparsers: Any) -> None:
    """Adds the commands.

    Args:
      subparsers: of the command line; each parser's `func` takes the parsed arguments.
    """
    inspect = _add(subparsers, "inspect", "print what a checkpoint holds", _inspect)
    inspect.add_argument("--verify", action="store_true", help="compare all checksums")
    inspect.add_argument("--json", action="store_true", help="print JSON")

    layout = _add(
        subparsers, "reshard", "lay a checkpoint out for another number of ranks", _reshard
    )
    layout.add_argument(
        "--output", required=True, metavar="DIR", help="directory of checkpoints to create"
    )
    how = layout.add_mutually_exclusive_group(required=True)
    how.add_argument("--ranks", type=int, metavar="R", help="every table row-wise over R ranks")
    how.add_argument("--plan", metavar="FILE", help="each table as this plan (YAML) places it")

    export = _add(subparsers, "export-table", "write a table as one file", _export)
    export.add_argument("--table", required=True, metavar="NAME", help="table to write")
    export.add_argument(
        "--output", required=True, metavar="FILE", help="file to create: .npy or .parquet"
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


def _add(subparsers: Any, name: str, text: str, function: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="checkpoint, or directory of checkpoints (the latest counts)",
    )
    digests.add_argument(parser, MANIFEST)
    parser.set_defaults(func=function)
    return parser


def _open(args: argparse.Namespace) -> Checkpoint:
    path = find_checkpoint(args.checkpoint)
    return Checkpoint(path, verify=False, trusted_digest=args.trusted_digest)


def _inspect(args: argparse.Namespace) -> None:
    checkpoint = _open(args)
    if args.verify:
        checkpoint.verify()
    content = describe(checkpoint)
    if args.json:
        print(json.dumps({**content, "verified": args.verify}, indent=1))
        return
    print(f"{content['path']}: step {content['step']}, format {content['format_version']}")
    print(f"digest {content['digest']} (of {MANIFEST}, for --trusted_digest)")
    for key, value in checkpoint.meta.items():
        print(f"{key}: {_brief(value)}")
    _print_tables(content["tables"])
    for kind, found in content["others"].items():
        print(f"{kind}: {found['tensors']} dense tensors, {format_size(found['bytes'])}")
    for name, file in content["files"].items():
        print(f"{name}: {file['pieces']} pieces, {format_size(file['bytes'])}")
    if args.verify:
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


def _reshard(args: argparse.Namespace) -> None:
    began = time.perf_counter()
    checkpoint = _open(args)
    if args.plan is not None:
        from lookback.embeddings.plans import load_plan

        plan = load_plan(args.plan)
    else:
        plan = row_wise_plan(checkpoint, args.ranks)
    check_directory(Path(args.output), None, inputs=[checkpoint.path])
    checkpoint.verify()  # else damage would be copied, with checksums that say all is well
    path = reshard(checkpoint, plan, Path(args.output))
    size = format_size(sum(spec.size for spec in checkpoint.specs.values()))
    print(
        f"wrote {path}: {len(checkpoint)} tensors, {size}, for {plan.ranks} ranks, in "
        f"{time.perf_counter() - began:.1f} s; digest {digests.digest_of(path / MANIFEST)}"
    )


def _export(args: argparse.Namespace) -> None:
    checkpoint = _open(args)
    check_file(Path(args.output), None, [checkpoint.path])
    tensor = f"table/{args.table}"
    checkpoint.verify(names=[tensor] if tensor in checkpoint else [])
    table = export_table(checkpoint, args.table, Path(args.output))
    print(f"wrote {args.output}: table {table.name}, {table.spec}")
