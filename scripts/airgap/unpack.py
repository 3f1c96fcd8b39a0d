"""Expands the slices of a pack, for `unpack.sh`, with the pack's own Python, which is all it has.

usage: unpack.py PACK TARGET
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path


class Expanded:
    """The tar archive in the slices, to be read once from its start; streams expand ahead of it."""

    def __init__(self, pack: Path, slices: list[dict]) -> None:
        """Opens it.

        Args:
          pack: the directory.
          slices: name and stream lengths of each, as pack.json has them.
        """
        self._streams = _streams(pack, slices)
        self._workers = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._workers)
        self._pending: list[Future[bytes]] = []
        self._block = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Up to that many bytes, and fewer only at the end."""
        parts = []
        while size > 0 and (self._block or self._next()):
            part, self._block = self._block[:size], self._block[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _next(self) -> bool:
        while len(self._pending) <= self._workers:
            stream = next(self._streams, None)
            if stream is None:
                break
            self._pending.append(self._pool.submit(lzma.decompress, stream))
        if not self._pending:
            return False
        self._block = memoryview(self._pending.pop(0).result())
        return True


def main(pack: Path, target: Path) -> int:
    """Unpacks; returns the exit status."""
    facts = json.loads((pack / "pack.json").read_text())
    free = shutil.disk_usage(target).free
    if free < facts["bytes"]:
        print(
            f"unpack: error: {target.parent} has {free >> 20} MiB free, and the tree needs "
            f"{facts['bytes'] >> 20}. Free some, or name a TARGET on another disk.",
            file=sys.stderr,
        )
        return 1
    started, files = time.monotonic(), 0
    with tarfile.open(fileobj=Expanded(pack, facts["slices"]), mode="r|") as archive:
        for entry in archive:
            # Hashes say that these are the names that were packed: none leads out of the tree.
            archive.extract(entry, target)
            files += 1
    print(f"unpack: {files} files in {time.monotonic() - started:.0f} s")
    return 0


def _streams(pack: Path, slices: list[dict]) -> Iterator[bytes]:
    for each in slices:
        with (pack / each["name"]).open("rb") as file:
            for length in each["streams"]:
                yield file.read(length)


if __name__ == "__main__":
    raise SystemExit(main(*map(Path, sys.argv[1:])))
