"""Rows of a file before they mean anything: some columns of each, and where each row stands."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.workflows.text import BAD_LINES_SHOWN, EXCERPT, BadLine, Block

COLUMNS_SHOWN = 1000  # characters of their names in an error


@dataclass(frozen=True)
class Wanted:
    """What is read of the files of one kind.

    Attributes:
      names: of the columns, each once; of JSON and parquet maybe dotted paths.
      numbers: those of them that are read as numbers alone.
      ids: those that are ids.
      lists: those whose values may be lists.
      remedy: a sentence on how to name other columns.
    """

    names: tuple[str, ...]
    numbers: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    remedy: str = "Correct the columns in the description."


@dataclass
class BadRecords:
    """Adds up the rows of a block that cannot be read."""

    lines: list[BadLine] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, line: int, reason: str, excerpt: str) -> None:
        """Takes down one of them."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if len(self.lines) < BAD_LINES_SHOWN:
            self.lines.append(BadLine(line, reason, excerpt[:EXCERPT]))


@dataclass
class Records:
    """Rows of a block.

    Attributes:
      table: the wanted columns under their names; of CSV all of them text, of which "" is nothing.
      lines: lines of the block, with bad and blank ones.
      numbers: the line of each row, from 1 on; None where nobody looked. [N]
      excerpt: gives how a row begins.
      bad: rows that are not in the table.
    """

    table: pa.Table
    lines: int
    numbers: npt.NDArray[np.int64] | None
    excerpt: Callable[[int], str]
    bad: BadRecords = field(default_factory=BadRecords)

    def bad_line(self, row: int, reason: str) -> BadLine:
        """What to say of a row that is bad in spite of being read."""
        line = 0 if self.numbers is None else int(self.numbers[row])
        return BadLine(line, reason, self.excerpt(row)[:EXCERPT])


@dataclass(frozen=True, kw_only=True)
class RecordBlock(Block, abc.ABC):
    """Rows of a file; whoever has it can read them wherever it is.

    Attributes:
      wanted: columns to read.
    """

    wanted: Wanted

    @property
    def decimal(self) -> str:
        """What stands before the fraction of numbers that are text."""
        return "."

    @property
    @abc.abstractmethod
    def is_written(self) -> bool:
        """Whether all values are text, also those that are meant as numbers."""

    @abc.abstractmethod
    def quick(self) -> Records | None:
        """All rows at once; None where any of them may be bad."""

    @abc.abstractmethod
    def careful(self) -> Records:
        """The same row by row: the good ones with their lines, and what is wrong with others."""


def column_at(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column, or what lies in its structs under the further words of a dotted path."""
    if name in table.column_names:
        return table[name]
    first, *steps = name.split(".")
    place = table.column_names.index(first)
    while steps:  # `struct_field` passes over nulls of the struct itself, `flatten` does not
        table = pa.table([table.column(place)], ["x"]).flatten()
        place = table.column_names.index(f"x.{steps.pop(0)}")
    return table.column(place)


def listed(names: Iterable[str]) -> str:
    """Names of columns, for an error."""
    text = ", ".join(map(repr, names))
    return text if len(text) <= COLUMNS_SHOWN else f"{text[:COLUMNS_SHOWN]}..."
