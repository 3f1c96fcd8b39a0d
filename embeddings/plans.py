"""Plans and tables as YAML files, and whether a plan belongs to given tables."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lookback.core.errors import UserError, shown
from lookback.core.files import atomic_file
from lookback.core.yaml_files import StrictDumper, read_yaml
from lookback.embeddings.planners.base import needs_whole_rows
from lookback.embeddings.sharding import STRATEGIES, shards_of
from lookback.embeddings.types import Placement, ShardingPlan, TableSpec

FORMAT = "lookback-plan"
VERSION = 1

_LARGEST = (1 << 63) - 1  # ids are int64 at most

_PLACEMENT = {"strategy": str, "ranks": tuple[int, ...]}


def save_plan(plan: ShardingPlan, path: str | Path, inputs: Iterable[Path] = ()) -> None:
    """Writes a plan as YAML; the file is whole or not there.

    Args:
      plan: to be written.
      path: the file; another plan there is replaced.
      inputs: what the plan was made from, which it must not replace.

    Raises:
      UserError: if it cannot be written, or something else is there.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "ranks": plan.ranks,
        "tables": {
            table.name: {
                "strategy": placement.strategy,
                **({"ranks": list(placement.ranks)} if placement.ranks else {}),
                **_facts(table),
            }
            for table, placement in zip(plan.tables, plan.placements, strict=True)
        },
    }
    try:
        with atomic_file(path, replaces=_is_plan, inputs=inputs) as temporary:
            temporary.write_text(yaml.dump(content, Dumper=_Dumper, sort_keys=False))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from error


def load_plan(path: str | Path) -> ShardingPlan:
    """Reads a plan that `save_plan`, or somebody, wrote.

    Args:
      path: the file.

    Raises:
      UserError: if it is not there or no valid plan, saying what was expected.
    """
    content = _read_yaml(path)
    _check_keys(content, ["format", "version", "ranks", "tables"], (), f"{path}")
    if (content["format"], content["version"]) != (FORMAT, VERSION):
        raise UserError(
            f"{path}: expected format: {FORMAT}, version: {VERSION}; received "
            f"{shown(content['format'])}, {shown(content['version'])}. Make the plan anew with "
            "`python -m embeddings plan`."
        )
    ranks = _value(content["ranks"], int, f"{path}: ranks")
    tables, placements = [], []
    for name, entry in _entries(content["tables"], path):
        where = f"{path}: table {shown(name)}"
        placed = {key: entry.pop(key) for key in _PLACEMENT if key in entry}
        _check_keys(placed, ["strategy"], ["ranks"], where)
        read = {key: _value(v, _PLACEMENT[key], f"{where}: {key}") for key, v in placed.items()}
        tables.append(_table(name, entry, where))
        placements.append(Placement(name, **read))
    try:
        plan = ShardingPlan(ranks, tuple(tables), tuple(placements))
        shards_of(plan)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return plan


def load_tables(path: str | Path, dim: int | None = None) -> list[TableSpec]:
    """Reads a YAML file with the fields of a `TableSpec` by table name.

    Args:
      path: the file.
      dim: of the tables that name none; None: all have to.

    Raises:
      UserError: if it is not there or says something else, saying what was expected.
    """
    default = {} if dim is None else {"dim": dim}
    return [
        _table(name, {**default, **entry}, f"{path}: table {shown(name)}")
        for name, entry in _entries(_read_yaml(path), path)
    ]


def check_plan(
    plan: ShardingPlan, tables: Sequence[TableSpec], ranks: int, *, optimizer: str | None = None
) -> None:
    """Checks that a plan is one for these tables and this world size.

    Tables must agree in name, rows, dim and, where both name one, optimizer. Their order, and what
    the plan assumed about ids, may differ.

    Args:
      plan: the plan.
      tables: the run's.
      ranks: the run's processes.
      optimizer: the run's, for tables that name none; None: not known.

    Raises:
      UserError: naming the differences.
    """
    planned = {table.name: table for table in plan.tables}
    wanted = {table.name: table for table in tables}
    faults = []
    if plan.ranks != ranks:
        faults.append(f"it is for {plan.ranks} ranks, the run has {ranks}")
    if missing := [name for name in wanted if name not in planned]:
        faults.append(f"it lacks the tables {missing}")
    if surplus := [name for name in planned if name not in wanted]:
        faults.append(f"it has the tables {surplus}, which the run has not")
    for name in wanted.keys() & planned.keys():
        faults += _differences(planned[name], wanted[name])
    for placement in plan.placements:
        table = wanted.get(placement.table)
        used = (table and table.optimizer) or optimizer
        if used and needs_whole_rows(used) and STRATEGIES[placement.strategy].splits_rows:
            faults.append(
                f"table {placement.table!r} is {placement.strategy}, where {used} cannot work: "
                "its state belongs to whole rows"
            )
    if faults:
        raise UserError(
            f"The plan does not belong to this run: {'; '.join(sorted(faults))}. Make a plan for "
            "these tables and ranks with `python -m embeddings plan`."
        )


def _is_plan(path: Path) -> bool:
    try:
        return _read_yaml(path).get("format") == FORMAT
    except UserError:
        return False


def _differences(planned: TableSpec, wanted: TableSpec) -> Iterable[str]:
    for field in ("rows", "dim", "optimizer"):
        there, here = getattr(planned, field), getattr(wanted, field)
        if there != here and not (field == "optimizer" and None in (there, here)):
            yield f"table {wanted.name!r} has {field} {there} in it, {here} in the run"


def _facts(table: TableSpec) -> dict[str, Any]:
    """A table's fields but its name, without those that have their default."""
    facts = {}
    for field in dataclasses.fields(table):
        value = getattr(table, field.name)
        if field.name != "name" and value != field.default:
            facts[field.name] = list(value) if isinstance(value, tuple) else value
    return facts


def _table(name: str, entry: Mapping[str, Any], where: str) -> TableSpec:
    hints = typing.get_type_hints(TableSpec)
    fields = [field for field in dataclasses.fields(TableSpec) if field.name != "name"]
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    optional = [field.name for field in fields if field.name not in required]
    _check_keys(entry, required, optional, where)
    facts = {key: _value(value, hints[key], f"{where}: {key}") for key, value in entry.items()}
    try:
        return TableSpec(name, **facts)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _entries(tables: object, path: str | Path) -> Iterable[tuple[str, dict[str, Any]]]:
    if not isinstance(tables, dict) or not tables:
        raise UserError(
            f"{path}: expected tables by name, each with its fields; received {shown(tables)}."
        )
    for name, entry in tables.items():
        if not isinstance(name, str) or not isinstance(entry, dict):
            raise UserError(
                f"{path}: expected a table's name with its fields, such as "
                f"'item_id: {{rows: 100, dim: 16}}'; received {shown(name)}: {shown(entry)}."
            )
        yield name, dict(entry)


def _check_keys(
    entry: Mapping[str, Any], required: Sequence[str], optional: Sequence[str], where: str
) -> None:
    missing = [key for key in required if key not in entry]
    unknown = [key for key in entry if key not in required and key not in optional]
    if missing or unknown:
        also = f" and, if wanted, {', '.join(optional)}" if optional else ""
        faults = [
            f"{word} {shown(keys)}"
            for word, keys in (("no", missing), ("unknown", unknown))
            if keys
        ]
        raise UserError(f"{where}: expected {', '.join(required)}{also}; {', '.join(faults)}.")


def _value(raw: object, kind: Any, where: str) -> Any:
    """A value of a type hint: int, float, str, tuple of one type, or one of them or None."""
    if typing.get_origin(kind) is types.UnionType:
        (inner,) = (part for part in typing.get_args(kind) if part is not type(None))
        return None if raw is None else _value(raw, inner, where)
    if typing.get_origin(kind) is tuple:
        if not isinstance(raw, list):
            raise UserError(f"{where}: expected a list, received {shown(raw)}.")
        return tuple(_value(value, typing.get_args(kind)[0], where) for value in raw)
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(raw, allowed) or isinstance(raw, bool):
        words = {int: "a whole number", float: "a number", str: "text"}
        raise UserError(f"{where}: expected {words[kind]}, received {shown(raw)}.")
    if isinstance(raw, int) and abs(raw) > _LARGEST:
        raise UserError(f"{where}: expected at most {_LARGEST:,}, received {shown(raw)}.")
    return kind(raw)


def _read_yaml(path: str | Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, received {shown(content)}.")
    return content


class _Dumper(StrictDumper):
    """With lists on one line."""

    def represent_sequence(
        self, tag: str, sequence: Iterable[Any], flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        del flow_style
        return super().represent_sequence(tag, sequence, flow_style=True)
