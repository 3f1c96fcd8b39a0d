"""`workflows.histories.typed`: exact sums, quantiles and bags of arrays, whatever the parts."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.preprocessing import StandardScaler

from lookback.formats.transforms import Bag, Hashed, canonical
from lookback.workflows.histories.impressions import positions
from lookback.workflows.histories.typed import COUNT, FITTED, NUMBER, VALUE, Moments, number_bags
from lookback.workflows.histories.value_counts import count_values, count_where, merge_counts


def _exactly(values: np.ndarray) -> Moments:
    numbers = [Fraction(value) for value in values.tolist()]
    return Moments(
        len(numbers), sum(numbers, Fraction()), sum((n * n for n in numbers), Fraction())
    )


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(0),
        np.array([0.0, -0.0, 1e-300]),
        np.array([1e16, 1.0, -1e16, 3.14]),  # a sum in any order of float64 loses the 1
        np.random.default_rng(0).normal(1e9, 1e-3, 1000),  # squares that float64 does not hold
        np.random.default_rng(1).lognormal(0, 20, 1000),
    ],
)
def test_sums_are_exact(values: np.ndarray) -> None:
    found, expected = Moments.of(values), _exactly(values)
    assert (found.count, found.total) == (expected.count, expected.total)
    tiny = np.abs(values) < 1e-140  # their squares are below what float64 holds
    assert found.squares == expected.squares or tiny.any()
    parts = [Moments.of(part) for part in np.array_split(values[::-1], 7)]
    assert sum(parts, Moments()) == found


def test_moments_equal_scikit_learn() -> None:
    values = np.random.default_rng(2).normal(2000, 15, 5000)
    scaler = StandardScaler().fit(values[:, None])
    moments = Moments.of(values)
    assert moments.mean == pytest.approx(scaler.mean_[0], rel=1e-15)
    assert moments.deviation == pytest.approx(scaler.scale_[0], rel=1e-13)
    assert (Moments().mean, Moments().deviation) == (0, 0)


def test_counts_are_merged_whatever_the_parts() -> None:
    random = np.random.default_rng(3)
    values = pa.array([None if n == 4 else f"v{n}" for n in random.integers(0, 9, 200)])
    fitted = random.random(200) < 0.3
    names, counts = np.unique([v for v in values.to_pylist() if v], return_counts=True)
    whole = merge_counts([count_values(values[:50]), count_values(values[50:])])
    assert dict(zip(*whole.to_pydict().values(), strict=True)) == dict(
        zip(names, counts, strict=True)
    )
    parts = []
    for rows in np.array_split(np.arange(200), 4):
        column = pa.chunked_array([values.take(pa.array(rows))])
        where = {COUNT: np.ones(len(rows), np.bool_), FITTED: fitted[rows]}
        parts.append(count_where(column, where))
    merged = merge_counts(parts).sort_by(VALUE).to_pydict()
    assert merged[VALUE] == names.tolist() and merged[COUNT] == counts.tolist()
    text = np.array([v or "" for v in values.to_pylist()])
    assert merged[FITTED] == [int(((text == name) & fitted).sum()) for name in names]


def test_bags_are_numbered_by_count_and_cut(tmp_path: Path) -> None:
    known = pa.array(["a", "b", "c", "d"])  # ids 3, 4, 5, 6
    lists = [["a"], ["b", "x"], ["b"], ["c", "d", "a"], ["x"], [], ["a", "c"]]
    counts = [5, 4, 3, 9, 2, 1, 8]
    combinations = pa.table(
        {VALUE: [canonical(words) for words in lists], COUNT: counts, FITTED: counts}
    )
    bags = number_bags(combinations, Bag(2), known, tmp_path / "bags.parquet")
    # [3, 5] is of 17 events, [4] of 7, [3] of 5, and [] of 1.
    assert bags.lengths.tolist() == [0, 0, 0, 2, 1, 1, 0]
    assert bags.ids.tolist() == [3, 5, 4, 3]
    assert bags.cut == 9
    numbers = pq.read_table(tmp_path / "bags.parquet").to_pydict()
    assert numbers[NUMBER] == [5, 4, 4, 3, 2, 6, 3]
    hashed = Bag(2, None, Hashed(3))
    again = number_bags(combinations, hashed, None, tmp_path / "hashed.parquet")
    ids = dict(zip("abcdx", Hashed(3).encode(pa.array(list("abcdx"))).tolist(), strict=True))
    totals: dict[tuple[int, ...], int] = {}
    for words, count in zip(lists, counts, strict=True):
        bag = tuple(sorted({ids[word] for word in words})[:2])
        totals[bag] = totals.get(bag, 0) + count
    order = sorted(totals, key=lambda bag: (-totals[bag], bag))
    assert again.ids.tolist() == [value for bag in order for value in bag]
    none = number_bags(combinations[:0], hashed, None, tmp_path / "none.parquet")
    assert (none.lengths.tolist(), none.ids.tolist(), none.cut) == ([0, 0, 0], [], 0)


def test_positions_equal_brute_force() -> None:
    random = np.random.default_rng(4)
    history = np.sort(random.integers(0, 8, 100))
    time = random.integers(0, 6, 100)
    order = np.lexsort((time, history))
    time, label = time[order], (random.random(100) < 0.4).astype(np.int8)
    expected = [
        int(((history == history[n]) & (time < time[n]) & (label == 1)).sum()) for n in range(100)
    ]
    assert positions(history, time, label).tolist() == expected
