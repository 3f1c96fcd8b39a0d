"""The format of checkpoints: directories of named arrays, readable by any number of processes.

  step-00000123/
    manifest.json    what is inside, with a SHA-256 for each piece and a checksum of its own
    data-00000.bin   the numbers that rank 0 held, one piece after another, aligned to 64 bytes
    data-00001.bin   those of rank 1, and so on

A tensor is one or several pieces. A piece holds some of its rows, `[start, stop, step]` as in
`range`, and of a matrix `[rows, dim]` a contiguous run of columns; a row of any other tensor is one
column. Each process writes a file with the pieces that it holds, and readers ask for the rows and
columns that *they* hold, so the number of processes and the way tables are cut may differ. Rows
that are in no piece, or in two, are refused. What the tensors are is up to the caller: tables,
dense weights, optimizer slots and counters are all alike.

`checkpoints.store` saves a run's checkpoints, whole or not at all. NumPy only: no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lookback.checkpoints.data_file import BLOCK, CHUNK, rows_of_block, tensor_spec
from lookback.checkpoints.differences import differences
from lookback.checkpoints.manifest import (
    MANIFEST,
    Region,
    TensorSpec,
    check_cover,
    check_region,
    checkpoints_in,
    has_digests,
    listed,
    plain,
    read_manifest,
    region_of,
    spec_of,
)
from lookback.checkpoints.ranges import contains, intersect, place
from lookback.core.digests import reading
from lookback.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where a region of a tensor lies.

    Attributes:
      region: what it holds.
      file: name of the data file.
      offset: of its first byte.
      size: in bytes.
      checksum: of its bytes, in hexadecimal: SHA-256 (of versions 1 and 2, CRC-32).
    """

    region: Region
    file: str
    offset: int
    size: int
    checksum: str


class Checkpoint(Mapping[str, NDArray]):
    """A checkpoint on disk, read lazily: `checkpoint["name"]` maps memory instead of copying.

    Attributes:
      path: its directory.
      format_version: of its manifest.
      digest: SHA-256 of its manifest, which has the checksums of all data.
      step: the step it was saved at.
      meta: the caller's own facts, as given when it was saved.
      specs: name -> shape and type, in the order in which they were saved.
      pieces: name -> where its pieces lie.
      files: name -> bytes of each data file.

    Raises:
      UserError: on opening, if `path` is no checkpoint, or one that cannot be trusted.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        trusted_digest: str | None = None,
    ) -> None:
        """Opens a checkpoint.

        Args:
          path: a directory `step-...`.
          verify: compare the checksums of all data, which reads it once (about 1 GB/s). Without
            it, only the manifest and the sizes of the files are checked.
          trusted_digest: SHA-256 that the manifest must have; None: any.
        """
        self.path = Path(path)
        manifest, self.digest = read_manifest(self.path, trusted_digest)
        content = manifest["content"]
        self.format_version: int = manifest["format_version"]
        self.step: int = content["step"]
        self.meta: dict[str, Any] = content["meta"]
        self.files: dict[str, int] = content["files"]
        self.specs: dict[str, TensorSpec] = {}
        self.pieces: dict[str, list[Piece]] = {}
        self._maps: dict[str, mmap.mmap] = {}
        for entry in content["tensors"]:
            spec = spec_of(entry)
            self.specs[entry["name"]] = spec
            self.pieces[entry["name"]] = [
                Piece(region_of(p, spec), p["file"], p["offset"], p["bytes"], self._noted(p))
                for p in entry["pieces"]
            ]
        self._check_files()
        self._check_pieces()
        if verify:
            self.verify()

    def __getitem__(self, name: str) -> NDArray:
        """The tensor, read-only: a memory map if it is stored in one piece."""
        if name not in self.specs:
            raise KeyError(name)
        return self.rows(name).reshape(self.specs[name].shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs  # Mapping's own would read the tensor

    def rows(self, name: str, rows: range | None = None, columns: range | None = None) -> NDArray:
        """The given rows and columns of a tensor, wherever they lie.

        Args:
          name: the tensor's name.
          rows: e.g. `range(rank, table_rows, world_size)`; None means all.
          columns: contiguous columns of a matrix; None means all.

        Returns:
          `[len(rows), ...]` or `[len(rows), len(columns)]`, read-only; a memory map if one piece
          holds them all, else a copy.
        """
        spec = self.specs[name]
        wanted = _wanted(name, spec, rows, columns)
        for piece in self.pieces[name]:
            held = piece.region
            if contains(held.rows, wanted.rows) and contains(held.columns, wanted.columns):
                return self._part(name, piece, wanted)
        result = np.empty((len(wanted.rows), *wanted.row_shape(spec)), spec.dtype)
        for piece in self.pieces[name]:
            common = _common(piece.region, wanted)
            if common.rows and common.columns:
                into = place(common.rows, wanted.rows)
                if len(spec.shape) == 2:
                    across = place(common.columns, wanted.columns)
                    result[into, across] = self._part(name, piece, common)
                else:
                    result[into] = self._part(name, piece, common)
        result.flags.writeable = False
        return result

    def blocks(
        self,
        name: str,
        rows: range | None = None,
        columns: range | None = None,
        rows_a_block: int | None = None,
    ) -> Iterator[NDArray]:
        """What `rows` gives, block by block, with the memory of one block.

        Args:
          name: the tensor's name.
          rows: as in `rows`.
          columns: as in `rows`.
          rows_a_block: rows of each array but the last; None: as many as make 4 MiB, fewer if
            `rows` are so far apart that a page of memory is read for each.

        Yields:
          Arrays `[n, ...]`, read-only, in the order of `rows`; each is to be used before the next.
        """
        spec = self.specs[name]
        wanted = _wanted(name, spec, rows, columns)
        at_once = rows_a_block or _rows_at_once(spec, wanted)
        for start in range(0, len(wanted.rows), at_once):
            yield self.rows(name, wanted.rows[start : start + at_once], columns)
            self.release()

    def take(self, name: str, rows: NDArray[np.int64], columns: range | None = None) -> NDArray:
        """Rows of a tensor in any order, wherever they lie; only what is asked for is read.

        Args:
          name: the tensor's name.
          rows: `[N]`, of the tensor; may repeat.
          columns: as in `rows`.

        Returns:
          `[N, ...]`, a copy.
        """
        spec = self.specs[name]
        wanted = _wanted(name, spec, range(0), columns)
        if len(rows) and not 0 <= rows.min() <= rows.max() < spec.row_count:
            raise ValueError(
                f"{name}: expected rows of [0, {spec.row_count}), received "
                f"[{rows.min()}, {rows.max()}]"
            )
        result = np.empty((len(rows), *wanted.row_shape(spec)), spec.dtype)
        for piece in self.pieces[name]:
            held = piece.region
            common = Region(held.rows, intersect(held.columns, wanted.columns))
            if not common.rows or not common.columns:
                continue
            places, beyond = np.divmod(rows - held.rows.start, held.rows.step)
            here = np.flatnonzero((beyond == 0) & (places >= 0) & (places < len(held.rows)))
            part = self._part(name, piece, common)[places[here]]
            if len(spec.shape) == 2:
                across = place(common.columns, wanted.columns)
                result[here, across] = part
            else:
                result[here] = part
        self.release()
        return result

    def release(self) -> None:
        """Lets go of the memory of what was read so far; maps that are in use read it again."""
        for mapped in self._maps.values():
            mapped.madvise(mmap.MADV_DONTNEED)

    def verify(self, part: tuple[int, int] = (0, 1), *, names: Iterable[str] | None = None) -> None:
        """Compares the checksum of every piece, or of a share of the pieces.

        Args:
          part: `(rank, ranks)`: the pieces are dealt out over so many ranks, in near equal bytes,
            and those of `rank` are checked.
          names: of the tensors to check; None: all.

        Raises:
          UserError: naming the first tensor and file whose content has changed.
        """
        rank, ranks = part
        for name, piece in self.shares(ranks, self if names is None else names)[rank]:
            found = self._checksum(piece)
            if found != piece.checksum:
                raise self._corrupt(
                    f"{piece.file}: the content of tensor {name!r} has changed (expected "
                    f"checksum {piece.checksum}, received {found})"
                )

    def require_tensors(self, expected: Mapping[str, TensorSpec | NDArray]) -> None:
        """Checks that the checkpoint holds exactly these tensors.

        Args:
          expected: name -> shape and type; anything with `.shape` and `.dtype` will do.

        Raises:
          UserError: naming missing, surplus, and differently shaped tensors.
        """
        problems = []
        missing = [
            f"{name} ({tensor_spec(expected[name])})" for name in expected if name not in self
        ]
        surplus = [f"{name} ({self.specs[name]})" for name in self if name not in expected]
        different = [
            f"{name} (expected {tensor_spec(expected[name])}, received {self.specs[name]})"
            for name in expected
            if name in self and self.specs[name] != tensor_spec(expected[name])
        ]
        for what, names in (
            ("missing", missing),
            ("not part of this model", surplus),
            ("of another shape or type", different),
        ):
            if names:
                problems.append(f"{what}: {listed(names)}")
        if problems:
            raise UserError(
                f"the checkpoint {self.path} does not fit this model and optimizer. Tensors "
                f"{'; '.join(problems)}. Use the options and dataset that it was trained with."
            )

    def require_meta(self, expected: Mapping[str, Any], no_options: Sequence[str] = ()) -> None:
        """Checks facts about the run that saved the checkpoint, e.g. the model's configuration.

        Args:
          expected: key of `meta` -> the value it must have. A mapping is compared key by key, so
            that the message names the one option that differs.
          no_options: keys in such a mapping that are not the name of an option.

        Raises:
          UserError: naming each key, what is expected here, and what the checkpoint has; and the
            options that would be as the checkpoint's.
        """
        problems = list(differences(plain(dict(expected)), self.meta))
        problems.sort(key=lambda d: d.name.count("."))  # options before what follows from them
        if problems:
            told = [f"{d.name}: expected {d.ours!r}, received {d.theirs!r}" for d in problems]
            flags = [d.flag for d in problems if d.flag and d.key not in no_options]
            given = f" (here: {' '.join(flags)})" if flags else ""
            raise UserError(
                f"the checkpoint {self.path} comes from another configuration: "
                f"{listed(told, separator='; ')}. Use the options that it was trained with{given}, "
                f"or start a new run without --load_checkpoint_path."
            )

    def _check_files(self) -> None:
        for name, size in self.files.items():
            path = self.path / name
            if not path.is_file():
                raise self._corrupt(f"{name} is missing (expected {size} bytes)")
            actual = path.stat().st_size
            if actual != size:
                raise self._corrupt(f"{name} has {actual} bytes, expected {size}")

    def _check_pieces(self) -> None:
        for name, pieces in self.pieces.items():
            spec = self.specs[name]
            try:
                check_cover(name, spec, [piece.region for piece in pieces])
            except ValueError as error:
                raise self._corrupt(str(error)) from error
            for piece in pieces:
                size, end = piece.region.size(spec), piece.offset + piece.size
                if piece.size != size or end > self.files.get(piece.file, 0):
                    raise self._corrupt(
                        f"a piece of {name} of {piece.size} bytes, expected {size}, ends at byte "
                        f"{end} of {piece.file}, which has {self.files.get(piece.file, 0)}"
                    )

    def shares(self, ranks: int, names: Iterable[str]) -> list[list[tuple[str, Piece]]]:
        """All pieces dealt out over ranks: the largest first, to the rank with the least so far."""
        shares: list[list[tuple[str, Piece]]] = [[] for _ in range(ranks)]
        loads = [0] * ranks
        pieces = [(name, piece) for name in names for piece in self.pieces[name]]
        if ranks > 1:
            pieces.sort(key=lambda named: -named[1].size)
        for name, piece in pieces:
            rank = loads.index(min(loads))
            shares[rank].append((name, piece))
            loads[rank] += piece.size
        return shares

    def _noted(self, piece: Mapping[str, Any]) -> str:
        """The checksum that the manifest has of a piece."""
        kind = "sha256" if has_digests(self.format_version) else "crc32"
        if kind not in piece:
            raise self._corrupt(f"{MANIFEST} is of format {self.format_version}, without {kind}")
        return piece[kind] if kind == "sha256" else f"{piece[kind]:08x}"

    def _checksum(self, piece: Piece) -> str:
        """The checksum that a piece has."""
        data = self._bytes(piece)
        digest, crc = hashlib.sha256(), 0
        for start in range(0, piece.size, CHUNK):
            chunk = data[start : start + CHUNK].data
            if has_digests(self.format_version):
                digest.update(chunk)
            else:
                crc = zlib.crc32(chunk, crc)
            self.release()
        return digest.hexdigest() if has_digests(self.format_version) else f"{crc:08x}"

    def _corrupt(self, what: str) -> UserError:
        others = [path for path in checkpoints_in(self.path.parent) if path != self.path]
        fix = f"Use an earlier one, {others[-1]}" if others else "Restore it from a backup"
        return UserError(f"the checkpoint {self.path} is corrupt: {what}. {fix}, or start anew.")

    def _bytes(self, piece: Piece) -> NDArray[np.uint8]:
        if piece.size == 0:
            return np.frombuffer(b"", np.uint8)
        if piece.file not in self._maps:
            path = self.path / piece.file
            with reading(path), path.open("rb") as file:
                self._maps[piece.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(self._maps[piece.file], np.uint8, piece.size, piece.offset)

    def _part(self, name: str, piece: Piece, wanted: Region) -> NDArray:
        """What is wanted of a piece that holds it all; maps memory."""
        spec, held = self.specs[name], piece.region
        shape = (len(held.rows), *held.row_shape(spec))
        part: NDArray = self._bytes(piece).view(spec.dtype).reshape(shape)
        part = part[place(wanted.rows, held.rows)]
        return part[:, place(wanted.columns, held.columns)] if len(spec.shape) == 2 else part


def _rows_at_once(spec: TensorSpec, wanted: Region) -> int:
    """Rows whose block is small, and whose pages are not many blocks."""
    row_bytes = Region(range(1), range(spec.column_count)).size(spec)
    touched = min(abs(wanted.rows.step) * row_bytes, row_bytes + mmap.PAGESIZE)
    return max(1, min(rows_of_block(spec, wanted.columns), 4 * BLOCK // max(1, touched)))


def _wanted(name: str, spec: TensorSpec, rows: range | None, columns: range | None) -> Region:
    """What a reader asks for; rows may descend.

    Raises:
      ValueError: if the tensor has no such rows or columns.
    """
    count, width = spec.row_count, spec.column_count
    rows = range(count) if rows is None else rows
    columns = range(width) if columns is None else columns
    if rows and not (0 <= rows[0] < count and 0 <= rows[-1] < count):
        raise ValueError(f"{name}: expected rows of [0, {count}), received {rows}")
    check_region(name, spec, Region(range(0), columns))
    return Region(rows, columns)


def _common(held: Region, wanted: Region) -> Region:
    return Region(intersect(held.rows, wanted.rows), intersect(held.columns, wanted.columns))
