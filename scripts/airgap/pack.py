"""Writes a pack: `scripts/airgap.sh pack` says how it is called, `contents.py` what is in it.

The slices, one after another, are one stream of a tar archive in xz, so that
`cat slice-*.tar.xz | xz -dc | tar x` reads them, too. It consists of many xz streams, one for each
block of the archive: they are compressed, and expanded by `unpack.py`, beside one another. Python
itself comes first and in gzip, which every target has.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import platform
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lookback import __version__
from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.core.faults import guarded
from lookback.core.sizes import format_size, parse_size
from lookback.scripts.airgap.contents import (
    ROOT,
    Piece,
    interpreter,
    locked,
    ours,
    packages,
    shared_libraries,
)

BLOCK = 32 << 20  # bytes of the archive in one xz stream; four times the dictionary of level 6
LARGEST_SLICE = 60 << 20
PYTHON_ARCHIVE = "python.tar.gz"
GIVEN = ("unpack.sh", "unpack.py")


def main(arguments: list[str]) -> None:
    """Packs.

    Args:
      arguments: see `scripts/airgap.sh --help`.

    Raises:
      UserError: for what the user can put right.
    """
    options = _parse(arguments)
    slice_size = int(parse_size(options.slice, "--slice"))
    if not 1 << 20 <= slice_size <= LARGEST_SLICE:
        raise UserError(f"--slice: expected 1MiB to 60MiB, received {options.slice}.")
    output = Path(options.output).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output: {output} exists and is not an empty directory. Choose another.")
    environment = Path(options.environment or ROOT / (".gpu" if options.gpu else ".venv"))
    output.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    # It appears under its name once it is whole.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        made = Path(scratch, "pack")
        made.mkdir()
        python, rest = _pieces(environment, options.gpu, Path(scratch))
        facts = _pack(made, python, rest, options.gpu, slice_size, options.compression)
        if output.exists():
            output.rmdir()
        made.rename(output)
    slices = len(facts["slices"])
    size = sum(path.stat().st_size for path in output.iterdir())
    print(
        f"{output}: {slices} slices and Python, {format_size(size)} ({format_size(facts['bytes'])} "
        f"unpacked), in {time.monotonic() - started:.0f} s\n"
        f"sha256 of its SHA256SUMS: {digest_of(output / 'SHA256SUMS')}\n"
        f"on the target: sh {output.name}/unpack.sh TARGET"
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/airgap.sh pack", allow_abbrev=False)
    parser.add_argument("--output", required=True, metavar="DIR", help="to make; new or empty")
    parser.add_argument(
        "--gpu", metavar="sm_NN", help="pack the GPU's stack, cut to this architecture"
    )
    parser.add_argument(
        "--environment", metavar="DIR", help="to pack; default: .venv, with --gpu .gpu"
    )
    parser.add_argument(
        "--slice", default="54MiB", metavar="SIZE", help="of a file at most (default: 54MiB)"
    )
    parser.add_argument(
        "--compression", type=int, choices=range(10), default=6, metavar="0..9", help="default: 6"
    )
    return parser.parse_args(arguments)


def _pieces(environment: Path, gpu: str | None, scratch: Path) -> tuple[list[Piece], list[Piece]]:
    """Python, and all else; `scratch` is for what is made."""
    python = list(interpreter(environment))
    python += shared_libraries(python)
    if gpu is None:
        rest = list(packages(environment, [*locked("requirements/runtime.txt"), "horovod"]))
    else:
        # It needs the cutting of scripts/gpu, which a pack for CPUs does without.
        from lookback.scripts.airgap.gpu import PYTHON, architecture_of, gpu_packages

        rest = list(gpu_packages(environment, architecture_of(gpu), scratch))
        python = [p._replace(text=PYTHON) if p.name == ".venv/bin/python" else p for p in python]
    rest += ours(environment)
    have = {piece.name for piece in python}
    rest += [p for p in shared_libraries(rest) if p.name not in have]
    return python, rest


def _pack(
    made: Path,
    python: Sequence[Piece],
    rest: Sequence[Piece],
    gpu: str | None,
    slice_size: int,
    level: int,
) -> dict[str, Any]:
    """Writes every file of a pack; returns what pack.json says."""
    _archive_python(made / PYTHON_ARCHIVE, python)
    streams = _slices(made, rest, slice_size, level)
    facts: dict[str, Any] = {
        "format": 1,
        "lookback": __version__,
        "gpu": gpu,
        "glibc": platform.libc_ver()[1],
        "bytes": _unpacked(python) + _unpacked(rest),
        "files": len(rest),
        "slices": streams,
    }
    (made / "pack.json").write_text(json.dumps(facts, indent=1) + "\n")
    for name in GIVEN:
        shutil.copy(Path(__file__).parent / name, made / name)
    names = sorted(path.name for path in made.iterdir())
    sums = "".join(f"{digest_of(made / name)}  {name}\n" for name in names)
    (made / "SHA256SUMS").write_text(sums)
    return facts


def _archive_python(path: Path, pieces: Iterable[Piece]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=6) as archive:
        for piece in pieces:
            _add(archive, piece)


def _slices(
    made: Path, pieces: Iterable[Piece], slice_size: int, level: int
) -> list[dict[str, Any]]:
    """Writes the slices; returns the name and the lengths of the streams of each."""
    slices: list[dict[str, Any]] = []
    streams: list[int] = []
    file: io.BufferedWriter | None = None
    # What cannot be compressed becomes a little longer.
    block = min(BLOCK, slice_size // 16 * 15)
    for stream in _compressed(_blocks(pieces, block), level):
        if file is None or file.tell() + len(stream) > slice_size:
            if file is not None:
                file.close()
            streams = []
            slices.append({"name": f"slice-{len(slices) + 1:02d}.tar.xz", "streams": streams})
            file = (made / slices[-1]["name"]).open("wb")
        file.write(stream)
        streams.append(len(stream))
    if file is not None:
        file.close()
    return slices


def _blocks(pieces: Iterable[Piece], size: int) -> Iterator[bytes]:
    """The tar archive of pieces, in blocks."""
    with tempfile.TemporaryFile() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for piece in pieces:
                _add(archive, piece)
                if buffer.tell() >= size:
                    # tarfile only ever appends: what is before may go once it is read.
                    yield from _whole_blocks(buffer, size)
        yield from _whole_blocks(buffer, size)
        buffer.seek(0)
        yield buffer.read()


def _whole_blocks(buffer: io.BufferedRandom, size: int) -> Iterator[bytes]:
    """Takes whole blocks off a file, and keeps the rest."""
    buffer.seek(0)
    while len(block := buffer.read(size)) == size:
        yield block
    buffer.seek(0)
    buffer.truncate()
    buffer.write(block)


def _compressed(blocks: Iterable[bytes], level: int) -> Iterator[bytes]:
    """Each block as an xz stream, in order; as many at a time as there are cores."""
    workers = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(workers) as pool:
        pending = []
        for block in blocks:
            pending.append(pool.submit(lzma.compress, block, preset=level))
            if len(pending) > workers:
                yield pending.pop(0).result()
        for each in pending:
            yield each.result()


def _add(archive: tarfile.TarFile, piece: Piece) -> None:
    """Adds a file with its date, by which Python knows bytecode to be of it, and nobody's owner."""
    entry = tarfile.TarInfo(piece.name)
    entry.mode = 0o644
    if piece.link is not None:
        entry.type, entry.linkname = tarfile.SYMTYPE, piece.link
        archive.addfile(entry)
    elif piece.text is not None:
        data = piece.text.encode()
        entry.size, entry.mode = len(data), 0o755 if data.startswith(b"#!") else 0o644
        archive.addfile(entry, io.BytesIO(data))
    else:
        assert piece.source is not None
        status = piece.source.stat()
        entry.size, entry.mtime = status.st_size, int(status.st_mtime)
        entry.mode = 0o755 if status.st_mode & 0o100 else 0o644
        with piece.source.open("rb") as file:
            archive.addfile(entry, file)


def _unpacked(pieces: Iterable[Piece]) -> int:
    return sum(piece.source.stat().st_size for piece in pieces if piece.source is not None)


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: main(sys.argv[1:])))
