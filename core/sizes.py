"""Sizes in bytes, as people write and read them. Pure Python."""

from __future__ import annotations

import math
import re

from lookback.core.errors import UserError, shown

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def parse_size(text: str, option: str) -> float:
    """Bytes of a size like ``80GB``, ``40GiB`` or ``1000000``.

    Args:
      text: a number, with or without a unit: k, M, G or T are powers of 1000, with an i of 1024.
      option: where it was written, for the error.

    Raises:
      UserError: if it is no size above 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kmgt]?)(i?)b?)", text.strip().lower())
    if not match or not float(match[1]) > 0 or (match[3] and not match[2]):
        raise UserError(
            f"{option}: expected a size above 0 like 80GB, 40GiB or 1000000, received "
            f"{shown(text)}."
        )
    return float(match[1]) * (1024.0 if match[3] else 1000.0) ** " kmgt".index(match[2] or " ")


def format_size(size: float, *, up: bool = False) -> str:
    """A size with three digits, in powers of 1000.

    Args:
      size: bytes.
      up: round up, for a size that has to be enough.
    """
    for unit, scale in _UNITS:
        if size >= scale:
            value = size / scale
            digits = max(0, 2 - math.floor(math.log10(value)))
            if up:
                value = math.ceil(value * 10**digits) / 10**digits
            return f"{value:.{digits}f} {unit}"
    return f"{math.ceil(size) if up else round(size)} B"
