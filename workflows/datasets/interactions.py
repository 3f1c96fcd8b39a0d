"""Interactions of anybody's: CSV or parquet with a column each of users, items and times.

Every row is an event that took place (implicit feedback, positives only); other columns are
passed over and named, so an item's only feature is its id. The input is a file or a directory of
files, all CSV (``.csv``, ``.csv.gz``) or all parquet (``.parquet``).

Ids are integers if all of them are: of parquet by the column's type, of CSV by how they are written
(``007`` is text, as it would not come back from the number 7). Times: see `workflows.times`;
fractions of a second have a say in the order and are then cut off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from lookback.core.errors import UserError
from lookback.core.options import check_options, option
from lookback.formats import history_columns as names
from lookback.workflows.cluster import Runner
from lookback.workflows.histories.gather import KnownFeatures
from lookback.workflows.histories.reader import Reader
from lookback.workflows.log.description import CsvFormat, FileFormat
from lookback.workflows.log.parquet_records import count_rows
from lookback.workflows.log.parse import Plan, RawColumn, blocks_of, check_file, parse
from lookback.workflows.log.records import RecordBlock
from lookback.workflows.passed_over import columns_not_read, labels_not_read
from lookback.workflows.text import BadLineCounter, Block, Parsed, estimate_lines
from lookback.workflows.times import TimeUnit

ENDINGS: dict[str, FileFormat] = {".csv": "csv", ".csv.gz": "csv", ".parquet": "parquet"}


@dataclasses.dataclass(frozen=True)
class InteractionsReader(Reader):
    """Files with one interaction a row."""

    scope = "options of interactions"
    takes_file: ClassVar[bool] = True
    says_where: ClassVar[tuple[str, ...]] = ("user_column", "item_column", "time_column")

    user_column: str = option(names.USER_ID, help="column of the users", nonempty=True)
    item_column: str = option(names.ITEM_ID, help="column of the items", nonempty=True)
    time_column: str = option(
        names.TIMESTAMP, help="column of the times; see --time_unit", nonempty=True
    )

    def __post_init__(self) -> None:
        check_options(self)
        if len(set(self._columns)) < len(self._columns):
            raise UserError(
                "--user_column, --item_column and --time_column must name three columns, not "
                f"{', '.join(self._columns)}."
            )

    def event_files(self, directory: Path) -> list[Path]:
        """The input itself if it is a file, else the files in it."""
        if directory.is_file():
            if not _ending(directory):
                raise UserError(
                    f"{directory} is of no known format: its name must end in {_listed()}."
                )
            return [directory]
        return _files(directory)

    def remarks(self, paths: Sequence[Path]) -> list[str]:
        """The columns that are not read; checks those that are."""
        others: list[str] = []
        for path in paths:
            others += check_file(path, self._plan, _format(path), CsvFormat())[0]
        return [*columns_not_read(others), *labels_not_read(others)]

    def count_events(self, paths: list[Path]) -> int:
        """Rows of parquet files, or about the lines of CSV files."""
        if _format(paths[0]) == "parquet":
            return sum(count_rows(path) for path in paths)
        return estimate_lines(paths)

    def blocks(self, path: Path) -> Iterator[Block]:
        """Blocks that know their columns."""
        return blocks_of(path, self._plan, _format(path), CsvFormat())

    def parse_block(self, block: Block, unit: TimeUnit | None = None) -> Parsed:
        """Interactions of a block; without a unit their times are seconds."""
        if not isinstance(block, RecordBlock):
            raise TypeError(f"{block} is not one that `blocks` gave")
        return parse(block, self._plan, unit)

    def features(
        self, directory: Path, runner: Runner, bad_lines: BadLineCounter
    ) -> tuple[list[KnownFeatures], dict[str, int]]:
        """None: an interaction has ids and a time."""
        return [], {}

    @property
    def _columns(self) -> tuple[str, str, str]:
        return self.user_column, self.item_column, self.time_column

    @property
    def _plan(self) -> Plan:
        user, item, time = self._columns
        return Plan(
            (
                RawColumn(names.USER_ID, user, "id"),
                RawColumn(names.ITEM_ID, item, "id"),
                RawColumn(names.TIMESTAMP, time, "time"),
            ),
            remedy="Name the ones to read with --user_column, --item_column and --time_column.",
        )


def _files(directory: Path) -> list[Path]:
    """The files of a directory, of one format and none of them twice."""
    paths = sorted(
        path
        for path in directory.iterdir()
        if path.is_file() and _ending(path) and not path.name.startswith((".", "_"))
    )
    if not paths:
        raise UserError(
            f"{directory} holds no file of interactions: none of the names in it ends in "
            f"{_listed()}. Check --input."
        )
    parquet = [path for path in paths if _format(path) == "parquet"]
    if parquet and len(parquet) < len(paths):
        other = next(path for path in paths if path not in parquet)
        raise UserError(
            f"{directory} holds parquet ({parquet[0].name}) and CSV ({other.name}). Give each a "
            "directory of its own, or one file."
        )
    for path in paths:
        packed = path.with_name(f"{path.name}.gz")
        if packed in paths:
            raise UserError(
                f"Both {path} and {packed} exist. Delete one (the first may be a partly unpacked "
                "copy of the second)."
            )
    return paths


def _ending(path: Path) -> str | None:
    return next((ending for ending in ENDINGS if path.name.endswith(ending)), None)


def _format(path: Path) -> FileFormat:
    return ENDINGS[_ending(path) or ".csv"]


def _listed() -> str:
    *others, last = ENDINGS
    return f"{', '.join(others)} or {last}"
