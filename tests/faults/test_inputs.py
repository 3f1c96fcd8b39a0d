"""Inputs that were half understood: read as they are meant, or refused in one sentence."""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.core.errors import UserError
from lookback.serving.commands import PROGRAM as SERVING
from lookback.workflows.commands import PROGRAM
from lookback.workflows.datasets.amazon import AmazonReader
from lookback.workflows.datasets.interactions import InteractionsReader
from lookback.workflows.datasets.movielens import MovieLensReader
from lookback.workflows.histories.gather import exact_repeats, held_out_ties
from lookback.workflows.log import csv_records
from lookback.workflows.pipeline import run_dataset, transform_dataset
from lookback.workflows.times import read_number, read_numbers, read_text, read_word

START = 1_500_000_000
HEADER = "user_id,item_id,timestamp\n"


def _file(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _items(directory: Path) -> list[list[Any]]:
    """Raw item ids of each history."""
    vocabulary = pq.read_table(directory / "workflow/categories/unique.item_id.parquet")
    raw = vocabulary["item_id"].to_pylist()
    files = sorted((directory / "histories").iterdir())
    lists = pa.concat_tables([pq.read_table(file) for file in files])["item_id"].to_pylist()
    return [[raw[code - 3] for code in items] for items in lists]


def _categories(directory: Path) -> list[str]:
    path = directory / "workflow/categories/unique.category_id.parquet"
    return sorted(pq.read_table(path)["category_id"].to_pylist())


def _run(*arguments: str | Path) -> int:
    return PROGRAM.main(["run", *map(str, arguments), "--workers", "0"])


# Units of time.


@pytest.mark.parametrize(
    ("number", "unit"),
    [
        (1_511_544_070_123, "ms"),
        (1_511_544_070_123_456, "us"),
        (1_511_544_070_123_456_789, "ns"),
        (20_220_401, "yyyymmdd"),
        (14_102_100, "yymmddhh"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet", "careful"])
def test_units_of_time(tmp_path: Path, number: int, unit: str, kind: str) -> None:
    """What is not in seconds is refused with the unit that would fit, and read with it."""
    frame = pd.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [number, number + 1]})
    raw = tmp_path / ("a.parquet" if kind == "parquet" else "a.csv")
    if kind == "parquet":
        frame.to_parquet(raw, index=False)
    else:
        frame.to_csv(raw, index=False)
    with pytest.raises(
        UserError, match=f"(?s)2 bad line.*looks like {unit}, not s: .*_unit {unit}"
    ):
        run_dataset("interactions", raw, tmp_path / "out", min_interactions=2)
    if kind == "careful":
        raw.write_text(raw.read_text() + "bad\n")
    (block,) = InteractionsReader().blocks(raw)
    parsed = InteractionsReader().parse_block(block, unit)
    second = datetime.datetime(1970, 1, 1)
    if unit in ("yyyymmdd", "yymmddhh"):
        days = (
            datetime.datetime(2022, 4, 1) if unit == "yyyymmdd" else datetime.datetime(2014, 10, 21)
        )
        step = 86_400 if unit == "yyyymmdd" else 3600
        first = int((days - second).total_seconds())
        expected = [first * 10**9, (first + step) * 10**9]
    else:
        per_second = {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        scale = 10**9 // per_second
        expected = [number * scale, (number + 1) * scale]  # to the last digit
    assert parsed.table["timestamp"].to_pylist() == expected


def test_files_of_several_units_are_refused(tmp_path: Path) -> None:
    _file(tmp_path / "raw/2018.csv", HEADER + "u,a,1500000000\nu,b,1600000000\n")
    _file(tmp_path / "raw/2023.csv", HEADER + "u,c,1400000000000\nu,d,1700000000000\n")
    for unit, says in ((None, r"2023\.csv:2: .*looks like ms, not s"), ("ms", "2018.csv:2: .* s,")):
        with pytest.raises(UserError, match=f"(?s)2 bad line.*{says}"):
            run_dataset(
                "interactions",
                tmp_path / "raw",
                tmp_path / "out",
                min_interactions=2,
                time_unit=unit,
            )
    left = run_dataset(
        "interactions", tmp_path / "raw", tmp_path / "out", min_interactions=2, max_bad_lines=2
    )
    assert list(left.metadata["counts"]["bad_lines"].values()) == [2]
    with pytest.raises(UserError, match=r"No events are left of .*2: timestamp looks like ms, not"):
        run_dataset("interactions", tmp_path / "raw/2023.csv", tmp_path / "no", max_bad_lines=2)


def test_numbers_that_are_no_times_need_a_word(tmp_path: Path) -> None:
    raw = _file(tmp_path / "x_met.csv", HEADER + "".join(f"0,{n},{n}\n" for n in range(6)))
    with pytest.raises(UserError, match=r"(?s)6 bad line.*not between 1995.*steps: any numbers"):
        run_dataset("interactions", raw, tmp_path / "out", min_interactions=2)
    run_dataset("interactions", raw, tmp_path / "out", min_interactions=2, time_unit="steps")
    assert _items(tmp_path / "out") == [[0, 1, 2, 3, 4, 5]]
    # A year from now is the last that is plausible; what a transformation reads is checked, too.
    far = _file(tmp_path / "far.csv", HEADER + "0,1,1500000000\n0,2,4102444800\n")
    with pytest.raises(UserError, match=r"far\.csv:3: timestamp is not between 1995 and"):
        transform_dataset(tmp_path / "out", far, tmp_path / "no", time_unit="s")


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("2017-11-24", None),
        ("2017-11-24 17:21", None),
        ("2017-11-24T17:21:10.123456789", None),
        ("2017-11-24T17:21:10Z", "UTC"),
        ("2017-11-24 17:21:10.5+02:00", "UTC"),
        ("2017-11-24 17:21:10-0530", "UTC"),
        ("2017-11-24T17+01", "UTC"),
    ],
)
def test_iso_8601(text: str, zone: str | None) -> None:
    """Both ways of parsing give what pandas gives."""
    stamp = pd.Timestamp(text.replace("T17+01", "T17:00+01"))
    expected = (stamp.tz_localize("UTC") if zone is None else stamp).value
    assert read_word(text, "s", "t") == (expected, zone is None)
    found = read_text(pa.chunked_array([[text, text]]), "s")
    assert found is not None
    assert found[0].tolist() == [expected] * 2 and found[1] == (2 if zone is None else 0)


def test_times_without_a_zone_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = _file(
        tmp_path / "a.csv",
        HEADER
        + "u,a,2017-11-24T10:00:00Z\nu,b,2017-11-24T10:30:00\nu,c,1511521800\nu,d,2594-01-01\n",
    )
    run = ["--dataset", "interactions", "--input", raw, "--min_interactions", "2"]
    assert _run(*run, "--output", tmp_path / "out", "--max_bad_lines", "1") == 0
    assert "1 times name no zone: taken as UTC" in capsys.readouterr().out
    assert _items(tmp_path / "out") == [["a", "b", "c"]]  # c is at 11:10


def test_numbers_of_times_one_by_one_and_at_once() -> None:
    random = np.random.default_rng(0)
    for unit, scale in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        whole = random.integers(START * scale, (START + 10**8) * scale, 200)
        for values in (whole, whole / 1.0 + (0.25 if scale < 10**6 else 0)):
            times, good = read_numbers(values, unit)
            assert good.all()
            assert times.tolist() == [read_number(value, unit, "t") for value in values.tolist()]
            if values is whole:
                assert times.tolist() == [value * (10**9 // scale) for value in whole.tolist()]
    assert not read_numbers(np.array([20_220_230, 20_221_301, 19_940_101, 30_000_101]), "yyyymmdd")[
        1
    ].any()
    assert not read_numbers(np.array([np.nan, np.inf, -1.0]), "s")[1].any()


# Ties, repeats.


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ties_stay_in_the_order_of_the_input(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the input is cut; the raw ids have no say but with --ties item."""
    random = np.random.default_rng(0)
    rows = [
        (user, int(item), START + 86_400 * (place // 3))
        for user in range(12)
        for place, item in enumerate(random.permutation(40)[:12])
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    frame = frame.sample(frac=1, random_state=1)
    parts = [frame[:70], frame[70:]]
    for number, part in enumerate(parts):
        path = tmp_path / f"raw/{number}.{kind}"
        path.parent.mkdir(exist_ok=True)
        part.to_csv(path, index=False) if kind == "csv" else part.to_parquet(path, index=False)
    monkeypatch.setattr(csv_records.csv_blocks, "__defaults__", (100,))
    stable = frame.sort_values(["user_id", "timestamp"], kind="stable")
    by_item = frame.sort_values(["user_id", "timestamp", "item_id"])
    tied = 2 * 12  # the last two of each user's three events of the last day
    for ties, ordered in (("file", stable), ("item", by_item)):
        expected = [items.tolist() for _, items in ordered.groupby("user_id")["item_id"]]
        for size in (None, 20):
            output = tmp_path / f"{ties}-{size}"
            report = run_dataset(
                "interactions",
                tmp_path / "raw",
                output,
                min_interactions=2,
                ties=ties,
                partition_events=size,
            )
            assert sorted(_items(output)) == sorted(expected)
            assert report.metadata["counts"]["held_out_ties"] == tied
    assert stable["item_id"].tolist() != by_item["item_id"].tolist()
    again = transform_dataset(
        tmp_path / "file-20", tmp_path / "raw", tmp_path / "again", ties="item"
    )
    assert sorted(_items(tmp_path / "again")) == sorted(expected)
    assert again.metadata["counts"]["held_out_ties"] == tied


def test_held_out_ties() -> None:
    history = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3])
    time = np.array([1, 2, 2, 2, 3, 3, 5, 5, 5])
    assert held_out_ties(history, time, 1) == 2  # of histories 0 and 3
    assert held_out_ties(history, time, 2) == 3  # and 3 once more
    assert held_out_ties(history[:0], time[:0], 1) == 0


def test_exact_repeats_of_arrays() -> None:
    history = np.array([0, 0, 0, 0, 1, 1, 1])
    time = np.array([1, 1, 1, 2, 2, 2, 2])
    items = pa.chunked_array([["a", "b", "a", "a"], ["a", "a", "a"]])
    found = exact_repeats(history, time, pa.table({"item": items}))
    assert found.tolist() == [False, False, True, False, False, True, True]


@pytest.mark.parametrize("dataset", ["amazon", "movielens", "interactions"])
def test_exact_repeats_are_one_event(
    tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The item again at another time is another event."""
    rows = [(user, item, START + 10 * item) for user in (1, 2) for item in (5, 6, 7)]
    rows += [(1, 5, START + 500)]
    double = rows + rows
    raw = tmp_path / "raw"
    if dataset == "amazon":
        lines = [
            json.dumps({"reviewerID": f"U{u}", "asin": f"{i}", "unixReviewTime": t})
            for u, i, t in double
        ]
        _file(raw / "reviews_X.json", "\n".join(lines))
    elif dataset == "movielens":
        _file(raw / "u.data", "".join(f"{u}\t{i}\t3\t{t}\n" for u, i, t in double))
    else:
        _file(raw / "a.csv", HEADER + "".join(f"{u},{i},{t}\n" for u, i, t in double))
    options = ["--dataset", dataset, "--input", raw, "--min_interactions", "3"]
    found = {}
    for duplicates in ("keep", "first", "all"):
        output = tmp_path / duplicates
        assert _run(*options, "--output", output, "--duplicates", duplicates) == 0
        counts = json.loads((output / "dataset.json").read_text())["counts"]
        assert counts["exact_repeats"] == (0 if duplicates == "all" else 7)
        printed = capsys.readouterr().out
        assert ("dropped 7 exact repeats" in printed) == (duplicates != "all")
        found[duplicates] = sorted([int(item) for item in items] for items in _items(output))
    assert found["keep"] == [[5, 6, 7], [5, 6, 7, 5]]
    assert found["first"] == [[5, 6, 7], [5, 6, 7]]
    assert found["all"] == [[5, 5, 6, 6, 7, 7], [5, 5, 6, 6, 7, 7, 5, 5]]


# What publishers write.


def test_amazon_of_2023(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reviews = [
        {"rating": 1.0, "user_id": u, "asin": "V", "parent_asin": f"P{n}", "timestamp": t}
        for u in "ab"
        for n, t in enumerate((1_588_687_728_923, 1_588_687_728_999, 1_588_687_730_000))
    ]
    items = [
        {"main_category": "Books", "parent_asin": "P0", "categories": ["Books", "Fiction"]},
        {"main_category": "Books", "parent_asin": "P1", "categories": []},
        {"main_category": "Books", "parent_asin": "P2", "categories": {"odd": 1}},
    ]
    raw = tmp_path / "raw"
    _file(raw / "reviews_Books.jsonl.gz", "\n".join(map(json.dumps, reviews)))
    _file(raw / "meta_Books.jsonl", "\n".join(map(json.dumps, items)))
    _file(raw / "notes.txt", "x")
    options = ["--dataset", "amazon", "--input", raw, "--min_interactions", "2"]
    assert _run(*options, "--output", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "WARNING: 2 of 3 items in the metadata have no category" in printed.out
    assert "not read: notes.txt\n" in printed.err
    assert "columns that are not read: rating, asin\n" in printed.err
    assert _items(tmp_path / "out") == [["P0", "P1", "P2"]] * 2
    assert _categories(tmp_path / "out") == ["Fiction", "no_category"]
    table = pq.read_table(tmp_path / "out/histories/part-00000.parquet")
    assert table["timestamp"].to_pylist() == [[1_588_687_728, 1_588_687_728, 1_588_687_730]] * 2
    # Line by line they are the same.
    data = (json.dumps(reviews[0]) + "\nbad\n").encode()
    assert AmazonReader().parse_events(data, True).table["timestamp"].to_pylist() == [
        1_588_687_728_923 * 10**6
    ]


def test_two_runs_to_one_place_do_not_share_metadata(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    lines = [
        json.dumps({"reviewerID": "A", "asin": f"B{n}", "unixReviewTime": START + n})
        for n in range(3)
    ]
    _file(raw / "reviews_X.json", "\n".join(lines))
    for name in ("one", "another"):
        items = [json.dumps({"asin": f"B{n}", "category": name}) for n in range(3)]
        _file(raw / "meta_X.json", "\n".join(items))
        run_dataset("amazon", raw, tmp_path / "out", min_interactions=2, overwrite=True)
        assert _categories(tmp_path / "out") == [name]


MOVIES = "movieId,title,genres\n1,A,Comedy\n2,B,Drama\n"
RATINGS = "userId,movieId,rating,timestamp\n1,1,1,1000000001\n1,2,4.5,1000000002\n"


def test_movielens_packed_movies_and_users_are_read(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    _file(raw / "ratings.csv.gz", RATINGS)
    _file(raw / "movies.csv.gz", MOVIES)
    run_dataset("movielens", raw, tmp_path / "out", min_interactions=2)
    assert _categories(tmp_path / "out") == ["Comedy", "Drama"]
    _file(raw / "movies.csv", MOVIES)
    with pytest.raises(UserError, match=r"Both .*movies\.csv and .*movies\.csv\.gz exist"):
        run_dataset("movielens", raw, tmp_path / "no", min_interactions=2)
    raw = tmp_path / "dat"
    _file(raw / "ratings.dat.gz", "1::1::5::1000000001\n1::2::5::1000000002\n")
    _file(raw / "users.dat.gz", "1::F::1::10::48067\n")
    run_dataset("movielens", raw, tmp_path / "users", min_interactions=2, user_columns="gender")
    vocabulary = pq.read_table(tmp_path / "users/workflow/categories/unique.gender.parquet")
    assert vocabulary["gender"].to_pylist() == ["F"]
    with pytest.raises(UserError, match="each column once, received gender, gender"):
        run_dataset("movielens", raw, tmp_path / "no", user_columns="gender,gender")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ratings.csv", "movieId,userId,rating,timestamp\n1,1,3.5,1000000001\n"),
        ("ratings.csv", "userId,movieId,timestamp\n1,1,1000000001\n"),
        ("u.data", "item\tuser\trating\ttime\n1\t1\t3\t1000000001\n"),
        ("ratings.dat", "1_0::1::3::1000000001\n"),
    ],
)
def test_movielens_swapped_columns(tmp_path: Path, name: str, text: str) -> None:
    """A first line that is no rating is refused, however many bad lines may be."""
    raw = _file(tmp_path / "raw" / name, text).parent
    with pytest.raises(UserError, match=rf"{name}:1: expected a rating, or the header.*received"):
        run_dataset("movielens", raw, tmp_path / "out", min_interactions=1, max_bad_lines=9)
    _file(raw / name, b"\xef\xbb\xbf" + RATINGS.encode())  # a mark of Excel's does no harm
    if name == "ratings.csv":
        run_dataset("movielens", raw, tmp_path / "out", min_interactions=2)
        assert _items(tmp_path / "out") == [[1, 2]]


def test_movielens_numbers() -> None:
    """1_0 and 0x10 are no numbers, whichever way a block is parsed."""
    data = b"1,1,3,1000000001\n1_0,2,3,1000000002\n0x10,2,3,1000000003\n 2,2,3,1000000004\n"
    for lines in (data, data + b"bad\n"):
        parsed = MovieLensReader().parse_events(lines, False)
        assert parsed.table["user_id"].to_pylist() == [1, 2]
        assert parsed.reasons["not numbers"] == 2


def test_movielens_low_ratings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = _file(tmp_path / "raw/ratings.csv", RATINGS).parent
    run = ["--dataset", "movielens", "--input", raw]
    assert _run(*run, "--min_interactions", "2", "--output", tmp_path / "all") == 0
    printed = capsys.readouterr()
    assert "every rating counts as an event, the lowest, too" in printed.out
    assert "WARNING: there is no movies.csv[.gz]: every movie is of no_category" in printed.err
    few = ["--min_interactions", "1", "--min_rating", "4"]
    assert _run(*run, *few, "--output", tmp_path / "few") == 0
    assert "left out 1 ratings below 4.0" in capsys.readouterr().out
    assert _items(tmp_path / "few") == [[2]]


def test_criteo_days_with_other_endings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for day in range(2):
        lines = (f"{n % 2}\t{n}\t{n % 3:08x}\n" for n in range(40))
        _file(tmp_path / f"raw/day_{day}", "".join(lines))
    run = ["--dataset", "criteo", "--input", tmp_path / "raw", "--numerical", "1"]
    run += ["--categorical", "1", "--frequency_threshold", "2"]
    for name in ("day_2.tsv", "day_2.gz.part", "Day_2", "day2.csv"):
        path = _file(tmp_path / "raw" / name, "1\t1\t0\n")
        assert _run(*run, "--output", tmp_path / "no") == 2
        assert f"has {name}, which is not read" in capsys.readouterr().err
        path.unlink()
    _file(tmp_path / "raw/readme", "x")
    assert _run(*run, "--output", tmp_path / "out") == 0
    assert "not read: readme\n" in capsys.readouterr().err


def test_what_looks_like_a_label_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"u,{n},{START + n},{n % 2},x,3\n" for n in range(4))
    raw = _file(tmp_path / "raw/a.csv", f"{HEADER.strip()},is_click,title,Rating\n{lines}").parent
    for name in "bcdefghijk":
        _file(raw / f"{name}.txt", "")
    run = ["--dataset", "interactions", "--input", raw, "--min_interactions", "2"]
    assert _run(*run, "--output", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert "not read: b.txt, c.txt, d.txt, e.txt, f.txt, g.txt, h.txt, i.txt and 2 more\n" in said
    assert "columns that are not read: is_click, title, Rating\n" in said
    assert "WARNING: is_click, Rating looks like a label or a rating" in said


# CSV.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user_id,item_id,timestamp\r\r\nu,i,15e8\r\r\n", "carriage returns .* tr "),
        (f"user_id,item_id,timestamp,{'x' * 200_000}\nu,i,15e8,y\n", r"is not CSV \(field larger"),
        ('user_id,item_id,timestamp,"x\nu,i,15e8,y\n', r"is not CSV \(unexpected end of data"),
        ("x" * (1 << 20) + "\n", "the first line has no end within 1 MiB"),
        (HEADER.encode("utf-16"), r"UTF-16, maybe.*Save it as UTF-8"),
        (b"user_id,item\0_id,timestamp\nu,i,15e8\n", "bytes of value 0"),
    ],
)
def test_headers_that_cannot_be_read(tmp_path: Path, text: str | bytes, says: str) -> None:
    raw = _file(tmp_path / "a.csv", text)
    with pytest.raises(UserError, match=rf"(?s)a\.csv:1: .*{says}"):
        run_dataset("interactions", raw, tmp_path / "out")


def test_a_carriage_return_inside_a_line_is_no_end(tmp_path: Path) -> None:
    """Arrow's reader would make two rows of it."""
    raw = _file(tmp_path / "a.csv", HEADER + "u,a,1500000000\ru,b,1500000001\nu,c,1500000002\n")
    (block,) = InteractionsReader().blocks(raw)
    parsed = InteractionsReader().parse_block(block)
    assert parsed.table["item_id"].to_pylist() == ["c"]
    assert [bad.line for bad in parsed.bad] == [2]


def test_zeros_and_quotes_in_lines(tmp_path: Path) -> None:
    """A file that lost its end to zeros, and a quoted field that does not end."""
    good = f"{HEADER}u,a,1500000000\n"
    for end in (b"\0" * 500, b'u,"b,1500000001\n'):
        raw = _file(tmp_path / "a.csv", good.encode() + end)
        with pytest.raises(UserError, match=r"(?s)1 bad line.*a\.csv:3: "):
            run_dataset("interactions", raw, tmp_path / "out", min_interactions=1)


# Addresses.


@pytest.mark.parametrize("address", ["s3://bucket/raw", "hdfs:///raw", "gs://bucket/raw"])
def test_addresses_are_refused_by_name(
    tmp_path: Path,
    address: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = str(_file(tmp_path / "a.csv", HEADER + "u,a,1500000000\nu,b,1500000001\n"))
    commands = [
        (PROGRAM, ["run", "--dataset", "interactions", "--input", address, "--output", "out"]),
        (PROGRAM, ["run", "--dataset", "interactions", "--input", raw, "--output", address]),
        (PROGRAM, ["describe", address]),
        (SERVING, ["describe", "--export_dir", address]),
    ]
    for program, command in commands:
        assert program.main(command) == 2
        said = capsys.readouterr().err
        assert f"received the address '{address}'" in said and "mount it" in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_addresses_are_refused_in_calls_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made here under their name, and none is called a path that is missing."""
    from lookback.checkpoints.store import CheckpointStore, find_checkpoint
    from lookback.core.files import atomic_directory, atomic_file, held
    from lookback.core.yaml_files import read_yaml
    from lookback.dataloading.histories.materialised import MaterialisedDataset
    from lookback.dataloading.histories.resident import Histories
    from lookback.formats.schema import read_schema
    from lookback.formats.verification import verify_dataset
    from lookback.serving.manifest import Manifest
    from lookback.workflows.pipeline import fit_dataset, transform_dataset

    monkeypatch.chdir(tmp_path)
    raw = _file(tmp_path / "a.csv", HEADER + "u,a,1500000000\nu,b,1500000001\n")
    place, store = Path("s3://bucket/x"), CheckpointStore("s3://bucket/x")

    def enter(context: Any) -> None:
        with context:
            pass

    calls: list[Callable[[], object]] = [
        lambda: run_dataset("interactions", place, tmp_path / "out"),
        lambda: run_dataset("interactions", raw, place),
        lambda: fit_dataset("interactions", raw, place),
        lambda: transform_dataset(place, raw, tmp_path / "out"),
        lambda: find_checkpoint(place),
        lambda: store.begin(None),
        lambda: store.save(1, {"a": np.zeros(3)}, {}),
        store.load,
        lambda: enter(atomic_file(place)),
        lambda: enter(atomic_directory(place)),
        lambda: enter(held(place, "results_dir")),
        lambda: read_yaml(place),
        lambda: read_schema(place),
        lambda: verify_dataset(place),
        lambda: Histories.load(place),
        lambda: MaterialisedDataset(place),
        lambda: Manifest.read(place),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"received the address 's3:/.* mount it"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
