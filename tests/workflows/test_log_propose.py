"""`workflows init`: what it proposes loads and reads, and what is in doubt is left open."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lookback.core.errors import UserError
from lookback.workflows.commands import PROGRAM
from lookback.workflows.log.document import read_description
from lookback.workflows.log.guess import guess
from lookback.workflows.log.look import look_at
from lookback.workflows.log.propose import propose


def _shop(directory: Path, label: bool = False) -> list[Path]:
    """Events in CSV with semicolons, items in JSON lines, users in parquet."""
    random = np.random.default_rng(0)
    rows = 600
    events = pd.DataFrame(
        {
            "user_id": random.integers(1, 50, rows),
            "product_id": [f"p{n}" for n in random.integers(0, 40, rows)],
            "event_time": pd.to_datetime(
                1_600_000_000 + random.integers(0, 10**7, rows), unit="s"
            ).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "device": random.choice(["phone", "pc", ""], rows),
            "price": np.round(np.exp(random.normal(size=rows) * 2 + 3), 2),
            "comment": [f"text number {n}, of its own" for n in range(rows)],
            "version": 3,
        }
    )
    if label:
        events["clicked"] = random.integers(0, 2, rows)
    events.to_csv(directory / "events.csv", index=False, sep=";")
    with (directory / "products.jsonl").open("w") as file:
        for n in range(40):
            tags = ["x", "y"][: n % 3]
            made = {"product_id": f"p{n}", "genres": "|".join(["a", "b", "c"][: 1 + n % 3])}
            file.write(json.dumps({**made, "attrs": {"brand": f"b{n % 5}", "tags": tags}}) + "\n")
    ids = range(1, 50)
    people = pd.DataFrame(
        {"id": ids, "age": random.integers(10, 80, 49), "land": ["de", "fr"] * 24 + ["de"]}
    )
    people.to_parquet(directory / "people.parquet")
    return [directory / name for name in ("people.parquet", "events.csv", "products.jsonl")]


def test_a_proposal_says_which_file_and_column_is_what(tmp_path: Path) -> None:
    proposal = propose(_shop(tmp_path), tmp_path)
    assert proposal.open == {} and proposal.rows == 600 + 40 + 49
    path = tmp_path / "my.yaml"
    path.write_text(proposal.text)
    content = read_description(path).content()
    assert content["events"] == {
        "files": ["events.csv"],
        "csv": {"separator": ";"},
        "user": "user_id",
        "item": "product_id",
        "time": {"column": "event_time", "unit": "iso"},
        "features": {
            "device": {"type": "category"},
            "price": {"type": "number", "log": True},
        },
    }
    assert content["items"] == {
        "files": ["products.jsonl"],
        "key": "product_id",
        "features": {
            "genres": {"type": "categories", "separator": "|", "most": 3},
            "attrs_brand": {"type": "category", "column": "attrs.brand"},
            "attrs_tags": {"type": "categories", "column": "attrs.tags", "most": 2},
        },
    }
    assert content["users"] == {
        "files": ["people.parquet"],
        "key": "id",
        "features": {"age": {"type": "number"}, "land": {"type": "category"}},
    }
    for reason in (
        "# comment: left out, mostly distinct text, such as 'text number 0",
        "# version: left out, always '3'",
        "'user_id' is above numbers",
        "600 rows, all looked at",
        "34% missing" if "34% missing" in proposal.text else "% missing",
    ):
        assert reason in proposal.text


def test_labels_of_rows_without_users_may_be_of_layout_tabular(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    times = [f"2024-01-21T{n % 24:02}:00:00Z" for n in range(300)]
    frame = pd.DataFrame({"id": [f"row {n} of many" for n in range(300)], "shown": times})
    frame["click"] = random.integers(0, 2, 300)
    frame["banner_pos"] = random.integers(0, 4, 300)
    frame["site"] = [f"s{n}" for n in random.integers(0, 30, 300)]
    frame["topics"] = random.choice(["a|b", "b|c|a", "c"], 300)
    frame["price"] = random.exponential(10, 300).round(2)
    frame.to_csv(tmp_path / "train.csv", index=False)
    path = tmp_path / "my.yaml"
    assert PROGRAM.main(["init", str(tmp_path / "train.csv"), "--output", str(path)]) == 0
    said = capsys.readouterr().err
    assert "set layout (click looks like a label, and not both users and items are called" in said
    assert said.count("\nset ") == 1
    with pytest.raises(UserError, match=r"layout \(line \d+\): expected one of histories, tabular"):
        read_description(path)
    proposed = path.read_text()
    path.write_text(proposed.replace("layout:", "layout: tabular"))
    content = read_description(path).content()
    assert content["events"]["label"] == {"column": "click"}
    features = content["events"]["features"]
    assert features["site"] == features["banner_pos"] == {"type": "category"}
    assert features["price"]["type"] == "number"
    assert not {"id", "click", "topics", "shown"} & set(features)
    assert content["events"]["time"] == {"column": "shown", "unit": "iso"}
    assert "topics: left out" in proposed and "layout tabular has no lists" in proposed
    assert content["split"] == {"by": "rows", "test": 0.1, "validation": 0.1}
    words = ["run", "--config", str(path), "--output", str(tmp_path / "out"), "--workers", "0"]
    assert PROGRAM.main(words) == 0
    path.write_text(proposed.replace("layout:", "layout: histories"))
    with pytest.raises(UserError, match=r"events\.user .*histories are of users, items and times"):
        read_description(path)


def test_a_label_must_be_decided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in _shop(tmp_path, label=True)]
    path = tmp_path / "my.yaml"
    assert PROGRAM.main(["init", *files, "--output", str(path)]) == 0
    assert "set labels (clicked looks like a label: explicit, sampled)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"labels \(line \d+\): expected one of sampled, explicit"):
        read_description(path)
    path.write_text(path.read_text().replace("labels:", "labels: sampled"))
    assert "clicked" not in str(read_description(path).content())
    assert PROGRAM.main(["init", *files, "--output", str(path)]) == 2  # nothing is replaced
    assert "already exists" in capsys.readouterr().err
    assert PROGRAM.main(["init", *files]) == 0
    assert capsys.readouterr().out.count("SET THIS") == 1


def test_movielens_without_names_is_left_open(shared_data: Callable[[str], Path]) -> None:
    directory = shared_data("ml-100k")
    proposal = propose([directory / "u.data"], directory)
    assert set(proposal.open) == {"events.user", "events.item"}
    assert 50_000 < proposal.rows <= 100_000
    assert 'csv: {separator: "\\t", header: false, columns: [column_1, column_2' in proposal.text
    assert "time: {column: column_4, unit: s}" in proposal.text


def test_amazon(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    directory = shared_data("amazon_musical_instruments")
    proposal = propose([directory / "reviews_Musical_Instruments_5.json"], directory)
    path = tmp_path / "my.yaml"
    path.write_text(proposal.text)
    events = read_description(path).events
    assert (events.user, events.item, events.time.column) == (
        "reviewerID",
        "asin",
        "unixReviewTime",
    )
    assert events.time.unit == "s"
    assert "# reviewText: left out" in proposal.text


def test_which_files_are_events_is_left_open(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(
            f"{name},user_id,item_id,time\n" + "1,2,3,1500000000\n" * 3
        )
    proposal = propose([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path)
    assert set(proposal.open) == {"events"}
    assert "a.csv, b.csv" in proposal.open["events"]
    (tmp_path / "my.yaml").write_text(proposal.text)
    with pytest.raises(UserError, match=r"events \(line 5\): expected a mapping"):
        read_description(tmp_path / "my.yaml")


def test_parts_of_a_log_are_one(tmp_path: Path) -> None:
    text = "user,item,ts\n" + "".join(f"{n % 7},{n % 5},{15 * 10**11 + n}\n" for n in range(50))
    (tmp_path / "1.csv").write_text(text)
    (tmp_path / "2.csv.gz").write_bytes(gzip.compress(text.encode()))
    proposal = propose([tmp_path / "1.csv", tmp_path / "2.csv.gz"], tmp_path)
    (tmp_path / "my.yaml").write_text(proposal.text)
    events = read_description(tmp_path / "my.yaml").events
    assert events.files == ("1.csv", "2.csv.gz") and events.time.unit == "ms"


def test_objects_with_keys_in_any_order_are_one_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts of JSON lines, by a pattern that the shell did not resolve; `at` is null in some."""
    rows: list[dict[str, Any]] = [
        {
            "user": {"id": f"u{n % 7}"},
            "item_id": n % 20,
            "click": n % 3 == 0,
            "at": {"ts": 15e8 + n},
        }
        for n in range(60)
    ]
    rows[0]["at"] = rows[30]["at"] = None
    rows[59] = {"place": "shop", **dict(reversed(rows[59].items()))}
    for part in (0, 1):
        lines = [json.dumps(row) for row in rows[30 * part :][:30]]
        (tmp_path / f"part-{part}.jsonl").write_text("\n".join(lines[:: 1 - 2 * part]))
    # One item is there twice.
    known = [f"{n};{n / 8};k{n % 3}".replace(".", ",") for n in [*range(20), 3]]
    (tmp_path / "items.csv").write_text("\n".join(["item_id;size;kind", *known]))
    monkeypatch.chdir(tmp_path)
    assert PROGRAM.main(["init", "part-*.jsonl", "items.csv"]) == 0
    text = capsys.readouterr().out
    assert "files: [part-0.jsonl, part-1.jsonl]  # 60 rows" in text
    assert (
        "user: user.id " in text and "item: item_id " in text and "column: at.ts, unit: s" in text
    )
    assert "place: {type: category}" in text
    assert "at: left out" not in text
    assert "positive: ['true']" in text and "in: ['true']" in text
    assert "key: item_id  # 1 rows have one that was there before" in text
    assert "may be a number (say decimal: ',' under csv)" in text
    assert PROGRAM.main(["init", "nothing-*.jsonl"]) == 2
    assert "nothing-*.jsonl is not a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "separator", "header", "encoding"),
    [
        (["a,b,c", "1,x,2", "2,y,3"], ",", True, "utf-8"),
        (["a\tb", "1\tx", "2\ty"], "\t", True, "utf-8"),
        (["1::x::2", "2::y::3"], "::", False, "utf-8"),
        (["a|b", "1|é", "2|ü"], "|", True, "latin-1"),
        (["a,b", '1,"x, y"', '2,"z"'], ",", True, "utf-8"),
    ],
)
def test_how_csv_is_written(
    tmp_path: Path, lines: list[str], separator: str, header: bool, encoding: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("\r\n".join(lines).encode(encoding))
    look = look_at(path)
    assert look.csv is not None and look.header_sure and look.whole
    assert (look.csv.separator, look.csv.header, look.csv.encoding) == (separator, header, encoding)
    assert look.rows == len(lines) - header


def test_a_header_above_text_is_in_doubt(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item,time\nx,y,2020-01-01\nz,w,2020-01-02\n")
    proposal = propose([tmp_path / "a.csv"], tmp_path)
    assert "events.csv.header" in proposal.open


@pytest.mark.parametrize(
    ("name", "values", "kind", "unit"),
    [
        ("t", ["1500000000", "1600000000"], "time", "s"),
        ("t", [1500000000000], "time", "ms"),
        ("t", ["1500000000000000"], "time", "us"),
        ("t", ["1500000000000000000"], "time", "ns"),
        ("day", ["20200131", "20210228"], "time", "yyyymmdd"),
        ("size", ["20200131", "20210228"], "category", None),
        ("t", ["2020-01-31", "2021-02-28T10:00"], "time", "iso"),
        ("t", ["2020-01-31", "2021-02-30"], "category", None),
        ("x", ["a|b", "b", "a|b|c"] * 9, "categories", None),
        ("x", ["[1, 2]", "[]", "[3]"], "categories", None),
        ("x", [["a"], None], "categories", None),
        ("x", ["09 1, 2016", "10 22, 2013"] * 9, "category", None),
        ("x", [1.5 * n for n in range(99)], "number", None),
        ("x", list(range(5)) * 9, "category", None),
        ("x", [*(1.5 * n for n in range(99)), float("nan")], "number", None),
        ("item_id", [10**18 + n for n in range(99)], "number", None),
        ("user", ["1500000000", "1600000000"], "category", None),
        ("x", ["", None, float("nan")], "constant", None),
        ("price", ["12,50", "7", "0,99", "12,50"], "text", None),
    ],
)
def test_guesses(name: str, values: list[object], kind: str, unit: str | None) -> None:
    found = guess(name, values)
    assert (found.kind, found.unit) == (kind, unit), found.reason


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"just text\nwithout any\nstructure at all\n", "expected CSV with one of"),
        ("a,b\n".encode("utf-16"), "bytes of value 0"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=match):
        propose([tmp_path / "a.txt"], tmp_path)
    with pytest.raises(UserError, match="is not a file"):
        propose([tmp_path / "none"], tmp_path)
