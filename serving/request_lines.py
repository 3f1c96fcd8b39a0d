"""Requests as lines of JSON."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, BinaryIO

from lookback.core.errors import UserError
from lookback.core.json_files import load_json

LINES_AT_ONCE = 256
MOST_OF_A_LINE = 16 << 20
"""Bytes of a request: some hundred thousand events. `LINES_AT_ONCE` of them are held at once."""


def request_lines(source: BinaryIO, name: str, first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, and their numbers.

    Args:
      source: of lines.
      name: names it in errors.
      first: number of its first line.

    Raises:
      UserError: naming the line that is too long.
    """
    for number in itertools.count(first):
        line = source.readline(MOST_OF_A_LINE + 1)
        if not line:
            return
        if len(line) > MOST_OF_A_LINE:
            raise UserError(
                f"{name}, line {number}: expected one JSON object of at most {MOST_OF_A_LINE:,} "
                "bytes, received a longer line. Cut the history or the candidates into several "
                "requests."
            )
        if line.strip():
            yield number, line


def load_line(line: bytes, where: str) -> Any:
    """The request of a line; `where` names it in errors.

    Raises:
      UserError: if it is not JSON.
    """
    return load_json(line, where, "Expected one object a line, in UTF-8.")


def request_chunks(source: BinaryIO, name: str) -> Iterator[list[tuple[str, Any]]]:
    """Requests with where they stand, some at a time, each alone if they come from a person.

    Args:
      source: lines of JSON.
      name: names it in errors.

    Raises:
      UserError: naming the line that is too long or is not JSON.
    """
    size = 1 if source.isatty() else LINES_AT_ONCE
    chunk: list[tuple[str, Any]] = []
    for number, line in request_lines(source, name):
        where = f"{name}, line {number}"
        chunk.append((where, load_line(line, where)))
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
