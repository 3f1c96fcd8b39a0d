"""Blocks of files → raw tables: which columns are read as what, and which rows are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from lookback.core.errors import UserError
from lookback.formats import history_columns as names
from lookback.formats.impressions import LABEL
from lookback.workflows.log import columns as typed
from lookback.workflows.log.columns import Typed
from lookback.workflows.log.csv_records import csv_blocks, find_columns
from lookback.workflows.log.description import (
    Condition,
    CsvFormat,
    EventFiles,
    Feature,
    FileFormat,
    KeyedFiles,
    LabelColumn,
    TimeColumn,
)
from lookback.workflows.log.json_records import find_keys, json_blocks
from lookback.workflows.log.parquet_records import find_types, row_blocks
from lookback.workflows.log.records import RecordBlock, Records, Wanted
from lookback.workflows.text import BAD_LINES_SHOWN, Parsed
from lookback.workflows.times import SECONDS, STEPS, Mask

LEFT_OUT = "rows_left_out_by_"
"""Begins the counts of rows that a condition on a column does not hold for."""

Kind = Literal["id", "time", "label", "category", "number", "bag", "flags"]
_NEEDED = ("id", "time", "label")
_KINDS: Mapping[str, Kind] = {
    "category": "category",
    "hash": "category",
    "categories": "bag",
    "number": "number",
    "buckets": "number",
}


@dataclass(frozen=True)
class RawColumn:
    """A column of a raw table.

    Attributes:
      name: its name there.
      column: where it stands in the files; the first, of several.
      kind: what is read.
      separator: between the elements of a bag.
      flags: columns that say of each element whether it is in a bag.
    """

    name: str
    column: str
    kind: Kind
    separator: str | None = None
    flags: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that it stands in."""
        return self.flags or (self.column,)


@dataclass(frozen=True)
class Plan:
    """What is read of files of one kind.

    Attributes:
      outputs: the columns of the raw table.
      where: conditions on rows.
      time: how times are written; None: there are none.
      label: which labels are clicks; None: there are none.
      remedy: a sentence on how to name other columns.
    """

    outputs: tuple[RawColumn, ...]
    where: tuple[Condition, ...] = ()
    time: TimeColumn | None = None
    label: LabelColumn | None = None
    remedy: str = "Correct the columns in the description."

    @property
    def wanted(self) -> Wanted:
        """The columns that are read of a file."""
        kinds: dict[str, set[str]] = {}
        for output in self.outputs:
            for column in output.columns:
                kinds.setdefault(column, set()).add(output.kind)
        for condition in self.where:
            kinds.setdefault(condition.column, set()).add("condition")
        return Wanted(
            tuple(kinds),
            numbers=frozenset(column for column, kind in kinds.items() if kind == {"number"}),
            ids=frozenset(column for column, kind in kinds.items() if "id" in kind),
            lists=frozenset(column for column, kind in kinds.items() if "bag" in kind),
            remedy=self.remedy,
        )

    @property
    def needed(self) -> list[str]:
        """The columns that every row must have."""
        return [output.column for output in self.outputs if output.kind in _NEEDED]

    @property
    def schema(self) -> pa.Schema:
        """Of a raw table without rows."""
        types = {"number": pa.float64(), "label": pa.int8()}
        types |= {"bag": pa.string(), "flags": pa.string()}
        return pa.schema([(o.name, types.get(o.kind, pa.int64())) for o in self.outputs])


def plan_of_events(events: EventFiles) -> Plan:
    """What is read of files of events."""
    chosen: list[tuple[str, str | None, Kind]] = [
        (names.USER_ID, events.user, "id"),
        (names.ITEM_ID, events.item, "id"),
        (names.TIMESTAMP, None if events.time is None else events.time.column, "time"),
        (LABEL, None if events.label is None else events.label.column, "label"),
    ]
    return Plan(
        (
            *(RawColumn(name, at, kind) for name, at, kind in chosen if at is not None),
            *_outputs(events.features),
        ),
        events.where,
        events.time,
        events.label,
    )


def plan_of_keyed(files: KeyedFiles, key: str) -> Plan:
    """What is read of files of items or users, whose ids are called `key` in the raw table."""
    return Plan((RawColumn(key, files.key, "id"), *_outputs(files.features)))


def check_file(
    path: Path, plan: Plan, kind: FileFormat, form: CsvFormat
) -> tuple[list[str], list[str]]:
    """Checks a file before the work.

    Returns:
      The columns that nobody reads; and of JSON lines, those that none of the first lines has, and
      that no line must have.

    Raises:
      UserError: if it cannot be read, or has not the columns, or not of these types.
    """
    if kind == "csv":
        return list(find_columns(path, plan.wanted, form).others), []
    if kind == "jsonl":
        return find_keys(path, plan.wanted, plan.needed)
    types, others = find_types(path, plan.wanted)
    for output in plan.outputs:
        for column in output.columns:
            _check_type(path, dataclasses.replace(output, column=column), types[column])
    return others, []


def blocks_of(path: Path, plan: Plan, kind: FileFormat, form: CsvFormat) -> Iterator[RecordBlock]:
    """The blocks of a file, in order."""
    if kind == "csv":
        return csv_blocks(path, plan.wanted, form)
    return (json_blocks if kind == "jsonl" else row_blocks)(path, plan.wanted)


def parse(block: RecordBlock, plan: Plan, unit: str | None = None) -> Parsed:
    """The raw table of a block.

    Args:
      block: of `blocks_of`.
      plan: what is read.
      unit: of times that are numbers; None: as the plan says, or seconds.

    Raises:
      UserError: if an unsigned id is too large for int64, or the unit is not for the times' type.
    """
    if unit is None and plan.time is not None:
        unit = plan.time.unit or SECONDS
    try:
        records = block.quick()
        if records is not None:
            parsed = _typed(records, plan, block, unit or SECONDS)
            if not parsed.reasons or records.numbers is not None:
                return parsed
        return _typed(block.careful(), plan, block, unit or SECONDS)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{block.path}, rows {block.start + 1:,} to {block.stop:,}: {error}. Ids and times "
            "must fit into 64 bits with a sign."
        ) from error


def _typed(records: Records, plan: Plan, block: RecordBlock, unit: str) -> Parsed:
    """Conditions, then columns, then what is wrong with them."""
    keep, counts, wrong = _conditions(records, plan, block.decimal)
    kept = np.flatnonzero(keep)
    rows = records.table if keep.all() else records.table.take(pa.array(kept))
    found = [_column(rows, output, plan, block, unit) for output in plan.outputs]
    reasons = [(f"no {o.column}", t.missing) for o, t in _pairs(plan, found) if o.kind in _NEEDED]
    reasons += [entry for typed_column in found for entry in typed_column.wrong.items()]
    reasons += [(reason, mask[kept]) for reason, mask in wrong.items()]
    good, bad = np.ones(len(rows), np.bool_), records.bad
    for reason, mask in reasons:
        places = kept[np.flatnonzero(mask & good)]
        if len(places):
            bad.reasons[reason] = bad.reasons.get(reason, 0) + len(places)
            bad.lines += [records.bad_line(at, reason) for at in places[:BAD_LINES_SHOWN].tolist()]
            good &= ~mask
    table = pa.table([column.values for column in found], [o.name for o in plan.outputs])
    if not good.all():
        table = table.filter(pa.array(good))
    for column in found:
        for name, count in {**column.counts, **typed.zoneless_count(column, good)}.items():
            counts[name] = counts.get(name, 0) + count
    shown = sorted(bad.lines, key=lambda line: line.line)[:BAD_LINES_SHOWN]
    return Parsed(table, records.lines, shown, bad.reasons, counts)


def _column(rows: pa.Table, output: RawColumn, plan: Plan, block: RecordBlock, unit: str) -> Typed:
    column, name = rows[output.column], output.column
    if output.kind == "time":
        zone = None if plan.time is None else plan.time.zone
        dated = pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
        if unit == STEPS and not block.is_written and dated:
            raise UserError(
                f"{block.path}: column {name!r} is of type {column.type}; --time_unit {STEPS} "
                "takes numbers. Leave the option out."
            )
        return typed.times(column, name, unit, zone)
    if output.kind == "label" and plan.label is not None:
        return typed.labels(column, plan.label.positive)
    if output.kind == "number":
        return typed.numbers(column, name, block.decimal)
    if output.kind == "flags":
        return typed.flags([rows[flag] for flag in output.flags], output.flags)
    if output.kind == "bag":
        return typed.bags(column, name, output.separator)
    read = typed.ids if output.kind == "id" else typed.categories
    return read(column, name, is_written=block.is_written)


def _conditions(
    records: Records, plan: Plan, decimal: str
) -> tuple[Mask, dict[str, int], dict[str, Mask]]:
    """Which rows all conditions hold for, how many rows each leaves out, and what is no number."""
    keep = np.ones(len(records.table), np.bool_)
    counts: dict[str, int] = {}
    wrong: dict[str, Mask] = {}
    for condition in plan.where:
        column = typed.plain(records.table[condition.column])
        holds = np.ones(len(column), np.bool_)
        missing = typed.missing_of(column)
        if condition.in_ is not None:
            holds &= typed.words_of(column, condition.in_.hold)
        if condition.not_in is not None:
            holds &= ~typed.words_of(column, condition.not_in.hold)
        if condition.present is not None:
            holds &= missing != condition.present
        if condition.at_least is not None or condition.at_most is not None:
            found = typed.numbers(column, condition.column, decimal)
            values = found.values.to_numpy(zero_copy_only=False)
            odd = np.zeros(len(column), np.bool_)
            for reason, mask in found.wrong.items():
                wrong[reason] = wrong.get(reason, odd) | mask
                odd = odd | mask
            with np.errstate(invalid="ignore"):
                low = -np.inf if condition.at_least is None else condition.at_least
                high = np.inf if condition.at_most is None else condition.at_most
                holds &= ((values >= low) & (values <= high)) | odd
        left_out = int((keep & ~holds).sum())
        name = f"{LEFT_OUT}{condition.column}"
        counts[name] = counts.get(name, 0) + left_out
        keep &= holds
    return keep, counts, wrong


def _check_type(path: Path, output: RawColumn, dtype: pa.DataType) -> None:
    """Refuses a column of parquet whose type is not what is read of it."""
    dtype, name = typed.value_type(dtype), output.column
    if pa.types.is_null(dtype):  # pandas writes a column of nothing so: all are missing
        return
    text, number = typed.is_text(dtype), typed.is_number(dtype)
    dated = pa.types.is_timestamp(dtype) or pa.types.is_date(dtype)
    words = f"{path}: column {name!r} is of type {dtype}; "
    if output.kind == "id" and not (pa.types.is_integer(dtype) or text):
        hint = " (a missing value makes pandas write integers as double)"
        raise UserError(
            f"{words}ids must be integers or strings{hint if pa.types.is_floating(dtype) else ''}. "
            "Write it with another type."
        )
    decimal = pa.types.is_decimal(dtype)
    if output.kind == "time" and not (number or decimal or text or dated):
        raise UserError(
            f"{words}times must be numbers (--time_unit says of what), timestamps or dates, or "
            "text of ISO 8601. Write it with another type."
        )
    if output.kind == "number" and not (number or text or pa.types.is_boolean(dtype) or decimal):
        raise UserError(f"{words}a number or buckets need numbers. Say another type of feature.")
    if output.kind == "bag" and not (text or pa.types.is_list(dtype)):
        raise UserError(f"{words}categories need lists or text. Say another type of feature.")
    if output.kind == "flags" and not (number or text or pa.types.is_boolean(dtype)):
        raise UserError(f"{words}flags need 0 and 1. Name other columns.")
    if output.kind in ("category", "label") and pa.types.is_nested(dtype):
        hint = "type: categories" if pa.types.is_list(dtype) else f"a column in it, {name}.NAME"
        raise UserError(f"{words}expected a single value. Say {hint}.")


def _outputs(features: Mapping[str, Feature]) -> list[RawColumn]:
    return [
        RawColumn(name, feature.column or name, _KINDS[feature.type], feature.separator)
        if feature.flags is None
        else RawColumn(name, feature.flags[0], "flags", flags=feature.flags)
        for name, feature in features.items()
    ]


def _pairs(plan: Plan, found: list[Typed]) -> list[tuple[RawColumn, Typed]]:
    return list(zip(plan.outputs, found, strict=True))
