"""Columns as they stand in files → columns of a raw table: ids, categories, numbers, times.

Each function takes a column of any type, which of CSV is text, and gives values of one type, which
of them are missing, and which are not what they should be, by reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookback.formats.transforms import Bag, canonical
from lookback.workflows.log.values import Values
from lookback.workflows.text import BadLineError
from lookback.workflows.times import (
    TIMES_WITHOUT_ZONE,
    Mask,
    TimeUnit,
    in_zone,
    problem,
    read_numbers,
    read_text,
    read_word,
    unit_of_type,
)

TIMES_AT_CLOCK_CHANGES = "times_at_clock_changes"

_NO_NUMBER = "_"
_LARGEST_EXACT = 2.0**53
_YES, _NO = ("1", "true"), ("0", "false")


@dataclass
class Typed:
    """A column of a raw table.

    Attributes:
      values: without meaning where they are missing or wrong, but null where nulls are meant. [N]
      missing: which are not there. [N]
      wrong: why some are not what they should be -> which. [N]
      zoneless: how many times name no zone, and are taken as UTC.
      counts: what else is to be reported, by name.
    """

    values: pa.Array
    missing: Mask
    wrong: dict[str, Mask] = field(default_factory=dict)
    zoneless: Mask | None = None
    counts: dict[str, int] = field(default_factory=dict)


def is_text(dtype: pa.DataType) -> bool:
    """Whether a type is of strings."""
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype))


def value_type(dtype: pa.DataType) -> pa.DataType:
    """A type, or that of the values of a dictionary."""
    return dtype.value_type if pa.types.is_dictionary(dtype) else dtype


def is_number(dtype: pa.DataType) -> bool:
    """Whether a type is of integers or floating points."""
    return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without dictionaries, and with one type for strings, and for nothing but nulls."""
    dtype = value_type(column.type)
    return column.cast(pa.string() if is_text(dtype) or pa.types.is_null(dtype) else dtype)


def missing_of(column: pa.ChunkedArray) -> Mask:
    """Which values of a plain column are not there: null, NaN, or text of nothing, [N]."""
    if is_text(column.type):
        missing = pc.equal(column, "").fill_null(True)
    else:
        missing = pc.is_null(column, nan_is_null=True)
    found: Mask = missing.to_numpy()
    return found


def ids(column: pa.ChunkedArray, name: str, *, is_written: bool) -> Typed:
    """Ids: as `categories`, but numbers must be whole."""
    column = plain(column)
    if not (pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        return categories(column, name, is_written=is_written)
    missing = missing_of(column)
    floats = np.where(missing, 0.0, column.cast(pa.float64()).fill_null(0).to_numpy())
    whole = (np.abs(floats) < _LARGEST_EXACT) & (np.floor(floats) == floats)
    whole &= missing | pa.types.is_floating(column.type)
    values = pa.array(np.where(whole, floats, 0).astype(np.int64))
    return Typed(values, missing, _not_any(f"{name} is neither text nor an integer", ~whole))


def categories(column: pa.ChunkedArray, name: str, *, is_written: bool) -> Typed:
    """Categories: int64 or string, null where they are missing.

    Args:
      column: of any type; of `is_written`, text becomes int64 if all of it are integers.
      name: for errors.
      is_written: whether numbers are text, too.
    """
    column = plain(column)
    missing = missing_of(column)
    wrong: dict[str, Mask] = {}
    dtype = column.type
    if is_text(dtype):
        values = _without(column, missing)
        values = _integers(values) if is_written else values
        if missing.all():
            values = pa.nulls(len(missing), pa.int64())  # gives way to any type of another block
    elif pa.types.is_integer(dtype):
        values = column.cast(pa.int64())
    elif pa.types.is_floating(dtype):
        values = _whole(column, missing)
    elif pa.types.is_nested(dtype):
        wrong = _not_any(f"{name} is a list", ~missing)
        values = pa.nulls(len(missing), pa.int64())
    else:
        values = column.cast(pa.string())
    return Typed(_one(values), missing, wrong)


def numbers(column: pa.ChunkedArray, name: str, decimal: str = ".") -> Typed:
    """Numbers: float64, null where they are missing; NaN is missing, infinity is wrong.

    Args:
      column: of any type.
      name: for errors.
      decimal: of text, what stands before fractions; beside ",", a point may be one of thousands,
        or one that was forgotten: it is wrong.
    """
    column = plain(column)
    missing = missing_of(column)
    wrong: dict[str, Mask] = {}
    if pa.types.is_nested(column.type):
        wrong = _not_any(f"{name} is a list", ~missing)
        return Typed(pa.nulls(len(missing), pa.float64()), missing, wrong)
    if is_text(column.type):
        column = _without(column, missing)
        said = "" if decimal == "." else f" with {decimal!r} before its fraction"
        if said:
            column = pc.replace_substring(column, ".", _NO_NUMBER)
            column = pc.replace_substring(column, decimal, ".")
        try:
            values = column.cast(pa.float64())
        except pa.ArrowInvalid:
            values, wrong = _each(column, _number, f"{name} is not a number{said}", pa.float64())
    else:
        values = column.cast(pa.float64(), safe=False)  # large integers round
    missing = missing | pc.is_nan(values).fill_null(False).to_numpy(zero_copy_only=False)
    infinite = pc.is_inf(values).fill_null(False).to_numpy(zero_copy_only=False)
    if infinite.any():
        wrong[f"{name} is not finite"] = infinite
    values = _without(values, missing)
    return Typed(_one(values), missing, wrong)


def bags(column: pa.ChunkedArray, name: str, separator: str | None) -> Typed:
    """Lists of categories as `formats.transforms.canonical` text, null where they are missing.

    Args:
      column: lists, or text.
      name: for errors.
      separator: between the elements of text; None: text is a list in JSON.
    """
    column = plain(column)
    missing = missing_of(column)
    bag = Bag(most=1, separator=separator)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        texts = [None if entry is None else _canonical(entry) for entry in column.to_pylist()]
        return Typed(pa.array(texts, pa.string()), missing)
    if not is_text(column.type):
        what = f"{name} is neither text nor a list"
        return Typed(pa.nulls(len(missing), pa.string()), missing, _not_any(what, ~missing))
    column = _without(column, missing)
    if separator is not None:
        values, wrong = _each(column, lambda text: canonical(bag.cut(text) or []), "", pa.string())
    else:
        values, wrong = _each(column, _json_list, f"{name} is not a list in JSON", pa.string())
    return Typed(_one(values), missing, wrong)


def flags(columns: Sequence[pa.ChunkedArray], names: Sequence[str]) -> Typed:
    """Lists of those categories of which a column has 1, as `formats.transforms.canonical` text.

    Args:
      columns: one a category, of 0 and 1; what is missing is 0. [F] of [N]
      names: the categories. [F]
    """
    wrong: dict[str, Mask] = {}
    held = np.zeros((len(columns[0]), len(columns)), np.bool_)
    for place, (column, name) in enumerate(zip(map(plain, columns), names, strict=True)):
        held[:, place] = words_of(column, _YES.__contains__)
        no = words_of(column, _NO.__contains__) | missing_of(column)
        wrong |= _not_any(f"{name} is neither 0 nor 1", ~(held[:, place] | no))
    combinations, places = np.unique(held, axis=0, return_inverse=True)
    texts = [canonical([n for n, on in zip(names, row, strict=True) if on]) for row in combinations]
    values = pa.array(texts, pa.string()).take(pa.array(places.reshape(-1)))
    return Typed(values, np.zeros(len(held), np.bool_), wrong)


def labels(column: pa.ChunkedArray, positive: Values) -> Typed:
    """Labels: int8, 1 of the positive values, else 0."""
    column = plain(column)
    missing = missing_of(column)
    values = words_of(column, positive.hold)
    return Typed(pa.array(values & ~missing).cast(pa.int8()), missing)


def words_of(column: pa.ChunkedArray, holds: Callable[[str], bool]) -> Mask:
    """Which values of a plain column, as text, a test holds for; of nothing it does not, [N]."""
    encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0) if encoded.num_chunks else pa.array([], pa.string())
        encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
    found = [holds(_word(value)) for value in encoded.dictionary.to_pylist()]
    indices = encoded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)
    mask: Mask = np.array([*found, False], np.bool_)[indices]
    return mask


def times(column: pa.ChunkedArray, name: str, unit: str, zone: str | None) -> Typed:
    """Times as `workflows.times.read_numbers` has them.

    Args:
      column: numbers, timestamps, dates, or text.
      name: for errors.
      unit: of numbers; see `workflows.times`.
      zone: of times that name none; None: UTC.
    """
    column = plain(column)
    missing = missing_of(column)
    if is_text(column.type):
        typed = _times_of_text(column, name, unit, missing)
    else:
        typed = _times_of_numbers(column, name, unit, missing)
    if zone is None or typed.zoneless is None or not typed.zoneless.any():
        return typed
    good = typed.zoneless & ~missing
    for mask in typed.wrong.values():
        good &= ~mask
    found = typed.values.to_numpy().copy()
    found[good], odd = in_zone(found[good], zone)
    counts = {TIMES_AT_CLOCK_CHANGES: odd} if odd else {}
    return Typed(pa.array(found), missing, typed.wrong, None, counts)


def zoneless_count(typed: Typed, kept: Mask) -> dict[str, int]:
    """How many of the kept times name no zone, as an entry of the counts."""
    count = 0 if typed.zoneless is None else int((typed.zoneless & kept).sum())
    return {TIMES_WITHOUT_ZONE: count} if count else {}


def _without(values: pa.Array | pa.ChunkedArray, missing: Mask) -> pa.Array | pa.ChunkedArray:
    """Values with null where they are missing.

    Not by `if_else`: of a slice of strings, that of pyarrow 14 gives offsets that are none.
    """
    return values.take(pa.array(np.arange(len(missing)), mask=missing))


def _times_of_numbers(column: pa.ChunkedArray, name: str, unit: str, missing: Mask) -> Typed:
    zoneless = None
    if pa.types.is_date(column.type):
        column, zoneless = column.cast(pa.timestamp("ms")), np.ones(len(column), np.bool_)
    if pa.types.is_timestamp(column.type):
        zoneless = np.full(len(column), column.type.tz is None)
        unit, column = unit_of_type(unit, column.type.unit), column.cast(pa.int64())
    if not (is_number(column.type) or pa.types.is_decimal(column.type)):
        what = f"{name} is not a time"
        return Typed(pa.nulls(len(missing), pa.int64()), missing, _not_any(what, ~missing))
    column = column.cast(pa.int64() if pa.types.is_integer(column.type) else pa.float64())
    found = column.fill_null(0).to_numpy()
    wrong: dict[str, Mask] = {}
    if unit not in get_args(TimeUnit):
        what = f"{name} is a number, not a time of ISO 8601"
        return Typed(pa.nulls(len(missing), pa.int64()), missing, _not_any(what, ~missing))
    with np.errstate(invalid="ignore"):  # not a number
        values, plausible = read_numbers(found, unit)
    for at in np.flatnonzero(~plausible & ~missing).tolist():
        reason = problem(found[at].item(), unit, name)
        wrong.setdefault(reason, np.zeros(len(found), np.bool_))[at] = True
    return Typed(pa.array(values), missing, wrong, zoneless)


def _times_of_text(column: pa.ChunkedArray, name: str, unit: str, missing: Mask) -> Typed:
    quick = None if missing.any() else read_text(column, unit)
    if quick is not None:
        values, without = quick
        return Typed(pa.array(values), missing, {}, np.full(len(column), bool(without)))
    found: list[int | float] = [0] * len(column)
    wrong: dict[str, Mask] = {}
    zoneless = np.zeros(len(column), np.bool_)
    for at, text in enumerate(column.to_pylist()):
        if missing[at]:
            continue
        try:
            found[at], zoneless[at] = read_word(text, unit, name)
        except BadLineError as error:
            wrong.setdefault(str(error), np.zeros(len(column), np.bool_))[at] = True
    fractions = any(isinstance(time, float) for time in found)
    array = pa.array(found, pa.float64() if fractions else pa.int64())
    return Typed(array, missing, wrong, zoneless)


def _each(
    column: pa.ChunkedArray, read: Callable[[str], Any], reason: str, dtype: pa.DataType
) -> tuple[pa.Array, dict[str, Mask]]:
    """Each distinct text by itself; those that raise ValueError are wrong."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    values, failed = [], []
    for text in encoded.dictionary.to_pylist():
        try:
            values.append(read(text))
            failed.append(False)
        except (ValueError, RecursionError):
            values.append(None)
            failed.append(True)
    indices = encoded.indices
    wrong = np.array([*failed, False])[
        indices.fill_null(len(failed)).to_numpy(zero_copy_only=False)
    ]
    return pa.array(values, dtype).take(indices), {reason: wrong} if wrong.any() else {}


def _number(text: str) -> float:
    if _NO_NUMBER in text:
        raise ValueError(text)
    return float(text)


def _json_list(text: str) -> str:
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError(text)
    return _canonical(found)


def _canonical(elements: Sequence[Any]) -> str:
    words = (_word(element) for element in elements if element is not None)
    return canonical([word for word in words if word])


def _word(value: Any) -> str:
    """A value as text: what CSV would have of it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_EXACT:
        return str(int(value))
    if isinstance(value, list | dict):
        raise ValueError(value)
    return str(value)


def _integers(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as int64 if that loses nothing, else as it is."""
    try:
        found = values.cast(pa.int64())
    except pa.ArrowInvalid:
        return values
    # What else the cast takes: leading zeros, 0x1F, -0.
    long = pc.greater(pc.binary_length(values), 1)
    other = pc.or_(pc.and_(pc.starts_with(values, "0"), long), pc.starts_with(values, "-0"))
    return values if pc.any(other).as_py() else found


def _whole(column: pa.ChunkedArray, missing: Mask) -> pa.ChunkedArray:
    """Floats as int64 if all are whole, as pandas has integers some of which are missing."""
    floats = column.cast(pa.float64()).fill_null(0).to_numpy()
    floats = np.where(missing, 0.0, floats)
    if (np.abs(floats) < _LARGEST_EXACT).all() and (np.floor(floats) == floats).all():
        return pa.array(floats.astype(np.int64), mask=missing)
    return pa.array([_word(float(x)) for x in floats], pa.string(), mask=missing)


def _not_any(reason: str, mask: Mask) -> dict[str, Mask]:
    return {reason: mask} if mask.any() else {}


def _one(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one piece."""
    if not isinstance(values, pa.ChunkedArray):
        return values
    whole = values.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
