"""Files of events, items and users that a description names: found, read, joined.

Whatever becomes of the events, histories or rows, they are read the same way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from lookback.core.errors import UserError
from lookback.core.options import option
from lookback.formats import history_columns as names
from lookback.formats.history_columns import Role
from lookback.workflows.cluster import Runner
from lookback.workflows.event_reader import EventReader
from lookback.workflows.histories.feature_specs import FeatureSpec
from lookback.workflows.histories.gather import KnownFeatures, first_of_each
from lookback.workflows.log.description import CsvFormat, EventFiles, KeyedFiles
from lookback.workflows.log.files import matching
from lookback.workflows.log.parquet_records import count_rows
from lookback.workflows.log.parse import (
    Plan,
    blocks_of,
    check_file,
    parse,
    plan_of_events,
    plan_of_keyed,
)
from lookback.workflows.log.records import RecordBlock
from lookback.workflows.passed_over import columns_not_read, labels_not_read
from lookback.workflows.text import BadLineCounter, Block, Parsed, estimate_lines
from lookback.workflows.times import STEPS, TimeUnit

KEYS = {"items": names.ITEM_ID, "users": names.USER_ID}


@dataclasses.dataclass(frozen=True)
class DescribedFiles(EventReader):
    """Reads the files of a description, whose parts are options that only a file can give."""

    events: EventFiles | None = option(None, help="files with one event a row")
    items: KeyedFiles | None = option(None, help="files with one item a row")
    users: KeyedFiles | None = option(None, help="files with one user a row")

    def __post_init__(self) -> None:
        if self.events is None:
            raise UserError(
                "Dataset log: expected the files of events, received none. Describe the log in a "
                "YAML file (`lookback workflows init FILES` proposes one), and pass it as --config."
            )

    def event_files(self, directory: Path) -> list[Path]:
        """See `EventReader.event_files`."""
        return matching(_place(directory), self._events.files, "events.files")

    def inputs(self, directory: Path) -> tuple[Path, ...]:
        """The files that are read: the description may lie beside what is written."""
        return (*self.event_files(directory), *self.metadata_files(directory))

    def count_events(self, paths: list[Path]) -> int:
        """Rows of parquet files, or about the lines of others."""
        if self._events.kind == "parquet":
            return sum(count_rows(path) for path in paths)
        return estimate_lines(paths)

    def blocks(self, path: Path) -> Iterator[Block]:
        """Blocks that know their columns."""
        return blocks_of(path, self._plan, self._events.kind, _csv(self._events))

    def parse_block(self, block: Block, unit: TimeUnit | None = None) -> Parsed:
        """See `EventReader.parse_block`; the unit goes before that of the description."""
        time = self._events.time
        if unit is None and time is not None and time.unit == STEPS:
            raise UserError(f"events.time.unit is {STEPS}: pass time_unit={STEPS!r}, too.")
        return parse(_record_block(block), self._plan, unit)

    def metadata_files(self, directory: Path) -> Sequence[Path]:
        """The files of items and users."""
        return [path for _, _, paths in self._keyed(directory) for path in paths]

    def features(
        self, directory: Path, runner: Runner, bad_lines: BadLineCounter
    ) -> tuple[list[KnownFeatures], dict[str, int]]:
        """What the files of items and users say; of a repeated id the first row counts."""
        known, counts = [], {}
        for part, files, paths in self._keyed(directory):
            plan = plan_of_keyed(files, KEYS[part])
            cut = (b for path in paths for b in blocks_of(path, plan, files.kind, _csv(files)))
            tables, repeated = [], 0
            for path, parsed, again in runner.map(
                functools.partial(_parse_keyed, plan=plan, key=KEYS[part]),
                cut,
                label=part,
                carries_data=any(path.suffix in (".gz", ".parquet") for path in paths),
            ):
                bad_lines.add(path, parsed)
                tables.append(parsed.table)
                repeated += again
            table, again = first_of_each(_joined(tables, plan), KEYS[part])
            counts[f"duplicate_{part[:-1]}_metadata"] = repeated + again
            counts[f"{part}_in_metadata"] = len(table)
            known.append(KnownFeatures(KEYS[part], dict.fromkeys(files.features), table))
        return known, counts

    def passed_over(self, directory: Path, paths: Sequence[Path]) -> list[str]:
        """Columns that are not read; patterns say themselves which files are."""
        said = self._remarks("events", self._events, self._plan, paths, self.positives_alone)
        for part, files, found in self._keyed(directory):
            said += self._remarks(part, files, plan_of_keyed(files, KEYS[part]), found, False)
        return said

    @property
    def feature_specs(self) -> Mapping[str, FeatureSpec]:
        """See `EventReader.feature_specs`."""
        specs: dict[str, FeatureSpec] = {}
        parts: tuple[tuple[Role, KeyedFiles | None], ...] = (
            ("user", self.users),
            ("item", self.items),
        )
        for of, files in parts:
            for name, feature in files.features.items() if files is not None else ():
                specs[name] = feature.spec(of)
        for name, feature in self._events.features.items():
            specs[name] = feature.spec(feature.role)
        return specs

    @property
    def positives_alone(self) -> bool:
        """Whether all rows count as positives, whatever looks like a label."""
        return False

    @property
    def _events(self) -> EventFiles:
        if self.events is None:
            raise TypeError("a log without events is refused when it is made")
        return self.events

    @property
    def _plan(self) -> Plan:
        return plan_of_events(self._events)

    def _keyed(self, directory: Path) -> list[tuple[str, KeyedFiles, list[Path]]]:
        parts = {"items": self.items, "users": self.users}
        return [
            (part, files, matching(directory, files.files, f"{part}.files"))
            for part, files in parts.items()
            if files is not None
        ]

    def _remarks(
        self,
        part: str,
        files: EventFiles | KeyedFiles,
        plan: Plan,
        paths: Sequence[Path],
        positives: bool,
    ) -> list[str]:
        found = [(path, *check_file(path, plan, files.kind, _csv(files))) for path in paths]
        others = [column for _, unread, _ in found for column in unread]
        said = [f"{part}: {line}" for line in columns_not_read(others)]
        said += labels_not_read(others) if positives else []
        for path, _, absent in found:
            for name in absent:
                said.append(f"WARNING: {path} has no {name!r} in its first lines: is it misspelt?")
        return said


def _parse_keyed(block: Block, plan: Plan, key: str) -> tuple[Path, Parsed, int]:
    """Task: what a block of a file of items or users holds, and how many ids it repeats."""
    parsed = parse(_record_block(block), plan)
    parsed.table, repeated = first_of_each(parsed.table, key)
    return block.path, parsed, repeated


def _record_block(block: Block) -> RecordBlock:
    if not isinstance(block, RecordBlock):
        raise TypeError(f"{block} is not one that `blocks` gave")
    return block


def _place(given: Path) -> Path:
    """Where names of files begin: the input, or where it lies if it is a file (of an update)."""
    return given.parent if given.is_file() else given


def _csv(files: EventFiles | KeyedFiles) -> CsvFormat:
    return files.csv or CsvFormat()


def _joined(tables: Sequence[pa.Table], plan: Plan) -> pa.Table:
    """Tables of blocks as one; ids and categories are integers if those of all blocks are."""
    if not tables:
        return plan.schema.empty_table()
    text = {field.name for table in tables for field in table.schema if field.type == pa.string()}
    schema = pa.schema(
        (field.name, pa.string() if field.name in text else field.type)
        for field in tables[0].schema
    )
    return pa.concat_tables([table.cast(schema) for table in tables])
