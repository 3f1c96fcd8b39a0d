from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from lookback.core.errors import UserError
from lookback.workflows.datasets.movielens import MovieLensReader, parse_table
from lookback.workflows.pipeline import run_dataset

RATINGS = [(1, 10, 4.5, 100), (1, 20, 3, 90), (2, 10, 1, 95), (2, 30, 5, 95), (1, 5, 2, 100)]
GENRES = {5: "Action|War", 10: "Drama", 20: "", 30: "Drama"}


def _rows(separator: str) -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in RATINGS)


def _layout(directory: Path, name: str) -> Path:
    if name == "100k":
        (directory / "u.data").write_text(_rows("\t"))
        flags = {"": "1" + "0" * 18, "Drama": "0" * 8 + "1" + "0" * 10}
        flags["Action|War"] = "01" + "0" * 15 + "10"
        lines = [
            f"{movie}|Café|01-Jan-1995||http://x|{'|'.join(flags[genres])}\n"
            for movie, genres in GENRES.items()
        ]
        (directory / "u.item").write_text("".join(lines), encoding="latin-1")
        (directory / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|94043\n")
    elif name == "1m":
        (directory / "ratings.dat").write_text(_rows("::"))
        lines = [f"{movie}::Café: a (1990)::{genres}\n" for movie, genres in GENRES.items()]
        (directory / "movies.dat").write_text("".join(lines), encoding="latin-1")
        (directory / "users.dat").write_text("1::M::25::12::85711\n2::F::50::1::94043\n")
    else:
        header = "userId,movieId,rating,timestamp\n"
        (directory / "ratings.csv").write_text(header + _rows(","))
        lines = [
            f'{movie},"Café, a ""b"" (1990)",{genres or "(no genres listed)"}\n'
            for movie, genres in GENRES.items()
        ]
        (directory / "movies.csv").write_text("movieId,title,genres\n" + "".join(lines))
    return directory


@pytest.mark.parametrize("name", ["100k", "1m", "20m"])
def test_layouts(tmp_path: Path, name: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    _layout(raw, name)
    report = run_dataset("movielens", raw, tmp_path / "out", min_interactions=2, time_unit="steps")
    histories = pq.read_table(tmp_path / "out/histories/part-00000.parquet").to_pandas()
    # Counts: item 10 twice, then 5, 20, 30; user 1 three times. Ties in time stay as they came.
    assert histories["user_id"].tolist() == [3, 4]
    assert [list(row) for row in histories["item_id"]] == [[5, 3, 4], [3, 6]]
    assert [list(row) for row in histories["timestamp"]] == [[90, 100, 100], [95, 95]]
    # Drama three times; then Action|War before no_category (or, in 100k, "unknown").
    assert [list(row) for row in histories["category_id"]] == [[5, 3, 4], [3, 3]]
    names = pq.read_table(tmp_path / "out/workflow/categories/unique.category_id.parquet")
    unknown = "unknown" if name == "100k" else "no_category"
    assert names["category_id"].to_pylist() == ["Drama", "Action|War", unknown]
    assert report.metadata["counts"]["items"] == 4


@pytest.mark.parametrize("name", ["100k", "1m"])
def test_user_features(tmp_path: Path, name: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    _layout(raw, name)
    run_dataset(
        "movielens",
        raw,
        tmp_path / "out",
        min_interactions=2,
        user_columns="gender,occupation",
        time_unit="steps",
    )
    table = pq.read_table(tmp_path / "out/histories/part-00000.parquet")
    assert table.column_names[:3] == ["user_id", "gender", "occupation"]
    assert table["gender"].to_pylist() == [3, 4]  # M has three events, F two
    with pytest.raises(UserError, match=r"there is no 'sex'\. Choose of gender, age"):
        run_dataset("movielens", raw, tmp_path / "no", user_columns="sex")


def test_user_features_need_a_file(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    _layout(raw, "20m")
    with pytest.raises(UserError, match="Leave the option out"):
        run_dataset("movielens", raw, tmp_path / "out", user_columns="age")


def test_without_movies_there_is_one_category(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    _layout(raw, "20m")
    packed = gzip.compress((raw / "ratings.csv").read_bytes())
    (raw / "ratings.csv.gz").write_bytes(packed)
    (raw / "ratings.csv").unlink()
    (raw / "movies.csv").unlink()
    report = run_dataset("movielens", raw, tmp_path / "out", min_interactions=2, time_unit="steps")
    assert report.metadata["cardinalities"]["category_id"] == 4


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1\t2\t3", "3 fields instead of 4"),
        ("1\t2\t3\t4\t5", "5 fields instead of 4"),
        ("1\tx\t3\t4", "not numbers"),
        ("1\t2\t\t4", "not numbers"),
        ("1\t2\t3\t-4", "the time is negative"),
        ("1\t99999999999999999999\t3\t4", "a number too large"),
    ],
)
def test_bad_lines(line: str, reason: str) -> None:
    data = f"1\t2\t3\t4\n{line}\n5\t6\t7\t8\n".encode()
    assert parse_table(data, False, "steps") is None
    parsed = MovieLensReader().parse_events(data, True, "steps")
    assert parsed.reasons == {reason: 1}
    assert parsed.bad[0].line == 2
    assert parsed.table.to_pydict() == {
        "user_id": [1, 5],
        "item_id": [2, 6],
        "timestamp": [4, 8],
    }


@pytest.mark.parametrize("separator", ["\t", "::", ","])
def test_both_ways_of_parsing_agree(separator: str) -> None:
    rows = [(n % 7, n % 11, n % 5 + 0.5, n) for n in range(100)]
    data = "".join(separator.join(map(str, row)) + "\r\n" for row in rows).encode()
    quick = parse_table(data, False, "steps")
    assert quick is not None
    slow = MovieLensReader().parse_events(data + b"bad\n", False, "steps")
    assert slow.reasons == {"1 fields instead of 4": 1}
    assert quick.table.drop(["rating"]).to_pydict() == slow.table.to_pydict()
    assert quick.table["timestamp"].to_pylist() == list(range(100))


def test_choice_of_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of u\.data, ratings\.dat, ratings\.csv"):
        MovieLensReader().event_files(tmp_path)
    (tmp_path / "u.data").touch()
    (tmp_path / "ratings.csv").touch()
    with pytest.raises(UserError, match="two sets"):
        MovieLensReader().event_files(tmp_path)


def test_a_bad_line_of_movies_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    _layout(raw, "1m")
    (raw / "movies.dat").write_bytes(b"1::a::Drama\nx::b::Drama\n")
    with pytest.raises(UserError, match=r"movies\.dat:2: the movie id is not a number"):
        run_dataset("movielens", raw, tmp_path / "out", min_interactions=1)


def test_movielens_100k(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    raw = shared_data("ml-100k")
    report = run_dataset("movielens", raw, tmp_path / "out")
    counts = report.metadata["counts"]
    assert (counts["users"], counts["events"], counts["items"]) == (943, 100_000, 1682)
    assert report.metadata["cardinalities"] == {
        "user_id": 946,
        "item_id": 1685,
        "category_id": 216 + 3,
    }
    ratings = pd.read_csv(raw / "u.data", sep="\t", names=["user", "item", "rating", "time"])
    ratings = ratings.sort_values(["user", "time"], kind="stable")
    histories = pq.read_table(tmp_path / "out/histories/part-00000.parquet").to_pandas()
    vocabulary = tmp_path / "out/workflow/categories"
    users = pq.read_table(vocabulary / "unique.user_id.parquet")["user_id"].to_pylist()
    items = pq.read_table(vocabulary / "unique.item_id.parquet")["item_id"].to_numpy()
    expected = {user: rows["item"].tolist() for user, rows in ratings.groupby("user")}
    for user, row in zip(histories["user_id"], histories["item_id"], strict=True):
        assert items[row - 3].tolist() == expected[users[user - 3]]


def test_amazon_musical_instruments(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    raw = shared_data("amazon_musical_instruments")
    report = run_dataset("amazon", raw, tmp_path / "out", min_interactions=5)
    counts = report.metadata["counts"]
    assert (counts["users"], counts["events"], counts["items"]) == (1429, 10_261, 900)
    assert report.metadata["history_length"]["min"] == 5
    reviews = pd.read_json(raw / "reviews_Musical_Instruments_5.json", lines=True)
    reviews = reviews.sort_values(["reviewerID", "unixReviewTime"], kind="stable")
    vocabulary = tmp_path / "out/workflow/categories"
    users = pq.read_table(vocabulary / "unique.user_id.parquet")["user_id"].to_pylist()
    items = pq.read_table(vocabulary / "unique.item_id.parquet")["item_id"].to_pandas().to_numpy()
    expected = {user: rows["asin"].tolist() for user, rows in reviews.groupby("reviewerID")}
    histories = pq.read_table(tmp_path / "out/histories/part-00000.parquet").to_pandas()
    for user, row in zip(histories["user_id"], histories["item_id"], strict=True):
        assert items[row - 3].tolist() == expected[users[user - 3]]
