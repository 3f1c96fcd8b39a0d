from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lookback.core.errors import UserError
from lookback.workflows.cluster import Runner
from lookback.workflows.datasets.amazon import (
    AmazonReader,
    item_of_line,
    item_of_literal,
    parse_strict,
    review_of_literal,
)
from lookback.workflows.text import BadLineCounter, BadLineError

GOOD = {"reviewerID": "A1", "asin": "B1", "reviewText": "x", "unixReviewTime": 5}


def _lines(*objects: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in objects)


def _rows(data: bytes) -> list[tuple[str, str, int]]:
    table = AmazonReader().parse_events(data, True, "steps").table
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_strict_lines_are_parsed_at_once() -> None:
    data = _lines(GOOD, {**GOOD, "asin": "B2", "helpful": [0, 1], "style": {"a": None}})
    parsed = parse_strict(data, "steps")
    assert parsed is not None
    assert parsed.table.to_pydict() == {
        "user_id": ["A1", "A1"],
        "item_id": ["B1", "B2"],
        "timestamp": [5, 5],
    }
    assert parsed.lines == 2


def test_both_ways_of_parsing_agree() -> None:
    objects = [
        {
            **GOOD,
            "asin": f"B{number}",
            "reviewText": 'Ü "q" \\ \n \U0001f600',
            "unixReviewTime": number,
        }
        for number in range(50)
    ]
    data = _lines(*objects) + b"\r\n  \n"
    strict = parse_strict(data, "steps")
    assert strict is not None
    literal = "".join(f"{value!r}\n" for value in objects).encode()
    assert parse_strict(literal, "steps") is None
    assert _rows(literal) == _rows(data)
    mixed = data + literal
    assert _rows(mixed) == _rows(data) * 2


def test_blank_lines_and_no_last_line_feed() -> None:
    data = b"\n" + _lines(GOOD) + b"\n\n" + _lines(GOOD).rstrip()
    parsed = parse_strict(data, "steps")
    assert parsed is not None and len(parsed.table) == 2 and parsed.lines == 5
    assert AmazonReader().parse_events(b"\n \n", True).lines == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"reviewerID": "A1", "asin": "B1"', "neither JSON nor a Python literal"),
        (b"[1, 2]", "not an object"),
        (b'{"asin": "B1", "unixReviewTime": 1}', "no reviewerID"),
        (b'{"reviewerID": "A1", "unixReviewTime": 1}', "no asin"),
        (b'{"reviewerID": "A1", "asin": "B1"}', "no unixReviewTime"),
        (b'{"reviewerID": "", "asin": "B1", "unixReviewTime": 1}', "non-empty string"),
        (b'{"reviewerID": "A1", "asin": 7, "unixReviewTime": 1}', "asin is not a non-empty"),
        (b'{"reviewerID": "A1", "asin": null, "unixReviewTime": 1}', "asin is not a non-empty"),
        (b'{"reviewerID": "A1", "asin": "\\ud800", "unixReviewTime": 1}', "not Unicode text"),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": "1"}', "not an integer"),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1.5}', "not an integer"),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": true}', "not an integer"),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": NaN}', "not an integer"),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 1, "asin": "B2"}', "asin is there"),
        (b'{"asin": "B", "\\u0061sin": "B", "reviewerID": "A", "unixReviewTime": 1}', "asin is"),
        (
            b"{'asin': 'B1', 'reviewerID': 'A1', 'unixReviewTime': 1, 'asin': 'B2'}",
            "is there twice",
        ),
        (b'[["reviewerID", "A1"]]', "not an object"),
        (b"(('reviewerID', 'A1'),)", "not an object"),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": -1}', "negative"),
        (b'{"reviewerID": "A1", "asin": "B1", "unixReviewTime": 99999999999999999999}', "integer"),
        (b'{"reviewerID": "A\xff", "asin": "B1", "unixReviewTime": 1}', "not UTF-8"),
        (_lines(GOOD).strip() * 2, "neither JSON nor a Python literal"),
        (b"\x00\x01\x02", "neither JSON nor a Python literal"),
        (b"{" * 2000, "neither JSON nor a Python literal"),
    ],
)
def test_bad_lines_are_named(line: bytes, reason: str) -> None:
    parsed = AmazonReader().parse_events(_lines(GOOD) + line + b"\n" + _lines(GOOD), False, "steps")
    assert len(parsed.table) == 2
    (bad,) = parsed.bad
    assert bad.line == 2
    assert reason in bad.reason


@pytest.mark.parametrize("quote", ['"', "'"])
def test_keys_that_nobody_reads_may_be_there_twice(quote: str) -> None:
    """As Arrow has it: whether a line is taken must not depend on the lines beside it."""
    line = (
        json.dumps({**GOOD, "a": {"asin": "B9"}})[:-1] + ', "style": 1, "style": 2, "asin ": 3}\n'
    )
    line = line.replace('"', quote)
    if quote == '"':
        assert parse_strict(line.encode(), "steps") is not None
        assert parse_strict(line.replace('"style": 1', '"asin": ""').encode(), "steps") is None
    assert _rows(line.encode() + b"  bad") == [("A1", "B1", 5)]


def test_a_category_that_is_there_twice_is_refused() -> None:
    for text in ('{"asin": "B", "category": "x", "category": "y"}', "{'asin': 'B', 'asin': 'C'}"):
        with pytest.raises(BadLineError, match="is there twice"):
            item_of_line(text.encode())


def test_a_float_that_is_whole_is_a_time() -> None:
    assert _rows(_lines({**GOOD, "unixReviewTime": 5.0})) == [("A1", "B1", 5)]


@pytest.mark.parametrize(
    ("line", "category"),
    [
        ({"asin": "B1", "categories": [["A", "B"], ["C"]]}, "B"),
        ({"asin": "B1", "categories": []}, "no_category"),
        ({"asin": "B1", "categories": [[]]}, "no_category"),
        ({"asin": "B1"}, "no_category"),
        ({"asin": "B1", "category": ["A", "B"]}, "B"),
        ({"asin": "B1", "category": []}, "no_category"),
        ({"asin": "B1", "category": "Text"}, "Text"),
        ({"asin": "B1", "categories": ["A", "B"]}, "B"),
        ({"asin": "B1", "categories": [[]], "category": ["A", "B"]}, "B"),
        ({"asin": "B1", "categories": [7]}, "no_category"),
        ({"asin": "B1", "categories": {"A": "B"}}, "no_category"),
        ({"asin": "B1", "categories": [{"A": "B"}]}, "no_category"),
        ({"asin": "B1", "categories": [["it's", "a \"b\" \\ [['x']]"]]}, "a \"b\" \\ [['x']]"),
        ({"asin": "B1", "title": "'categories': [['x']]", "categories": [["A"]]}, "A"),
        ({"asin": "B1", "title": "Über", "categories": [["A", "Küche"]]}, "Küche"),
        ({"related": {"asin": "B9"}, "asin": "B1", "categories": [["A"]]}, "A"),
    ],
)
def test_last_category_of_the_first_path(line: dict[str, object], category: str) -> None:
    assert item_of_line(json.dumps(line).encode()) == ("B1", category)
    assert item_of_line(repr(line).encode()) == ("B1", category)


def test_the_quick_way_with_literals_is_taken_and_right() -> None:
    line = repr({"asin": "B1", "title": "x", "categories": [["A", "it's"], []]}).encode()
    assert item_of_literal(line) == ("B1", "it's")
    assert item_of_literal(line + b" # 'categories': ") is None
    assert item_of_literal(line[:-5]) is None
    with pytest.raises(BadLineError):
        item_of_line(line[:-5])


def test_the_quick_way_with_literal_reviews_is_taken_and_right() -> None:
    line = repr(GOOD).encode()
    assert review_of_literal(line) == ("A1", "B1", 5)
    doubtful = [
        {**GOOD, "reviewText": "see 'asin': 'B9', 'reviewerID': 'A9'"},
        {**GOOD, "asin": "B-1"},
        {**GOOD, "unixReviewTime": -5},
    ]
    assert [review_of_literal(repr(value).encode()) for value in doubtful] == [None] * 3
    assert _rows(repr(doubtful[0]).encode()) == [("A1", "B1", 5)]
    assert _rows(repr(doubtful[1]).encode()) == [("A1", "B-1", 5)]


def test_first_metadata_of_an_item_counts(tmp_path: Path) -> None:
    (tmp_path / "reviews_X_5.json").write_bytes(_lines(GOOD))
    (tmp_path / "meta_X.json.gz").write_bytes(
        gzip.compress(
            _lines(
                {"asin": "B1", "categories": [["A", "first"]]},
                {"asin": "B2", "categories": [["A", "other"]]},
                {"asin": "B1", "categories": [["A", "second"]]},
            )
        )
    )
    (features,), counts = AmazonReader().features(tmp_path, Runner(), BadLineCounter(0))
    assert features.table is not None
    assert features.table.to_pydict() == {
        "item_id": ["B1", "B2"],
        "category_id": ["first", "other"],
    }
    assert counts == {
        "duplicate_item_metadata": 1,
        "items_in_metadata": 2,
        "items_without_category": 0,
    }


def test_a_bad_line_of_metadata_is_named(tmp_path: Path) -> None:
    (tmp_path / "reviews_X.json").write_bytes(_lines(GOOD))
    (tmp_path / "meta_X.json").write_bytes(b'{"asin": "B1"}\n{"title": "x"}\n')
    with pytest.raises(UserError, match=r"meta_X\.json:2: no asin"):
        AmazonReader().features(tmp_path, Runner(), BadLineCounter(0))


def test_choice_of_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no reviews_\*\.json"):
        AmazonReader().event_files(tmp_path)
    books = tmp_path / "reviews_Books.json"
    toys = tmp_path / "reviews_Toys.json.gz"
    books.touch()
    assert AmazonReader().event_files(tmp_path) == [books]
    toys.touch()
    with pytest.raises(UserError, match=r"several categories: Books, Toys.*--category"):
        AmazonReader().event_files(tmp_path)
    assert AmazonReader("Toys").event_files(tmp_path) == [toys]
    assert AmazonReader("Toys, Books").event_files(tmp_path) == [toys, books]
    with pytest.raises(UserError, match=r"no reviews_Cars\.json.*Books, Toys"):
        AmazonReader("Cars").event_files(tmp_path)
    (tmp_path / "reviews_Books.json.gz").touch()
    with pytest.raises(UserError, match="Delete one"):
        AmazonReader("Books").event_files(tmp_path)
