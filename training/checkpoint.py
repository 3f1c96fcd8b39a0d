"""Checkpoints: directories of named arrays that are whole under their name, or not there.

A `CheckpointStore` holds one directory for each saved step:

  DIR/step-00000123/
    manifest.json    what is inside, with a checksum for each piece and one for the manifest itself
    data-00000.bin   the numbers of all tensors, one piece after another, each aligned to 64 bytes

A tensor is one or several pieces, and a piece is a set of its rows: `[start, stop, step]`, as in
`range`. One process writes one piece [0, rows, 1] for each tensor; processes that share a table may
each write a file of their own with the rows that they hold (contiguous blocks, or every n-th row),
and readers ask for the rows that *they* hold, so the number of processes may differ. What the
tensors are is up to the caller: tables, dense weights, optimizer slots and counters are all alike.

A save writes to a temporary name, flushes to disk, and renames. A process killed at any moment
leaves the earlier checkpoints as they were; what it leaves besides has a name that starts with a
dot, which readers ignore and the next run's `begin` removes. One process at a time may save to a
store. NumPy only: no TensorFlow here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from errors import UserError
from fs import atomic_directory, require_writable

FORMAT = "lookback-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_STEP = re.compile(r"step-(\d{8,})(?:\.(\d+))?")  # a second save of a step gets ".1"
_ALIGNMENT = 64  # bytes; a cache line, and what vector loads on a memory map like
_CHUNK = 1 << 24  # bytes written or checked at once: bounds memory, large enough for full speed
_DTYPES = "biuf"  # bool, integers, floats: what a plain array of bytes can hold portably


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """Some rows of a tensor, delivered block by block, so that a large table is never copied whole.

    Attributes:
      shape: shape of the *whole* tensor, `[rows, ...]`.
      dtype: type of its elements.
      blocks: called once for each save; yields arrays `[n, ...]` whose rows, one after another, are
        the rows `rows` names.
      rows: which rows of the tensor these are; None means all.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterable[NDArray]]
    rows: range | None = None


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Shape and type that a reader expects of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


Tensor = NDArray | RowBlocks | Sequence[RowBlocks]
"""What can be saved: an array, a table in blocks, or a table in several pieces."""


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Where some rows of a tensor lie."""

    rows: range
    file: str
    offset: int  # bytes
    size: int  # bytes
    crc32: int


class Checkpoint(Mapping[str, NDArray]):
    """A checkpoint on disk, read lazily: `checkpoint["name"]` maps memory instead of copying.

    Attributes:
      path: its directory.
      step: the step it was saved at.
      meta: the caller's own facts, as given to `save`.
      specs: name -> shape and type, in the order in which they were saved.

    Raises:
      UserError: on opening, if `path` is no checkpoint, or one that cannot be trusted.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True) -> None:
        """Opens a checkpoint.

        Args:
          path: a directory `step-...`.
          verify: compare the checksums of all data, which reads it once (about 1 GB/s). Without
            it, only the manifest and the sizes of the files are checked.
        """
        self.path = Path(path)
        content = _read_manifest(self.path)
        self.step: int = content["step"]
        self.meta: dict[str, Any] = content["meta"]
        self.specs: dict[str, TensorSpec] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        self._maps: dict[str, NDArray[np.uint8]] = {}
        for entry in content["tensors"]:
            name = entry["name"]
            self.specs[name] = TensorSpec(tuple(entry["shape"]), np.dtype(entry["dtype"]))
            self._pieces[name] = [
                _Piece(range(*p["rows"]), p["file"], p["offset"], p["bytes"], p["crc32"])
                for p in entry["pieces"]
            ]
        self._check_files(content["files"])
        if verify:
            self.verify()

    def __getitem__(self, name: str) -> NDArray:
        """The tensor, read-only: a memory map if it is stored in one piece."""
        if name not in self.specs:
            raise KeyError(name)
        return self.rows(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def rows(self, name: str, rows: range | None = None) -> NDArray:
        """The given rows of a tensor, wherever they lie.

        Args:
          name: the tensor's name.
          rows: e.g. `range(rank, table_rows, world_size)`; None means all.

        Returns:
          `[len(rows), ...]`, read-only; a memory map if one piece holds them, else a copy.
        """
        spec = self.specs[name]
        pieces = self._pieces[name]
        total = _row_count(spec.shape)
        rows = range(total) if rows is None else rows
        if len(rows) and not (0 <= rows[0] < total and 0 <= rows[-1] < total):
            raise ValueError(f"{name}: expected rows of [0, {total}), received {rows}")
        if len(pieces) == 1 and pieces[0].rows == range(total):
            stored = self._stored(name, pieces[0])
            if rows == range(total):
                return stored.reshape(spec.shape)
            return stored[rows.start : rows.stop : rows.step] if rows.step > 0 else stored[rows]
        result = np.empty((len(rows), *spec.shape[1:]), spec.dtype)
        wanted = np.arange(rows.start, rows.stop, rows.step)
        for piece in pieces:
            place, within = np.divmod(wanted - piece.rows.start, piece.rows.step)
            here = (within == 0) & (place >= 0) & (place < len(piece.rows))
            result[here] = self._stored(name, piece)[place[here]]
        result.flags.writeable = False
        return result.reshape(spec.shape) if rows == range(total) else result

    def verify(self) -> None:
        """Compares the checksum of every piece.

        Raises:
          UserError: naming the first tensor and file whose content has changed.
        """
        for name, pieces in self._pieces.items():
            for piece in pieces:
                data = self._bytes(piece)
                crc = 0
                for start in range(0, piece.size, _CHUNK):
                    crc = zlib.crc32(data[start : start + _CHUNK].data, crc)
                if crc != piece.crc32:
                    raise self._corrupt(
                        f"{piece.file}: the content of tensor {name!r} has changed (expected "
                        f"checksum {piece.crc32:08x}, received {crc:08x})"
                    )

    def require_tensors(self, expected: Mapping[str, TensorSpec | NDArray]) -> None:
        """Checks that the checkpoint holds exactly these tensors.

        Args:
          expected: name -> shape and type; anything with `.shape` and `.dtype` will do.

        Raises:
          UserError: naming missing, surplus, and differently shaped tensors.
        """
        problems = []
        missing = [f"{name} ({_spec(expected[name])})" for name in expected if name not in self]
        surplus = [f"{name} ({self.specs[name]})" for name in self if name not in expected]
        different = [
            f"{name} (expected {_spec(expected[name])}, received {self.specs[name]})"
            for name in expected
            if name in self and self.specs[name] != _spec(expected[name])
        ]
        for what, names in (
            ("missing", missing),
            ("not part of this model", surplus),
            ("of another shape or type", different),
        ):
            if names:
                problems.append(f"{what}: {_listed(names)}")
        if problems:
            raise UserError(
                f"the checkpoint {self.path} does not fit this model and optimizer. Tensors "
                f"{'; '.join(problems)}. Use the options and dataset that it was trained with."
            )

    def require_meta(self, expected: Mapping[str, Any]) -> None:
        """Checks facts about the run that saved the checkpoint, e.g. the model's configuration.

        Args:
          expected: key of `meta` -> the value it must have. A mapping is compared key by key, so
            that the message names the one option that differs.

        Raises:
          UserError: naming each key, what is expected here, and what the checkpoint has.
        """
        problems = list(_differences(_plain(dict(expected)), self.meta, ""))
        if problems:
            raise UserError(
                f"the checkpoint {self.path} comes from another configuration: "
                f"{_listed(problems, separator='; ')}. Use the options that it was trained with, "
                f"or start a new run without --load_checkpoint_path."
            )

    def _check_files(self, files: Mapping[str, int]) -> None:
        for name, size in files.items():
            path = self.path / name
            if not path.is_file():
                raise self._corrupt(f"{name} is missing (expected {size} bytes)")
            actual = path.stat().st_size
            if actual != size:
                raise self._corrupt(f"{name} has {actual} bytes, expected {size}")

    def _corrupt(self, what: str) -> UserError:
        others = [path for path in _checkpoints(self.path.parent) if path != self.path]
        fix = f"Use an earlier one, {others[-1]}" if others else "Restore it from a backup"
        return UserError(f"the checkpoint {self.path} is corrupt: {what}. {fix}, or start anew.")

    def _bytes(self, piece: _Piece) -> NDArray[np.uint8]:
        if piece.size == 0:
            return np.zeros(0, np.uint8)
        if piece.file not in self._maps:
            self._maps[piece.file] = np.asarray(np.memmap(self.path / piece.file, mode="r"))
        return self._maps[piece.file][piece.offset : piece.offset + piece.size]

    def _stored(self, name: str, piece: _Piece) -> NDArray:
        spec = self.specs[name]
        return self._bytes(piece).view(spec.dtype).reshape(len(piece.rows), *spec.shape[1:])


class CheckpointStore:
    """A directory of checkpoints, of which the last few are kept.

    Example:
      store = CheckpointStore(directory, keep=3)
      store.begin(resumed_from=None)
      store.save(100, {"table/item_id": table, "step": np.array(100)}, {"epoch": 1})
      checkpoint = store.load()
      checkpoint["table/item_id"]
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 3) -> None:
        """Names a store; touches nothing on disk.

        Args:
          directory: created by the first save.
          keep: how many of the latest steps to keep.
        """
        if keep < 1:
            raise ValueError(f"keep: expected 1 or more, received {keep}")
        self.directory = Path(directory)
        self.keep = keep

    def begin(self, resumed_from: Checkpoint | None) -> None:
        """Prepares for the saves of a run: clears leftovers, refuses to mix two runs.

        Args:
          resumed_from: the checkpoint the run continues from, wherever it lies; None for a run
            that starts at step 0.

        Raises:
          UserError: if the store holds checkpoints that are not earlier steps of this run.
        """
        existing = self.checkpoints()
        if existing and resumed_from is None:
            raise UserError(
                f"{self.directory} already holds the checkpoints of a run (the latest is "
                f"{existing[-1].name}). To continue it, give --load_checkpoint_path "
                f"{self.directory}; for a new run choose another --save_checkpoint_path, or remove "
                f"the directory."
            )
        if existing and resumed_from is not None:
            if resumed_from.path.resolve().parent != self.directory.resolve():
                raise UserError(
                    f"{self.directory} holds the checkpoints of another run than "
                    f"{resumed_from.path}, from which this run continues; saving there would "
                    "delete them. Choose another --save_checkpoint_path."
                )
            latest = _step_of(existing[-1])
            if latest > resumed_from.step:
                raise UserError(
                    f"{self.directory} holds {existing[-1].name}, which is later than step "
                    f"{resumed_from.step} of {resumed_from.path}, from which this run continues. "
                    f"Choose another --save_checkpoint_path, or remove the later checkpoints."
                )
        require_writable(self.directory, "save_checkpoint_path")
        for path in self.directory.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Saves a checkpoint, then deletes those beyond the last `keep` steps.

        Saving a step again replaces it, once the new one is whole.

        Args:
          step: the number of training steps done.
          tensors: name -> what to save. Arrays of bool, integers or floats.
          meta: facts about the run that JSON can hold.

        Returns:
          The checkpoint's directory.

        Raises:
          UserError: if the disk is full; the earlier checkpoints stay as they were.
          ValueError: if `step` is earlier than the latest of the store, blocks do not deliver the
            rows they name, or a type cannot be stored.
        """
        existing = self.checkpoints()
        if existing and _step_of(existing[-1]) > step:
            raise ValueError(
                f"save at step {step}: the store already holds {existing[-1].name}; call begin()"
            )
        name = f"step-{step:08d}"
        revisions = [_order(path)[1] for path in existing if _step_of(path) == step]
        if revisions:
            name += f".{max(revisions) + 1}"
        path = self.directory / name
        facts = _plain(dict(meta))
        json.dumps(facts, allow_nan=False)  # what JSON cannot hold fails now, not after the tables
        plan = {name: _pieces_of(name, tensor) for name, tensor in tensors.items()}
        try:
            self._require_space(plan)
            with atomic_directory(path) as temporary:
                entries, size = _write_data(temporary / "data-00000.bin", plan)
                content = {
                    "step": int(step),
                    "meta": facts,
                    "files": {"data-00000.bin": size},
                    "tensors": entries,
                }
                _write_manifest(temporary / MANIFEST, content)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"no space left for the checkpoint of step {step} in {self.directory}; the "
                f"earlier ones are unharmed. Free some space, lower --keep_checkpoints, or choose "
                f"another --save_checkpoint_path, and continue with --load_checkpoint_path "
                f"{self.directory}."
            ) from error
        self._delete_old()
        return path

    def checkpoints(self) -> list[Path]:
        """The checkpoints that are there, earliest first."""
        return _checkpoints(self.directory)

    def latest(self) -> Path | None:
        """The checkpoint of the latest step, or None."""
        existing = self.checkpoints()
        return existing[-1] if existing else None

    def load(self, path: Path | None = None, *, verify: bool = True) -> Checkpoint:
        """Opens a checkpoint; the latest if `path` is None.

        Raises:
          UserError: if there is none, or it cannot be trusted.
        """
        return Checkpoint(path or find_checkpoint(self.directory), verify=verify)

    def _require_space(self, plan: Mapping[str, Sequence[RowBlocks]]) -> None:
        needed = sum(
            _piece_bytes(piece) + _ALIGNMENT for pieces in plan.values() for piece in pieces
        )
        place = next(p for p in (self.directory, *self.directory.absolute().parents) if p.exists())
        if shutil.disk_usage(place).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))

    def _delete_old(self) -> None:
        """Keeps the latest save of each of the last `keep` steps."""
        latest_of_step = {_step_of(path): path for path in self.checkpoints()}
        kept = list(latest_of_step.values())[-self.keep :]
        for path in self.checkpoints():
            if path not in kept:
                # Renamed first: a half-deleted directory must not look like a checkpoint.
                doomed = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
                path.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint that a user means by `path`: itself, or the latest in it.

    Raises:
      UserError: if there is none.
    """
    path = Path(path)
    if (path / MANIFEST).is_file() or _STEP.fullmatch(path.name):
        return path
    existing = _checkpoints(path)
    if existing:
        return existing[-1]
    if not path.exists():
        received = "there is nothing"
    elif not path.is_dir():
        received = "it is a file"
    else:
        names = sorted(entry.name for entry in path.iterdir())
        received = f"it holds {_listed(names)}" if names else "it is empty"
    raise UserError(
        f"{path}: expected a checkpoint, or a directory of checkpoints (step-00000123, ...), but "
        f"{received}. Give the directory that a run had as --save_checkpoint_path."
    )


def _checkpoints(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_order)


def _order(path: Path) -> tuple[int, int]:
    """`(step, revision)` from a checkpoint's name."""
    match = _STEP.fullmatch(path.name)
    if match is None:
        raise ValueError(f"not the name of a checkpoint: {path}")
    return int(match[1]), int(match[2] or 0)


def _step_of(path: Path) -> int:
    return _order(path)[0]


def _pieces_of(name: str, tensor: Tensor) -> list[RowBlocks]:
    """The tensor as pieces that together hold each row once."""
    if isinstance(tensor, RowBlocks):
        pieces = [tensor]
    elif isinstance(tensor, np.ndarray | np.generic):
        pieces = [_whole(np.asarray(tensor))]
    else:
        pieces = list(tensor)
    first = pieces[0]
    dtype = np.dtype(first.dtype)
    if dtype.kind not in _DTYPES:
        raise ValueError(
            f"{name}: expected bool, integers or floats, received {dtype}; convert it before saving"
        )
    total = _row_count(first.shape)
    for piece in pieces:
        if piece.shape != first.shape or np.dtype(piece.dtype) != dtype:
            raise ValueError(f"{name}: its pieces differ in shape or type")
    if len(pieces) > 1 or first.rows is not None:
        held = np.zeros(total, np.int8)
        for piece in pieces:
            rows = _rows_of(piece)
            if len(rows) and not (rows.step > 0 and rows.start >= 0 and rows[-1] < total):
                raise ValueError(f"{name}: expected rows of [0, {total}), received {rows}")
            held[rows.start : rows.stop : rows.step] += 1
        if not np.all(held == 1):
            row = int(np.flatnonzero(held != 1)[0])
            raise ValueError(f"{name}: row {row} is in {held[row]} pieces, expected 1")
    return pieces


def _whole(array: NDArray) -> RowBlocks:
    return RowBlocks(array.shape, array.dtype, lambda: [array])


def _rows_of(piece: RowBlocks) -> range:
    return range(_row_count(piece.shape)) if piece.rows is None else piece.rows


def _row_count(shape: Sequence[int]) -> int:
    return shape[0] if len(shape) else 1  # a scalar is one row


def _row_bytes(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(dtype).itemsize


def _piece_bytes(piece: RowBlocks) -> int:
    return len(_rows_of(piece)) * _row_bytes(piece.shape, piece.dtype)


def _write_data(
    path: Path, plan: Mapping[str, Sequence[RowBlocks]]
) -> tuple[list[dict[str, Any]], int]:
    """Writes all pieces to one file; returns the manifest's entries and the file's size."""
    entries = []
    with path.open("wb") as file:
        for name, pieces in plan.items():
            written = []
            for piece in pieces:
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                rows = _rows_of(piece)
                offset = file.tell()
                crc = _write_piece(file, name, piece)
                written.append(
                    {
                        "rows": [rows.start, rows.stop, rows.step],
                        "file": path.name,
                        "offset": offset,
                        "bytes": file.tell() - offset,
                        "crc32": crc,
                    }
                )
            dtype = np.dtype(pieces[0].dtype).newbyteorder("<")
            entries.append(
                {
                    "name": name,
                    "shape": list(pieces[0].shape),
                    "dtype": dtype.str,
                    "pieces": written,
                }
            )
        return entries, file.tell()


def _write_piece(file: BinaryIO, name: str, piece: RowBlocks) -> int:
    """Writes the blocks one after another; returns their checksum."""
    dtype = np.dtype(piece.dtype)
    crc = size = 0
    for block in piece.blocks():
        if block.dtype != dtype or block.shape[1:] != piece.shape[1:]:
            raise ValueError(
                f"{name}: expected blocks {dtype} [n, {str(list(piece.shape[1:]))[1:-1]}], "
                f"received {block.dtype} {list(block.shape)}"
            )
        rows = block.reshape(1) if block.ndim == 0 else block
        at_once = max(1, _CHUNK // max(1, _row_bytes(piece.shape, dtype)))
        for start in range(0, len(rows), at_once):
            # A copy only of what is not contiguous or not little-endian, a chunk at a time.
            chunk = np.ascontiguousarray(
                rows[start : start + at_once], dtype=dtype.newbyteorder("<")
            )
            data = chunk.reshape(-1).view(np.uint8).data
            crc = zlib.crc32(data, crc)
            file.write(data)
            size += len(data)
    if size != _piece_bytes(piece):
        raise ValueError(
            f"{name}: expected {len(_rows_of(piece))} rows of {piece.shape}, received {size} bytes "
            f"instead of {_piece_bytes(piece)}"
        )
    return crc


def _write_manifest(path: Path, content: dict[str, Any]) -> None:
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "crc32": _content_checksum(content),
        "content": content,
    }
    path.write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _read_manifest(path: Path) -> dict[str, Any]:
    """The manifest's content, if it is one of ours, of this version, and as it was written."""
    file = path / MANIFEST
    if not file.is_file():
        what = "there is no such directory" if not path.exists() else f"it has no {MANIFEST}"
        raise UserError(
            f"{path} is not a checkpoint: {what}. Give the directory that a run had as "
            f"--save_checkpoint_path, or one step-... directory in it."
        )
    manifest: Any = None
    with contextlib.suppress(ValueError):  # what is not UTF-8 or not JSON
        manifest = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(manifest, dict):
        raise UserError(f"the checkpoint {path} is corrupt: {MANIFEST} is not a JSON object.")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a checkpoint of ours: expected the format {FORMAT!r} in {MANIFEST}, "
            f"received {manifest.get('format')!r}."
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"the checkpoint {path} has format version {manifest.get('format_version')!r}, "
            f"expected {FORMAT_VERSION}. Load it with the version that wrote it."
        )
    content = manifest.get("content")
    if not isinstance(content, dict) or _content_checksum(content) != manifest.get("crc32"):
        raise UserError(
            f"the checkpoint {path} is corrupt: {MANIFEST} has changed since it was written."
        )
    return content


def _content_checksum(content: dict[str, Any]) -> int:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return zlib.crc32(text.encode())


def _plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples as lists, NumPy scalars as numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, os.PathLike) else value


def _spec(tensor: TensorSpec | NDArray) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), np.dtype(tensor.dtype))


def _differences(expected: Mapping[str, Any], received: Any, prefix: str) -> Iterator[str]:
    for key in dict.fromkeys([*expected, *(received if prefix else ())]):
        theirs, name = received.get(key, "nothing"), f"{prefix}{key}"
        ours = expected.get(key, "nothing")
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from _differences(ours, theirs, f"{name}.")
        elif ours != theirs:
            yield f"{name}: expected {ours!r}, received {theirs!r}"


def _listed(names: Sequence[str], *, at_most: int = 6, separator: str = ", ") -> str:
    shown = separator.join(names[:at_most])
    more = len(names) - at_most
    return f"{shown} and {more} more" if more > 0 else shown
