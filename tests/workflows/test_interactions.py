from __future__ import annotations

import datetime
import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nvtabular import Workflow

from lookback.core.errors import UserError
from lookback.dataloading.histories.resident import Histories
from lookback.workflows.commands import PROGRAM
from lookback.workflows.datasets.interactions import InteractionsReader
from lookback.workflows.histories import ops
from lookback.workflows.histories.gather import first_events
from lookback.workflows.histories.reader import HistoryOptions
from lookback.workflows.log import csv_records, parquet_records
from lookback.workflows.log.description import CsvFormat
from lookback.workflows.log.records import Wanted
from lookback.workflows.order import Report
from lookback.workflows.pipeline import run_dataset, transform_dataset
from lookback.workflows.text import estimate_lines
from lookback.workflows.times import read_number, read_numbers, read_text
from tests.metadata import of_data

main = PROGRAM.main
COLUMNS = ["user_id", "item_id", "timestamp"]
WANTED = Wanted(("user_id", "item_id", "timestamp"))
START = 1_400_000_000  # a second of 2014
Ids = Callable[[np.ndarray[Any, Any]], list[Any]]


def _events(users: int = 50, items: int = 30, events: int = 1500, seed: int = 0) -> pd.DataFrame:
    """Random events with ties in time, repeated items and users of all lengths."""
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "user_id": (random.random(events) ** 2 * users).astype(int) * 7 + 5,
            "item_id": (random.random(events) ** 2 * items).astype(int) * 11 % 97,
            "timestamp": START + random.integers(0, 60, events),
        }
    )


def _codes(values: pd.Series) -> pd.Series:
    """Ids as documented: by falling count, then by value, from 3 on."""
    counts = values.value_counts()
    order = sorted(counts.index, key=lambda value: (-counts[value], value))
    return values.map({value: number for number, value in enumerate(order, start=3)})


def _oracle(
    events: pd.DataFrame, minimum: int = 20, duplicates: str = "keep", held_out: int = 2
) -> pd.DataFrame:
    """The histories by plain pandas, in NVIDIA's order of things: filter, sort, drop."""
    if duplicates != "all":
        events = events.drop_duplicates(COLUMNS)
    events = events[events.groupby("user_id")["item_id"].transform("size") >= minimum]
    events = events.sort_values(["user_id", "timestamp"], kind="stable")
    if duplicates == "first":
        events = events.drop_duplicates(["user_id", "item_id"], keep="first")
        left = events.groupby("user_id")["item_id"].transform("size")
        events = events[left > held_out]
    encoded = events.assign(
        user_id=_codes(events["user_id"]),
        item_id=_codes(events["item_id"]),
        timestamp=np.floor(events["timestamp"]).astype(int),
    )
    return encoded.groupby("user_id").agg(list).reset_index()


def _histories(directory: Path) -> pd.DataFrame:
    files = sorted((directory / "histories").iterdir())
    table = pa.concat_tables([pq.read_table(file) for file in files])
    assert table.column_names == COLUMNS
    return table.to_pandas()


def _assert_equal(directory: Path, expected: pd.DataFrame) -> None:
    found = _histories(directory)
    assert found["user_id"].tolist() == expected["user_id"].tolist()
    for name in ("item_id", "timestamp"):
        assert [list(row) for row in found[name]] == expected[name].tolist(), name
    items = expected["item_id"].explode().value_counts().sort_index()
    catalogue = pq.read_table(directory / "items.parquet").to_pandas()
    assert catalogue["item_id"].tolist() == items.index.tolist()
    assert catalogue["count"].tolist() == items.tolist()


def _write(events: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        events.to_parquet(path, index=False)
    else:
        events.to_csv(path, index=False)
    return path


def _text(values: pd.Series) -> pd.Series:
    return values.map("u{:03d}".format)


@pytest.mark.parametrize(
    ("name", "text", "duplicates"),
    [
        ("a.csv", False, "first"),
        ("a.csv.gz", True, "first"),
        ("a.parquet", False, "first"),
        ("a.parquet", True, "first"),
        ("a.csv", True, "keep"),
        ("a.parquet", True, "all"),
    ],
)
def test_equals_plain_pandas(tmp_path: Path, name: str, text: bool, duplicates: str) -> None:
    events = _events()
    if text:
        events = events.assign(user_id=_text(events["user_id"]), item_id=_text(events["item_id"]))
    raw = _write(events, tmp_path / "raw" / name)
    options: dict[str, Any] = {} if duplicates == "keep" else {"duplicates": duplicates}
    report = run_dataset("interactions", raw, tmp_path / "out", **options)
    expected = _oracle(events, duplicates=duplicates)
    _assert_equal(tmp_path / "out", expected)
    assert report.metadata["options"]["duplicates"] == duplicates
    counts = report.metadata["counts"]
    assert counts["users"] == len(expected)
    assert counts["events"] == expected["item_id"].map(len).sum()
    repeated = 0 if duplicates == "all" else events.duplicated(COLUMNS).sum()
    assert counts["exact_repeats"] == repeated
    assert counts["events_read"] == len(events)
    if duplicates != "all":
        assert repeated > 0
        events = events.drop_duplicates(COLUMNS)
    last_two = [times[-n] == times[-n - 1] for times in expected["timestamp"] for n in (1, 2)]
    assert counts["held_out_ties"] == sum(last_two) > 0
    per_user = events["user_id"].map(events["user_id"].value_counts())
    dropped = per_user < 20
    assert counts["users_dropped"] == events[dropped]["user_id"].nunique() > 0
    assert counts["events_dropped"] == dropped.sum()
    if duplicates == "first":
        assert counts["duplicate_events"] == (~dropped).sum() - counts["events"] > 0
        assert counts["users_dropped_for_duplicates"] == 0
    else:
        assert not {"duplicate_events", "users_dropped_for_duplicates"} & set(counts)
    assert counts["events_without_features"] == {}
    assert list(report.metadata["cardinalities"]) == ["user_id", "item_id"]
    vocabulary = pq.read_table(tmp_path / "out/workflow/categories/unique.item_id.parquet")
    assert vocabulary.schema.field("item_id").type == (pa.string() if text else pa.int64())
    # The other side of the files and the schema.
    histories = Histories.load(tmp_path / "out")
    assert histories.features.item == ("item_id",)
    assert histories.features.user == ("user_id",)
    assert histories.num_events == counts["events"]
    assert histories.item_features["item_id"].tolist() == expected["item_id"].explode().tolist()
    assert histories.catalogue["item_id"].tolist() == sorted(set(expected["item_id"].explode()))


def test_files_and_blocks_have_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with columns in any order, some of which nobody reads; blocks of some records."""
    events = _events()
    events["note"] = ['a, "b"\n7" c', 'it"s', "", "\n\n,,,\n"] * 375
    events["score"] = 4.5
    parts = [
        events.sample(frac=1, random_state=2)[::2],
        events.sample(frac=1, random_state=2)[1::2],
    ]
    whole = pd.concat(parts)[COLUMNS]
    one = run_dataset("interactions", _write(whole, tmp_path / "one.csv"), tmp_path / "one")
    _assert_equal(tmp_path / "one", _oracle(whole))
    _write(parts[0], tmp_path / "raw/a.csv")
    renamed = ["score", "timestamp", "note", "user_id", "item_id"]
    _write(parts[1][renamed], tmp_path / "raw/b.csv.gz")
    (tmp_path / "raw/README.txt").write_text("of no interest")
    (tmp_path / "raw/._a.csv").write_bytes(b"\0")
    tables = tmp_path / "tables"
    _write(parts[0], tables / "0.parquet")
    _write(parts[1][renamed], tables / "1.parquet")
    monkeypatch.setattr(csv_records.csv_blocks, "__defaults__", (300,))
    monkeypatch.setattr(parquet_records.row_blocks, "__defaults__", (70,))
    assert len(list(csv_records.csv_blocks(tmp_path / "raw/a.csv", WANTED, CsvFormat()))) > 20
    hashes = set()
    for raw in ("raw", "tables"):
        for size in (None, 100):
            output = tmp_path / f"{raw}{size}"
            report = run_dataset("interactions", tmp_path / raw, output, partition_events=size)
            hashes.add(report.metadata["content_hash"])
    assert hashes == {one.metadata["content_hash"]}


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet"])
def test_blocks_travel(tmp_path: Path, name: str) -> None:
    """Reader and blocks go to the workers of a cluster."""
    events = _events()
    reader = InteractionsReader()
    (block,) = reader.blocks(_write(events, tmp_path / name))
    reader, block = pickle.loads(pickle.dumps((reader, block)))
    assert reader.parse_block(block, "steps").table.to_pandas().equals(events)


@pytest.mark.parametrize("late", ["x", "007"])
def test_ids_are_integers_only_if_all_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    events = _events()
    events = pd.concat([events, events[events["user_id"] == 5].assign(item_id=1)])
    text = events.astype({"user_id": str, "item_id": str})
    text.iloc[-1, 1] = late
    monkeypatch.setattr(csv_records.csv_blocks, "__defaults__", (2000,))
    run_dataset(
        "interactions",
        _write(text, tmp_path / "raw.csv"),
        tmp_path / "out",
        partition_events=500,
        duplicates="keep",
    )
    # Users are integers still; all items are text now, those of the first blocks, too.
    _assert_equal(
        tmp_path / "out", _oracle(events.assign(item_id=text["item_id"]), duplicates="keep")
    )


def test_users_who_are_text_late_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's events all meet in one partition, whichever type a block saw."""
    events = _events().sort_values("timestamp")
    text = events.astype({"user_id": str})
    other = text[text["user_id"] == "5"].assign(user_id="five", timestamp=START + 100)
    text = pd.concat([text, other])
    monkeypatch.setattr(csv_records.csv_blocks, "__defaults__", (2000,))
    raw = _write(text, tmp_path / "raw.csv")
    run_dataset("interactions", raw, tmp_path / "out", partition_events=100)
    _assert_equal(tmp_path / "out", _oracle(text))


def test_fractions_of_a_second_order_events(tmp_path: Path) -> None:
    events = _events()
    random = np.random.default_rng(1)
    events["timestamp"] = events["timestamp"].astype(float)
    whole = events["timestamp"].iloc[:100].astype(int).astype(str).tolist()
    events["timestamp"] += np.where(np.arange(len(events)) < 100, 0, random.integers(0, 64, 1500))
    events["timestamp"] += np.where(np.arange(len(events)) < 100, 0, random.random(1500))
    expected = _oracle(events)
    # Whole numbers in one file, fractions in the other: the order is by both.
    first = events[:100].assign(timestamp=whole)
    _write(first, tmp_path / "raw/a.csv")
    _write(events[100:], tmp_path / "raw/b.csv")
    run_dataset("interactions", tmp_path / "raw", tmp_path / "csv", partition_events=200)
    _assert_equal(tmp_path / "csv", expected)
    _write(events, tmp_path / "b.parquet")
    run_dataset("interactions", tmp_path / "b.parquet", tmp_path / "parquet")
    _assert_equal(tmp_path / "parquet", expected)
    assert _histories(tmp_path / "csv")["timestamp"][0].dtype == np.int64


SECOND = datetime.datetime(2001, 9, 9, 1, 46, 40, tzinfo=datetime.timezone.utc)  # 10**9


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([10**9], pa.int32()), 10**9),
        (pa.array([10**9], pa.uint64()), 10**9),
        (pa.array([10**9 + 0.5], pa.float64()), 10**9 + 0.5),
        (pa.array([1.5e9], pa.float32()), 1.5e9),
        (pa.array([SECOND], pa.timestamp("s")), 10**9),
        (pa.array([SECOND], pa.timestamp("ms")), 10**9),
        (pa.array([SECOND.replace(microsecond=250_000)], pa.timestamp("us")), 10**9 + 0.25),
        (pa.array([SECOND], pa.timestamp("ns", "Europe/Paris")), 10**9),
        (pa.array([SECOND.date()], pa.date32()), 999_993_600),
        (pa.array(["2001-09-09T01:46:40.25Z"]), 10**9 + 0.25),
    ],
)
def test_times_of_parquet(tmp_path: Path, column: pa.Array, expected: float) -> None:
    users = pa.array(["ü"]).dictionary_encode()
    table = pa.table([users, pa.array([7], pa.uint8()), column], COLUMNS)
    pq.write_table(table, tmp_path / "a.parquet")
    (path,) = InteractionsReader().event_files(tmp_path)
    (block,) = InteractionsReader().blocks(path)
    parsed = InteractionsReader().parse_block(block)
    assert parsed.table.to_pydict() == {
        "user_id": ["ü"],
        "item_id": [7],
        "timestamp": [int(expected * 10**9)],
    }
    assert parsed.table.schema.field("user_id").type == pa.string()
    assert parsed.table.schema.field("item_id").type == pa.int64()


IN_1980 = datetime.datetime(1980, 5, 6, 7, 8, 9, tzinfo=datetime.timezone.utc)
SECONDS_1980 = 326_444_889


@pytest.mark.parametrize(
    ("column", "unit", "expected"),
    [
        (pa.array([SECONDS_1980]), "s", SECONDS_1980),
        (pa.array([SECONDS_1980 + 0.5]), "s", SECONDS_1980 + 0.5),
        (pa.array([SECONDS_1980 * 1000]), "ms", SECONDS_1980),
        (pa.array([19800506]), "yyyymmdd", SECONDS_1980 // 86_400 * 86_400),
        (pa.array([IN_1980], pa.timestamp("us", "UTC")), "s", SECONDS_1980),
        (pa.array([IN_1980.date()], pa.date32()), "s", SECONDS_1980 // 86_400 * 86_400),
        (pa.array(["1980-05-06T07:08:09Z"]), "s", SECONDS_1980),
        (pa.array(["1980-05-06 07:08:09", "1980-05-06T07:08:09Z"]), "s", SECONDS_1980),
        (pa.array([str(SECONDS_1980)]), "s", SECONDS_1980),
    ],
)
def test_years_before_the_web(tmp_path: Path, column: pa.Array, unit: str, expected: float) -> None:
    ids = pa.array(["u"] * len(column))
    table = pa.table([ids, ids, column], COLUMNS)
    pq.write_table(table, tmp_path / "a.parquet")
    paths = [tmp_path / "a.parquet"]
    if not pa.types.is_timestamp(column.type) and not pa.types.is_date(column.type):
        table.to_pandas().to_csv(tmp_path / "a.csv", index=False)
        paths.append(tmp_path / "a.csv")
    known = HistoryOptions(time_unit=unit, years=(1980, 1980)).unit
    other = HistoryOptions(time_unit=unit, years=(1981, 1999)).unit
    for path in paths:
        (block,) = InteractionsReader().blocks(path)
        for given in (known, pickle.loads(pickle.dumps(known))):
            parsed = InteractionsReader().parse_block(block, given)
            assert set(parsed.table["timestamp"].to_pylist()) == {int(expected * 10**9)}
        assert InteractionsReader().parse_block(block, unit).reasons
        (reason, *_) = InteractionsReader().parse_block(block, other).reasons
        assert "timestamp is not in the years 1981 to 1999 of --years" in reason


@pytest.mark.parametrize("year", [1678, 2261])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_all_years_that_nanoseconds_hold(unit: str, year: int) -> None:
    given = HistoryOptions(time_unit=unit, years=(1678, 2261)).unit
    time = np.array([f"{year}-07-01"], f"datetime64[{unit}]").astype(np.int64)
    expected = np.array([f"{year}-07-01"], "datetime64[ns]").astype(np.int64)
    times, good = read_numbers(time, given)
    assert good.all() and times.tolist() == expected.tolist()
    assert read_number(int(time[0]), given, "t") == expected[0]
    assert read_text(pa.chunked_array([[f"{year}-07-01"]]), given)[0].tolist() == expected.tolist()
    for beyond in (f"{year}-07-01", "1677-12-31", "2262-01-01"):
        strange = HistoryOptions(time_unit=unit, years=(1700, 2200)).unit
        assert read_text(pa.chunked_array([[beyond]]), strange) is None


def test_years_that_are_none() -> None:
    for years in ((1980,), (1999, 1980), (1980, 1990, 1999)):
        with pytest.raises(UserError, match="years: expected two, the first and the last one"):
            HistoryOptions(time_unit="s", years=years)
    for unit in (None, "steps"):
        with pytest.raises(UserError, match="years: expected with --time_unit s"):
            HistoryOptions(time_unit=unit, years=(1980, 1999))


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["5", "6.0", "7e0"]),
        pa.array(["5", "6", "7"]).dictionary_encode(),
        pa.array([5, 6, 7]).cast(pa.decimal128(20, 0)),
        pa.array([5.0, 6.0, 7.0], pa.float32()),
    ],
)
def test_steps_in_any_spelling(tmp_path: Path, column: pa.Array) -> None:
    ids = pa.array(["u", "v", "w"])
    pq.write_table(pa.table([ids, ids, column], COLUMNS), tmp_path / "a.parquet")
    (block,) = InteractionsReader().blocks(tmp_path / "a.parquet")
    parsed = InteractionsReader().parse_block(block, "steps")
    assert parsed.table["timestamp"].to_pylist() == [5, 6, 7]
    assert not parsed.reasons


def test_large_strings_of_parquet(tmp_path: Path) -> None:
    users = pa.array(["a", "b"], pa.large_string())
    table = pa.table([users, users, pa.array([1, 2])], COLUMNS)
    pq.write_table(table, tmp_path / "a.parquet")
    (block,) = InteractionsReader().blocks(tmp_path / "a.parquet")
    parsed = InteractionsReader().parse_block(block, "steps")
    assert parsed.table.schema.types[:2] == [pa.string()] * 2


@pytest.mark.parametrize("dataset", ["movielens", "interactions"])
def test_movielens_100k(tmp_path: Path, shared_data: Callable[[str], Path], dataset: str) -> None:
    """Every pair occurs once there, so both ways give what pandas gives."""
    directory = shared_data("ml-100k")
    columns = ["user_id", "item_id", "rating", "timestamp"]
    ratings = pd.read_csv(directory / "u.data", sep="\t", names=columns)
    raw = directory
    if dataset == "interactions":
        raw = _write(ratings, tmp_path / "u.csv")
    expected = _oracle(ratings.drop(columns="rating"))
    hashes = set()
    for duplicates in ("keep", "first"):
        output = tmp_path / duplicates
        report = run_dataset(dataset, raw, output, duplicates=duplicates)
        hashes.add(report.metadata["content_hash"])
        counts = report.metadata["counts"]
        assert (counts["users"], counts["events"], counts["items"]) == (943, 100_000, 1682)
    assert len(hashes) == 1
    files = sorted((tmp_path / "first/histories").iterdir())
    found = pa.concat_tables([pq.read_table(file) for file in files]).to_pandas()
    assert found["user_id"].tolist() == expected["user_id"].tolist()
    assert [list(row) for row in found["item_id"]] == expected["item_id"].tolist()
    assert [list(row) for row in found["timestamp"]] == expected["timestamp"].tolist()


@pytest.mark.parametrize("partition_events", [None, 150])
@pytest.mark.parametrize("validation", [False, True])
def test_duplicates_of_movielens(
    tmp_path: Path, partition_events: int | None, validation: bool
) -> None:
    """The filter counts raw events; who has too few items after it is left out and counted."""
    events = _events(users=40, items=25)
    short = [
        pd.DataFrame({"user_id": user, "item_id": 3, "timestamp": range(START, START + 25)})
        for user in (1, 2)
    ]
    short[1].loc[7, "item_id"] = 4  # two different items: enough to test, not to validate
    events = pd.concat([*short, events], ignore_index=True)
    raw = tmp_path / "raw"
    raw.mkdir()
    events.assign(rating=3)[["user_id", "item_id", "rating", "timestamp"]].to_csv(
        raw / "u.data", sep="\t", header=False, index=False
    )
    report = run_dataset(
        "movielens",
        raw,
        tmp_path / "out",
        duplicates="first",
        validation=validation,
        partition_events=partition_events,
    )
    expected = _oracle(events, duplicates="first", held_out=1 + validation)
    files = sorted((tmp_path / "out/histories").iterdir())
    found = pa.concat_tables([pq.read_table(file) for file in files]).to_pandas()
    assert found["user_id"].tolist() == expected["user_id"].tolist()
    assert [list(row) for row in found["item_id"]] == expected["item_id"].tolist()
    assert [list(row) for row in found["timestamp"]] == expected["timestamp"].tolist()
    counts = report.metadata["counts"]
    assert counts["users"] == len(expected)
    assert counts["users_dropped_for_duplicates"] == 1 + validation
    assert counts["users_read"] == counts["users"] + counts["users_dropped"]
    assert counts["events_read"] == len(events)
    assert counts["events_read"] == (
        counts["events"]
        + counts["events_dropped"]
        + counts["duplicate_events"]
        + counts["exact_repeats"]
    )
    assert report.metadata["history_length"]["min"] >= 2 + validation
    vocabulary = pq.read_table(tmp_path / "out/workflow/categories/unique.user_id.parquet")
    assert 1 not in vocabulary["user_id"].to_pylist()


def test_a_partition_of_short_users_alone(tmp_path: Path) -> None:
    """What the filter leaves nothing of must not come through as a whole."""
    events = _events(users=40)
    short = [
        pd.DataFrame({"user_id": user, "item_id": 3, "timestamp": range(START, START + 25)})
        for user in range(1000, 1030)
    ]
    raw = _write(pd.concat([*short, events]), tmp_path / "raw.csv")
    report = run_dataset(
        "interactions", raw, tmp_path / "out", partition_events=60, duplicates="first"
    )
    _assert_equal(tmp_path / "out", _oracle(events, duplicates="first"))
    assert report.metadata["counts"]["users_dropped_for_duplicates"] == 30


def test_transform_keeps_and_changes_the_options(tmp_path: Path) -> None:
    events = _events().rename(columns={"user_id": "who", "item_id": "what", "timestamp": "when"})
    names: dict[str, Any] = {"user_column": "who", "item_column": "what", "time_column": "when"}
    raw = _write(events, tmp_path / "raw.csv")
    first = run_dataset("interactions", raw, tmp_path / "first", duplicates="first", **names)
    assert first.metadata["options"] == {**HistoryOptions(duplicates="first").content, **names}
    same = transform_dataset(tmp_path / "first", raw, tmp_path / "same")
    assert of_data(same.metadata) == of_data(first.metadata)
    keep = transform_dataset(tmp_path / "first", raw, tmp_path / "keep", duplicates="keep")
    again = transform_dataset(tmp_path / "keep", raw, tmp_path / "again", duplicates="first")
    assert of_data(again.metadata) == of_data(first.metadata)
    renamed = events.set_axis(COLUMNS, axis=1)
    lengths = _oracle(renamed, duplicates="keep")["item_id"].map(len)
    assert keep.metadata["counts"]["events"] == lengths.sum()
    assert keep.metadata["history_length"]["max"] == lengths.max()


@pytest.mark.parametrize("text", [False, True])
def test_transform_of_ids_of_the_other_type(tmp_path: Path, text: bool) -> None:
    """What was fitted to numbers meets text, or the other way round."""
    numbers = _events()
    strings = numbers.astype({"user_id": str, "item_id": str})
    strings.loc[strings["item_id"] == "0", "item_id"] = "none"
    numbers.loc[numbers["item_id"] == 0, "item_id"] = 1000
    strings["user_id"] = strings["user_id"].replace("5", "five")
    numbers["user_id"] = numbers["user_id"].replace(5, 1)
    fitted, new = (strings, numbers) if text else (numbers, strings)
    once: dict[str, Any] = {"duplicates": "first"}
    run_dataset("interactions", _write(fitted, tmp_path / "a.csv"), tmp_path / "a", **once)
    same = run_dataset("interactions", _write(new, tmp_path / "b.csv"), tmp_path / "b", **once)
    report = transform_dataset(tmp_path / "a", tmp_path / "b.csv", tmp_path / "out")
    unknown = report.metadata["counts"]["unknown_ids"]
    assert unknown["user_id"] == 1
    assert unknown["item_id"] == report.metadata["counts"]["users"]  # each has that item once
    assert report.metadata["counts"]["events"] == same.metadata["counts"]["events"]


def test_the_saved_workflow_drops_duplicates_of_any_frame(tmp_path: Path) -> None:
    events = _events(seed=3)
    raw = _write(events, tmp_path / "raw.csv")
    run_dataset("interactions", raw, tmp_path / "out", duplicates="first")
    workflow = Workflow.load(str(tmp_path / "out/workflow"))
    shuffled = events.sample(frac=1, random_state=4).reset_index(drop=True)
    found = workflow.transform(shuffled.assign(history_id=shuffled["user_id"]))
    expected = _oracle(events, duplicates="first")
    by_user = dict(zip(expected["user_id"], expected["item_id"], strict=True))
    assert {
        user: sorted(items) for user, items in found[["user_id", "item_id"]].values.tolist()
    } == {user: sorted(items) for user, items in by_user.items()}


def test_first_events() -> None:
    history = np.array([1, 0, 1, 0, 1, 1])
    time = np.array([5, 3, 4, 1, 9, 4])
    item = np.array([0, 1, 0, 1, 2, 3])
    assert first_events(history, time, item).tolist() == [False, False, True, True, True, True]
    order = np.lexsort((time, history))
    assert first_events(history[order], time[order], item[order]).sum() == 4
    assert first_events(history[:0], time[:0], item[:0]).tolist() == []


def test_the_filter_on_a_frame() -> None:
    frame = pd.DataFrame(
        {
            "history_id": [0, 0, 0, 1, 1, 1, 2, 2],
            "item_id": ["a", "a", "b", "a", "a", "a", "a", "b"],
            "timestamp": [2, 1, 3, 1, 2, 3, 1, 1],
        }
    )
    kept = ops.DifferentInteractions(3, fewest_items=2)(frame)
    assert kept.tolist() == [False, True, True, False, False, False, False, False]
    assert ops.DifferentInteractions(2, fewest_items=1)(frame).sum() == 5


def _csv(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "raw.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _parse(path: Path, **options: str) -> list[Any]:
    reader = InteractionsReader(**options)
    reader.event_files(path)
    return [reader.parse_block(block, "steps") for block in reader.blocks(path)]


@pytest.mark.parametrize(
    "other",
    ["x", "007", "00", "-0", "-01", "0x1F", "+5", "1_0", "5.0", "99999999999999999999", " 5"],
)
def test_ids_that_are_no_integers(tmp_path: Path, other: str) -> None:
    header = "user_id,item_id,timestamp"
    (parsed,) = _parse(_csv(tmp_path, f"{header}\n-1,0,1\n{other},-9223372036854775808,2\n"))
    assert parsed.table.to_pydict() == {
        "user_id": ["-1", other],
        "item_id": [0, -(2**63)],
        "timestamp": [1, 2],
    }


HEADER = "title,user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("t,1,2", "3 fields instead of 4"),
        ("t,1,2,3,4", "5 fields instead of 4"),
        ("t,,2,3", "no user_id"),
        ('t,1,"",3', "no item_id"),
        ("t,1,2,", "no timestamp"),
        ("t,1,2,yesterday", "timestamp is not a number"),
        ("t,1,2,nan", "timestamp is not a number"),
        ("t,1,2,inf", "timestamp is not a number"),
        ("t,1,2,1_0", "timestamp is not a number"),
        ("t,1,2,-5", "timestamp is negative"),
        ("t,1,2,-0.5", "timestamp is negative"),
        ("t,1,2,1e30", "timestamp is too large"),
        ("t,1,2,9223372036854775808", "timestamp is too large"),
        (b"t,\xff,2,3", "user_id is not UTF-8"),
        (b"t,1,\xe9,3", "item_id is not UTF-8"),
        (b"t,u\0,2,3", "user_id holds a byte of value 0"),
        ("t\rt,1,2,3", "not CSV: new-line character seen in unquoted field"),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_bad_lines_of_csv(tmp_path: Path, line: str | bytes, reason: str, ending: str) -> None:
    line = line.encode() if isinstance(line, str) else line
    good = f't,1,2,3{ending}{ending}"a\n""b"", c",4,5,6{ending}'.encode()
    path = _csv(tmp_path, HEADER.encode() + good + line + ending.encode() + b"x,7,8,9")
    (parsed,) = _parse(path)
    assert list(parsed.reasons.values()) == [1]
    assert next(iter(parsed.reasons)).startswith(reason)
    assert [bad.line for bad in parsed.bad] == [6]
    assert parsed.lines == 7
    assert parsed.table.to_pydict() == {
        "user_id": [1, 4, 7],
        "item_id": [2, 5, 8],
        "timestamp": [3, 6, 9],
    }
    with pytest.raises(UserError, match=rf"(?s)raw\.csv:6: {reason}.*--max_bad_lines"):
        run_dataset("interactions", path, tmp_path / "out", time_unit="steps")
    assert not (tmp_path / "out").exists()


def test_a_quoted_field_without_an_end(tmp_path: Path) -> None:
    path = _csv(tmp_path, f'{HEADER}t,1,2,3\n"t,4,5,6\nt,7,8,9\n')
    (parsed,) = _parse(path)
    assert parsed.reasons == {"not CSV: a quoted field does not end": 1}
    assert [bad.line for bad in parsed.bad] == [3]
    assert parsed.table["user_id"].to_pylist() == [1]
    # One that takes more than Python's reader holds: the lines after it are read again.
    lines = "".join(f"t,{n},2,3\n" for n in range(30_000))
    (parsed,) = _parse(_csv(tmp_path, f'{HEADER}t,1,2,3\n"t,4,5,6\n{lines}'))
    assert sum(parsed.reasons.values()) == 1
    assert parsed.bad[0].line == 3 and "field limit" in parsed.bad[0].reason
    assert parsed.table["user_id"].to_pylist()[-1] == 29_999


@pytest.mark.parametrize("packed", [False, True])
def test_lines_that_end_in_carriage_returns(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Excel for Mac writes them."""
    lines = ["user_id,item_id,timestamp", *(f'u{n},"i""{n}",15000000{n}' for n in range(10, 99))]
    raw = tmp_path / ("a.csv.gz" if packed else "a.csv")
    text = ("\r".join([*lines, "bad"]) + "\r").encode()
    raw.write_bytes(gzip.compress(text) if packed else text)
    monkeypatch.setattr(csv_records.csv_blocks, "__defaults__", (300,))
    parsed = _parse(raw)
    assert len(parsed) > 5
    table = pa.concat_tables([found.table for found in parsed])
    assert table["user_id"].to_pylist() == [f"u{n}" for n in range(10, 99)]
    assert table["item_id"].to_pylist() == [f'i"{n}' for n in range(10, 99)]
    assert table["timestamp"].to_pylist() == [1500000000 + n for n in range(10, 99)]
    assert parsed[-1].reasons == {"1 fields instead of 3": 1}
    assert sum(found.lines for found in parsed) == 91
    assert estimate_lines([raw]) == pytest.approx(91, rel=0.2 if packed else 0)


def test_quotes_that_open_no_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f'{n}" vinyl,{n},2,3\n' for n in range(1, 102))
    path = _csv(tmp_path, HEADER + lines + 'a "b" c,200,2,3\n')
    monkeypatch.setattr(csv_records.csv_blocks, "__defaults__", (50,))
    parsed = _parse(path)
    assert len(parsed) > 10
    assert not any(part.reasons for part in parsed)
    assert sum(part.lines for part in parsed) == 103
    users = [user for part in parsed for user in part.table["user_id"].to_pylist()]
    assert users == [*range(1, 102), 200]


def test_both_ways_of_parsing_agree(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    titles = ["", "plain", '"a, b"', '"""q"""', '"two\nlines"', 'in"side', '"x"y', " pad "]
    rows = [
        f"{titles[random.integers(len(titles))]},{u},{i},{t}"
        for u, i, t in zip(
            random.integers(-5, 5, 300),
            random.choice(["a", '"b, c"', "1", '"7"', "é"], 300),
            random.choice(["5", "5.5", '"8"', "1e3", ".5", "7."], 300),
            strict=True,
        )
    ]
    rows[10] = rows[20] = "   "
    rows[11] = ""
    rows[10] = ""
    rows[20] = ""
    text = HEADER + "\n".join(rows) + "\n"
    (block,) = csv_records.csv_blocks(_csv(tmp_path, text), WANTED, CsvFormat())
    quick, careful = block.quick(), block.careful()
    assert quick is not None and not careful.bad.reasons
    assert quick.table.to_pydict() == careful.table.to_pydict()
    assert quick.lines == careful.lines == text.count("\n")
    assert len(quick.table) == 297


def test_bad_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    events = _events()
    good = run_dataset("interactions", _write(events, tmp_path / "good.csv"), tmp_path / "good")
    lines = (tmp_path / "good.csv").read_text().splitlines(keepends=True)
    lines[5:5] = ["1,2\n", "1,2,now\n", "\n", "  \n", ",2,3\n"]
    (tmp_path / "bad.csv").write_text("".join(lines))
    report = run_dataset("interactions", tmp_path / "bad.csv", tmp_path / "bad", max_bad_lines=3)
    assert report.metadata["content_hash"] == good.metadata["content_hash"]
    assert report.metadata["counts"]["bad_lines"] == {
        "2 fields instead of 3": 1,
        "no user_id": 1,
        "timestamp is not a number, nor a time of ISO 8601": 1,
    }
    with pytest.raises(UserError, match=r"bad\.csv:10: no user_id: ,2,3"):
        run_dataset("interactions", tmp_path / "bad.csv", tmp_path / "no", max_bad_lines=2)


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    (parsed,) = _parse(_csv(tmp_path, HEADER.encode() + b"\xe9,1,2,3\n\xff,4,5,6\n"))
    assert parsed.table["user_id"].to_pylist() == [1, 4]
    (parsed,) = _parse(_csv(tmp_path, HEADER.encode() + b"\xe9,1,2,3\n\xff,4,5\n"))
    assert parsed.table["user_id"].to_pylist() == [1]
    assert parsed.bad[0].excerpt == "\\xff,4,5"


def test_headers(tmp_path: Path) -> None:
    marked = b'\xef\xbb\xbf"user_id", item_id ,timestamp,x,x\r\n1,2,3,4,5\r\n'
    (parsed,) = _parse(_csv(tmp_path, marked))
    assert parsed.table.to_pydict() == {"user_id": [1], "item_id": [2], "timestamp": [3]}
    (parsed,) = _parse(_csv(tmp_path, "a,b,c"), user_column="c", item_column="a", time_column="b")
    assert len(parsed.table) == 0 and parsed.lines == 1


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"raw\.csv is empty\. Its first line must name the columns"),
        ("\n1,2,3\n", r"raw\.csv begins with an empty line"),
        ("user_id,item_id,timestamp\n", r"No events in .*raw\.csv: the input is empty"),
        ("user_id,item_id,timestamp\n\n\n", r"No events in .*raw\.csv: the input is empty"),
        (
            "userId,movieId,timestamp\n1,2,3\n",
            r"no column 'user_id'.*'userId', 'movieId', 'timestamp'.*--user_column",
        ),
        ("user_id,item_id,item_id,timestamp\n", "more than one column 'item_id'"),
        ("1\t2\t3\n", r"no column 'user_id'.*'1\\t2\\t3'"),
        (
            "user_id,item_id,timestamp\n1,2,15e8\n1,3,16e8\n",
            "None of the 1 users has 20.*history has 2",
        ),
    ],
)
def test_refusals_of_csv_leave_nothing_behind(tmp_path: Path, text: str, match: str) -> None:
    path = _csv(tmp_path, text)
    with pytest.raises(UserError, match=match):
        run_dataset("interactions", path, tmp_path / "out")
    assert [found.name for found in tmp_path.iterdir()] == ["raw.csv"]


@pytest.mark.parametrize("kept", [5, 200, -9])
def test_a_gzip_file_cut_off(tmp_path: Path, kept: int) -> None:
    _write(_events(), tmp_path / "a.csv")
    packed = gzip.compress((tmp_path / "a.csv").read_bytes())
    path = tmp_path / "b.csv.gz"
    path.write_bytes(packed[:kept])
    with pytest.raises(UserError, match=r"b\.csv\.gz is not a whole gzip file"):
        run_dataset("interactions", path, tmp_path / "out")
    path.write_bytes((tmp_path / "a.csv").read_bytes())
    with pytest.raises(UserError, match=r"b\.csv\.gz is not a whole gzip file"):
        run_dataset("interactions", path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refusals_of_parquet(tmp_path: Path) -> None:
    events = _events()
    path = tmp_path / "a.parquet"

    def refused(match: str, table: pd.DataFrame | pa.Table | None = None, **options: Any) -> None:
        if isinstance(table, pd.DataFrame):
            table.to_parquet(path, index=False)
        elif table is not None:
            pq.write_table(table, path)
        with pytest.raises(UserError, match=match):
            run_dataset("interactions", path, tmp_path / "out", **options)
        assert [found.name for found in tmp_path.iterdir()] == ["a.parquet"]

    refused(
        r"no column 'user_id'.*'u', 'item_id', 'timestamp'",
        events.set_axis(["u", "item_id", "timestamp"], axis=1),
    )
    refused("the input is empty", events[:0])
    refused(r"'user_id' is of type double; ids.*missing value", events.astype({"user_id": float}))
    refused(r"'timestamp' is of type bool; times must be", events.astype({"timestamp": bool}))
    refused(
        r"'timestamp' is of type timestamp.*; --time_unit steps takes numbers",
        events.assign(timestamp=pd.Timestamp("2020-01-01")),
        time_unit="steps",
    )
    refused("'item_id' is of type bool", events.astype({"item_id": bool}))
    refused(
        "rows 1 to 1,500: .*must fit into 64 bits",
        events.astype({"item_id": "uint64"}).assign(item_id=np.uint64(2**63)),
    )
    for name, value in (("user_id", None), ("item_id", ""), ("timestamp", None)):
        table = events.astype({"user_id": str, "item_id": str, "timestamp": float})
        table.loc[6, name] = value
        refused(rf"a\.parquet:7: no {name}: user_id", table)
    refused(
        "a.parquet:3: timestamp is negative: user_id [0-9]+, item_id [0-9]+, timestamp -1",
        events.assign(timestamp=[4, 4, -1] * 500),
        time_unit="steps",
    )
    refused(
        "a.parquet:2: timestamp is too large",
        events.assign(timestamp=[4, 1e30, 1] * 500),
        time_unit="steps",
    )
    events.to_parquet(path)
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:50], b"", b"user_id,item_id,timestamp\n1,2,3\n"):
        path.write_bytes(damaged)
        refused("a.parquet is not a whole parquet file")
    path.write_bytes(whole[:20] + b"\xff" * 400 + whole[420:])
    refused("a.parquet is not a whole parquet file")


def test_bad_rows_of_parquet_are_left_out(tmp_path: Path) -> None:
    events = _events().astype({"user_id": str, "timestamp": float})
    good = run_dataset("interactions", _write(events, tmp_path / "a.parquet"), tmp_path / "a")
    bad = events[:3].assign(user_id=["x", None, None], timestamp=[float("nan"), 4, float("nan")])
    path = _write(pd.concat([events[:9], bad, events[9:]]), tmp_path / "b.parquet")
    report = run_dataset("interactions", path, tmp_path / "b", max_bad_lines=3)
    assert report.metadata["content_hash"] == good.metadata["content_hash"]
    assert report.metadata["counts"]["bad_lines"] == {"no timestamp": 1, "no user_id": 2}


def test_choice_of_files(tmp_path: Path) -> None:
    output = tmp_path.with_name("choice_of_files_out")  # apart from the input

    def refused(match: str, path: Path = tmp_path) -> None:
        with pytest.raises(UserError, match=match):
            run_dataset("interactions", path, output)

    refused(r"none of the names in it ends in \.csv, \.csv\.gz or \.parquet")
    refused("none does not exist", tmp_path / "none")
    (tmp_path / "a.tsv").write_text("x")
    refused(r"a\.tsv is of no known format: its name must end in", tmp_path / "a.tsv")
    _write(_events(), tmp_path / "a.csv")
    _write(_events(), tmp_path / "b.parquet")
    refused(r"holds parquet \(b\.parquet\) and CSV \(a\.csv\)")
    (tmp_path / "b.parquet").unlink()
    _write(_events(), tmp_path / "a.csv.gz")
    refused(r"Both .*a\.csv and .*a\.csv\.gz exist")
    with pytest.raises(UserError, match="must name three columns, not user_id, user_id, timestamp"):
        run_dataset("interactions", tmp_path, output, item_column="user_id")
    with pytest.raises(UserError, match="duplicates: expected one of keep, first, all, received"):
        run_dataset("interactions", tmp_path, output, duplicates="last")


def test_no_user_with_enough_different_items(tmp_path: Path) -> None:
    events = pd.DataFrame({"user_id": 1, "item_id": 2, "timestamp": range(START, START + 25)})
    raw = _write(events, tmp_path / "raw.csv")
    match = "None of the 1 users is left: 1 have 20 or more events.* 3 different items"
    with pytest.raises(UserError, match=match):
        run_dataset("interactions", raw, tmp_path / "out", duplicates="first")
    report: Report = run_dataset("interactions", raw, tmp_path / "out")
    assert report.metadata["counts"]["events"] == 25


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = _events().set_axis(["who", "item_id", "timestamp"], axis=1)
    raw = str(_write(events, tmp_path / "raw.csv"))
    run = ["run", "--dataset", "interactions", "--input", raw, "--output", str(tmp_path / "out")]
    assert main([*run, "--user_column", "user"]) == 2
    assert "no column 'user'" in capsys.readouterr().err
    assert main([*run, "--user_column", "who", "--duplicates", "last"]) == 2
    assert "--duplicates: expected one of keep, first" in capsys.readouterr().err
    assert main([*run, "--user_column", "who", "--duplicates", "first"]) == 0
    metadata = json.loads((tmp_path / "out/dataset.json").read_text())
    printed = capsys.readouterr().out
    assert f"{metadata['counts']['duplicate_events']:,} repeated events" in printed
    assert metadata["content_hash"] in printed
    transform = ["transform", "--workflow", str(tmp_path / "out"), "--input", raw]
    keep = ["--output", str(tmp_path / "keep"), "--duplicates", "keep"]
    assert main([*transform, *keep]) == 0
    assert "repeated events" not in capsys.readouterr().out
    assert main(["describe", str(tmp_path / "out")]) == 0
    assert "duplicate_events" in capsys.readouterr().out
