"""Compiled loops of the tabular workflow: parse, sort, count, look up.

A categorical value travels as an int64 *key*, the same for text and for strings in a frame: see
`formats.vocabulary`. The loops are compiled once and kept in ``__pycache__``.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from lookback.formats.vocabulary import HEX_DIGITS, MISSING, hashed_key

Array = np.ndarray[Any, Any]

MAX_DIGITS = 18
"""Of an integer: so many always fit int64."""

_TAB, _LINE_FEED, _RETURN, _SPACE, _MINUS = 9, 10, 13, 32, 45
_ZERO, _NINE = 48, 57
_NO_DIGIT = 16
_RADIX_BITS = 11


def _digit_values() -> Array:
    """For each byte the value of the hexadecimal digit it is, or `_NO_DIGIT`."""
    values = np.full(256, _NO_DIGIT, np.uint8)
    for value, digit in enumerate(b"0123456789abcdef"):
        values[digit] = value
    return values


_DIGITS = _digit_values()
_hashed_key = numba.njit(cache=True, nogil=True)(hashed_key)


@numba.njit(cache=True, nogil=True, inline="always")
def _hex_number(data: Array, start: int) -> int:
    """The number of `HEX_DIGITS` digits, or -1. Without branches: no predictor guesses digits."""
    value: Any = np.int64(0)
    seen: Any = np.int64(0)
    for i in range(HEX_DIGITS):
        digit = np.int64(_DIGITS[data[start + i]])
        value = value << 4 | digit
        seen |= digit
    return value if seen < _NO_DIGIT else -1


@numba.njit(cache=True, nogil=True)
def key_of(data: Array, start: int, stop: int) -> int:
    """Key of ``data[start:stop]``, uint8 text; see `formats.vocabulary`."""
    if start == stop:
        return MISSING
    if stop - start == HEX_DIGITS:
        value = _hex_number(data, start)
        if value >= 0:
            return value
    hashed: int = _hashed_key(data, start, stop, np.uint64)
    return hashed


@numba.njit(cache=True, nogil=True)
def keys_of(data: Array, offsets: Array, present: Array, keys: Array) -> None:
    """Keys of strings: `data` uint8, `offsets` [n + 1], `present` bool [n] -> `keys` int64 [n]."""
    for i in range(len(keys)):
        keys[i] = key_of(data, offsets[i], offsets[i + 1]) if present[i] else MISSING


@numba.njit(cache=True, nogil=True, inline="always")
def _ends_field(byte: int) -> bool:
    return byte in (_TAB, _LINE_FEED, _RETURN)


@numba.njit(cache=True, nogil=True, inline="always")
def _number(data: Array, place: int) -> tuple[float, int, bool]:
    """An integer that begins at `place`, or NaN; where it ends; whether it is well-formed."""
    negative = data[place] == _MINUS
    if negative:
        place += 1
    first = place
    value = 0
    while _ZERO <= data[place] <= _NINE and place - first < MAX_DIGITS:
        value = value * 10 + (data[place] - _ZERO)
        place += 1
    if place == first:
        return np.nan, place, not negative
    return float(-value if negative else value), place, True


@numba.njit(cache=True, nogil=True)
def _rest_of_line(data: Array, place: int) -> tuple[int, bool]:
    """Where the line feed is, and whether only white space comes before it."""
    blank = True
    while data[place] != _LINE_FEED:
        if data[place] > _SPACE:
            blank = False
        place += 1
    return place, blank


@numba.njit(cache=True, nogil=True)
def parse(
    data: Array, label: Array, numbers: Array, keys: Array, bad: Array
) -> tuple[int, int, int]:
    """Parses lines of label, N integers and M categorical values, separated by tabs.

    Args:
      data: uint8, whole lines, and a line feed at the very end.
      label: float32 [lines], written.
      numbers: float64 [N, lines], written; NaN where there is no value.
      keys: int64 [M, lines], written.
      bad: int64 [lines, 3], written: number (from 1), start and end of each line that is not so.

    Returns:
      good lines, bad lines, and all lines with blank ones.
    """
    numerical, categorical = len(numbers), len(keys)
    size = len(data)
    rows = wrong = lines = 0
    place = 0
    while place < size:
        begin = place
        lines += 1
        good = True
        # label
        if data[place] == _ZERO or data[place] == _ZERO + 1:
            label[rows] = data[place] - _ZERO
            place += 1
        else:
            good = False
        # integers
        column = 0
        while good and column < numerical:
            if data[place] != _TAB:
                good = False
                break
            numbers[column, rows], place, good = _number(data, place + 1)
            column += 1
        # categorical values
        column = 0
        while good and column < categorical:
            if data[place] != _TAB:
                good = False
                break
            place += 1
            first = place
            if first + HEX_DIGITS < size and _ends_field(data[first + HEX_DIGITS]):
                value = _hex_number(data, first)
                if value >= 0:
                    keys[column, rows] = value
                    place += HEX_DIGITS
                    column += 1
                    continue
            while not _ends_field(data[place]):
                place += 1
            keys[column, rows] = key_of(data, first, place)
            column += 1
        if good and data[place] == _RETURN and data[place + 1] == _LINE_FEED:
            place += 1
        if good and data[place] == _LINE_FEED:
            rows += 1
            place += 1
            continue
        place, blank = _rest_of_line(data, begin)
        if not blank:
            bad[wrong, 0] = lines
            bad[wrong, 1] = begin
            bad[wrong, 2] = place
            wrong += 1
        place += 1
    return rows, wrong, lines


@numba.njit(cache=True, nogil=True)
def sort_by_bits(values: Array, spare: Array, low: int, high: int) -> Array:
    """Sorts unsigned integers by their bits ``low <= bit < high``; equal ones keep their order.

    Both arrays are overwritten; the sorted one of them is returned.
    """
    kind = values.dtype.type
    buckets = 1 << _RADIX_BITS
    mask = values.dtype.type(buckets - 1)
    shift = low
    while shift < high:
        counts = np.zeros(buckets + 1, np.int64)
        by = kind(shift)
        for i in range(len(values)):
            counts[np.int64((values[i] >> by) & mask) + 1] += 1
        for i in range(buckets):
            counts[i + 1] += counts[i]
        for i in range(len(values)):
            bucket = np.int64((values[i] >> by) & mask)
            spare[counts[bucket]] = values[i]
            counts[bucket] += 1
        values, spare = spare, values
        shift += _RADIX_BITS
    return values


@numba.njit(cache=True, nogil=True)
def run_lengths(values: Array, keys: Array, counts: Array) -> int:
    """Distinct values of a sorted array into `keys`, how often each is there into `counts`."""
    found = 0
    i = 0
    while i < len(values):
        begin = i
        while i < len(values) and values[i] == values[begin]:
            i += 1
        keys[found] = values[begin]
        counts[found] = i - begin
        found += 1
    return found


@numba.njit(cache=True, nogil=True)
def sum_packed(packed: Array, keys: Array, counts: Array) -> int:
    """Adds up sorted uint64s of a key (high half) and a count (low half), key by key."""
    found = -1
    for i in range(len(packed)):
        key = packed[i] >> np.uint64(32)
        count = np.int64(packed[i] & np.uint64(0xFFFFFFFF))
        if found < 0 or keys[found] != key:
            found += 1
            keys[found] = key
            counts[found] = 0
        counts[found] += count
    return found + 1


@numba.njit(cache=True, nogil=True)
def look_up(keys: Array, known: Array, ids: Array, starts: Array, shift: int, out: Array) -> int:
    """Ids of keys; gives the number of keys that are not known, whose id is 0.

    Args:
      keys: int64 [n].
      known: [K], the known keys in order.
      ids: int32 [K], their ids.
      starts: int64 [buckets + 1]; bucket b holds the known keys from ``starts[b]``, those with
        ``(key - known[0]) >> shift == b``.
      shift: of the buckets.
      out: int32 [n], written.
    """
    unknown = 0
    size = len(known)
    lowest: Any = np.int64(known[0]) if size else 0
    highest: Any = np.int64(known[size - 1]) if size else -1
    for i in range(len(keys)):
        key = np.int64(keys[i])
        out[i] = 0
        if lowest <= key <= highest:
            bucket = (key - lowest) >> shift
            low, high = starts[bucket], starts[bucket + 1]
            while low < high:
                middle = (low + high) >> 1
                if np.int64(known[middle]) < key:
                    low = middle + 1
                else:
                    high = middle
            if low < size and np.int64(known[low]) == key:
                out[i] = ids[low]
                continue
        unknown += 1
    return unknown
