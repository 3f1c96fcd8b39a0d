"""The compiled loops and the counts against plain Python and NumPy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lookback.workflows.tabular import counts as tabular_counts
from lookback.workflows.tabular import kernels as tabular_kernels
from lookback.workflows.tabular.ops import keys_of_column
from lookback.workflows.tabular.text import parse_rows


def test_hexadecimal_values_are_their_own_keys_and_others_are_hashed() -> None:
    values = ["00000000", "ffffffff", "0a1b2c3d", None, "", "0A1B2C3D", "12345", "ä", "x" * 50]
    keys = keys_of_column(pd.Series(values, dtype=object)).tolist()
    assert keys[:5] == [0, 2**32 - 1, 0x0A1B2C3D, -1, -1]
    assert all(2**62 <= key < 2**63 for key in keys[5:])
    assert len(set(keys[5:])) == 4
    # A slice of a frame, and keys as they are.
    assert keys_of_column(pd.Series(values, dtype=object)[2:]).tolist() == keys[2:]
    assert keys_of_column(pd.Series([5, -1])).tolist() == [5, -1]
    assert keys_of_column(pd.Series([None, None])).tolist() == [-1, -1]


def test_many_other_values_have_keys_of_their_own() -> None:
    keys = keys_of_column(pd.Series([f"user-{number}" for number in range(50_000)]))
    assert len(np.unique(keys)) == 50_000


def test_lines_are_parsed_as_they_are_written() -> None:
    text = b"1\t3\t\t-2\tdeadbeef\t\n\n0\t-1\t123456789012345678\t0\t\tword\r\n1\t0\t0\t0\tff\tff"
    rows = parse_rows(text, 3, 2)
    assert rows.label.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(
        rows.numbers, [[3, -1, 0], [np.nan, 123456789012345678, 0], [-2, 0, 0]]
    )
    expected = keys_of_column(pd.Series(["deadbeef", None, "ff", None, "word", "ff"]))
    assert rows.keys.reshape(-1).tolist() == expected.tolist()
    assert (rows.parsed.lines, rows.parsed.reasons) == (4, {})
    assert parse_rows(b"", 3, 2).label.tolist() == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1\t2\t3\taa", "expected 5 fields separated by tabs (label, 2 integers, 2 categorical"),
        (b"1\t2\t3\taa\tbb\tcc", "received 6"),
        (b"2\t2\t3\taa\tbb", "expected the label 0 or 1, received '2'"),
        (b"\t2\t3\taa\tbb", "received ''"),
        (b"11\t2\t3\taa\tbb", "received '11'"),
        (b"1\t2\tx3\taa\tbb", "expected an integer (or nothing) in field 3, received 'x3'"),
        (b"1\t2.5\t3\taa\tbb", "in field 2, received '2.5'"),
        (b"1\t-\t3\taa\tbb", "in field 2, received '-'"),
        (b"1\t1234567890123456789\t3\taa\tbb", "in field 2"),
        (b"1\t2\t3\ta\ra\tbb", "carriage return"),
        (b"text", "received 1"),
    ],
)
def test_a_bad_line_is_named_and_the_others_stay(line: bytes, reason: str) -> None:
    good = b"1\t2\t3\t0000000a\t0000000b\n"
    rows = parse_rows(good + line + b"\n" + good, 2, 2)
    assert rows.label.tolist() == [1, 1]
    assert rows.keys.tolist() == [[10, 10], [11, 11]]
    (bad,) = rows.parsed.bad
    assert bad.line == 2 and reason in bad.reason
    assert rows.parsed.reasons == {bad.reason: 1}


def test_every_line_is_good_or_bad_whatever_is_in_it() -> None:
    random = np.random.default_rng(0)
    alphabet = np.frombuffer(b"01-9af\t\t\t\n\r x", np.uint8)
    for _ in range(200):
        text = random.choice(alphabet, 400).tobytes() + b"\n"
        rows = parse_rows(text, 1, 2)
        bad = sum(rows.parsed.reasons.values())
        blank = sum(not line.strip() for line in text.split(b"\n")[:-1] if b"\t" not in line)
        assert len(rows.label) + bad <= text.count(b"\n") == rows.parsed.lines
        assert len(rows.label) + bad >= rows.parsed.lines - blank - text.count(b"\t")


@pytest.mark.parametrize("top", [1, 2**11, 2**32, 2**63 - 1])
def test_counts_are_numpy_s(top: int) -> None:
    random = np.random.default_rng(top % 1000)
    keys = random.integers(0, top, 5_000)
    keys[::7] = tabular_kernels.MISSING
    keys[1::3] = random.integers(0, min(top, 50), len(keys[1::3]))
    found, counts = tabular_counts.count_keys(keys)
    expected = np.unique(keys[keys >= 0], return_counts=True)
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(counts, expected[1])
    assert found.dtype == (np.uint32 if top <= 2**32 else np.int64)


@pytest.mark.parametrize("tops", [(50, 50), (2**32, 90), (2**63 - 1, 2**32), (0, 70), (0, 0)])
def test_merging_in_pieces_adds_up(tops: tuple[int, ...], tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    columns = [random.integers(0, top, 3_000) if top else np.full(9, -1) for top in tops]
    runs = [
        tabular_counts.write_runs([column], tmp_path / str(number))[0]
        for number, column in enumerate(columns)
    ]
    everything = np.concatenate(columns)
    keys, counts = np.unique(everything[everything >= 0], return_counts=True)
    for at_once in (100, 10**6):
        pieces = list(tabular_counts.merged(runs, at_once))
        assert len(pieces) > 1 or at_once > 100 or len(keys) <= 100
        np.testing.assert_array_equal(np.concatenate([p[0] for p in pieces] or [keys]), keys)
        np.testing.assert_array_equal(np.concatenate([p[1] for p in pieces] or [counts]), counts)
    total = tabular_counts.merge_runs(runs, tmp_path / "total")
    np.testing.assert_array_equal(total.keys, keys)
    np.testing.assert_array_equal(total.counts, counts)


@pytest.mark.parametrize("top", [40, 2**20, 2**32, 2**63 - 1])
@pytest.mark.parametrize("threshold", [0, 3])
def test_the_vocabulary_is_python_s_ranking(top: int, threshold: int, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    keys = (top * random.random(4_000) ** 8).astype(np.int64)
    runs = tabular_counts.write_runs([keys], tmp_path / "run")
    size = tabular_counts.write_vocabulary(runs, threshold, tmp_path / "cat.arrow")
    counts = Counter(keys.tolist())
    known = sorted((k for k in counts if counts[k] >= threshold), key=lambda k: (-counts[k], k))
    ids = {key: number for number, key in enumerate(known, start=1)}
    vocabulary = tabular_counts.CountedVocabulary(tmp_path / "cat.arrow")
    assert size == len(vocabulary) == len(known)
    asked = np.concatenate([keys, [-1, 0, top - 1, 2**62 + 5], np.array(known, np.int64) + 1])
    out = np.empty(len(asked), np.int32)
    unknown = vocabulary.look_up(asked, out)
    assert out.tolist() == [ids.get(key, 0) for key in asked.tolist()]
    assert unknown == (out == 0).sum()


def test_a_vocabulary_without_values_knows_nothing(tmp_path: Path) -> None:
    runs = tabular_counts.write_runs([np.array([1, 2])], tmp_path / "run")
    assert tabular_counts.write_vocabulary(runs, 9, tmp_path / "cat.arrow") == 0
    out = np.ones(2, np.int32)
    assert (
        tabular_counts.CountedVocabulary(tmp_path / "cat.arrow").look_up(np.array([1, -1]), out)
        == 2
    )
    assert out.tolist() == [0, 0]
