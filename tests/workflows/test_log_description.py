"""The YAML of a log: read whole, or refused with path, line and what was expected."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lookback.core.errors import UserError
from lookback.core.options import parse
from lookback.workflows.commands import OF_RAW_DATA, PROGRAM
from lookback.workflows.datasets.log import LogReader
from lookback.workflows.datasets.tabular_log import TabularLogReader
from lookback.workflows.histories.feature_specs import FeatureSpec
from lookback.workflows.log.description import LogFile
from lookback.workflows.log.document import options_of_log, read_description
from lookback.workflows.log.schema import SCHEMA, schema_text
from lookback.workflows.tabular.row_splits import RandomRows

WHOLE = """\
version: 1
events:
  files: [logs/*.csv.gz]
  format: csv
  csv: {separator: ",", header: true, encoding: utf-8, quote: '"'}
  user: user_id
  item: item_id
  time: {column: ts, unit: s, zone: UTC}
  label: {column: clicked, positive: [1]}
  where: [{column: event_type, in: [click, buy]}, {column: rating, at_least: 4}]
  features:
    device: {type: category, min_count: 5, known: before}
    dwell: {type: number, log: true, clip: [0, 600], fill: 0, standardise: true}
items:
  files: items.jsonl
  key: item_id
  features:
    category: {column: cat, type: category}
    genres: {type: categories, separator: "|", most: 8}
    price: {type: number, log: true}
    year: {type: buckets, quantiles: 10}
    brand: {type: hash, buckets: 1000}
users: {files: users.csv, key: user_id, features: {age: {type: buckets, boundaries: [18, 30]}}}
filters: {min_events_per_user: 5, min_events_per_item: 0, iterate: false}
sessions: {gap: 30min}
labels: explicit
split: {by: time, validation_from: 2024-01-01, test_from: 2024-02-01T12:00:00+02:00}
duplicates: keep
ties: file
"""
SMALL = """\
version: 1
events:
  files: [a.csv]
  user: u
  item: i
  time: t
"""
ROWS = """\
version: 1
layout: tabular
events:
  files: [a.csv]
  user: u
  time: t
  label: {column: c}
  features:
    ad: {type: hash, buckets: 9}
split: {by: rows, test: 0.1}
"""


def _read(directory: Path, text: str) -> LogFile:
    path = directory / "my.yaml"
    path.write_text(text)
    return read_description(path)


def test_a_whole_description_says_what_is_asked_of_reader_and_pipeline(tmp_path: Path) -> None:
    log = _read(tmp_path, WHOLE)
    assert log.events.time.column == "ts" and log.events.where[0].in_ is not None
    assert log.events.where[0].in_.words == ("click", "buy")
    assert log.sessions is not None and log.sessions.seconds == 1800
    moments = log.split.validation_from, log.split.test_from
    utc = datetime.timezone.utc
    expected = (
        datetime.datetime(2024, 1, 1, tzinfo=utc),
        datetime.datetime(2024, 2, 1, 10, tzinfo=utc),
    )
    assert [m and m.seconds for m in moments] == [int(e.timestamp()) for e in expected]
    options = options_of_log(log)
    assert options["min_interactions"] == 5 and options["time_unit"] == "s"
    reader = LogReader(**{n: options[n] for n in ("events", "items", "users", "labels")})
    assert reader.explicit
    assert dict(reader.feature_specs) == {
        "age": FeatureSpec(of="user", type="buckets", boundaries=(18.0, 30.0)),
        "category": FeatureSpec(of="item", type="category"),
        "genres": FeatureSpec(of="item", type="categories", separator="|", most=8),
        "price": FeatureSpec(of="item", type="number", log=True),
        "year": FeatureSpec(of="item", type="buckets", quantiles=10),
        "brand": FeatureSpec(of="item", type="hash", buckets=1000),
        "device": FeatureSpec(of="context", type="category", min_count=5),
        "dwell": FeatureSpec(of="event", type="number", log=True, clip=(0.0, 600.0), fill=0.0),
    }


def test_what_is_saved_reads_back(tmp_path: Path) -> None:
    """The description goes to JSON with the workflow: without defaults, without a path."""
    for text in (WHOLE, SMALL):
        log = _read(tmp_path, text)
        content = json.loads(json.dumps(log.content()))
        assert LogFile.read(content, "saved") == log
        assert str(tmp_path) not in json.dumps(content)
    assert _read(tmp_path, SMALL).content() == {
        "version": 1,
        "events": {"files": ["a.csv"], "user": "u", "item": "i", "time": {"column": "t"}},
    }


def test_options_stand_beside_and_the_command_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(f"{WHOLE}output: {tmp_path / 'out'}\nworkers: 0\n")
    choice, source, target, options, reader = parse(["--config", str(path)], OF_RAW_DATA)
    assert choice.dataset == "log" and source.input == tmp_path
    assert target.output == tmp_path / "out" and options.workers == 0
    assert options.min_interactions == 5 and isinstance(reader, LogReader)
    words = ["--config", str(path), "--min_interactions", "7", "--input", str(tmp_path / "in")]
    _, source, _, options, _ = parse(words, OF_RAW_DATA)
    assert source.input == tmp_path / "in" and options.min_interactions == 7
    with pytest.raises(UserError, match="of log, tabular_log, not of movielens"):
        parse([*words, "--dataset", "movielens"], OF_RAW_DATA)
    path.write_text(f"{ROWS}output: out\nseed: 3\n")
    choice, _, _, options, reader = parse(["--config", str(path)], OF_RAW_DATA)
    assert choice.dataset == "tabular_log" and isinstance(reader, TabularLogReader)
    assert options.seed == 3 and reader.row_split == RandomRows(0.1)
    path.write_text(f"{ROWS}output: out\ndataset: log\n")
    with pytest.raises(UserError, match="this log is of dataset tabular_log, received"):
        parse(["--config", str(path)], OF_RAW_DATA)
    for text, dataset, missing in ((ROWS, "log", "item"), (SMALL, "tabular_log", "label")):
        path.write_text(f"{text}output: out\n")
        with pytest.raises(UserError, match=rf"events\.{missing}: expected this key"):
            parse(["--config", str(path), "--dataset", dataset], OF_RAW_DATA)
    path.write_text("dataset: movielens\ninput: there\noutput: out\n")  # lines of options
    assert parse(["--config", str(path)], OF_RAW_DATA)[0].dataset == "movielens"


BROKEN: dict[str, tuple[str, str]] = {
    "version": (
        SMALL.replace("version: 1", "version: 2"),
        r"version \(line 1\): expected an integer.* 1 or less, received 2",
    ),
    "no version": (SMALL[11:], r"my\.yaml: version \(line 1\): expected this key"),
    "no events": ("version: 1\n", r"events \(line 1\): expected this key: files with one event"),
    "key of the top": (
        f"{SMALL}itens: {{}}\n",
        r"itens \(line 7\): there is no such key\. Did you mean 'items'\?",
    ),
    "key below": (
        SMALL.replace("  user:", "  usr:"),
        r"events\.usr \(line 4\): there is no such key\. Did you mean 'user'\?",
    ),
    "nothing": (
        SMALL.replace("user: u", "user:"),
        r"events\.user \(line 4\): expected this key: histories are of users, items and times",
    ),
    "a list": ("- 1\n", r"my\.yaml: expected a description of a log, received \[1\]"),
    "no user": (
        SMALL.replace("  user: u\n", ""),
        r"events\.user \(line 2\): expected this key: histories are of users, items and times",
    ),
    "no mapping": (
        "version: 1\nevents: a.csv\n",
        r"events \(line 2\): expected a mapping with files, format, csv, .*, received 'a\.csv'",
    ),
    "yaml": (f"{SMALL}x: [\n", r"my\.yaml is not valid YAML: .*line 8"),
    "twice": (f"{SMALL}  user: v\n", "the key 'user' is there twice.*line 7"),
    "ending": (
        SMALL.replace("a.csv", "a.xls"),
        r"events\.files \(line 3\): the ending of 'a\.xls' tells no format",
    ),
    "absolute": (
        SMALL.replace("a.csv", "/data/a.csv"),
        r"events\.files \(line 3\): expected a path from --input on, received '/data/a\.csv'",
    ),
    "formats": (
        SMALL.replace("a.csv", "a.csv, b.parquet"),
        r"events\.files \(line 3\): expected files of one format, received csv, parquet",
    ),
    "csv of parquet": (
        SMALL.replace("[a.csv]", "[a.parquet]\n  csv: {separator: ;}"),
        r"events\.csv \(line 4\): the files are parquet\. Remove it",
    ),
    "tab": (
        SMALL.replace("[a.csv]", "[a.csv]\n  csv: {separator: \\t}"),
        r'events\.csv\.separator \(line 4\): a tab is "\\t" in double quotes',
    ),
    "no header": (
        SMALL.replace("[a.csv]", "[a.csv]\n  csv: {header: false}"),
        r"events\.csv\.header \(line 4\): without a header, expected the key columns",
    ),
    "unit": (
        SMALL.replace("time: t", "time: {column: t, unit: sec}"),
        r"events\.time\.unit \(line 6\): expected one of s, ms, us, .*received 'sec'",
    ),
    "zone": (
        SMALL.replace("time: t", "time: {column: t, zone: Mars}"),
        r"events\.time\.zone \(line 6\): expected a zone such as Europe/Paris, received 'Mars'",
    ),
    "zone of numbers": (
        SMALL.replace("time: t", "time: {column: t, unit: ms, zone: Europe/Paris}"),
        r"events\.time\.zone \(line 6\): numbers of unit ms have none",
    ),
    "same column": (
        SMALL.replace("item: i", "item: u"),
        r"events \(line 2\): expected different columns of user, item and time, received u, u, t",
    ),
    "type": (
        f"{SMALL}  features:\n    dwell: {{type: nmber}}\n",
        r"events\.features\.dwell\.type \(line 8\): expected one of category, categories, number, "
        r"buckets, hash, received 'nmber'\. Did you mean 'number'\?",
    ),
    "without effect": (
        f"{SMALL}  features:\n    dwell:\n      type: number\n      most: 3\n",
        r"events\.features\.dwell\.most \(line 10\): it has an effect only with type: categories",
    ),
    "hash": (
        f"{SMALL}  features: {{ad: {{type: hash}}}}\n",
        r"events\.features\.ad\.type \(line 7\): of a hash, expected the key buckets",
    ),
    "buckets": (
        f"{SMALL}  features: {{ad: {{type: buckets, quantiles: 4, boundaries: [1]}}}}\n",
        r"events\.features\.ad\.type \(line 7\): .*boundaries or quantiles, received both",
    ),
    "boundaries": (
        f"{SMALL}  features: {{ad: {{type: buckets, boundaries: [2, 1]}}}}\n",
        r"ad\.boundaries \(line 7\): expected ascending numbers, received \[2\.0, 1\.0\]",
    ),
    "clip": (
        f"{SMALL}  features: {{ad: {{type: number, clip: [5]}}}}\n",
        r"ad\.clip \(line 7\): expected \[SMALLEST, LARGEST\].*received \[5\]",
    ),
    "name": (
        f"{SMALL}  features: {{my-ad: {{type: number}}}}\n",
        r"events\.features\.my-ad \(line 7\): a name has up to 64 letters.*say column: my-ad",
    ),
    "taken": (
        f"{SMALL}  features: {{timestamp: {{type: number}}}}\n",
        r"events\.features\.timestamp \(line 7\): the name is taken",
    ),
    "name of two": (
        f"{SMALL}  features: {{ad: {{type: number}}}}\n"
        "items: {files: i.csv, key: i, features: {ad: {type: number}}}\n",
        r"items\.features\.ad \(line 8\): events has a feature of this name",
    ),
    "no features": (
        f"{SMALL}items: {{files: i.csv, key: i}}\n",
        r"items\.features \(line 7\): expected a feature, received none",
    ),
    "known of items": (
        f"{SMALL}items: {{files: i.csv, key: i, features: {{x: {{type: hash, known: after}}}}}}\n",
        r"items\.features\.x\.known \(line 7\): there is no such key",
    ),
    "label": (f"{SMALL}labels: explicit\n", r"events\.label \(line 2\): expected this key, as"),
    "no labels": (
        f"{SMALL}  label: {{column: c}}\n",
        r"events\.label \(line 7\): it has an effect only with labels: explicit",
    ),
    "values": (
        f"{SMALL}  label: {{column: c, positive: [[1]]}}\nlabels: explicit\n",
        r"events\.label\.positive \(line 7\): expected text, numbers or booleans, received \[1\]",
    ),
    "condition": (
        f"{SMALL}  where: [{{column: c}}]\n",
        r"events\.where\[0\] \(line 7\): expected one of in, not_in, at_least",
    ),
    "conditions": (
        f"{SMALL}  where: {{column: c, present: true}}\n",
        r"events\.where \(line 7\): expected a list",
    ),
    "labels of last": (
        f"{SMALL}  label: {{column: c}}\nlabels: explicit\n",
        r"split \(line 1\): of explicit labels, expected by: time or users, received last",
    ),
    "flags": (
        f"{SMALL}  features: {{x: {{type: categories, flags: [a, b], separator: ';'}}}}\n",
        r"x\.flags \(line 7\): in place of column and separator, received both",
    ),
    "days of steps": (
        SMALL.replace("time: t", "time: {column: t, unit: steps}")
        + "split: {by: time, test_from: 2024-01-01}\n",
        r"split\.test_from \(line 7\): times are steps, so expected a number of steps",
    ),
    "minutes of steps": (
        SMALL.replace("time: t", "time: {column: t, unit: steps}") + "sessions: {gap: 30min}\n",
        r"sessions\.gap \(line 7\): times are steps, so expected a number of steps",
    ),
    "gap": (f"{SMALL}sessions: {{gap: soon}}\n", r"sessions\.gap \(line 7\): .* received 'soon'"),
    "fraction": (
        f"{SMALL}split: {{by: users, test: 1.5}}\n",
        r"split\.test \(line 7\): expected true, false, or a fraction.*received 1\.5",
    ),
    "all users": (
        f"{SMALL}split: {{by: users, test: 0.5, validation: 0.5}}\n",
        r"split\.test \(line 7\): with validation, it leaves no users to train on",
    ),
    "moments": (
        f"{SMALL}split: {{by: time, test_from: 2024-01-01, validation_from: 2024-02-01}}\n",
        r"split\.validation_from \(line 7\): expected a moment before test_from",
    ),
    "split": (
        f"{SMALL}split: {{by: last, test_from: 2024-01-01}}\n",
        r"split\.test_from \(line 7\): it has an effect only with by: time",
    ),
    "day": (
        f"{SMALL}split: {{by: time, test_from: tomorrow}}\n",
        r"split\.test_from \(line 7\): expected a date .*received 'tomorrow'",
    ),
}


_AD = "    ad: {type: hash, buckets: 9"
BROKEN |= {
    **{
        f"rows with {key}": (
            f"{ROWS}{key}: {value}\n",
            rf"{key} \(line 11\): it has an effect only with layout: histories\. Remove it",
        )
        for key, value in (
            *(("sessions", "{gap: 1h}"), ("filters", "{iterate: true}"), ("labels", "explicit")),
            *(("duplicates", "keep"), ("ties", "file")),
        )
    },
    "rows without a label": (
        ROWS.replace("  label: {column: c}\n", ""),
        r"events\.label \(line 3\): expected this key: rows are learned from by their labels",
    ),
    "rows with known": (
        ROWS.replace(_AD, f"{_AD}, known: before"),
        r"events\.features\.ad\.known \(line 9\): .* leave features out that are known only after",
    ),
    "rows with of": (
        ROWS.replace(_AD, f"{_AD}, of: item"),
        r"events\.features\.ad\.of \(line 9\): a row of layout tabular is by itself",
    ),
    "rows with lists": (
        ROWS.replace("type: hash, buckets: 9", "type: categories"),
        r"events\.features\.ad\.type \(line 9\): .*no lists.*\(type: category or hash\)",
    ),
    "rows with items of nobody": (
        f"{ROWS}items: {{files: i.csv, key: i, features: {{x: {{type: number}}}}}}\n",
        r"items \(line 11\): expected events\.item, too",
    ),
    "rows without features": (
        ROWS.replace("  user: u\n", "").replace(
            "  features:\n    ad: {type: hash, buckets: 9}\n", ""
        ),
        r"events\.features \(line 3\): expected a feature, received none",
    ),
    "rows with a name of ours": (
        ROWS.replace("    ad:", "    numerical:"),
        r"events\.features\.numerical \(line 9\): the name is taken",
    ),
    "rows without a split": (
        ROWS[: ROWS.index("split")],
        r"split\.test \(line 1\): expected this key: the fraction of the rows to test with",
    ),
    "rows of which none is for training": (
        ROWS.replace("test: 0.1", "test: 0.5, validation: 0.5"),
        r"split\.test \(line 10\): with validation, it leaves no rows to train on",
    ),
    "rows by users of nobody": (
        ROWS.replace("  user: u\n", "").replace("by: rows", "by: users"),
        r"split\.by \(line 9\): expected events\.user, by which the rows are split",
    ),
    "rows by a time that they lack": (
        ROWS.replace("  time: t\n", "").replace("rows, test: 0.1", "time, test_from: 2024-01-01"),
        r"split\.by \(line 9\): expected events\.time, by which",
    ),
    "rows of the last in words": (
        ROWS.replace("by: rows, test: 0.1", "by: last, test: 0.1, validation: true"),
        r"split\.validation \(line 10\): beside by: last, expected a fraction.*received True",
    ),
    "histories by rows": (
        f"{SMALL}split: {{by: rows, test: 0.1}}\n",
        r"split\.by \(line 7\): histories are split by last, time or users",
    ),
    "histories by the last tenth": (
        f"{SMALL}split: {{by: last, test: 0.1}}\n",
        r"split\.test \(line 7\): .*the last event of each user is for the test",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_description_is_named_with_path_and_line(tmp_path: Path, name: str) -> None:
    text, match = BROKEN[name]
    with pytest.raises(UserError, match=match):
        _read(tmp_path, text)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = SMALL.replace("time: t", "time: {unit: sec}").replace("version: 1", "version: 0")
    features = "".join(f"    f{n}: {{type: x}}\n" for n in range(10))
    with pytest.raises(UserError) as error:
        _read(tmp_path, f"{text}  features:\n{features}")
    said = str(error.value).splitlines()
    assert said[0].endswith("my.yaml: 13 things are wrong with it:")
    assert [re.match(r"  ([\w.]+) \(line (\d+)\)", line).groups() for line in said[1:5]] == [  # type: ignore[union-attr]
        ("version", "1"),
        ("events.time.column", "6"),
        ("events.time.unit", "6"),
        ("events.features.f0.type", "8"),
    ]
    assert said[-1] == "  and 3 more" and len(said) == 12


def test_the_schema_is_that_of_the_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAM.main(["schema"]) == 0
    beside = {**OF_RAW_DATA.options("log"), **OF_RAW_DATA.options("tabular_log")}
    assert capsys.readouterr().out == SCHEMA.read_text() == schema_text(beside)


def _fits(schema: Any, value: Any, whole: Any) -> bool:
    """The part of JSON Schema that ours has, by its specification."""
    if "$ref" in schema and not _fits(whole["$defs"][schema["$ref"].split("/")[-1]], value, whole):
        return False
    kinds = {
        **{"object": dict, "array": list, "string": str, "integer": int, "boolean": bool},
        **{"number": (int, float), "null": type(None)},
    }
    types = schema.get("type", [])
    if types and not any(
        isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))
        for kind in ([types] if isinstance(types, str) else types)
    ):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, int | float) and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and schema.get("exclusiveMinimum", -1e99) < value < schema.get("exclusiveMaximum", 1e99)
    ):
        return False
    if isinstance(value, list) and not (
        schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
        and all(_fits(schema.get("items", {}), entry, whole) for entry in value)
    ):
        return False
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", {})
        if not set(schema.get("required", [])) <= set(value):
            return False
        for key, entry in value.items():
            rule = properties.get(key, more)
            if rule is False or not _fits(rule, entry, whole):
                return False
    if "if" in schema and _fits(schema["if"], value, whole):
        return _fits(schema["then"], value, whole)
    return all(_fits(rule, value, whole) for rule in schema.get("allOf", [])) and (
        "anyOf" not in schema or any(_fits(rule, value, whole) for rule in schema["anyOf"])
    )


def _as_json(text: str) -> Any:
    return json.loads(json.dumps(yaml.safe_load(text), default=str))  # dates are text to editors


def test_the_schema_takes_what_we_take_and_marks_what_it_can() -> None:
    schema = json.loads(SCHEMA.read_text())
    for text in (WHOLE, SMALL, ROWS, f"{SMALL}output: out\nworkers: 2\nmemory_limit: 6GB\n"):
        assert _fits(schema, _as_json(text), schema)
    marked = {
        *(
            "version",
            "no version",
            "no events",
            "key of the top",
            "key below",
            "nothing",
            "no user",
            *(
                f"rows with {key}"
                for key in ("sessions", "filters", "labels", "duplicates", "ties")
            ),
        ),
        *("a list", "no mapping", "unit", "type", "without effect", "clip", "known of items"),
        *("values", "conditions", "fraction", "split"),
    }
    found = {
        name
        for name, (text, _) in BROKEN.items()
        if name != "yaml" and not _fits(schema, _as_json(text), schema)
    }
    assert found == marked
