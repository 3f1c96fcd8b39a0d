"""Files of a log → raw tables: equal to plain pandas, whatever the files are."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.core.errors import UserError
from lookback.formats.transforms import canonical
from lookback.workflows.cluster import open_runner
from lookback.workflows.datasets.log import LogReader
from lookback.workflows.log import csv_records, json_records, parquet_records
from lookback.workflows.log.description import LogFile
from lookback.workflows.log.document import options_of_log
from lookback.workflows.text import BadLineCounter, Parsed

START = 1_500_000_000
FEATURES: dict[str, Any] = {
    "device": {"type": "category", "known": "before"},
    "dwell": {"type": "number"},
    "tags": {"type": "categories", "separator": "|"},
}


def _log(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    """Random events of which features are missing here and there."""
    random = np.random.default_rng(seed)
    tags = ["", "b|a", "a", "a|c|a", 'ä, "q"|b', " a | b "]
    return pd.DataFrame(
        {
            "who": random.integers(1, 40, rows),
            "what": [f"i{n}" for n in random.integers(0, 30, rows)],
            "ts": START + random.integers(0, 10**6, rows),
            "kind": random.choice(["view", "click", "buy"], rows),
            "device": random.choice(["phone", "pc", None], rows),
            "dwell": np.where(random.random(rows) < 0.2, np.nan, random.normal(size=rows) * 10),
            "tags": random.choice(tags, rows),
            "note": random.choice(["", "a, b", 'q"q'], rows),
        }
    )


def _reader(events: Mapping[str, Any], **parts: Any) -> LogReader:
    content = {"version": 1, "events": {"user": "who", "item": "what", "time": "ts", **events}}
    options = options_of_log(LogFile.read({**content, **parts}, "a test"))
    return LogReader(**{n: options[n] for n in ("events", "items", "users", "labels")})


def _parsed(reader: LogReader, directory: Path, unit: Any = None) -> list[Parsed]:
    return [
        reader.parse_block(pickle.loads(pickle.dumps(block)), unit)  # as to a worker
        for path in reader.event_files(directory)
        for block in reader.blocks(path)
    ]


def _table(parts: list[Parsed]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for part in parts:
        for name in part.table.column_names:
            found.setdefault(name, []).extend(part.table[name].to_pylist())
    return found


def _expected(log: pd.DataFrame) -> dict[str, list[Any]]:
    """By the words of the contract: raw types, null where nothing is."""
    bags = [
        canonical([tag.strip() for tag in text.split("|")]) if text else None
        for text in log["tags"]
    ]
    return {
        "user_id": log["who"].tolist(),
        "item_id": log["what"].tolist(),
        "timestamp": (log["ts"] * 10**9).tolist(),
        "device": log["device"].tolist(),
        "dwell": [None if np.isnan(x) else x for x in log["dwell"]],
        "tags": bags,
    }


def _write_json(log: pd.DataFrame, path: Path, nested: bool = False) -> None:
    lines = []
    for row in log.to_dict("records"):
        kept = {k: v for k, v in row.items() if v is not None and v == v}
        if nested:
            kept["user"] = {"id": kept.pop("who"), "device": {"kind": kept.pop("device", None)}}
            kept["tags"] = (
                [tag.strip() for tag in kept["tags"].split("|")] if kept["tags"] else None
            )
        lines.append(json.dumps(kept, ensure_ascii=len(lines) % 2 == 0))
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


LAYOUTS = ("a.csv", "a.csv.gz", "a.tsv", "pipes.csv", "a.jsonl", "a.json.gz", "nested.jsonl")
LAYOUTS += ("a.parquet", "nested.parquet", "dictionary.parquet")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [None, 2000])
def test_every_format_gives_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, size: int | None
) -> None:
    log, path = _log(), tmp_path / layout
    features = {name: dict(feature) for name, feature in FEATURES.items()}
    events: dict[str, Any] = {"files": [layout], "features": features}
    if layout in ("a.csv", "a.csv.gz"):
        log.to_csv(path, index=False)
    elif layout == "a.tsv":  # no header, no quotes, Latin-1
        log = log.assign(note="x")
        text = log.to_csv(sep="\t", index=False, header=False, quoting=3, quotechar="\b")
        path.write_bytes(text.replace("\n", "\r\n").encode("latin-1"))
        events["csv"] = {"separator": "\t", "quote": "", "header": False}
        events["csv"] |= {"columns": list(log.columns), "encoding": "latin-1"}
    elif layout == "pipes.csv":
        log = log.assign(note="x")
        lines = [list(log.columns), *log.fillna("").astype(str).to_numpy().tolist()]
        path.write_text("\n".join("::".join(line) for line in lines))
        events["csv"] = {"separator": "::", "quote": ""}
    elif layout.endswith(".parquet"):
        table = pa.Table.from_pandas(log)
        if layout == "nested.parquet":
            tags = [[t.strip() for t in text.split("|")] if text else None for text in log["tags"]]
            device = pa.StructArray.from_arrays([pa.array(log["device"])], ["kind"])
            mask = pa.array(log["device"].isna())
            device = pa.StructArray.from_arrays(device.flatten(), ["kind"], mask=mask)
            user = pa.StructArray.from_arrays([pa.array(log["who"]), device], ["id", "device"])
            table = table.drop(["who", "device", "tags"]).append_column("user", user)
            table = table.append_column("tags", pa.array(tags, pa.list_(pa.string())))
        elif layout == "dictionary.parquet":
            place = table.column_names.index("device")
            table = table.set_column(place, "device", table["device"].dictionary_encode())
        pq.write_table(table, path, row_group_size=100)
    else:
        _write_json(log, path, nested=layout.startswith("nested"))
    if layout.startswith("nested"):
        events |= {"user": "user.id"}
        features["device"]["column"] = "user.device.kind"
        features["tags"] = {"type": "categories"}
    if size is not None:
        monkeypatch.setattr(csv_records.csv_blocks, "__defaults__", (size,))
        monkeypatch.setattr(json_records.json_blocks, "__defaults__", (size * 4,))
        monkeypatch.setattr(parquet_records.row_blocks, "__defaults__", (70,))
    reader = _reader(events)
    parts = _parsed(reader, tmp_path)
    assert not any(part.reasons for part in parts)
    assert size is None or len(parts) > 3
    found, expected = _table(parts), _expected(log)
    assert list(found) == list(expected)
    for name in expected:
        assert (
            found[name] == pytest.approx(expected[name])
            if name == "dwell"
            else (found[name] == expected[name])
        ), name
    types = {"user_id": pa.int64(), "item_id": pa.string(), "dwell": pa.float64()}
    for name, dtype in {**types, "timestamp": pa.int64(), "tags": pa.string()}.items():
        assert parts[0].table.schema.field(name).type == dtype, name
    said = reader.passed_over(tmp_path, reader.event_files(tmp_path))
    assert said == ["events: columns that are not read: kind, note"]


def test_the_careful_way_is_the_quick_one(tmp_path: Path) -> None:
    log = _log()
    log.to_csv(tmp_path / "a.csv", index=False)
    _write_json(log, tmp_path / "a.jsonl")
    for name in ("a.csv", "a.jsonl"):
        reader = _reader({"files": [name], "features": FEATURES})
        (block,) = reader.blocks(tmp_path / name)
        quick, careful = block.quick(), block.careful()  # type: ignore[attr-defined]
        assert quick is not None
        assert quick.table.to_pydict() == careful.table.to_pydict()
        assert careful.numbers.tolist() == list(
            range(1 + (name == "a.csv"), 401 + (name == "a.csv"))
        )


def test_conditions_leave_rows_out_and_are_counted(tmp_path: Path) -> None:
    log = _log()
    log["who"] = np.where(log["kind"] == "view", None, 3)  # a view without a user is left out first
    log["who"] = log["who"].astype("Int64")
    where = [
        {"column": "kind", "in": ["click", "buy"]},
        {"column": "dwell", "at_least": -5, "at_most": 5},
        {"column": "device", "present": True},
        {"column": "what", "not_in": ["i3", "i4"]},
    ]
    kept = log["kind"].isin(["click", "buy"])
    counts = {"rows_left_out_by_kind": int((~kept).sum())}
    for column, holds in (
        ("dwell", log["dwell"].between(-5, 5)),
        ("device", log["device"].notna()),
        ("what", ~log["what"].isin(["i3", "i4"])),
    ):
        counts[f"rows_left_out_by_{column}"] = int((kept & ~holds).sum())
        kept &= holds
    assert min(counts.values()) > 0
    log.to_csv(tmp_path / "a.csv", index=False)
    log.to_parquet(tmp_path / "a.parquet", index=False)
    (csv,) = _parsed(_reader({"files": ["a.csv"], "where": where}), tmp_path)
    assert csv.counts == counts and not csv.reasons
    assert csv.table["item_id"].to_pylist() == log[kept]["what"].tolist()
    assert csv.table["user_id"].to_pylist() == [3] * int(kept.sum())
    (parquet,) = _parsed(_reader({"files": ["a.parquet"], "where": where}), tmp_path)
    assert parquet.counts == counts and parquet.table.equals(csv.table)


def test_nested_dictionaries_of_several_row_groups(tmp_path: Path) -> None:
    """Arrow makes no batch of them that spans row groups, as ours did."""
    log = _log(250)
    device = pa.array(log["device"]).dictionary_encode()
    context = pa.StructArray.from_arrays([device, pa.array(log["dwell"])], ["device", "dwell"])
    table = pa.table({**{n: pa.array(log[n]) for n in ("who", "what", "ts")}, "context": context})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=40)
    features = {n: {**FEATURES[n], "column": f"context.{n}"} for n in ("device", "dwell")}
    (parsed,) = _parsed(_reader({"files": ["a.parquet"], "features": features}), tmp_path)
    assert not parsed.reasons
    assert parsed.table["item_id"].to_pylist() == log["what"].tolist()
    assert parsed.table["device"].to_pylist() == log["device"].tolist()


@pytest.mark.parametrize(
    ("values", "positive", "expected"),
    [
        (["1", "0", "01", "1.0", "2"], [1], [1, 0, 1, 1, 0]),
        (["yes", "no", "Yes"], ["yes"], [1, 0, 0]),
        (["5", "4", "4.5"], [4, 5], [1, 1, 0]),
        ([True, False], ["true"], [1, 0]),
        ([True, False], [True], [1, 0]),
        ([True, False], [False], [0, 1]),
        ([True, False], [1], [1, 0]),  # as is the default
        ([True, False], [0], [0, 1]),
        ([True, False], [2, 5], [0, 0]),
        ([1, 0, 2], [True], [1, 0, 0]),
        ([1.0, 0.0, 3.0], [False], [0, 1, 0]),
        (["True", "False", "TRUE", "1", "yes", "2"], [1], [1, 0, 1, 1, 1, 0]),
        (["yes", "No", "on", "true", "y", "1", "0"], [True], [1, 0, 1, 1, 0, 1, 0]),
        (["yes", "No", "off", "FALSE", "n", "1", "0.0"], [False], [0, 1, 1, 1, 0, 0, 1]),
        (["yes", "true"], ["true"], [0, 1]),
        ([1.0, 0.0, 3.0], [1], [1, 0, 0]),
    ],
)
def test_labels(
    tmp_path: Path, values: list[Any], positive: list[Any], expected: list[int]
) -> None:
    log = _log(len(values)).assign(clicked=values)
    reader = {"label": {"column": "clicked", "positive": positive}}
    if isinstance(values[0], str):
        log.to_csv(tmp_path / "a.csv", index=False)
        name = "a.csv"
    else:
        log.to_parquet(tmp_path / "a.parquet", index=False)
        name = "a.parquet"
    split = {"by": "users", "test": 0.2}
    made = _reader({"files": [name], **reader}, labels="explicit", split=split)
    assert made.explicit
    (parsed,) = _parsed(made, tmp_path)
    assert parsed.table["label"].to_pylist() == expected
    assert parsed.table.schema.field("label").type == pa.int8()


def test_times_of_a_zone(tmp_path: Path) -> None:
    """Clocks of Paris show 02:30 twice on 25 October 2020, and never on 29 March."""
    texts = [
        "2020-01-01T12:00:00",
        "2020-07-01 12:00",
        "2020-10-25T02:30:00",
        "2020-03-29T02:30:00",
    ]
    texts += ["2020-07-01T12:00:00Z", "2020-07-01T12:00:00+05:30"]
    utc = ["2020-01-01T11:00", "2020-07-01T10:00", "2020-10-25T00:30", "2020-03-29T01:00"]
    utc += ["2020-07-01T12:00", "2020-07-01T06:30"]
    expected = [pd.Timestamp(text).value for text in utc]
    log = pd.DataFrame({"who": 1, "what": 2, "ts": texts})
    log.to_csv(tmp_path / "a.csv", index=False)
    time = {"column": "ts", "zone": "Europe/Paris"}
    (parsed,) = _parsed(_reader({"files": ["a.csv"], "time": time}), tmp_path)
    assert parsed.table["timestamp"].to_pylist() == expected
    assert parsed.counts == {"times_at_clock_changes": 2}
    walls = pd.to_datetime(pd.Series(texts[:4]))
    log[:4].assign(ts=walls).to_parquet(tmp_path / "a.parquet", index=False)
    (parsed,) = _parsed(_reader({"files": ["a.parquet"], "time": time}), tmp_path)
    assert parsed.table["timestamp"].to_pylist() == expected[:4]
    # Without a zone they are UTC, and counted; with `iso` a number is none.
    (parsed,) = _parsed(_reader({"files": ["a.csv"]}), tmp_path)
    assert parsed.counts == {"times_without_zone": 4}
    pd.DataFrame({"who": 1, "what": 2, "ts": [START]}).to_csv(tmp_path / "a.csv", index=False)
    (parsed,) = _parsed(_reader({"files": ["a.csv"], "time": {**time, "unit": "iso"}}), tmp_path)
    assert parsed.reasons == {"ts is a number, not a time of ISO 8601": 1}


@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_units_of_times(tmp_path: Path, unit: str, scale: int) -> None:
    log = _log(20)
    log.assign(ts=log["ts"] * scale).to_csv(tmp_path / "a.csv", index=False)
    time = {"column": "ts", "unit": unit}
    (parsed,) = _parsed(_reader({"files": ["a.csv"], "time": time}), tmp_path)
    assert parsed.table["timestamp"].to_pylist() == (log["ts"] * 10**9).tolist()


LINES: dict[str, tuple[str, str]] = {
    "no user": ('{"what": 1, "ts": 1500000000}', "no who"),
    "empty": ('{"who": "", "what": 1, "ts": 1500000000}', "no who"),
    "not JSON": ("{'who': 1}", "not JSON"),
    "no object": ("[1]", "not a JSON object"),
    "twice": ('{"who": 1, "who": 2, "what": 1, "ts": 1500000000}', "the key who is there twice"),
    "NaN": ('{"who": 1, "what": 1, "ts": 1500000000, "dwell": NaN}', "dwell is no number of JSON"),
    "large": (
        '{"who": 1, "what": 1, "ts": 1500000000, "dwell": 1e400}',
        "dwell is no number of JSON",
    ),
    "long": (f'{{"who": {10**30}, "what": 1, "ts": 1500000000}}', "who is too large"),
    "half an id": (
        '{"who": 1.5, "what": 1, "ts": 1500000000}',
        "who is neither text nor an integer",
    ),
    "no id": ('{"who": true, "what": 1, "ts": 1500000000}', "who is neither text nor an integer"),
    "list": ('{"who": 1, "what": 1, "ts": 1500000000, "dwell": [1]}', "dwell is a list"),
    "object": ('{"who": {"id": 1}, "what": 1, "ts": 1500000000}', "who is an object"),
    "half": ('{"who": "\\ud800", "what": 1, "ts": 1500000000}', "who is not Unicode text"),
    "text": ('{"who": 1, "what": 1, "ts": 1500000000, "dwell": "long"}', "dwell is not a number"),
    "time": ('{"who": 1, "what": 1, "ts": "now"}', "ts is not a number, nor a time of ISO 8601"),
    "unit": (
        '{"who": 1, "what": 1, "ts": 1500000000000}',
        "ts looks like ms, not s: say --time_unit ms",
    ),
    "power": ('{"who": 1, "what": 1e20, "ts": 1500000000}', "what is too large"),
    "deep": ('{"who": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
}


@pytest.mark.parametrize("name", LINES)
def test_bad_lines_of_json(tmp_path: Path, name: str) -> None:
    good = '{"who": 7, "what": 8, "ts": 1500000001, "dwell": 1.5, "other": NaN, "other": 1}'
    line, reason = LINES[name]
    (tmp_path / "a.jsonl").write_text(f"{good}\n{line}\n\n{good}\n")
    reader = _reader({"files": ["a.jsonl"], "features": {"dwell": {"type": "number"}}})
    (parsed,) = _parsed(reader, tmp_path)
    assert parsed.reasons == {reason: 1}
    assert [(bad.line, bad.reason) for bad in parsed.bad] == [(2, reason)]
    assert parsed.bad[0].excerpt == line[:120]
    assert parsed.table["item_id"].to_pylist()[:1] == [8] and len(parsed.table) == 2
    assert parsed.lines == 4


def test_bad_lines_of_csv(tmp_path: Path) -> None:
    rows = ["1,2,1500000000,5,x", "1,2,1500000000,inf,x", "1,2,1500000000,5 s,x", "1,2", ",2,1,1,x"]
    rows += ['1,2,1500000000,,"[""x"", 1]"', "1,2,1500000000,nan,"]
    (tmp_path / "a.csv").write_text("\n".join(["who,what,ts,dwell,tags", *rows]))
    features = {"dwell": {"type": "number"}, "tags": {"type": "categories"}}
    (parsed,) = _parsed(_reader({"files": ["a.csv"], "features": features}), tmp_path)
    assert parsed.reasons == {
        "2 fields instead of 5": 1,
        "no who": 1,
        "dwell is not finite": 1,
        "dwell is not a number": 1,
        "tags is not a list in JSON": 1,
    }
    assert [bad.line for bad in parsed.bad] == [2, 3, 4, 5, 6]
    assert parsed.table["tags"].to_pylist() == ['["1","x"]', None]
    assert parsed.table["dwell"].to_pylist() == [None, None]


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_last_line_that_is_cut_off(tmp_path: Path, end: str) -> None:
    good = '{"who": 7, "what": 8, "ts": 1500000001}'
    (tmp_path / "a.jsonl").write_text(f"{good}\n{good[:-9]}{end}")
    (parsed,) = _parsed(_reader({"files": ["a.jsonl"]}), tmp_path)
    assert parsed.reasons == {"not JSON": 1} and parsed.bad[0].line == 2
    assert parsed.table["item_id"].to_pylist() == [8] and parsed.lines == 2


def test_columns_of_parquet_with_nothing_but_nulls(tmp_path: Path) -> None:
    """As pandas writes a part of a log in which nobody has a value: all are missing."""
    asked: dict[str, Any] = {"files": ["a.parquet"], "label": {"column": "y"}}
    asked["features"] = {
        "x": {"type": "number"},
        "c": {"type": "category"},
        "bag": {"type": "categories"},
        "f": {"type": "categories", "flags": ["y", "x"]},
    }
    nothing = {"x": None, "c": None, "bag": None}
    frame = pd.DataFrame({"who": [1, 2], "what": [3, 4], "ts": 1500000000, "y": [0, 1], **nothing})
    frame.to_parquet(tmp_path / "a.parquet")
    assert str(pq.read_schema(tmp_path / "a.parquet").field("x").type) == "null"
    reader = _reader(asked, labels="explicit", split={"by": "users", "test": 0.5})
    assert reader.passed_over(tmp_path, [tmp_path / "a.parquet"]) == []
    (parsed,) = _parsed(reader, tmp_path)
    assert not parsed.reasons
    assert parsed.table.select(["user_id", "label", "x", "c", "bag", "f"]).to_pylist() == [
        {"user_id": 1, "label": 0, "x": None, "c": None, "bag": None, "f": "[]"},
        {"user_id": 2, "label": 1, "x": None, "c": None, "bag": None, "f": '["y"]'},
    ]
    for column in ("who", "ts", "y"):
        frame.assign(**{column: None}).to_parquet(tmp_path / "a.parquet")
        (parsed,) = _parsed(reader, tmp_path)
        assert parsed.reasons == {f"no {column}": 2} and not len(parsed.table)
    table = pa.Table.from_pandas(frame)
    pq.write_table(table.append_column("who", table["who"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="has more than one column 'who'"):
        reader.passed_over(tmp_path, [tmp_path / "a.parquet"])


def test_commas_before_fractions(tmp_path: Path) -> None:
    """A point beside a comma may be of thousands, or one that was forgotten: it is refused."""
    rows = ["1;2;1500000000;1,5", "1;2;1500000000;-7", "1;2;1500000000;2,5e3", "1;2;1500000000;"]
    rows += ["1;2;1500000000;1.234,5", "1;2;1500000000;1.234", "1;2;1500000000;1,2,3"]
    rows += ["1;2;1500000000;0,5"]
    (tmp_path / "a.csv").write_text("\n".join(["who;what;ts;dwell", *rows]))
    asked: dict[str, Any] = {"files": ["a.csv"], "features": {"dwell": {"type": "number"}}}
    asked |= {"csv": {"separator": ";", "decimal": ","}}
    (parsed,) = _parsed(_reader(asked), tmp_path)
    assert parsed.table["dwell"].to_pylist() == [1.5, -7.0, 2500.0, None, 0.5]
    assert parsed.reasons == {"dwell is not a number with ',' before its fraction": 3}
    asked["where"] = [{"column": "dwell", "at_least": 1.5}]
    (parsed,) = _parsed(_reader(asked), tmp_path)
    assert parsed.table["dwell"].to_pylist() == [1.5, 2500.0]
    (tmp_path / "a.csv").write_text("\n".join(["who;what;ts;dwell", *rows[:4]]))
    del asked["where"]
    (parsed,) = _parsed(_reader(asked), tmp_path)
    assert parsed.table["dwell"].to_pylist() == [1.5, -7.0, 2500.0, None] and not parsed.reasons


def _known(reader: LogReader, directory: Path, allowed: int = 0) -> tuple[Any, dict[str, int]]:
    with open_runner(0, scheduler=None, progress=False) as runner:
        found, counts = reader.features(directory, runner, BadLineCounter(allowed))
    return {entry.key: entry for entry in found}, counts


def test_files_of_items_and_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, of which the first have integers as ids; the first of a repeated id counts."""
    monkeypatch.setattr(csv_records.csv_blocks, "__defaults__", (60,))
    (tmp_path / "items").mkdir()
    lines = [f"{n},c{n % 3},{n / 2},A|B" for n in range(1, 20)] + ["5,other,9,", "x7,,,C"]
    (tmp_path / "items/a.csv").write_text("key,cat,price,genres\n" + "\n".join(lines[:8]))
    (tmp_path / "items/b.csv").write_text(
        "price,key,genres,cat,more\n"
        + "\n".join(",".join(np.array(line.split(","))[[2, 0, 3, 1]]) + ",y" for line in lines[8:])
    )
    users = pd.DataFrame({"id": [3, 4, 3], "age": [20, None, 99], "job": ["a", None, "b"]})
    users.to_parquet(tmp_path / "users.parquet")
    (tmp_path / "a.csv").write_text("who,what,ts\n3,5,1500000000\n")
    items = {
        "category": {"column": "cat", "type": "category"},
        "price": {"type": "number"},
        "genres": {"type": "categories", "separator": "|"},
    }
    reader = _reader(
        {"files": ["a.csv"]},
        items={"files": ["items/*.csv"], "key": "key", "features": items},
        users={
            "files": "users.parquet",
            "key": "id",
            "features": {"age": {"type": "number"}, "job": {"type": "hash", "buckets": 9}},
        },
    )
    known, counts = _known(reader, tmp_path)
    table = known["item_id"].table.to_pydict()
    assert table["item_id"] == [*map(str, range(1, 20)), "x7"]
    assert table["category"] == [*(f"c{n % 3}" for n in range(1, 20)), None]
    assert table["price"] == [*(n / 2 for n in range(1, 20)), None]
    assert table["genres"] == ['["A","B"]'] * 19 + ['["C"]']
    assert known["user_id"].table.to_pydict() == {
        "user_id": [3, 4],
        "age": [20.0, None],
        "job": ["a", None],
    }
    assert counts == {
        "duplicate_item_metadata": 1,
        "items_in_metadata": 20,
        "duplicate_user_metadata": 1,
        "users_in_metadata": 2,
    }
    said = reader.passed_over(tmp_path, reader.event_files(tmp_path))
    assert said == ["items: columns that are not read: more"]
    assert [path.name for path in reader.inputs(tmp_path)] == [
        *("a.csv", "a.csv", "b.csv", "users.parquet"),
    ]


def test_a_key_that_no_line_has_is_named(tmp_path: Path) -> None:
    _write_json(_log(20), tmp_path / "a.jsonl")
    features = {"dvice": {"type": "category"}, "device": {"type": "category"}}
    reader = _reader({"files": ["a.jsonl"], "features": features})
    said = reader.passed_over(tmp_path, reader.event_files(tmp_path))
    assert said[-1] == (
        f"WARNING: {tmp_path / 'a.jsonl'} has no 'dvice' in its first lines: is it misspelt?"
    )
    with pytest.raises(UserError, match=r"has no 'hwo' in its first 20 lines.*'who', 'what'"):
        reader = _reader({"files": ["a.jsonl"], "user": "hwo"})
        reader.passed_over(tmp_path, reader.event_files(tmp_path))


def test_labels_that_nobody_reads_are_named(tmp_path: Path) -> None:
    _log(5).assign(rating=3).to_csv(tmp_path / "a.csv", index=False)
    said = _reader({"files": ["a.csv"]}).passed_over(tmp_path, [tmp_path / "a.csv"])
    assert said[1].startswith("WARNING: rating looks like a label")
    where = [{"column": "rating", "at_least": 2}]
    said = _reader({"files": ["a.csv"], "where": where}).passed_over(tmp_path, [tmp_path / "a.csv"])
    assert len(said) == 1


HEADER = "who,what,ts\n"
ROW = "1,2,1500000000\n"


def test_flags_are_a_list_of_categories(tmp_path: Path) -> None:
    flags = pd.DataFrame(
        {"Drama": [1, 0, 1, 0], "Sci-Fi": ["1", "", "0", "0"], "Bad": [0, 0, 0, 1]}
    )
    log = pd.concat([_log(4), flags], axis=1)
    feature = {"type": "categories", "flags": ["Sci-Fi", "Drama", "Bad"]}
    expected = ['["Drama","Sci-Fi"]', "[]", '["Drama"]', '["Bad"]']
    log.to_csv(tmp_path / "a.csv", index=False)
    log.to_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        reader = _reader({"files": [name], "features": {"genres": feature}})
        (parsed,) = _parsed(reader, tmp_path)
        assert parsed.table["genres"].to_pylist() == expected
        said = reader.passed_over(tmp_path, [tmp_path / name])
        assert said == ["events: columns that are not read: kind, device, dwell, tags, note"]
    log.assign(Bad=[0, 0, 2, 0]).to_csv(tmp_path / "a.csv", index=False)
    (parsed,) = _parsed(_reader({"files": ["a.csv"], "features": {"genres": feature}}), tmp_path)
    assert parsed.reasons == {"Bad is neither 0 nor 1": 1}


FILES: dict[str, tuple[dict[str, bytes | str], dict[str, Any], str]] = {
    "none": (
        {},
        {"files": ["a.csv"]},
        r"events\.files: expected files of 'a\.csv' in .*, found none",
    ),
    "pattern": (
        {"b.csv": ROW},
        {"files": ["a*.csv"]},
        r"expected files of 'a\*\.csv' in .*found none\. There is b\.csv\. Correct the pattern",
    ),
    "packed": (
        {"a.csv": HEADER, "a.csv.gz": gzip.compress(b"x")},
        {"files": ["a.csv*"]},
        r"both .*a\.csv and .*a\.csv\.gz exist\. Delete one",
    ),
    "empty": ({"a.csv": ""}, {}, r"a\.csv is empty\. Its first line must name the columns"),
    "column": ({"a.csv": "who,item,ts\n"}, {}, r"no column 'what'\. The columns in its first line"),
    "columns": ({"a.csv": "who,what,what,ts\n"}, {}, r"has more than one column 'what'"),
    "separator": ({"a.csv": "who;what;ts\n1;2;3\n"}, {}, r"no column 'who'.*'who;what;ts'"),
    "quote": ({"a.csv": '"who,what,ts\n'}, {}, r"a\.csv:1: the first line.*is not CSV"),
    "zeros": (
        {"a.csv": "who,what,ts\n".encode("utf-16-le")},
        {},
        r"a\.csv:1: holds bytes of value 0",
    ),
    "gzip of another name": (
        {"a.csv": gzip.compress(HEADER.encode())},
        {},
        r"packed by gzip, and not named so\. Rename it to a\.csv\.gz",
    ),
    "gzip": ({"a.csv.gz": b"who,what"}, {"files": ["a.csv.gz"]}, r"is not a whole gzip file"),
    "fields": (
        {"a.csv": "1,2,3,4\n"},
        {"csv": {"header": False, "columns": ["who", "what", "ts"]}},
        r"a\.csv:1: expected the 3 columns that csv\.columns names, received 4 fields",
    ),
    "header": (
        {"a.csv": HEADER + ROW},
        {"csv": {"header": False, "columns": ["who", "what", "ts"]}},
        r"a\.csv:1: the first line names the columns.*Say header: true",
    ),
    "named": (
        {"a.csv": ROW},
        {"csv": {"header": False, "columns": ["who", "item", "ts"]}},
        r"has no column 'what'\. The columns named by csv\.columns: 'who', 'item', 'ts'",
    ),
    "json": (
        {"a.jsonl": "who,what\n"},
        {"files": ["a.jsonl"]},
        r"a\.jsonl:1: expected a JSON object",
    ),
    "json list": (
        {"a.json": '[{"who": 1}]\n'},
        {"files": ["a.json"]},
        r"a\.json:1: expected a JSON object.*It begins a list: write its entries a line each",
    ),
    "json empty": ({"a.jsonl": ""}, {"files": ["a.jsonl"]}, r"a\.jsonl is empty\. Expected a JSON"),
    "json key": (
        {"a.jsonl": '{"who": 1}\n'},
        {"files": ["a.jsonl"]},
        r"has no 'what' in its first 1",
    ),
    "parquet": ({"a.parquet": b"PAR1"}, {"files": ["a.parquet"]}, r"is not a whole parquet file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    files, events, match = FILES[name]
    for file, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / file).write_bytes(data)
    reader = _reader({"files": ["a.csv"], **events})
    with pytest.raises(UserError, match=match):
        reader.passed_over(tmp_path, reader.event_files(tmp_path))


def test_types_of_parquet_that_do_not_fit_are_named(tmp_path: Path) -> None:
    lists = pa.array([["a"], ["b"]])
    table = pa.table(
        {
            "who": [1, 2],
            "what": [1.0, 2.0],
            "ts": [START, START],
            "list": lists,
            "struct": pa.StructArray.from_arrays([lists], ["in"]),
            "number": [1, 2],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")

    def refused(match: str, column: str, kind: str, item: str = "number") -> None:
        features = {"f": {"type": kind, "column": column}}
        reader = _reader({"files": ["a.parquet"], "item": item, "features": features})
        with pytest.raises(UserError, match=match):
            reader.passed_over(tmp_path, [tmp_path / "a.parquet"])

    refused("'list' is of type list.*Say type: categories", "list", "category")
    refused("'struct' is of type struct.*a column in it, struct.NAME", "struct", "category")
    refused("'number' is of type int64; categories need lists or text", "number", "categories")
    refused("'list' is of type list.*need numbers", "list", "number")
    refused("has no column 'struct.on'", "struct.on", "category")
    refused("'what' is of type double; ids must be integers", "number", "category", item="what")
