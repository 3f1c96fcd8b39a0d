"""Raw text files as blocks of whole lines, and what parsing a block gives.

A plain file is cut into byte ranges that any worker reads for itself; a gzip stream can only be
read from its start, so this process unpacks it and hands out the bytes. Either way a block is a
fixed piece of the file whatever the number of workers, and lines are numbered from 1.
"""

from __future__ import annotations

import codecs
import functools
import gzip
import queue
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from lookback.core.errors import UserError

BLOCK_BYTES = 32 << 20
"""Bytes of text a task parses: large enough to hide its fixed costs, small beside memory."""

READ_HERE = (".gz", ".parquet")
"""Endings of files that this process reads: their blocks carry what they hold."""

_GZIP = b"\x1f\x8b"
"""With which files of gzip begin (RFC 1952)."""
FIRST_LINE_BYTES = 1 << 20
"""A first line longer than this is no header."""

BAD_LINES_SHOWN = 5
EXCERPT = 120
SAMPLE_BYTES = 1 << 20


class BadLineError(ValueError):
    """One line is not what its format says; the text is the reason, in words to count by."""


@dataclass(frozen=True)
class Block:
    """Whole lines of one file.

    Attributes:
      path: the file.
      start: where the range begins; a line that begins before it belongs to the range before.
      stop: where it ends; its last line may end later.
      first: whether it holds the file's first line.
      data: the lines themselves where only this process can read them, else None.
    """

    path: Path
    start: int
    stop: int
    first: bool
    data: bytes | None = None

    def read(self) -> bytes:
        """The bytes of the block's lines."""
        if self.data is not None:
            return self.data
        with self.path.open("rb") as file:
            start = self.start
            if start:
                file.seek(start - 1)
                file.readline()  # the end of the line before, or just its line feed
                start = file.tell()
            if start >= self.stop:
                return b""  # one line covers the whole range
            data = file.read(self.stop - start)
            return data if data.endswith(b"\n") else data + file.readline()


@dataclass(frozen=True)
class BadLine:
    """A line that was not understood: its number within the block, why, and how it begins."""

    line: int
    reason: str
    excerpt: str


@dataclass
class Parsed:
    """What a block holds.

    Attributes:
      table: one row for each good line.
      lines: number of lines, with bad and blank ones.
      bad: the first bad lines.
      reasons: how many lines are bad for each reason.
      counts: what else is to be reported, by name.
    """

    table: pa.Table
    lines: int
    bad: list[BadLine] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


Parser = Callable[[Block], Parsed]
"""A block -> what it holds. Must pickle."""


class BadLineCounter:
    """Adds up the bad lines of a run, and stops it where they are more than allowed.

    Blocks must come in the order of the file: that is how a line gets its number.

    Args:
      allowed: `--max_bad_lines`.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.reasons: dict[str, int] = {}
        self.examples: list[str] = []
        self._lines: dict[Path, int] = {}

    def add(self, path: Path, parsed: Parsed) -> None:
        """Counts a block of `path`.

        Raises:
          UserError: if there are more bad lines by now than allowed.
        """
        before = self._lines.get(path, 0)
        self._lines[path] = before + parsed.lines
        for reason, count in parsed.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count
        for bad in parsed.bad[: BAD_LINES_SHOWN - len(self.examples)]:
            self.examples.append(f"{path}:{before + bad.line}: {bad.reason}: {bad.excerpt}")
        total = sum(self.reasons.values())
        if total > self.allowed:
            shown = "\n  ".join(self.examples)
            raise UserError(
                f"{total} bad line(s) so far, more than --max_bad_lines {self.allowed}:\n"
                f"  {shown}\n"
                "Correct or delete these lines, or pass a larger --max_bad_lines to leave such "
                "lines out (they are counted in dataset.json)."
            )

    def lines(self, path: Path) -> int:
        """Lines of `path` seen so far."""
        return self._lines.get(path, 0)


def blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The blocks of a file, in order. A name that ends in ``.gz`` is unpacked on the fly.

    Raises:
      UserError: if a gzip file is damaged or ends too early.
    """
    if path.suffix == ".gz":
        yield from _prefetched(_blocks_with_data(path, block_bytes, _end_of_lines))
        return
    size = path.stat().st_size
    for start in range(0, size, block_bytes):
        yield Block(path, start, min(start + block_bytes, size), first=start == 0)


def record_blocks(
    path: Path, block_bytes: int = BLOCK_BYTES, quote: bytes = b'"'
) -> Iterator[Block]:
    """Like `blocks`, but no cut is inside a quoted field of CSV, which may hold line feeds.

    Whether a line feed is quoted follows from the number of quotes before it, so this process
    reads all of the file. Lines may end in carriage returns alone: blocks have line feeds for them.

    Args:
      path: the file.
      block_bytes: of a block, about.
      quote: what quoted fields begin and end with, one byte.

    Raises:
      UserError: if a gzip file is damaged or ends too early.
    """
    end_of_records = functools.partial(_end_of_records, quote=quote)
    carriage_returns = ends_in_carriage_returns(path)
    if path.suffix == ".gz" or carriage_returns:
        yield from _prefetched(
            _blocks_with_data(path, block_bytes, end_of_records, carriage_returns=carriage_returns)
        )
        return
    start = 0
    with path.open("rb") as file:
        for data in _pieces(file, block_bytes, end_of_records):
            yield Block(path, start, start + len(data), first=start == 0)
            start += len(data)


def parse_lines(
    data: bytes,
    parse_line: Callable[[bytes], tuple[Any, ...]],
    schema: pa.Schema,
    *,
    skip: int = 0,
) -> Parsed:
    """Parses line by line: slow, but it names each bad line. Blank lines are passed over.

    Args:
      data: lines.
      parse_line: a line without its line feed -> one value for each field of `schema`; raises
        `BadLineError` on a line it does not understand.
      schema: of the table.
      skip: leading lines to pass over (a header).
    """
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    rows = []
    bad: list[BadLine] = []
    reasons: dict[str, int] = {}
    for number, line in enumerate(lines[skip:], start=skip + 1):
        line = line.strip()
        if not line:
            continue
        try:
            rows.append(parse_line(line))
        except BadLineError as error:
            reason = str(error)
            reasons[reason] = reasons.get(reason, 0) + 1
            if len(bad) < BAD_LINES_SHOWN:
                excerpt = line[:EXCERPT].decode("utf-8", "backslashreplace")
                bad.append(BadLine(number, reason, excerpt))
    values = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [
        pa.array(column, type=column_type)
        for column, column_type in zip(values, schema.types, strict=True)
    ]
    return Parsed(pa.Table.from_arrays(arrays, schema=schema), len(lines), bad, reasons)


def is_utf8(data: bytes) -> bool:
    """Whether `data` is valid UTF-8."""
    if data.isascii():  # by far the faster test, and mostly enough
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def ends_in_carriage_returns(path: Path) -> bool:
    """Whether a file begins with carriage returns and no line feed, as Excel for Mac writes it.

    Raises:
      UserError: if the file is damaged.
    """
    line = _beginning(path)
    return b"\r" in line and not line.endswith(b"\n")


def first_line(path: Path, encoding: str = "utf-8", *, carriage_returns: bool = False) -> str:
    """A file's first line, without its end and without the mark that Excel begins files with.

    Args:
      path: the file.
      encoding: of its text.
      carriage_returns: whether whoever reads the file takes one alone for the end of a line.

    Raises:
      UserError: if it is damaged, or of bytes that are no text.
    """
    line = _beginning(path)
    if carriage_returns and ends_in_carriage_returns(path):
        line = line.replace(b"\r", b"\n")
        line = line[: line.find(b"\n") + 1]
    if line.startswith(_GZIP):
        raise UserError(f"{path} is packed by gzip, and not named so. Rename it to {path.name}.gz.")
    if b"\0" in line:
        raise UserError(
            f"{path}:1: holds bytes of value 0, so it is no text of UTF-8 (UTF-16, maybe: Excel's "
            '"Unicode text"). Save it as UTF-8.'
        )
    if len(line) == FIRST_LINE_BYTES and not line.endswith(b"\n"):
        raise UserError(
            f"{path}:1: the first line has no end within {FIRST_LINE_BYTES >> 20} MiB. Check that "
            "this is the file that is meant, and that its lines end in line feeds."
        )
    text = line.removeprefix(codecs.BOM_UTF8).decode(encoding, "backslashreplace")
    text = text.removesuffix("\n").removesuffix("\r")
    if "\r" in text:
        raise UserError(
            f"{path}:1: has carriage returns that no line feed follows. Make line feeds of them: "
            "tr '\\r' '\\n' < OLD > NEW."
        )
    return text


def _beginning(path: Path) -> bytes:
    """A file's bytes up to the first line feed, or `FIRST_LINE_BYTES` of them."""
    try:
        with _opened(path) as file:
            return file.readline(FIRST_LINE_BYTES)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged_gzip(path, 0, error) from error


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


class _LineFeeds:
    """A file with line feeds in place of its carriage returns, byte for byte."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        """The next bytes."""
        return self._file.read(size).replace(b"\r", b"\n")


def estimate_lines(paths: Sequence[Path]) -> int:
    """About how many lines some files have, from the beginning of each.

    Raises:
      UserError: if a gzip file cannot be unpacked.
    """
    total = 0.0
    for path in paths:
        size = path.stat().st_size
        with path.open("rb") as file:
            if path.suffix == ".gz":
                try:
                    with gzip.GzipFile(fileobj=file) as unpacked:
                        sample = unpacked.read(SAMPLE_BYTES)
                except EOFError:
                    sample = b""
                except (gzip.BadGzipFile, zlib.error) as error:
                    raise damaged_gzip(path, 0, error) from error
            else:
                sample = file.read(SAMPLE_BYTES)
            read = min(file.tell(), size)
        total += max(sample.count(b"\n"), sample.count(b"\r"), 1) * size / max(read, 1)
    return int(total)


def damaged_gzip(path: Path, lines: int, error: Exception) -> UserError:
    """What to say of a gzip file that failed with `error` after so many lines."""
    return UserError(
        f"{path} is not a whole gzip file: {error} (after line {lines}). It was probably cut off "
        "while it was copied or downloaded: fetch it again (gzip -t tests it)."
    )


def _blocks_with_data(
    path: Path,
    block_bytes: int,
    end_of_lines: Callable[[bytes], int],
    *,
    carriage_returns: bool = False,
) -> Iterator[Block]:
    start = 0
    lines = 0
    file: IO[bytes] | gzip.GzipFile | _LineFeeds
    with _opened(path) as file:
        try:
            if carriage_returns:
                file = _LineFeeds(file)
            for data in _pieces(file, block_bytes, end_of_lines):
                lines += data.count(b"\n")
                yield Block(path, start, start + len(data), start == 0, data)
                start += len(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise damaged_gzip(path, lines, error) from error


def _pieces(
    file: IO[bytes] | gzip.GzipFile | _LineFeeds,
    block_bytes: int,
    end_of_lines: Callable[[bytes], int],
) -> Iterator[bytes]:
    """A file's content in pieces that end where `end_of_lines` says, none of them empty."""
    rest = b""
    while True:
        chunk = file.read(block_bytes)
        data = rest + chunk
        ended = len(chunk) < block_bytes
        end = len(data) if ended else end_of_lines(data)
        data, rest = data[:end], data[end:]
        if data:
            yield data
        if ended:
            return


def _end_of_lines(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _end_of_records(data: bytes, quote: bytes) -> int:
    """End of the last line that does not end in a quoted field; `data` begins in none.

    Where there is no such line, the quote is one that opens no field (as of ``7" vinyl``), which
    whoever parses the lines can tell: then it is the end of the last line.
    """
    end = _end_of_lines(data)
    quotes = data.count(quote, 0, end)
    while end and quotes % 2:
        start = data.rfind(b"\n", 0, end - 1) + 1
        quotes -= data.count(quote, start, end)
        end = start
    return end or _end_of_lines(data)


def _prefetched(source: Iterator[Block]) -> Iterator[Block]:
    """Runs `source` one block ahead in a thread (unpacking releases the interpreter's lock)."""
    ready: queue.Queue[Block | BaseException | None] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(entry: Block | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for block in source:
                put(block)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, who raises it
            put(error)

    thread = threading.Thread(target=produce, name="unpack", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry
    finally:
        stopped.set()
        thread.join()


def summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """What counts by name add up to."""
    total: dict[str, int] = {}
    for part in counts:
        for name, count in part.items():
            total[name] = total.get(name, 0) + count
    return total
