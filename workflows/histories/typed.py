"""Typed features of a log: what is fitted of them, and raw columns → ids and numbers.

What is fitted does not depend on how events are spread over partitions, to the last bit: values
are counted, and sums of numbers are exact (`Moments`). Vocabularies of the elements of bags and of
categories count the events that the caller says; numbers and quantiles those of the training part.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lookback.core.arrow_files import read_parquet
from lookback.core.errors import UserError
from lookback.core.json_files import read_json
from lookback.formats.bags import padded
from lookback.formats.impressions import LABEL
from lookback.formats.transforms import (
    OF,
    Bag,
    Buckets,
    Hashed,
    Number,
    Transform,
    Vocabulary,
    transform_of,
)
from lookback.formats.vocabulary import FIRST_KNOWN, NULL, OUT_OF_VOCABULARY, together
from lookback.workflows.cluster import Runner
from lookback.workflows.histories.feature_specs import FeatureSpec
from lookback.workflows.histories.gather import PART, encode_column
from lookback.workflows.histories.rules import TRAIN
from lookback.workflows.histories.value_counts import COUNT, VALUE, count_where, merge_counts

FEATURES_FILE = "features.json"
"""In a saved workflow: the transformation of each feature."""

FITTED = "fitted"
"""Column of the counts of combinations: of those events that the elements' vocabulary counts."""

NUMBER = "number"

LARGEST = 1e100
"""Numbers beyond have squares that float64 does not hold, and are none that anybody measured."""

_SPLITTER = 134217729.0  # 2^27 + 1: Dekker's, halves the digits of a float64
_DIGITS, _LOW_DIGITS = 53, 26
_MERGED_AT_ONCE = 8
_PARSED_AT_ONCE = 100_000  # lists, which as Python's take ten times the memory

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of numbers, without any rounding.

    So they add up to the same in whatever order; a mean and a standard deviation of them are
    those of exact arithmetic, rounded once.

    Attributes:
      count: how many.
      total: their sum.
      squares: the sum of their squares.
    """

    count: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)

    @classmethod
    def of(cls, values: Floats) -> Moments:
        """Of values ``[N]``, none beyond `LARGEST`."""
        square = values * values
        high = _SPLITTER * values
        high = high - (high - values)
        low = values - high
        error = ((high * high - square) + 2 * high * low) + low * low  # exact: Dekker 1971
        return cls(len(values), _exact_sum(values), _exact_sum(square) + _exact_sum(error))

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    @property
    def mean(self) -> float:
        """0 of nothing."""
        return float(self.total / self.count) if self.count else 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation of all (not of a sample); 0 of nothing."""
        if not self.count:
            return 0.0
        mean = self.total / self.count
        return float(self.squares / self.count - mean * mean) ** 0.5


@dataclass(frozen=True)
class Encoding:
    """How raw columns become ids and numbers.

    Attributes:
      transforms: of each feature; columns of a `Vocabulary` are left to the workflow.
      bags: file of the number of each combination of raw elements (`VALUE`, `NUMBER`), by feature.
    """

    transforms: Mapping[str, Transform]
    bags: Mapping[str, Path]

    def encode(self, table: pa.Table) -> pa.Table:
        """Events with raw features → the same with encoded ones.

        Raises:
          UserError: if a number is infinite.
        """
        for name, transform in self.transforms.items():
            if isinstance(transform, Vocabulary) or name not in table.column_names:
                continue
            place = table.column_names.index(name)
            values = self._encode(name, transform, table[name])
            table = table.set_column(place, name, pa.array(values))
        return table

    def _encode(self, name: str, transform: Transform, column: pa.ChunkedArray) -> npt.NDArray[Any]:
        if isinstance(transform, Number):
            return transform.apply(_checked(name, _floats(column)))
        if isinstance(transform, Buckets):
            return transform.encode(_floats(column))
        distinct = encode_column(column)  # of its values; nulls have no index
        if isinstance(transform, Hashed):
            ids = transform.encode(distinct.dictionary)
        else:
            file = self.bags[name]
            numbers = _read_numbers(file, file.stat().st_mtime_ns)
            found = pc.index_in(distinct.dictionary, value_set=together(numbers[VALUE]))
            ids = numbers[NUMBER].to_numpy()[found.to_numpy()]
        places = distinct.indices.fill_null(len(ids)).to_numpy()
        encoded: npt.NDArray[Any] = np.r_[ids, NULL].astype(np.int32)[places]
        return encoded


def save_features(
    transforms: Mapping[str, Transform], specs: Mapping[str, FeatureSpec], directory: Path
) -> None:
    """Writes what was fitted beside the vocabularies of a saved workflow."""
    content = features_json(transforms, specs)
    (directory / FEATURES_FILE).write_text(json.dumps(content, indent=1) + "\n")


def features_json(
    transforms: Mapping[str, Transform], specs: Mapping[str, FeatureSpec]
) -> dict[str, Any]:
    """``features`` of dataset.json: whose each is, and its transformation."""
    return {name: {OF: specs[name].of, **made.to_json()} for name, made in transforms.items()}


def read_features(directory: Path, specs: Mapping[str, FeatureSpec]) -> dict[str, Transform]:
    """What `save_features` wrote.

    Raises:
      UserError: if it is damaged, or of other features than the log's description has.
    """
    said = read_json(directory / FEATURES_FILE)
    if set(said) != set(specs):
        raise UserError(
            f"{directory / FEATURES_FILE}: expected the features {', '.join(specs)}, received "
            f"{', '.join(said)}. Save the workflow again with `python -m workflows fit`."
        )
    return {name: transform_of(entry) for name, entry in said.items()}


def fit_numbers(
    files: Sequence[Path], specs: Mapping[str, FeatureSpec], explicit: bool, runner: Runner
) -> dict[str, Transform]:
    """Fits what is made of numbers, to the events of the training part.

    Args:
      files: partitions of events.
      specs: of all features.
      explicit: whether there are labels; features of events are then known of clicks alone.
      runner: where the tasks run.
    """
    chosen = {name: spec for name, spec in specs.items() if spec.is_numeric}
    fitted: dict[str, Transform] = {}
    counted = {name: spec for name, spec in chosen.items() if spec.quantiles is not None}
    added = {name: spec for name, spec in chosen.items() if spec.type == "number"}
    for name, spec in chosen.items():
        if spec.boundaries is not None:
            fitted[name] = Buckets(spec.boundaries)
    if added or counted:
        look = functools.partial(_look, added=added, counted=counted, explicit=explicit)
        sums, counts = all_together(runner.map(look, files, label="measuring", total=len(files)))
        fitted |= {name: _number(spec, *sums[name]) for name, spec in added.items()}
        fitted |= {name: _quantiles(spec, counts[name]) for name, spec in counted.items()}
    return fitted


def count_combinations(
    files: Sequence[Path],
    specs: Mapping[str, FeatureSpec],
    explicit: bool,
    runner: Runner,
    *,
    training: bool,
) -> dict[str, pa.Table]:
    """How often each combination of elements occurs (`VALUE`, `COUNT`, `FITTED`), by feature.

    Args:
      files: see `fit_numbers`.
      specs: likewise.
      explicit: likewise.
      runner: likewise.
      training: whether `FITTED` are those of the training part; else all.
    """
    chosen = {name: spec for name, spec in specs.items() if spec.is_bag}
    if not chosen:
        return {}
    count = functools.partial(_count, specs=chosen, explicit=explicit, training=training)
    return all_together(
        ({}, found) for found in runner.map(count, files, label="counting", total=len(files))
    )[1]


def count_elements(combinations: pa.Table) -> pa.Table:
    """In how many of the events that are fitted to each element occurs (`VALUE`, `COUNT`)."""
    elements, offsets = _elements(combinations)
    weights = np.repeat(combinations[FITTED].to_numpy(), np.diff(offsets))
    distinct = elements.dictionary_encode()
    counts = np.bincount(
        distinct.indices.to_numpy(), weights=weights, minlength=len(distinct.dictionary)
    ).astype(np.int64)
    counted = pa.table({VALUE: distinct.dictionary, COUNT: counts})
    return counted.filter(pc.greater(counted[COUNT], 0))


@dataclass(frozen=True)
class Bags:
    """The bags of a dataset's column; `formats.bags` writes them.

    Attributes:
      lengths: of each, by number.
      ids: of all their elements.
      cut: events of which elements were left out, as there are too many.
    """

    lengths: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int32]
    cut: int


def number_bags(combinations: pa.Table, bag: Bag, known: pa.Array | None, file: Path) -> Bags:
    """Numbers the bags by falling count of events, those of equal count by their ids.

    An empty list is a bag as others are. One of which no element is known is an unknown one.

    Args:
      combinations: see `count_combinations`.
      bag: the transformation.
      known: elements of the vocabulary, in the order of their ids; None where they are hashed.
      file: is written: the number of each combination.
    """
    elements, offsets = _elements(combinations)
    if isinstance(bag.elements, Hashed):
        ids = bag.elements.encode(elements)
    else:
        assert known is not None
        found = pc.index_in(elements, value_set=known.cast(pa.string()))
        ids = (found.fill_null(OUT_OF_VOCABULARY - FIRST_KNOWN).to_numpy() + FIRST_KNOWN).astype(
            np.int32
        )
    counts = combinations[COUNT].to_numpy()
    all_known = replace(bag, most=len(ids) + 1).keep(ids, offsets)[1]
    kept, bounds = bag.keep(ids, offsets)
    lengths = np.diff(bounds)
    table = padded(lengths, kept, max(int(lengths.max(initial=0)), 1))  # [C, M]
    known_ones = (lengths > 0) | (np.diff(offsets) == 0)
    # Rows sort as their lists of ids do, as the padding is below all ids.
    distinct, which = np.unique(table[known_ones], axis=0, return_inverse=True)
    totals = np.bincount(which, weights=counts[known_ones], minlength=len(distinct))
    order = np.argsort(-totals, kind="stable")
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(FIRST_KNOWN, FIRST_KNOWN + len(order))
    numbers = np.full(len(lengths), OUT_OF_VOCABULARY, np.int32)
    numbers[known_ones] = place[which]
    pq.write_table(pa.table({VALUE: combinations[VALUE], NUMBER: numbers}), file)
    distinct = distinct[order]
    return Bags(
        lengths=np.r_[[0] * FIRST_KNOWN, (distinct > 0).sum(axis=1)].astype(np.int64),
        ids=distinct[distinct > 0],
        cut=int(counts[np.diff(all_known) > bag.most].sum()),
    )


def _exact_sum(values: Floats) -> Fraction:
    """The sum of values ``[N]``, as if numbers had any number of digits."""
    mantissa, exponent = np.frexp(values)
    whole = (mantissa * 2.0**_DIGITS).astype(np.int64)
    order = np.argsort(exponent, kind="stable")
    whole, exponent = whole[order], exponent[order]
    starts = np.flatnonzero(np.r_[True, exponent[1:] != exponent[:-1]])[: len(values)]
    if not len(starts):
        return Fraction(0)
    high = np.add.reduceat(whole >> _LOW_DIGITS, starts)  # int64 holds the sums of 2^36 of each
    low = np.add.reduceat(whole & ((1 << _LOW_DIGITS) - 1), starts)
    total = Fraction(0)
    for upper, lower, power in zip(
        high.tolist(), low.tolist(), exponent[starts].tolist(), strict=True
    ):
        total += ((upper << _LOW_DIGITS) + lower) * Fraction(2) ** (power - _DIGITS)
    return total


_Sums = tuple[Moments, Moments, int]  # clipped, as they are standardised; how many are missing


def _look(
    file: Path,
    added: Mapping[str, FeatureSpec],
    counted: Mapping[str, FeatureSpec],
    explicit: bool,
) -> tuple[dict[str, _Sums], dict[str, pa.Table]]:
    """Task: sums and counts of a partition's numbers."""
    table = _read(file, [*added, *counted], explicit)
    sums: dict[str, _Sums] = {}
    for name, spec in added.items():
        values = _floats(table[name])[_rows(table, spec, explicit)]
        there = _checked(name, values[~np.isnan(values)])
        bounded = Number(0.0, clip=spec.clip).spread(there)
        clipped = Moments.of(bounded)
        spread = Moments.of(Number(0.0, log=True).spread(bounded)) if spec.log else clipped
        sums[name] = clipped, spread, len(values) - len(there)
    counts = {}
    for name, spec in counted.items():
        values = _floats(table[name])
        values = pa.chunked_array([pa.array(values, from_pandas=True)])
        counts[name] = count_where(values, {COUNT: _rows(table, spec, explicit)})
    return sums, counts


def _count(
    file: Path, specs: Mapping[str, FeatureSpec], explicit: bool, training: bool
) -> dict[str, pa.Table]:
    """Task: counts of a partition's combinations of elements."""
    table = _read(file, list(specs), explicit)
    counts = {}
    for name, spec in specs.items():
        every = np.ones(len(table), np.bool_)
        fitted = _rows(table, spec, explicit) if training else every
        counts[name] = count_where(table[name].cast(pa.string()), {COUNT: every, FITTED: fitted})
    return counts


def all_together(
    parts: Iterable[tuple[Mapping[str, _Sums], Mapping[str, pa.Table]]],
) -> tuple[dict[str, _Sums], dict[str, pa.Table]]:
    """Sums and counts of all partitions; few of them are held at a time."""
    sums: dict[str, _Sums] = {}
    waiting: dict[str, list[pa.Table]] = {}
    for found, counts in parts:
        for name, (clipped, spread, missing) in found.items():
            before = sums.get(name, (Moments(), Moments(), 0))
            sums[name] = before[0] + clipped, before[1] + spread, before[2] + missing
        for name, table in counts.items():
            waiting.setdefault(name, []).append(table)
            if len(waiting[name]) == _MERGED_AT_ONCE:
                waiting[name] = [merge_counts(waiting[name])]
    return sums, {name: merge_counts(tables) for name, tables in waiting.items()}


def _number(spec: FeatureSpec, clipped: Moments, spread: Moments, missing: int) -> Number:
    raw = Number(
        fill=clipped.mean if spec.fill is None else spec.fill, log=spec.log, clip=spec.clip
    )
    if not spec.standardise:
        return raw
    (filled,) = raw.spread(np.array([raw.fill])).tolist()
    filling = Fraction(filled)
    every = spread + Moments(missing, filling * missing, filling * filling * missing)
    return replace(raw, mean=every.mean, scale=every.deviation or 1.0)


def _quantiles(spec: FeatureSpec, counts: pa.Table) -> Buckets:
    """Boundaries are values that occur: the first of which k / q of the events are not above.

    One is left out where no smaller value occurs, so that no bucket is empty.
    """
    assert spec.quantiles is not None
    counts = counts.filter(pc.greater(counts[COUNT], 0)).sort_by(VALUE)
    values, total = counts[VALUE].to_numpy(), np.cumsum(counts[COUNT].to_numpy())
    if not len(values):
        return Buckets(())
    wanted = -(-np.arange(1, spec.quantiles) * int(total[-1]) // spec.quantiles)
    places = np.unique(np.searchsorted(total, wanted, side="left"))
    return Buckets(tuple(values[places[places > 0]].tolist()))


def _rows(table: pa.Table, spec: FeatureSpec, explicit: bool) -> npt.NDArray[np.bool_]:
    """Which events a feature is fitted to: the training part's that it is known of."""
    rows = table[PART].to_numpy() == TRAIN
    if explicit and spec.of == "event":
        rows &= table[LABEL].to_numpy() == 1
    chosen: npt.NDArray[np.bool_] = rows
    return chosen


def _read(file: Path, columns: Sequence[str], explicit: bool) -> pa.Table:
    return read_parquet(file, [*columns, PART, *([LABEL] if explicit else [])])


def _floats(column: pa.ChunkedArray) -> Floats:
    """Numbers ``[N]``, NaN where one is missing."""
    values = column.cast(pa.float64())
    floats: Floats = pc.fill_null(values, float("nan")).to_numpy()
    return floats


def _checked(name: str, values: Floats) -> Floats:
    large = np.abs(values) > LARGEST
    if large.any():
        raise UserError(
            f"Feature {name}: expected numbers within {LARGEST:g} of 0, received "
            f"{values[large][0]:g}. Correct the input, or leave such rows out."
        )
    return values


def _elements(combinations: pa.Table) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The elements of combinations, one after the other ``[N]``, and offsets ``[C + 1]``."""
    pieces, lengths = [pa.array([], pa.string())], [np.zeros(1, np.int64)]
    for start in range(0, len(combinations), _PARSED_AT_ONCE):
        texts = combinations[VALUE].slice(start, _PARSED_AT_ONCE).to_pylist()
        lists = [json.loads(text) for text in texts]
        lengths.append(np.array([len(elements) for elements in lists], np.int64))
        flat = [str(element) for elements in lists for element in elements]
        pieces.append(pa.array(flat, pa.string()))
    return pa.concat_arrays(pieces), np.cumsum(np.concatenate(lengths))


@functools.lru_cache(maxsize=16)
def _read_numbers(file: Path, modified: int) -> pa.Table:
    """`modified` is part of the cache's key: the next run to an output has files of these names."""
    return read_parquet(file)
