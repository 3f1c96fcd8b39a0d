"""What a checkpoint is made of, and how it gets into the data files of `checkpoints.format`."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookback.checkpoints.manifest import (
    Entry,
    Region,
    TensorSpec,
    check_region,
    entry_of,
    plain_region,
    region_of,
    spec_of,
)
from lookback.core.errors import UserError
from lookback.core.outputs import FULL

CHUNK = 1 << 24
"""Bytes written or checked at once: bounds memory, large enough for full speed."""

BLOCK = 1 << 22
"""Bytes of a block that is read, unless the caller says: small beside a process."""

_ALIGNMENT = 64  # bytes; a cache line, and what vector loads on a memory map like
_NOTHING = TensorSpec((), np.dtype(bool))
_DTYPES = "biuf"  # bool, integers, floats: what a plain array of bytes can hold portably


@dataclasses.dataclass(frozen=True)
class RowBlocks:
    """Some rows of a tensor, delivered block by block, so that a large table is never copied whole.

    Attributes:
      shape: shape of the *whole* tensor, `[rows, ...]`.
      dtype: type of its elements.
      blocks: called once for each save; yields arrays `[n, ...]` whose rows, one after another, are
        the rows `rows` names, `[n, len(columns)]` if some columns are held.
      rows: which rows of the tensor these are; None means all.
      columns: which contiguous columns of a matrix these are; None means all.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Callable[[], Iterable[NDArray]]
    rows: range | None = None
    columns: range | None = None


Tensor = NDArray | RowBlocks | Sequence[RowBlocks]
"""What can be saved: an array, a table in blocks, or a table in several pieces (or in none)."""


class DataFile:
    """A data file that is being written, one piece after another; on disk when closed.

    Attributes:
      path: of the file.
      size: bytes written so far.
      entries: the manifest's entries of the tensors it has pieces of.
    """

    def __init__(self, path: Path) -> None:
        """Creates the file."""
        self.path = path
        self.size = 0
        self.entries: list[Entry] = []
        self._file = path.open("wb")
        self._name, self._spec, self._region = "", _NOTHING, Region(range(0), range(0))
        self._offset, self._digest = 0, hashlib.sha256()

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    def begin(self, name: str, spec: TensorSpec, region: Region) -> None:
        """Starts a piece; blocks follow.

        Args:
          name: of the tensor.
          spec: of the whole tensor.
          region: what the piece holds.
        """
        self._name, self._spec, self._region = name, spec, region
        padding = -self.size % _ALIGNMENT
        self._file.write(bytes(padding))
        self.size += padding
        self._offset, self._digest = self.size, hashlib.sha256()

    def write(self, block: NDArray) -> None:
        """Appends rows to the piece.

        Args:
          block: `[n, ...]`, or a scalar.

        Raises:
          ValueError: if it is not of the tensor's type and the region's row shape.
        """
        dtype, shape = self._spec.dtype, self._region.row_shape(self._spec)
        if block.dtype != dtype or block.shape[1:] != shape:
            raise ValueError(
                f"{self._name}: expected blocks {dtype} [n, {str(list(shape))[1:-1]}], "
                f"received {block.dtype} {list(block.shape)}"
            )
        rows = block.reshape(1) if block.ndim == 0 else block
        row_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        at_once = max(1, CHUNK // max(1, row_bytes))
        for start in range(0, len(rows), at_once):
            # A copy only of what is not contiguous or not little-endian, a chunk at a time.
            chunk = np.ascontiguousarray(
                rows[start : start + at_once], dtype=dtype.newbyteorder("<")
            )
            data = chunk.reshape(-1).view(np.uint8).data
            self._digest.update(data)
            self._file.write(data)
            self.size += len(data)

    def end(self) -> None:
        """Completes the piece.

        Raises:
          ValueError: if it is not of the size that its rows have.
        """
        size, expected = self.size - self._offset, self._region.size(self._spec)
        if size != expected:
            raise ValueError(
                f"{self._name}: expected {len(self._region.rows)} rows of "
                f"{list(self._spec.shape)}, received {size} bytes instead of {expected}"
            )
        if not self.entries or self.entries[-1]["name"] != self._name:
            self.entries.append(entry_of(self._name, self._spec))
        self.entries[-1]["pieces"].append(
            {
                **plain_region(self._region),
                "file": self.path.name,
                "offset": self._offset,
                "bytes": size,
                "sha256": self._digest.hexdigest(),
            }
        )


def data_file(rank: int) -> str:
    """Name of the file that a rank writes."""
    return f"data-{rank:05d}.bin"


def write_pieces(path: Path, tensors: Mapping[str, Tensor]) -> tuple[list[Entry], int]:
    """Writes all pieces to one file and flushes it to disk.

    Args:
      path: the file to create.
      tensors: name -> what to save.

    Returns:
      The manifest's entries, and the file's size.

    Raises:
      ValueError: if blocks do not deliver the rows they name, or a type cannot be stored.
    """
    with DataFile(path) as file:
        for name, tensor in tensors.items():
            for piece in pieces_of(name, tensor):
                file.begin(name, tensor_spec(piece), _region(piece))
                for block in piece.blocks():
                    file.write(block)
                file.end()
    return file.entries, file.size


def require_space(directory: Path, needed: int) -> None:
    """Checks that a file system has room.

    Args:
      directory: in it, whether or not it exists yet.
      needed: bytes.

    Raises:
      OSError: as when the disk is full, if it has not.
    """
    place = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if shutil.disk_usage(place).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


@contextlib.contextmanager
def full_disk_means(message: str) -> Iterator[None]:
    """Turns the system's error of a full disk into one that says what to do.

    Args:
      message: of the UserError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(message) from error


def layout_of(tensors: Mapping[str, Tensor]) -> list[Entry]:
    """What `write_pieces` would write: entries whose pieces have rows and columns only.

    Raises:
      ValueError: if a type cannot be stored, or rows are not of the tensor.
    """
    entries = []
    for name, tensor in tensors.items():
        pieces = pieces_of(name, tensor)
        if pieces:
            entry = entry_of(name, tensor_spec(pieces[0]))
            entry["pieces"] = [plain_region(_region(piece)) for piece in pieces]
        else:
            entry = {"name": name, "shape": None, "dtype": None, "pieces": []}
        entries.append(entry)
    return entries


def bytes_of(entries: Iterable[Entry]) -> int:
    """How much a data file with these entries takes at most."""
    return sum(
        region_of(piece, spec_of(entry)).size(spec_of(entry)) + _ALIGNMENT
        for entry in entries
        for piece in entry["pieces"]
    )


def pieces_of(name: str, tensor: Tensor) -> list[RowBlocks]:
    """The tensor as pieces.

    Raises:
      ValueError: if its type cannot be stored, or it has no such rows or columns.
    """
    if isinstance(tensor, RowBlocks):
        pieces = [tensor]
    elif isinstance(tensor, np.ndarray | np.generic):
        pieces = [_whole(np.asarray(tensor))]
    else:
        pieces = list(tensor)
    for piece in pieces:
        spec = tensor_spec(piece)
        if spec.dtype.kind not in _DTYPES:
            raise ValueError(
                f"{name}: expected bool, integers or floats, received {spec.dtype}; convert it "
                "before saving"
            )
        if spec != tensor_spec(pieces[0]):
            raise ValueError(f"{name}: its pieces differ in shape or type")
        check_region(name, spec, _region(piece))
    return pieces


def rows_of_block(spec: TensorSpec, columns: range | None = None) -> int:
    """How many rows make a block of 4 MiB; at least one.

    Args:
      spec: of the tensor.
      columns: that are wanted of it; None: all.
    """
    region = Region(range(1), range(spec.column_count) if columns is None else columns)
    return max(1, BLOCK // max(1, region.size(spec)))


def _whole(array: NDArray) -> RowBlocks:
    return RowBlocks(array.shape, array.dtype, lambda: [array])


def tensor_spec(tensor: TensorSpec | RowBlocks | NDArray) -> TensorSpec:
    """Shape and type of a tensor, whole."""
    return TensorSpec(tuple(tensor.shape), np.dtype(tensor.dtype))


def _region(piece: RowBlocks) -> Region:
    spec = tensor_spec(piece)
    rows = range(spec.row_count) if piece.rows is None else piece.rows
    return Region(rows, range(spec.column_count) if piece.columns is None else piece.columns)
