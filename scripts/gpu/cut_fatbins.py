"""Cuts the CUDA code in a library down to one architecture, so that it can be carried.

usage: cut_fatbins.py LIBRARY OUTPUT ARCHITECTURE        such as 90, for sm_90

A library holds containers ("fatbins"), each with the same kernels as machine code (elf) or as
assembly (ptx) of several architectures. Of each, what runs on the wanted one stays: its machine
code, else that of the nearest lower one of its generation, else the newest assembly that its driver
can compile; else the smallest entry, as the loader expects one. The file keeps its size and every
offset: what is cut is zeros, which compress to nothing.

The layout is nowhere documented; it was read off libraries of CUDA 11.8. A container is a header of
16 bytes (magic, version u16, its own size u16, size of the entries u64); entries have headers whose
size they say (kind u16: 1 ptx, 2 elf; u16; size of the header u32; size of the code u64; ...; at
byte 28 the architecture u32).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = b"\x50\xed\x55\xba"
_HEADER = 16
_PTX, _ELF = 1, 2
_LEAST_ENTRY = 32  # bytes of an entry's header
_PROGBITS = 1  # elf.h: SHT_PROGBITS
_FOR_LINKING = "__nv_relfatbin"  # relocatable code, which nothing loads


class Section(NamedTuple):
    """A section of an ELF file: its name, its type, where it lies."""

    name: str
    kind: int
    start: int
    size: int


class Entry(NamedTuple):
    """Code of one architecture: machine code or assembly, and its bytes, header included."""

    is_ptx: bool
    architecture: int
    content: bytes


def cut(library: bytes, architecture: int) -> bytes:
    """The library with the code for one architecture alone.

    Args:
      library: an ELF file of 64 bits.
      architecture: such as 90.

    Raises:
      ValueError: if it is no such file.
    """
    if library[:5] != b"\x7fELF\x02":
        raise ValueError("expected an ELF library of 64 bits, received something else.")
    result = bytearray(library)
    for section in _sections(library):
        if section.name == _FOR_LINKING:
            result[section.start : section.start + section.size] = bytes(section.size)
        elif section.kind == _PROGBITS:
            _cut_section(result, section, architecture)
    return bytes(result)


def _cut_section(result: bytearray, section: Section, architecture: int) -> None:
    place, end = section.start, section.start + section.size
    while (place := result.find(MAGIC, place, end)) >= 0:
        version, header, size = struct.unpack_from("<HHQ", result, place + len(MAGIC))
        first = place + _HEADER
        entries = _entries(result, first, first + size, end)
        if version != 1 or header != _HEADER or not entries:
            place += len(MAGIC)  # four bytes that happen to be the same
            continue
        content = _chosen(entries, architecture).content
        result[first : first + size] = content + bytes(size - len(content))
        struct.pack_into("<Q", result, place + 8, len(content))
        place = first + size


def _chosen(entries: list[Entry], architecture: int) -> Entry:
    """The entry that runs best; see the module."""
    lower = [entry for entry in entries if entry.architecture <= architecture]
    native = [e for e in lower if not e.is_ptx and e.architecture // 10 == architecture // 10]
    assembly = [entry for entry in lower if entry.is_ptx]
    for able in (native, assembly):
        if able:
            return max(able, key=lambda entry: entry.architecture)
    return min(entries, key=lambda entry: len(entry.content))


def _entries(library: bytes | bytearray, place: int, stop: int, end: int) -> list[Entry]:
    """The entries of a container; none if they are no entries."""
    found: list[Entry] = []
    if stop > end:
        return found
    while place < stop:
        if stop - place < _LEAST_ENTRY:
            return []
        kind, _, header, size = struct.unpack_from("<HHIQ", library, place)
        (architecture,) = struct.unpack_from("<I", library, place + 28)
        if kind not in (_PTX, _ELF) or header < _LEAST_ENTRY or place + header + size > stop:
            return []
        content = bytes(library[place : place + header + size])
        found.append(Entry(kind == _PTX, architecture, content))
        place += len(content)
    return found


def _sections(library: bytes) -> Iterator[Section]:
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, names = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", library, table + i * size) for i in range(count)]
    strings = headers[names][4]
    for name, kind, _, _, start, length in headers:
        end = library.index(b"\0", strings + name)
        yield Section(library[strings + name : end].decode(), kind, start, length)


if __name__ == "__main__":
    source, target, wanted = sys.argv[1:]
    Path(target).write_bytes(cut(Path(source).read_bytes(), int(wanted)))
