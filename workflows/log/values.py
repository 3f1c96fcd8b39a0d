"""Values of a description that are neither a word nor a mapping: lists, intervals, moments."""

from __future__ import annotations

import dataclasses
import datetime
import math
from dataclasses import dataclass
from typing import Any

from lookback.core.errors import UserError, shown
from lookback.core.options.option import Structure

Word = str | int | float | bool

_SPELLINGS = (("false", "no", "off"), ("true", "yes", "on"))
"""What YAML takes for 0 and for 1, in small letters: which of them was written, nobody knows."""


@dataclass(frozen=True)
class Values(Structure):
    """Values of a column, as a list: text is compared as text, a number as a number.

    True and 1 are alike, false and 0: a column's booleans, numbers, and words that YAML takes so.

    Attributes:
      words: them.
    """

    words: tuple[Word, ...]

    @classmethod
    def read(cls, raw: object, source: str) -> Values:
        """See `Structure.read`."""
        if isinstance(raw, cls):
            return raw
        if not isinstance(raw, list | tuple) or not raw:
            raise UserError(f"{source}: expected a list of values ([1, click]), {_received(raw)}.")
        for word in raw:
            if not isinstance(word, str | int | float | bool) or (
                isinstance(word, float) and not math.isfinite(word)
            ):
                raise UserError(f"{source}: expected text, numbers or booleans, {_received(word)}.")
        return cls(tuple(raw))

    def content(self) -> list[Word]:
        """See `Structure.content`."""
        return list(self.words)

    @classmethod
    def schema(cls, definitions: dict[str, Any]) -> dict[str, Any]:
        """See `Structure.schema`."""
        words = {"type": ["string", "number", "boolean"]}
        return {"type": "array", "minItems": 1, "items": words}

    def hold(self, text: str) -> bool:
        """Whether a value of a column, as text, is one of them."""
        return any(_is(word, text) for word in self.words)


def _is(word: Word, text: str) -> bool:
    """Whether a value of a column, as text, is a word of a description."""
    if isinstance(word, str):
        return text == word
    try:
        return "_" not in text and float(text) == word
    except ValueError:
        return word in (0, 1) and text.lower() in _SPELLINGS[int(word)]


@dataclass(frozen=True)
class Interval(Structure):
    """A smallest and a largest number, as a list of two; null: no bound.

    Attributes:
      low: the smallest.
      high: the largest.
    """

    low: float | None
    high: float | None

    @classmethod
    def read(cls, raw: object, source: str) -> Interval:
        """See `Structure.read`."""
        if isinstance(raw, cls):
            return raw
        if isinstance(raw, list | tuple) and len(raw) == 2 and all(map(_is_bound, raw)):
            low, high = (None if bound is None else float(bound) for bound in raw)
            if low is None or high is None or low < high:
                return cls(low, high)
        raise UserError(
            f"{source}: expected [SMALLEST, LARGEST], two ascending numbers or null, "
            f"{_received(raw)}."
        )

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """Both."""
        return self.low, self.high

    def content(self) -> list[float | None]:
        """See `Structure.content`."""
        return [self.low, self.high]

    @classmethod
    def schema(cls, definitions: dict[str, Any]) -> dict[str, Any]:
        """See `Structure.schema`."""
        bound = {"type": ["number", "null"]}
        return {"type": "array", "minItems": 2, "maxItems": 2, "items": bound}


@dataclass(frozen=True)
class Moment(Structure):
    """A moment: seconds since 1970, a date, or a time of ISO 8601; without a zone it is UTC.

    Attributes:
      seconds: since 1970 in UTC; where times are steps, the step.
      is_date: whether it was written as a date or time.
    """

    seconds: int
    is_date: bool = dataclasses.field(default=False, compare=False)

    @classmethod
    def read(cls, raw: object, source: str) -> Moment:
        """See `Structure.read`."""
        if isinstance(raw, cls):
            return raw
        value = raw
        if isinstance(value, str):
            try:
                value = datetime.datetime.fromisoformat(value.strip().replace("Z", "+00:00"))
            except ValueError:
                value = None
        if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
            value = datetime.datetime(value.year, value.month, value.day)
        if isinstance(value, datetime.datetime):
            zoned = value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
            return cls(math.floor(zoned.timestamp()), is_date=True)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62:
            return cls(value)
        raise UserError(
            f"{source}: expected a date (2024-01-31), a time of ISO 8601, or seconds since 1970, "
            f"{_received(raw)}."
        )

    def content(self) -> int:
        """See `Structure.content`."""
        return self.seconds

    @classmethod
    def schema(cls, definitions: dict[str, Any]) -> dict[str, Any]:
        """See `Structure.schema`."""
        return {"type": ["string", "integer"]}


@dataclass(frozen=True)
class Share(Structure):
    """Whether there is a part, or the fraction that it is of the whole.

    Attributes:
      value: true, false, or a number between 0 and 1.
    """

    value: bool | float

    @classmethod
    def read(cls, raw: object, source: str) -> Share:
        """See `Structure.read`."""
        if isinstance(raw, cls):
            return raw
        if isinstance(raw, bool) or (isinstance(raw, int | float) and 0 < raw < 1):
            return cls(raw)
        raise UserError(
            f"{source}: expected true, false, or a fraction between 0 and 1, {_received(raw)}."
        )

    def content(self) -> bool | float:
        """See `Structure.content`."""
        return self.value

    @classmethod
    def schema(cls, definitions: dict[str, Any]) -> dict[str, Any]:
        """See `Structure.schema`."""
        fraction = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
        return {"anyOf": [{"type": "boolean"}, fraction]}


def _is_bound(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _received(raw: object) -> str:
    return f"received {'nothing' if raw is None else shown(raw)}"
