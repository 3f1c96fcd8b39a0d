"""Raw values of features → ids and numbers: the same code where data is prepared and served.

A transformation holds what was fitted, says so in JSON (an entry of ``features`` in dataset.json),
and is applied with NumPy and Arrow alone:

    number       `Number`      (f(x) - mean) / scale, f clips and takes logarithms
    buckets      `Buckets`     a number's place among boundaries
    hash         `Hashed`      a hash of the text, modulo a number of buckets
    vocabulary   `Vocabulary`  the place among the known values, which are in a file beside

Of these the last two may stand for the elements of a `Bag`: a list of categories.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.core.errors import UserError, shown
from lookback.formats.vocabulary import FIRST_KNOWN, HASHED, NULL, hashed_keys

TYPE = "type"
BAG = "bag"
OF = "of"
"""Keys of an entry in JSON: the kind, the bag around it, and whose feature it is."""

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Number:
    """y = (log(clip(fill(x))) - mean) / scale, in float64; the result is float32.

    Attributes:
      fill: takes the place of a missing value.
      log: whether sign(x) log(1 + |x|) takes the place of x.
      clip: smallest and largest value; None: no bound.
      mean: is subtracted.
      scale: is divided by, above 0.
    """

    fill: float
    log: bool = False
    clip: tuple[float | None, float | None] | None = None
    mean: float = 0.0
    scale: float = 1.0

    kind = "number"

    def apply(self, values: Floats) -> npt.NDArray[np.float32]:
        """Transforms raw values ``[N]``, of which NaN is a missing one."""
        spread = self.spread(np.where(np.isnan(values), self.fill, values))
        return ((spread - self.mean) / self.scale).astype(np.float32)

    def spread(self, values: Floats) -> Floats:
        """Values ``[N]`` before they are standardised, of which none is missing."""
        if self.clip is not None:
            low, high = (_or(bound, end) for bound, end in zip(self.clip, _ENDS, strict=True))
            values = np.clip(values, low, high)
        return np.sign(values) * np.log1p(np.abs(values)) if self.log else values

    def invert(self, values: npt.NDArray[Any]) -> Floats:
        """Raw values ``[N]`` that become these, but for rounding and for what is clipped."""
        spread = np.asarray(values, np.float64) * self.scale + self.mean
        return np.sign(spread) * np.expm1(np.abs(spread)) if self.log else spread

    def to_json(self) -> dict[str, Any]:
        """All that `transform_of` needs."""
        clip = None if self.clip is None else list(self.clip)
        return {TYPE: self.kind, **dataclasses.asdict(self), "clip": clip}


@dataclasses.dataclass(frozen=True)
class Buckets:
    """A number's place among boundaries: bucket k holds ``boundaries[k - 1] <= x < boundaries[k]``.

    Attributes:
      boundaries: ascending, distinct.
    """

    boundaries: tuple[float, ...]

    kind = "buckets"

    @property
    def rows(self) -> int:
        """Rows of the embedding table."""
        return FIRST_KNOWN + len(self.boundaries) + 1

    def encode(self, values: Floats) -> Ints:
        """Ids of numbers ``[N]``: from `FIRST_KNOWN` on, `NULL` of NaN."""
        places = np.searchsorted(np.asarray(self.boundaries), values, side="right") + FIRST_KNOWN
        return np.where(np.isnan(values), NULL, places).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """All that `transform_of` needs."""
        return {TYPE: self.kind, "boundaries": list(self.boundaries)}


@dataclasses.dataclass(frozen=True)
class Hashed:
    """Categories without a vocabulary: `formats.vocabulary`'s hash of the text, modulo `buckets`.

    An integer hashes as the text that it is written as, so the type of a column has no say.

    Attributes:
      buckets: ids that values share.
    """

    buckets: int

    kind = "hash"

    @property
    def rows(self) -> int:
        """Rows of the embedding table."""
        return FIRST_KNOWN + self.buckets

    def encode(self, values: pa.Array) -> Ints:
        """Ids of strings or integers ``[N]``: from `FIRST_KNOWN` on, `NULL` of null."""
        places = (hashed_keys(values.cast(pa.string()).fill_null("")) & (HASHED - 1)) % self.buckets
        null = values.is_null().to_numpy(zero_copy_only=False)
        return np.where(null, NULL, places + FIRST_KNOWN).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """All that `transform_of` needs."""
        return {TYPE: self.kind, "buckets": self.buckets}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The known values are in a file of the feature's name: `formats.vocabulary.id_file`."""

    kind = "vocabulary"

    def to_json(self) -> dict[str, Any]:
        """All that `transform_of` needs."""
        return {TYPE: self.kind}


@dataclasses.dataclass(frozen=True)
class Bag:
    """A list of categories, of which the order and repeats do not count.

    Of more than `most` known elements those with the smallest ids are kept: of a vocabulary the
    most frequent ones when it was fitted, and those that an update added after them. Elements out
    of the vocabulary are left out.

    Attributes:
      most: elements that are kept (M).
      separator: between the elements where raw values are text; None: they come as lists.
      elements: what gives an element its id.
    """

    most: int
    separator: str | None = None
    elements: Vocabulary | Hashed = Vocabulary()

    kind = BAG

    def cut(self, value: str | Sequence[str] | None) -> list[str] | None:
        """The distinct elements of a raw value, sorted; None where it is missing.

        Args:
          value: text is cut at the separator, if there is one, and what is empty left out.
        """
        if value is None:
            return None
        if isinstance(value, str):
            parts = [value] if self.separator is None else value.split(self.separator)
            value = [part.strip() for part in parts]
        return sorted({element for element in value if element})

    def keep(self, ids: Ints, offsets: npt.NDArray[Any]) -> tuple[Ints, npt.NDArray[np.int64]]:
        """Encoded elements → bags: ascending, distinct, known, at most M.

        Args:
          ids: of the elements of B bags. ``[N]``
          offsets: bag b's are ``ids[offsets[b] : offsets[b + 1]]``. ``[B + 1]``

        Returns:
          Ids and offsets of what is kept.
        """
        count = len(offsets) - 1
        bag = np.repeat(np.arange(count), np.diff(offsets))
        ids = ids[offsets[0] : offsets[-1]]
        order = np.lexsort((ids, bag))
        bag, ids = bag[order], ids[order]
        first = np.r_[True, (bag[1:] != bag[:-1]) | (ids[1:] != ids[:-1])][: len(ids)]
        good = first & (ids >= FIRST_KNOWN)
        bag, ids = bag[good], ids[good]
        starts = np.searchsorted(bag, np.arange(count))
        kept = np.arange(len(bag)) - starts[bag] < self.most
        lengths = np.bincount(bag[kept], minlength=count)
        return ids[kept], np.r_[0, np.cumsum(lengths)].astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        """All that `transform_of` needs."""
        bag = {"most": self.most, "separator": self.separator}
        return {**self.elements.to_json(), BAG: bag}


Transform = Number | Buckets | Hashed | Vocabulary | Bag


def transform_of(entry: Mapping[str, Any]) -> Transform:
    """The transformation that an entry of ``features`` in dataset.json describes.

    Args:
      entry: what `to_json` gave, and maybe whose feature it is (``of``), which is passed over.

    Raises:
      UserError: if it describes none.
    """
    given = {key: value for key, value in entry.items() if key not in (OF, BAG, TYPE)}
    kind, bag = entry.get(TYPE), entry.get(BAG)
    try:
        if kind not in _KINDS:
            raise ValueError(f"type {shown(kind)}")
        known = {field.name for field in dataclasses.fields(_KINDS[kind])}
        if set(given) - known:
            raise ValueError(f"key {shown(min(set(given) - known))}")
        made: Transform = _KINDS[kind](**{key: _READ[key](value) for key, value in given.items()})
        return made if bag is None else _bag(made, bag)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"A feature of the dataset: expected its transformation, one of {', '.join(_KINDS)} "
            f"with what was fitted, received {shown(dict(entry))} ({error}). Write the dataset "
            "again with `python -m workflows run`."
        ) from error


def canonical(elements: Sequence[str]) -> str:
    """Elements of a list of categories as the one text that stands for them in raw tables."""
    return json.dumps(sorted(set(elements)), ensure_ascii=False, separators=(",", ":"))


def _bag(elements: Transform, bag: Any) -> Bag:
    if not isinstance(elements, Vocabulary | Hashed):
        raise ValueError(f"a bag of type {elements.kind}")
    return Bag(_count(bag["most"]), _text_or_none(bag["separator"]), elements)


def _or(bound: float | None, otherwise: float) -> float:
    return otherwise if bound is None else bound


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{shown(value)} is no finite number")
    return float(value)


def _above_zero(value: Any) -> float:
    if _finite(value) <= 0:
        raise ValueError(f"{shown(value)} is not above 0")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{shown(value)} is neither true nor false")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{shown(value)} is no number from 1 on")
    return value


def _text_or_none(value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{shown(value)} is no separator")
    return value


def _bounds(value: Any) -> tuple[float | None, float | None] | None:
    if value is None:
        return None
    low, high = (None if bound is None else _finite(bound) for bound in value)
    return low, high


def _ascending(value: Any) -> tuple[float, ...]:
    boundaries = tuple(map(_finite, value))
    if any(low >= high for low, high in itertools.pairwise(boundaries)):
        raise ValueError("boundaries do not ascend")
    return boundaries


_ENDS = (-math.inf, math.inf)
_KINDS: dict[Any, Any] = {
    Number.kind: Number,
    Buckets.kind: Buckets,
    Hashed.kind: Hashed,
    Vocabulary.kind: Vocabulary,
}
_READ: dict[str, Callable[[Any], Any]] = {
    "fill": _finite,
    "log": _flag,
    "clip": _bounds,
    "mean": _finite,
    "scale": _above_zero,
    "boundaries": _ascending,
    "buckets": _count,
}
