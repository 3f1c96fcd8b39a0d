"""What a column may be, from some of its values."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lookback.workflows.log.look import is_number
from lookback.workflows.text import BadLineError
from lookback.workflows.times import A_YEAR, EARLIEST, read_word

USER_NAME = re.compile(
    r"(.*[._])?(user|uid|reviewer|customer|visitor|member|account|client|profile|person|steam)"
    r"([._]?(id|no|key|name|hash|idx|code)?)?",
    re.IGNORECASE,
)
ITEM_NAME = re.compile(
    r"(.*[._])?(parent_asin|asin|item|product|movie|business|article|video|track|song|artist|book|"
    r"app|sku|isbn|ad|news|listing|gmap|game|show|recipe|content)([._]?(id|no|key|hash|idx|code)?)?",
    re.IGNORECASE,
)
TIME_NAME = re.compile(r".*(time|date|ts|_at|day|when).*", re.IGNORECASE)
LABEL_NAME = re.compile(
    r"((is|has)_?)?(label|target|click(s|ed)?|like[sd]?|conver(sion|ted)|purchased?|response)",
    re.IGNORECASE,
)

FEW = 20  # distinct whole numbers that are rather names than amounts
MOSTLY = 0.97
_SEPARATORS = ("|", ";", ", ", ",")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+(,\d+)?")
_WORD = re.compile(r"[^\W\d_]|^$")
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Guess:
    """What a column may be.

    Attributes:
      kind: category, categories, number, time, text (mostly distinct), or constant.
      reason: why, in words.
      unit: of a time that is numbers; "iso" of text.
      zoneless: whether times of text name no zone.
      separator: between the elements of categories of text.
      most: elements of the longest value.
      log: whether numbers spread over several magnitudes.
      distinct: how many values there are.
      missing: the share of values that are not there.
      binary: whether the values are two, as 0 and 1.
    """

    kind: str
    reason: str
    unit: str | None = None
    zoneless: bool = False
    separator: str | None = None
    most: int = 0
    log: bool = False
    distinct: int = 0
    missing: float = 0.0
    binary: bool = False


def guess(name: str, values: Sequence[Any]) -> Guess:
    """What a column of these values may be.

    Args:
      name: of the column.
      values: text, numbers, dates, lists or None; "" and NaN are none.
    """
    there = [value for value in values if value not in (None, "", []) and value == value]
    missing = 1 - len(there) / max(len(values), 1)
    if not there:
        return Guess("constant", "no value in the rows looked at", missing=1.0)
    if any(isinstance(value, list) for value in there):
        lists = [value for value in there if isinstance(value, list)]
        return Guess("categories", "lists", most=max(map(len, lists)), missing=missing)
    texts = [text_of(value) for value in there]
    distinct = len(set(texts))
    found = _time(name, texts) or _bag(texts) or _plain(texts, distinct)
    return Guess(**{**vars(found), "distinct": distinct, "missing": missing})


def text_of(value: Any) -> str:
    """A value as CSV would have it."""
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _time(name: str, texts: Sequence[str]) -> Guess | None:
    """A time, if all values are plausible as one, and more than a few."""
    if all(map(is_number, texts)):
        if any(known.fullmatch(name) for known in (USER_NAME, ITEM_NAME)):
            return None  # ids of 19 digits would be nanoseconds
        numbers = [float(text) for text in texts]
        now = time.time() + A_YEAR
        for unit, scale in _UNITS.items():
            if all(EARLIEST * scale <= number <= now * scale for number in numbers):
                return Guess("time", f"numbers of {unit} since 1970", unit=unit)
        if TIME_NAME.fullmatch(name) and all(len(text) == 8 for text in texts):
            for unit in ("yyyymmdd", "yymmddhh"):
                if _reads(texts, unit):
                    return Guess("time", f"digits of {unit}", unit=unit)
        return None
    zoneless = _reads(texts, "iso")
    if zoneless is None:
        return None
    said = "; they name no zone" if zoneless else ""
    return Guess("time", f"times of ISO 8601{said}", unit="iso", zoneless=zoneless)


def _reads(texts: Sequence[str], unit: str) -> bool | None:
    """Whether any of some times names no zone; None if one is no time."""
    zoneless = False
    for text in set(texts):
        try:
            zoneless |= read_word(text, unit, "x")[1]
        except BadLineError:
            return None
    return zoneless or unit != "iso"


def _bag(texts: Sequence[str]) -> Guess | None:
    """Lists in JSON, or text in which a separator joins values that come again."""
    if sum(text.startswith("[") and text.endswith("]") for text in texts) > MOSTLY * len(texts):
        try:
            lists = [json.loads(text) for text in texts]
        except ValueError:
            return None
        return Guess("categories", "lists in JSON", most=max(map(len, lists)))
    if all(map(_DECIMAL_COMMA.fullmatch, texts)) and any("," in text for text in texts):
        shown = next(text for text in texts if "," in text)
        return Guess(
            "text",
            f"{shown!r} may be a number (say decimal: ',' under csv) or a list (type: categories, "
            "separator: ',')",
        )
    for separator in _SEPARATORS:
        cut = [text.split(separator) for text in texts]
        several = sum(len(parts) > 1 for parts in cut)
        parts = [part.strip() for found in cut for part in found]
        whole = len(set(texts))
        if (
            several >= len(texts) / 5
            and len(set(parts)) <= max(FEW, len(parts) / 5)
            and (len(set(parts)) < whole or whole <= FEW)
            and max(map(len, parts)) <= 40
            and (all(map(_WORD.search, parts)) or all(part.isdecimal() for part in parts))
        ):
            most = max(map(len, cut))
            return Guess(
                "categories", f"{separator!r} between values", separator=separator, most=most
            )
    return None


def _plain(texts: Sequence[str], distinct: int) -> Guess:
    if distinct == 1 and len(texts) > 1:
        return Guess("constant", f"always {texts[0][:40]!r}")
    if all(map(is_number, texts)):
        numbers = [float(text) for text in texts]
        whole = all(number.is_integer() for number in numbers)
        binary = whole and set(numbers) <= {0, 1}
        if whole and distinct <= FEW:
            return Guess("category", f"{distinct} whole numbers", binary=binary)
        low, high = min(numbers), max(numbers)
        middle = sorted(numbers)[len(numbers) // 2]
        log = low >= 0 and high > 20 * max(middle, 1)
        said = f"numbers from {low:g} to {high:g}"
        return Guess(
            "number", f"{said}, mostly far smaller than the largest" if log else said, log=log
        )
    binary = {text.lower() for text in texts} <= {"true", "false"}
    if distinct > 0.5 * len(texts) and len(texts) > FEW:
        return Guess("text", f"mostly distinct text, such as {texts[0][:40]!r}")
    return Guess("category", f"text of {distinct} values", binary=binary)
