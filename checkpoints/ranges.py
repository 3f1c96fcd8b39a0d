"""Arithmetic of ranges: which rows two of them share, and whether several make up a whole.

A shard's rows are a `range`: a block of them, or every n-th. All of this is arithmetic on three
numbers, so it costs the same for a table of a thousand rows and one of a billion.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_ROWS_AT_ONCE = 1 << 20  # rows looked at together when a fault is counted: 4 MB


class Fault(NamedTuple):
    """Why ranges do not make up a whole.

    Attributes:
      row: the first that is not in exactly one range.
      held: in how many it is.
      missing: how many rows are in none.
      repeated: how many rows are in several.
    """

    row: int
    held: int
    missing: int
    repeated: int


def intersect(a: range, b: range) -> range:
    """What two ranges have in common, ascending.

    Two arithmetic progressions meet in one: by the Chinese remainder theorem, x = a (mod m) and
    x = b (mod n) have a solution if gcd(m, n) divides b - a, and then one in every lcm(m, n).

    Args:
      a: any range, descending ones included.
      b: any range.
    """
    a, b = _ascending(a), _ascending(b)
    if not a or not b:
        return range(0)
    m, n = a.step, b.step
    common = math.gcd(m, n)
    if (b.start - a.start) % common:
        return range(0)
    step = m // common * n
    # The multiple of m that leads from a.start to something that is b.start modulo n.
    turns = (b.start - a.start) // common * pow(m // common, -1, n // common)
    first = a.start + turns * m
    earliest = max(a.start, b.start)
    first += -((first - earliest) // step) * step
    return range(first, max(first, min(a[-1], b[-1]) + 1), step)


def place(part: range, whole: range) -> slice:
    """Where in `whole` the values of `part` stand.

    Args:
      part: ascending values, all of which are in `whole`.
      whole: any range.

    Returns:
      A slice that, applied to an array with a row for each value of `whole`, gives those of `part`.
    """
    if not part:
        return slice(0, 0)
    start = whole.index(part[0])
    if len(part) == 1:
        return slice(start, start + 1)
    step = whole.index(part[1]) - start
    stop = start + step * len(part)
    return slice(start, stop if stop >= 0 else None, step)


def contains(whole: range, part: range) -> bool:
    """Whether every value of `part` is in `whole`."""
    return len(part) == len(intersect(whole, part))


def partition_fault(total: int, ranges: Sequence[range]) -> Fault | None:
    """Why the ranges do not hold each of [0, total) once; None if they do.

    Args:
      total: number of rows.
      ranges: of rows, ascending and within [0, total).
    """
    ranges = [rows for rows in ranges if rows]
    if sum(map(len, ranges)) == total and _disjoint(ranges):
        return None
    return _count_fault(total, ranges)


def _ascending(rows: range) -> range:
    return rows if rows.step > 0 else rows[::-1]


def _disjoint(ranges: Sequence[range]) -> bool:
    if len({rows.step for rows in ranges}) > 1:
        return not any(intersect(a, b) for a, b in itertools.combinations(ranges, 2))
    # The common case, in O(n log n): ranges of one step meet only within a residue.
    residues: dict[int, list[range]] = defaultdict(list)
    for rows in sorted(ranges, key=lambda rows: rows.start):
        residues[rows.start % rows.step].append(rows)
    return all(a[-1] < b.start for group in residues.values() for a, b in itertools.pairwise(group))


def _count_fault(total: int, ranges: Sequence[range]) -> Fault | None:
    first: tuple[int, int] | None = None
    missing = repeated = 0
    for start in range(0, total, _ROWS_AT_ONCE):
        block = range(start, min(total, start + _ROWS_AT_ONCE))
        held = np.zeros(len(block), np.int32)
        for rows in ranges:
            held[place(intersect(rows, block), block)] += 1
        missing += int(np.count_nonzero(held == 0))
        repeated += int(np.count_nonzero(held > 1))
        if first is None and np.any(held != 1):
            row = int(np.flatnonzero(held != 1)[0])
            first = start + row, int(held[row])
    return None if first is None else Fault(*first, missing, repeated)
