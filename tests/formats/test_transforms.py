"""`formats.transforms`: raw values of features to ids and numbers, against NumPy and pandas."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from lookback.core.errors import UserError
from lookback.formats.transforms import (
    Bag,
    Buckets,
    Hashed,
    Number,
    Transform,
    Vocabulary,
    canonical,
    transform_of,
)
from lookback.formats.vocabulary import HASHED, hashed_key, hashed_keys

EVERY: list[Transform] = [
    Number(0.5, log=True, clip=(None, 600.0), mean=1.25, scale=3.0),
    Number(-1.0),
    Buckets((1990.0, 2000.5)),
    Hashed(1000),
    Vocabulary(),
    Bag(8, "|"),
    Bag(3, None, Hashed(7)),
]


@pytest.mark.parametrize("transform", EVERY)
def test_json_comes_back(transform: Transform) -> None:
    said = json.loads(json.dumps({"of": "item", **transform.to_json()}))
    assert transform_of(said) == transform


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"type": "mean"}, "type 'mean'"),
        ({"type": ["number"]}, "unhashable"),
        ({"type": "number"}, "fill"),
        ({"type": "number", "fill": 0, "scale": 0}, "0 is not above 0"),
        ({"type": "number", "fill": float("nan")}, "nan is no finite number"),
        ({"type": "number", "fill": 0, "log": 1}, "1 is neither true nor false"),
        ({"type": "number", "fill": 0, "clip": [1]}, "not enough values"),
        ({"type": "buckets", "boundaries": [2, 1]}, "do not ascend"),
        ({"type": "hash", "buckets": 0}, "0 is no number from 1 on"),
        ({"type": "vocabulary", "buckets": 3}, "key 'buckets'"),
        ({"type": "number", "fill": 0, "bag": {"most": 3, "separator": None}}, "a bag of type"),
        ({"type": "vocabulary", "bag": {"separator": None}}, "most"),
        ({"type": "vocabulary", "bag": {"most": 2, "separator": ""}}, "no separator"),
    ],
)
def test_what_is_no_transformation_is_refused(said: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        transform_of(said)


def test_numbers_equal_pandas() -> None:
    raw = pd.Series([0.0, np.nan, -3.0, 700.0, 12.5, 1e-9])
    number = Number(5.0, log=True, clip=(-2.0, 600.0), mean=0.7, scale=2.5)
    filled = raw.fillna(5.0).clip(-2.0, 600.0)
    expected = (filled.map(lambda x: np.sign(x) * np.log1p(abs(x))) - 0.7) / 2.5
    found = number.apply(raw.to_numpy())
    assert found.dtype == np.float32
    assert found.tolist() == expected.astype(np.float32).tolist()
    back = number.invert(found)
    np.testing.assert_allclose(number.apply(back), found, atol=1e-6)
    np.testing.assert_allclose(back[[0, 4]], [0, 12.5], atol=1e-5)


def test_buckets_equal_pandas() -> None:
    boundaries = (-1.0, 0.0, 2.5)
    raw = np.array([-5, -1, -0.5, 0, 2.4999, 2.5, 100, np.nan])
    cut = pd.cut(raw, [-np.inf, *boundaries, np.inf], right=False, labels=False)
    expected = np.where(np.isnan(cut), 1, cut + 3)  # null is 1, known ids follow from 3
    buckets = Buckets(boundaries)
    found = buckets.encode(raw)
    assert found.dtype == np.int32
    assert found.tolist() == expected.tolist() == [3, 4, 4, 5, 5, 6, 6, 1]
    assert buckets.rows == 7 == found.max() + 1


def test_hashes_equal_the_documented_law() -> None:
    random = np.random.default_rng(0)
    words = ["", "a", "Grüße", "x" * 300, *map(str, random.integers(0, 9**9, 50))]
    expected = [hashed_key(word.encode(), 0, len(word.encode()), int) for word in words]
    assert hashed_keys(pa.array(words)).tolist() == expected
    assert hashed_keys(pa.array(["before", *words])[1:]).tolist() == expected
    assert hashed_keys(pa.array([], pa.string())).tolist() == []
    hashed = Hashed(10)
    buckets = [key % HASHED % 10 + 3 for key in expected]
    assert hashed.encode(pa.array([None, *words])).tolist() == [1, *buckets]
    assert hashed.rows == 13 > max(buckets)


def test_integers_hash_as_their_text() -> None:
    numbers = pa.array([7, None, -12, 10**18])
    assert (Hashed(97).encode(numbers) == Hashed(97).encode(numbers.cast(pa.string()))).all()


def test_hashes_spread_evenly() -> None:
    counts = np.bincount(Hashed(20).encode(pa.array(np.arange(20_000))), minlength=23)[3:]
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)  # five standard deviations


def test_bags_are_cut_and_kept() -> None:
    bag = Bag(2, "|")
    assert bag.cut("Drama|| Action |Drama") == ["Action", "Drama"]
    assert bag.cut(["b", "a", "b"]) == ["a", "b"]
    assert (bag.cut(""), bag.cut(None), Bag(2).cut("a|b")) == ([], None, ["a|b"])
    assert canonical(["Grüße", "Action", "Action"]) == '["Action","Grüße"]'
    rows = [[5, 3, 5, 9], [], [2, 4], [2], [8, 7, 6]]
    flat = np.array([99, *np.concatenate(rows), 99], np.int32)
    offsets = 1 + np.r_[0, np.cumsum([len(row) for row in rows])]
    ids, bounds = bag.keep(flat, offsets)
    expected = [sorted({value for value in row if value >= 3})[:2] for row in rows]
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(bounds)] == expected
    none, bounds = bag.keep(np.zeros(0, np.int32), np.zeros(1, np.int64))
    assert (len(none), bounds.tolist()) == (0, [0])
