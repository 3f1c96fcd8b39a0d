"""`formats.vocabulary` and `formats.numbers`: the law of keys, its files, and the logarithm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pandas as pd
import pytest

from lookback.core.errors import UserError
from lookback.formats.numbers import shifted_log, unshifted
from lookback.formats.vocabulary import (
    FIRST_KNOWN,
    HASHED,
    MISSING,
    hashed_key,
    key_of,
    read_ids,
    read_keys,
    write_keys,
)

ROOT = Path(__file__).resolve().parents[2]


def test_keys_by_arithmetic() -> None:
    assert [key_of(None), key_of("")] == [MISSING, MISSING] == [-1, -1]
    assert [key_of("00000010"), key_of("ffffffff")] == [16, 2**32 - 1]
    # One byte, in Python's own integers: what the documented hash comes to.
    bits = 2**64
    code = (1 ^ ord("a")) * 0x9E3779B97F4A7C15 % bits
    code ^= code >> 29
    code = (code ^ code >> 30) * 0xBF58476D1CE4E5B9 % bits
    code = (code ^ code >> 27) * 0x94D049BB133111EB % bits
    code ^= code >> 31
    assert key_of("a") == code % 2**62 + 2**62
    for no_digits in ("0000001G", "ABCDEF01", "0000001", "000000100", " 0000010"):
        assert HASHED <= key_of(no_digits) < 2 * HASHED


def test_what_numba_compiles_gives_the_same_keys() -> None:
    compiled = numba.njit(hashed_key)
    data = np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8)
    for start, stop in ((0, 1), (5, 12), (7, 1007), (0, 3000)):
        expected = hashed_key(data.tobytes(), start, stop, int)
        assert compiled(data, start, stop, np.uint64) == expected


@pytest.mark.parametrize("kind", [np.uint32, np.int64])
def test_keys_are_ranked_by_count_then_by_key(tmp_path: Path, kind: type) -> None:
    keys = np.array([3, 5, 8, 9], kind)
    write_keys(tmp_path / "a.arrow", keys, np.array([2, 7, 2, 7]))
    known = read_keys(tmp_path / "a.arrow")
    assert known.keys.dtype == kind and known.keys.tolist() == keys.tolist()
    assert known.ids.tolist() == [3, 1, 4, 2] and known.counts.tolist() == [2, 7, 2, 7]


def test_an_empty_file_of_keys(tmp_path: Path) -> None:
    write_keys(tmp_path / "a.arrow", np.zeros(0, np.uint32), np.zeros(0, np.int64))
    assert [len(column) for column in read_keys(tmp_path / "a.arrow")] == [0, 0, 0]


def test_ids_follow_the_reserved_indices(tmp_path: Path) -> None:
    path = tmp_path / "unique.brand.parquet"
    frame = pd.DataFrame({"brand": ["x", "y"], "brand_size": [5, 1]})
    frame.set_index(pd.RangeIndex(FIRST_KNOWN, FIRST_KNOWN + 2)).to_parquet(path)
    assert read_ids(path, "brand").to_pylist() == ["x", "y"]
    frame.to_parquet(path)
    with pytest.raises(UserError, match=r"numbered from 3, as by .* found string from 0"):
        read_ids(path, "brand")


def test_numbers_are_shifted_logarithms() -> None:
    raw = np.array([np.nan, 0, -1, -2, -100, 1.5, 10**15])
    found = shifted_log(raw)
    expected = np.log([2, 2, 1, 1, 1, 3.5, 1e15 + 2]).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(raw[0]), "what is given stays as it is"
    np.testing.assert_allclose(unshifted(found[[1, 2, 5]]), [0, -1, 1.5], atol=1e-6)


def test_serving_them_needs_neither_numba_nor_nvtabular() -> None:
    code = (
        "import sys; from lookback.formats import numbers, vocabulary\n"
        "import lookback.serving.layouts.tabular.encoding\n"
        "assert not {'numba', 'merlin', 'nvtabular', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
