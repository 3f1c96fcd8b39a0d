"""The manifest of a checkpoint: what tensors it has, cut into which pieces, and where they lie.

Also how checkpoints are named, and found. Standard library and NumPy's types only.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookback.checkpoints.ranges import contains, partition_fault
from lookback.core.digests import is_file, read_trusted
from lookback.core.errors import UserError, shown
from lookback.core.json_files import load_object
from lookback.core.outputs import OutputKind

FORMAT = "lookback-checkpoint"
FORMAT_VERSION = 3  # 1 had no columns; 1 and 2 had CRC-32 in place of SHA-256
MANIFEST = "manifest.json"

_READABLE = (1, 2, FORMAT_VERSION)
_DIGESTS_SINCE = 3
STEP = re.compile(r"step-(\d{8,})(?:\.(\d+))?")  # a second save of a step gets ".1"

Entry = dict[str, Any]
"""A tensor in a manifest: name, shape, dtype and pieces."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Shape and type that a reader expects of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def size(self) -> int:
        """Bytes of all its elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def row_count(self) -> int:
        """Number of rows; a scalar is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def column_count(self) -> int:
        """Number of columns; a row of what is no matrix is one column."""
        return self.shape[1] if len(self.shape) == 2 else 1


@dataclasses.dataclass(frozen=True)
class Region:
    """Some rows of a tensor, and some columns of those.

    Attributes:
      rows: ascending.
      columns: contiguous.
    """

    rows: range
    columns: range

    def row_shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """Shape of one row of it."""
        return (len(self.columns),) if len(spec.shape) == 2 else spec.shape[1:]

    def size(self, spec: TensorSpec) -> int:
        """Bytes of its elements."""
        elements = int(np.prod(self.row_shape(spec), dtype=np.int64))
        return len(self.rows) * elements * spec.dtype.itemsize


def entry_of(name: str, spec: TensorSpec) -> Entry:
    """A tensor's entry, without pieces so far."""
    dtype = spec.dtype.newbyteorder("<").str
    return {"name": name, "shape": list(spec.shape), "dtype": dtype, "pieces": []}


def spec_of(entry: Entry) -> TensorSpec:
    """Shape and type of an entry's tensor."""
    return TensorSpec(tuple(entry["shape"]), np.dtype(entry["dtype"]))


def plain_region(region: Region) -> dict[str, list[int]]:
    """A region as a manifest has it."""
    rows, columns = region.rows, region.columns
    return {
        "rows": [rows.start, rows.stop, rows.step],
        "columns": [columns.start, columns.stop],
    }


def region_of(piece: Mapping[str, Any], spec: TensorSpec) -> Region:
    """The region of a piece in a manifest; version 1 has whole rows only."""
    columns = piece.get("columns", (0, spec.column_count))
    return Region(range(*piece["rows"]), range(*columns))


def merge_entries(entries_of_ranks: Iterable[Iterable[Entry]]) -> list[Entry]:
    """One list of entries from those of all ranks.

    Raises:
      ValueError: if ranks differ about a tensor, or their pieces do not hold each row once.
    """
    merged: dict[str, Entry] = {}
    for entry in itertools.chain.from_iterable(entries_of_ranks):
        name = entry["name"]
        known = merged.setdefault(name, {**entry, "pieces": []})
        if known["shape"] is None:
            known.update(shape=entry["shape"], dtype=entry["dtype"])
        elif entry["shape"] is not None and spec_of(known) != spec_of(entry):
            raise ValueError(
                f"{name}: its pieces differ in shape or type, {spec_of(known)} and {spec_of(entry)}"
            )
        known["pieces"] += entry["pieces"]
    for name, entry in merged.items():
        if entry["shape"] is None:
            raise ValueError(f"{name}: no process holds a piece of it")
        spec = spec_of(entry)
        check_cover(name, spec, [region_of(piece, spec) for piece in entry["pieces"]])
    return list(merged.values())


def check_cover(name: str, spec: TensorSpec, regions: Sequence[Region]) -> None:
    """Checks that regions hold each element of a tensor once.

    Args:
      name: of the tensor.
      spec: of the tensor.
      regions: of its pieces.

    Raises:
      ValueError: naming the first row that is in no piece, or in several.
    """
    rows, columns = range(spec.row_count), range(spec.column_count)
    for region in regions:
        check_region(name, spec, region)
    cuts = {columns.start, columns.stop}
    for region in regions:
        cuts |= {region.columns.start, region.columns.stop}
    checked = set()
    for start, stop in itertools.pairwise(sorted(cuts)):
        held = tuple(r.rows for r in regions if contains(r.columns, range(start, stop)))
        fault = None if held in checked else partition_fault(len(rows), held)
        if fault is not None:
            where = "" if len(cuts) == 2 else f", columns [{start}, {stop}),"
            raise ValueError(
                f"{name}: row {fault.row}{where} is in {fault.held} pieces, expected 1 (of "
                f"{len(rows)} rows, {fault.missing} are missing and {fault.repeated} are in "
                f"several pieces)"
            )
        checked.add(held)


def check_region(name: str, spec: TensorSpec, region: Region) -> None:
    """Checks that a tensor has a region.

    Raises:
      ValueError: if it has no such rows or columns.
    """
    rows, columns = region.rows, region.columns
    count, width = spec.row_count, spec.column_count
    if rows and not (rows.step > 0 and rows.start >= 0 and rows[-1] < count):
        raise ValueError(f"{name}: expected rows of [0, {count}), received {rows}")
    if not (columns.step == 1 and 0 <= columns.start <= columns.stop <= width):
        raise ValueError(f"{name}: expected contiguous columns of [0, {width}), received {columns}")


def write_manifest(
    directory: Path,
    *,
    step: int,
    meta: Mapping[str, Any],
    files: Mapping[str, int],
    entries: Sequence[Entry],
) -> None:
    """Writes what makes data files a checkpoint.

    Args:
      directory: where the data files are.
      step: the number of training steps done.
      meta: facts that JSON can hold, as `plain` gives them.
      files: name -> bytes of each data file.
      entries: of all tensors, merged.
    """
    content = {"step": step, "meta": meta, "files": files, "tensors": entries}
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "crc32": _content_checksum(content),
        "content": content,
    }
    text = json.dumps(manifest, indent=1, allow_nan=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")


def has_digests(version: int) -> bool:
    """Whether the pieces of a format version have a SHA-256; else it is a CRC-32."""
    return version >= _DIGESTS_SINCE


def read_manifest(path: Path, trusted_digest: str | None = None) -> tuple[dict[str, Any], str]:
    """The manifest, if it is one of ours, of a known version, and as it was written; its digest.

    Args:
      path: of the checkpoint.
      trusted_digest: SHA-256 that the manifest must have, compared before anything else; None: any.

    Raises:
      UserError: if it is not, or cannot be trusted: then it has checksums that can be forged.
    """
    file = path / MANIFEST
    if not is_file(file):
        what = "there is no such directory" if not path.exists() else f"it has no {MANIFEST}"
        raise UserError(
            f"{path} is not a checkpoint: {what}. Give the directory that a run had as "
            f"--save_checkpoint_path, or one step-... directory in it."
        )
    text, digest = read_trusted(file, trusted_digest)
    manifest = load_object(text, str(file), "The checkpoint is corrupt: take another.")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a checkpoint of ours: expected the format {FORMAT!r} in {MANIFEST}, "
            f"received {shown(manifest.get('format'))}."
        )
    if manifest.get("format_version") not in _READABLE:
        raise UserError(
            f"the checkpoint {path} has format version {shown(manifest.get('format_version'))}, "
            f"expected {' or '.join(map(str, _READABLE))}. Load it with the version that wrote it."
        )
    if trusted_digest is not None and not has_digests(manifest["format_version"]):
        raise UserError(
            f"the checkpoint {path} has format version {manifest['format_version']}, expected "
            f"{_DIGESTS_SINCE} with trusted_digest: before, data had a CRC-32, which can be "
            "forged. Write it anew (`python -m embeddings reshard`) where you trust it."
        )
    content = manifest.get("content")
    if not isinstance(content, dict) or _content_checksum(content) != manifest.get("crc32"):
        raise UserError(
            f"the checkpoint {path} is corrupt: {MANIFEST} has changed since it was written."
        )
    return manifest, digest


def _files(path: Path) -> dict[str, int | None] | None:
    """Data files that a manifest names, with their sizes."""
    try:
        return dict(read_manifest(path)[0]["content"]["files"])
    except UserError:
        return None


CHECKPOINT = OutputKind("checkpoint", MANIFEST, _files)


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that a user means by `path`: itself, or the latest in it.

    Raises:
      UserError: if there is none.
    """
    path = Path(path)
    if is_file(path / MANIFEST) or STEP.fullmatch(path.name):
        return path
    existing = checkpoints_in(path)
    if existing:
        return existing[-1]
    if not path.exists():
        received = "there is nothing"
    elif not path.is_dir():
        received = "it is a file"
    else:
        names = sorted(entry.name for entry in path.iterdir())
        received = f"it holds {listed(names)}" if names else "it is empty"
    raise UserError(
        f"{path}: expected a checkpoint, or a directory of checkpoints (step-00000123, ...), but "
        f"{received}. Give the directory that a run had as --save_checkpoint_path."
    )


def checkpoints_in(directory: Path) -> list[Path]:
    """The checkpoints that are there, earliest first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def checkpoint_name(step: int, revision: int = 0) -> str:
    """Name of a checkpoint's directory.

    Args:
      step: the number of training steps done.
      revision: how often that step had been saved before.
    """
    return f"step-{step:08d}" + (f".{revision}" if revision else "")


def step_of(path: Path) -> tuple[int, int]:
    """`(step, revision)` from a checkpoint's name."""
    match = STEP.fullmatch(path.name)
    if match is None:
        raise ValueError(f"not the name of a checkpoint: {path}")
    return int(match[1]), int(match[2] or 0)


def plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples as lists, NumPy scalars as numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, os.PathLike) else value


def listed(names: Sequence[str], *, at_most: int = 6, separator: str = ", ") -> str:
    """The first of the names, and how many more there are."""
    shown = separator.join(names[:at_most])
    more = len(names) - at_most
    return f"{shown} and {more} more" if more > 0 else shown


def _content_checksum(content: dict[str, Any]) -> int:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return zlib.crc32(text.encode())
