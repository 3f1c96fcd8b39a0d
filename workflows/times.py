"""Raw times → nanoseconds since 1970 in UTC, or a sentence that says which unit they are in.

A number tells no unit: milliseconds that are taken for seconds keep an order, and nothing looks
wrong before somebody uses the gaps between them or puts two files together. So a time must lie
between `EARLIEST` and a year from now, or in the years that a `UnitOfYears` names. Text of ISO 8601
and the types of parquet tell their unit themselves.
"""

from __future__ import annotations

import datetime
import functools
import math
import re
import time
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookback.workflows.text import BadLineError

TimeUnit = Literal["s", "ms", "us", "ns", "yyyymmdd", "yymmddhh", "steps"]
SECONDS: TimeUnit = "s"
STEPS: TimeUnit = "steps"
ISO = "iso"
"""In place of a unit: times are text of ISO 8601 alone."""

NANOSECONDS = 10**9
TIMES_WITHOUT_ZONE = "times_without_zone"  # in the counts: taken as UTC
EARLIEST = 788_918_400  # 1995-01-01 in seconds: logs of users and items begin with the web
A_YEAR = 366 * 86_400
_YEAR_10000 = 253_402_300_800

FIRST_YEAR, LAST_YEAR = 1678, 2261
"""Which int64 holds whole, as nanoseconds since 1970."""

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DATES = ("yyyymmdd", "yymmddhh")
_TOO_LARGE = 2.0**63
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"-?\d{1,30}", re.ASCII)
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?"
    r"(Z|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)


def in_words(moment: int) -> str:
    """A time of a dataset as people read it: seconds as ISO 8601; a number of steps as it is."""
    if not EARLIEST <= moment < _YEAR_10000:
        return f"{moment}"
    return f"{datetime.datetime.fromtimestamp(moment, datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


class UnitOfYears(str):
    """A unit, and the years in which times lie that are given in it, or tell theirs.

    It is the unit to whoever does not ask for the years.

    Attributes:
      first: year.
      last: year.
    """

    first: int
    last: int

    def __new__(cls, unit: str, first: int, last: int) -> UnitOfYears:
        """A unit of `TimeUnit` with years from `FIRST_YEAR` to `LAST_YEAR`."""
        made = super().__new__(cls, unit)
        made.first, made.last = first, last
        return made

    def __reduce__(self) -> tuple[type[UnitOfYears], tuple[str, int, int]]:
        """For workers: pickle would make it of the unit alone."""
        return UnitOfYears, (str(self), self.first, self.last)


def unit_of_type(unit: str, own: str) -> str:
    """The unit that a type of times has of its own, with the years of the unit that was given."""
    return UnitOfYears(own, unit.first, unit.last) if isinstance(unit, UnitOfYears) else own


Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def read_numbers(values: Array, unit: str) -> tuple[Array, Mask]:
    """Times of numbers.

    Args:
      values: int64 or float64. [N]
      unit: theirs.

    Returns:
      nanoseconds, int64; of `steps` the numbers themselves. [N]
      which of them can be times; the others' values mean nothing. [N]
    """
    if unit == STEPS:
        return values, (values >= 0) & (values < _TOO_LARGE)
    if unit in _DATES:
        return _of_dates(values, unit)
    low, high = _bounds(unit)
    scale = NANOSECONDS // _PER_SECOND[unit]
    good = (values >= low) & (values <= high)
    values = values if good.all() else np.where(good, values, low)
    if values.dtype.kind == "i":
        return values * scale, good
    whole = np.floor(values).astype(np.int64)
    return whole * scale + np.rint((values - whole) * scale).astype(np.int64), good


def read_number(value: int | float, unit: str, name: str) -> int | float:
    """The time of one number, as `read_numbers` has it.

    Args:
      value: the number.
      unit: its unit.
      name: of the column, for the error.

    Raises:
      BadLineError: if it can be no time; see `problem`.
    """
    if unit == STEPS:
        if 0 <= value < _TOO_LARGE:
            return value
    elif unit in _DATES and abs(value) < _TOO_LARGE:
        times, good = read_numbers(np.array([value]), unit)
        if good[0]:
            return int(times[0])
    elif unit in _PER_SECOND:
        low, high = _bounds(unit)
        if low <= value <= high:
            scale = NANOSECONDS // _PER_SECOND[unit]
            whole = math.floor(value)
            return whole * scale + round((value - whole) * scale)
    raise BadLineError(problem(value, unit, name))


def problem(value: int | float, unit: str, name: str) -> str:
    """Why a number is no time of a unit: words to count by, with the units that would fit."""
    years = (unit.first, unit.last) if isinstance(unit, UnitOfYears) else None
    return _problem(value, str(unit), name, years)


@functools.lru_cache(maxsize=4096)
def _problem(value: int | float, unit: str, name: str, years: tuple[int, int] | None) -> str:
    if unit == STEPS:
        return f"{name} is {'negative' if value < 0 else 'too large'}"
    if years is not None:
        return f"{name} is not in the years {years[0]} to {years[1]} of --years, in {unit}"
    fitting = [other for other in get_args(TimeUnit) if other != STEPS and _fits(value, other)]
    if fitting:
        return (
            f"{name} looks like {' or '.join(fitting)}, not {unit}: "
            f"say --time_unit {' or '.join(fitting)}"
        )
    return (
        f"{name} is not between 1995 and a year from now in {unit}: name its unit with --time_unit "
        f"({STEPS}: any numbers that increase), and the years with --years if they are others"
    )


def known_zone(zone: str) -> bool:
    """Whether there is a time zone of this name."""
    import pytz

    return zone in pytz.all_timezones_set


def in_zone(times: Array, zone: str) -> tuple[Array, int]:
    """Times of clocks on a wall in UTC, and how many of them the clock shows twice, or never.

    Of those that it shows twice the first is meant; one that it leaves out is the next that it has.

    Args:
      times: nanoseconds since 1970 as the clock counts them. [N]
      zone: where the clock is.
    """
    from pandas import DatetimeIndex

    walls = DatetimeIndex(times)
    first, second = (
        walls.tz_localize(zone, ambiguous=np.full(len(times), summer), nonexistent="shift_forward")
        for summer in (True, False)
    )
    found = first.asi8
    gone = first.tz_localize(None).asi8 != times
    return found, int(((found != second.asi8) | gone).sum())


def read_text(values: pa.ChunkedArray, unit: str) -> tuple[Array, int] | None:
    """Times of text, numbers or ISO 8601, all at once.

    Args:
      values: strings, without nulls. [N]
      unit: of numbers; `ISO`: there are none.

    Returns:
      times as `read_numbers` has them [N], and how many of them name no zone; None where any
      value may be no time.
    """
    for dtype in (pa.int64(), pa.float64()):
        try:
            numbers = values.cast(dtype).to_numpy()
        except pa.ArrowInvalid:
            continue
        if unit == ISO:
            return None
        times, good = read_numbers(numbers, unit)
        return (times, 0) if good.all() else None
    if unit == STEPS:
        return None
    found = pc.min_max(values).as_py()
    if found["min"] < str(FIRST_YEAR) or found["max"] >= str(LAST_YEAR + 1):
        return None
    for zone in (None, "UTC"):
        try:
            times = values.cast(pa.timestamp("ns", zone)).cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid:
            continue
        good = _plausible(times, unit_of_type(unit, "ns"))
        return (times, 0 if zone else len(times)) if good.all() else None
    return None


def read_word(text: str, unit: str, name: str) -> tuple[int | float, bool]:
    """The time of one text, as `read_text` has it, and whether it names no zone.

    Raises:
      BadLineError: if it is none.
    """
    if _NUMBER.fullmatch(text):
        if unit == ISO:
            raise BadLineError(f"{name} is a number, not a time of ISO 8601")
        number = int(text) if _INTEGER.fullmatch(text) else float(text)
        return read_number(number, unit, name), False
    found = _ISO.fullmatch(text)
    if found is None or unit == STEPS:
        raise BadLineError(
            f"{name} is not a number{'' if unit == STEPS else ', nor a time of ISO 8601'}"
        )
    *parts, fraction, zone = found.groups()
    try:
        moment = datetime.datetime(*(int(part or 0) for part in parts))  # type: ignore[arg-type]
    except ValueError as error:
        raise BadLineError(f"{name} is no date") from error
    seconds = int((moment - datetime.datetime(1970, 1, 1)).total_seconds()) - _offset(zone)
    nanoseconds = seconds * NANOSECONDS + int((fraction or "0").ljust(9, "0"))
    return read_number(nanoseconds, unit_of_type(unit, "ns"), name), zone is None


def _offset(zone: str | None) -> int:
    """Seconds that a zone such as +05:30 is ahead of UTC."""
    if zone is None or zone == "Z":
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return -seconds if zone[0] == "-" else seconds


def _bounds(unit: str) -> tuple[int, int]:
    """The first and the last time that is plausible, in a unit of `_PER_SECOND`."""
    low, high = EARLIEST, int(time.time()) + A_YEAR
    if isinstance(unit, UnitOfYears):
        low, high = _begins(unit.first), _begins(unit.last + 1) - 1
    return low * _PER_SECOND[unit], high * _PER_SECOND[unit]


def _begins(year: int) -> int:
    """Seconds from 1970 to the beginning of a year."""
    return (datetime.date(year, 1, 1) - datetime.date(1970, 1, 1)).days * 86_400


def _plausible(nanoseconds: Array, unit: str) -> Mask:
    low, high = _bounds(unit)
    plausible: Mask = (nanoseconds >= low) & (nanoseconds <= high)
    return plausible


def _of_dates(values: Array, unit: str) -> tuple[Array, Mask]:
    """Digits of a date, such as 20141021 or 14102100."""
    good = (values >= 0) & (values < 10**8) & (np.floor(values) == values)
    digits = np.where(good, values, 0).astype(np.int64)
    hour = np.zeros_like(digits)
    if unit == "yymmddhh":
        hour = digits % 100
        digits = digits // 100 + 20_000_000
    year, month, day = digits // 10_000, digits // 100 % 100, digits % 100
    good &= (year <= LAST_YEAR) & (month >= 1) & (month <= 12) & (day >= 1) & (hour < 24)
    months = np.where(good, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    dates = months.astype("datetime64[D]") + (np.where(good, day, 1) - 1)
    good &= dates.astype("datetime64[M]") == months  # there is no 30th of February
    hours = dates.astype("datetime64[h]").astype(np.int64) + hour
    good &= (hours >= _begins(FIRST_YEAR) // 3600) & (hours < _begins(LAST_YEAR + 1) // 3600)
    times = np.where(good, hours, 0) * (3600 * NANOSECONDS)
    return times, good & _plausible(times, unit_of_type(unit, "ns"))


def _fits(value: int | float, unit: str) -> bool:
    if unit in _DATES:
        return 0 <= value < 10**8 and bool(read_numbers(np.array([value]), unit)[1][0])
    low, high = _bounds(unit)
    return low <= value <= high
