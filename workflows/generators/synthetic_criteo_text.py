"""Rows as Criteo's raw files have them: label, integers and hexadecimal values between tabs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from lookback.workflows.generators.synthetic_criteo_law import DrawnRows

_DIGITS = 7  # of the largest number
_HEX = 8
# Rows formatted at a time: more would leave the caches (about 350 bytes a row), fewer cost calls.
_LINES_AT_ONCE = 8192
_TAB, _NEWLINE, _MINUS, _ZERO = (ord(text) for text in "\t\n-0")

Bytes = npt.NDArray[np.uint8]


def lines(rows: DrawnRows) -> bytes:
    """The rows as text: a missing value is empty, a value r of a field is `hexadecimal` of it.

    A byte matrix of the widest line is filled column by column, and a mask says which of its bytes
    count: some 20 times as fast as formatting each line.

    Args:
      rows: n of them.
    """
    texts = []
    for start in range(0, len(rows.label), _LINES_AT_ONCE):
        part = slice(start, start + _LINES_AT_ONCE)
        texts.append(
            _format(
                rows.label[part], rows.numbers[:, part], rows.absent[:, part], rows.ids[:, part]
            )
        )
    return b"".join(texts)


def hexadecimal(field: int, value: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """What stands for a field's values: 32 bits that look random, all different.

    The finaliser of MurmurHash3 (Appleby), a bijection of 32 bits.

    Args:
      field: from 0.
      value: r, of any shape, below 2^32.
    """
    h = value.astype(np.uint32) ^ np.uint32((field + 1) * 0x9E3779B1 % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h ^ (h >> np.uint32(16))


def _format(
    label: npt.NDArray[np.bool_],
    numbers: npt.NDArray[np.int32],
    absent: npt.NDArray[np.bool_],
    ids: npt.NDArray[np.int32],
) -> bytes:
    width = 1 + len(numbers) * (2 + _DIGITS) + len(ids) * (1 + _HEX) + 1
    text = np.full((len(label), width), _TAB, np.uint8)
    keep = np.ones((len(label), width), np.bool_)
    text[:, 0] = label.astype(np.uint8) + _ZERO
    at = 1
    for values, missing in zip(numbers, absent, strict=True):
        end = at + 2 + _DIGITS
        _put_number(text[:, at + 1 : end], keep[:, at + 1 : end], values)
        keep[missing, at + 1 : end] = False
        at = end
    for field, values in enumerate(ids):
        end = at + 1 + _HEX
        code = hexadecimal(field, values - 1)
        pairs = _hex_pairs()
        text[:, at + 1 : at + 5] = pairs[code >> np.uint32(16)]
        text[:, at + 5 : end] = pairs[code & np.uint32(0xFFFF)]
        keep[values == 0, at + 1 : end] = False
        at = end
    text[:, at] = _NEWLINE
    return text[keep].tobytes()


def _put_number(text: Bytes, keep: npt.NDArray[np.bool_], values: npt.NDArray[np.int32]) -> None:
    """Writes integers ``[n]`` into ``[n, 1 + digits]``: a place for the sign, then the digits."""
    text[:, 0] = _MINUS
    keep[:, 0] = values < 0
    rest = np.abs(values).astype(np.uint32)
    for place in range(_DIGITS, 0, -1):
        if place < _DIGITS:
            keep[:, place] = rest > 0
            if not rest.any():
                keep[:, 1:place] = False
                break
        quotient = rest // np.uint32(10)
        text[:, place] = rest - quotient * np.uint32(10) + _ZERO
        rest = quotient


@functools.cache
def _hex_pairs() -> Bytes:
    """``[2^16, 4]`` the four lower-case digits of each 16-bit number."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    number = np.arange(1 << 16)
    return np.stack([digits[number >> shift & 15] for shift in (12, 8, 4, 0)], axis=1)
