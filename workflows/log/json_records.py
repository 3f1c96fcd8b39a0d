"""JSON lines → some values of each: fast with Arrow, or carefully line by line.

A value is named by its key, or by keys with dots between them where objects lie in objects. What
is not read may be what it likes; what is read must say one thing: no key twice, no NaN.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from lookback.core.errors import UserError
from lookback.workflows.log.records import (
    BadRecords,
    RecordBlock,
    Records,
    Wanted,
    column_at,
    listed,
)
from lookback.workflows.text import (
    BLOCK_BYTES,
    EXCERPT,
    BadLineError,
    Block,
    blocks,
    first_line,
)

LOOKED_AT = 64
"""Lines of a block whose values say which types Arrow is to expect of all."""

LINES_LOOKED_AT = 1000
LOOKED_AT_BYTES = 1 << 20
"""Of a file whose keys are compared with those that are wanted."""

ARROW_BLOCK_BYTES = 4 << 20
_MARK = "\ufeff".encode()
_LARGEST = 1 << 63


class _Twice:
    """In place of a value whose key is there twice."""


class _NotANumber:
    """In place of NaN and Infinity."""


@dataclass(frozen=True, kw_only=True)
class JsonBlock(RecordBlock):
    """Lines of a file, an object each."""

    @property
    def is_written(self) -> bool:
        """See `RecordBlock.is_written`."""
        return False

    def quick(self) -> Records | None:
        """See `RecordBlock.quick`."""
        data = self._data()
        lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
        schema = _schema(data, self.wanted)
        if schema is None:
            return None
        try:
            found = pj.read_json(
                pa.BufferReader(data),
                read_options=pj.ReadOptions(
                    use_threads=pa.cpu_count() > 1, block_size=ARROW_BLOCK_BYTES
                ),
                parse_options=pj.ParseOptions(
                    explicit_schema=schema, unexpected_field_behavior="ignore"
                ),
            )
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError):
            return None
        # Arrow takes two objects on a line for two lines, and passes over blank ones.
        if len(found) not in (lines, sum(1 for line in data.split(b"\n") if line.strip())):
            return None
        arrays = [column_at(found, name) for name in self.wanted.names]
        if any(_has_nan(array) for array in arrays):  # which Arrow takes for a number
            return None
        table = pa.table(arrays, list(self.wanted.names))
        return Records(table, lines, None, lambda row: "")

    def careful(self) -> Records:
        """See `RecordBlock.careful`."""
        lines = self._data().split(b"\n")
        if not lines[-1]:
            lines.pop()
        rows, numbers, bad = [], [], BadRecords()
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                rows.append(_values(line, self.wanted))
                numbers.append(number)
            except BadLineError as error:
                bad.add(number, str(error), _excerpt(line))
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(self.wanted.names)
        return Records(
            pa.table([_array(column) for column in columns], list(self.wanted.names)),
            len(lines),
            np.array(numbers, np.int64),
            lambda row: _excerpt(lines[numbers[row] - 1]),
            bad,
        )

    def _data(self) -> bytes:
        data = self.read()
        return data.removeprefix(_MARK) if self.first else data


def find_keys(path: Path, wanted: Wanted, needed: Sequence[str]) -> tuple[list[str], list[str]]:
    """Checks a file's first lines.

    Args:
      path: the file.
      wanted: what is to be read.
      needed: those of them that every line must have.

    Returns:
      The keys that nobody reads, and what is wanted and not there.

    Raises:
      UserError: if the file is empty, its first line no JSON object, or what is needed not there.
    """
    text = first_line(path)
    if not text.strip():
        state = "begins with an empty line" if path.stat().st_size else "is empty"
        raise UserError(f"{path} {state}. Expected a JSON object in each line.")
    try:
        first = _object(text.encode())
    except BadLineError as error:
        hint = " It begins a list: write its entries a line each." if text[0] == "[" else ""
        raise UserError(
            f"{path}:1: expected a JSON object in each line, received {text[:EXCERPT]!r} "
            f"({error}).{hint}"
        ) from error
    seen = _seen(path)
    absent = [name for name in wanted.names if all(_reached(v, name) is None for v in seen)]
    for name in absent:
        if name in needed:
            raise UserError(
                f"{path} has no {name!r} in its first {len(seen):,} lines. The keys of the first: "
                f"{listed(first)}. {wanted.remedy}"
            )
    read = {name.split(".")[0] for name in wanted.names} | set(wanted.names)
    keys = dict.fromkeys(key for value in seen for key in value)
    return [key for key in keys if key not in read], absent


def json_blocks(path: Path, wanted: Wanted, block_bytes: int = BLOCK_BYTES) -> Iterator[JsonBlock]:
    """The blocks of a file, in order."""
    for block in blocks(path, block_bytes):
        values: dict[str, Any] = {field.name: getattr(block, field.name) for field in fields(Block)}
        yield JsonBlock(**values, wanted=wanted)


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_pairs, parse_constant=lambda _: _NotANumber())
    except UnicodeDecodeError as error:
        raise BadLineError("not UTF-8") from error
    except RecursionError as error:
        raise BadLineError("nested too deeply") from error
    except ValueError as error:
        raise BadLineError("not JSON") from error
    if not isinstance(value, dict):
        raise BadLineError("not a JSON object")
    return value


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        value |= {key: _Twice() for key in value if keys.count(key) > 1}
    return value


def _values(line: bytes, wanted: Wanted) -> list[Any]:
    found = _object(line)
    values = []
    for name in wanted.names:
        value = _checked(_reached(found, name), name)
        if isinstance(value, list) and name not in wanted.lists:
            raise BadLineError(f"{name} is a list")
        if isinstance(value, bool | float) and name in wanted.ids:
            if isinstance(value, bool) or not value.is_integer():
                raise BadLineError(f"{name} is neither text nor an integer")
            value = _checked(int(value), name)
        values.append(value)
    return values


def _checked(value: Any, name: str) -> Any:
    """A value, if it says one thing."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, written as an escape
            raise BadLineError(f"{name} is not Unicode text") from error
    elif isinstance(value, _Twice):
        raise BadLineError(f"the key {name} is there twice")
    elif isinstance(value, _NotANumber) or (isinstance(value, float) and math.isinf(value)):
        raise BadLineError(f"{name} is no number of JSON")
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise BadLineError(f"{name} is too large")
    elif isinstance(value, dict):
        raise BadLineError(f"{name} is an object")
    elif isinstance(value, list):
        return [_checked(entry, name) for entry in value]
    return value


def _array(values: Sequence[Any]) -> pa.Array:
    """Values of JSON as one type: text where they are of several."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int}:
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array(values, pa.float64())
    if kinds == {list}:
        lists = [value and [_written(entry) for entry in value] for value in values]
        return pa.array(lists, pa.list_(pa.string()))
    if len(kinds) > 1:
        return pa.array([_written(value) for value in values], pa.string())
    return pa.array(values, pa.bool_() if kinds == {bool} else pa.string())


def _written(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _schema(data: bytes, wanted: Wanted) -> pa.Schema | None:
    """What Arrow is to expect; None where the first lines say no one thing."""
    start, seen = 0, []
    for _ in range(LOOKED_AT):
        end = data.find(b"\n", start)
        line = data[start:end] if end >= 0 else data[start:]
        if line.strip():
            try:
                seen.append(_object(line))
            except BadLineError:
                return None
        if end < 0:
            break
        start = end + 1
    tree: dict[str, Any] = {}
    for name in wanted.names:
        if any(name in value and "." in name for value in seen):
            return None  # a key with a dot in it
        values = [_reached(value, name) for value in seen]
        kind = pa.float64() if name in wanted.numbers else _type(values)
        *above, last = name.split(".")
        place = tree
        for step in above:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                return None
        if kind is None or last in place:
            return None
        place[last] = kind
    return pa.schema(_fields(tree))


def _seen(path: Path) -> list[dict[str, Any]]:
    """Objects of the first lines of a file that can be read."""
    block = next(blocks(path, LOOKED_AT_BYTES))
    found = []
    for line in block.read().removeprefix(_MARK).split(b"\n")[:LINES_LOOKED_AT]:
        with contextlib.suppress(BadLineError):
            found.append(_object(line))
    return found


def _reached(value: Mapping[str, Any], name: str) -> Any:
    """What a path leads to in a line; None if there is nothing."""
    if name in value:
        return value[name]
    found: Any = value
    for step in name.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _type(values: Sequence[Any]) -> pa.DataType | None:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {list}:
        inner = _type([entry for value in values if value for entry in value])
        return None if inner is None else pa.list_(inner)
    if not kinds:
        return pa.string()
    types = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
    return types.get(kinds.pop()) if len(kinds) == 1 else None


def _fields(tree: Mapping[str, Any]) -> list[pa.Field]:
    return [
        pa.field(name, pa.struct(_fields(kind)) if isinstance(kind, Mapping) else kind)
        for name, kind in tree.items()
    ]


def _has_nan(array: pa.ChunkedArray) -> bool:
    floats = pa.types.is_floating(array.type)
    return floats and bool(pc.any(pc.invert(pc.is_finite(array))).as_py())


def _excerpt(line: bytes) -> str:
    return line[:EXCERPT].decode("utf-8", "backslashreplace")
