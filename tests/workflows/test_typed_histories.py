"""Logs with features of every type, splits and labels: each number against plain pandas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from sklearn.preprocessing import StandardScaler

from lookback.core.errors import UserError
from lookback.formats.features import HistoryFeatures, table_rows
from lookback.formats.schema import read_schema
from lookback.formats.transforms import Hashed, canonical
from lookback.formats.vocabulary import HASHED, hashed_key
from lookback.workflows.describe import describe
from lookback.workflows.histories import pipeline
from lookback.workflows.histories.feature_specs import FeatureSpec
from lookback.workflows.histories.rules import EventRules, TimeSplit, UserSplit
from lookback.workflows.summaries import print_histories
from tests.workflows.typed_log import (
    NANOSECONDS,
    SPECS,
    START,
    make_log,
    order_of,
    run_log,
    write_log,
)

KEYS = ["user_id", "item_id", "timestamp"]
BY_TIME = TimeSplit(START + 70 * 3600, START + 50 * 3600)
BY_USERS = UserSplit(0.2, 0.15, seed=3)
Frames = Mapping[str, pd.DataFrame]


def _joined(frames: Frames, minimum: int = 4, label: bool = False) -> pd.DataFrame:
    """Events with all features, by user, time and order of the log; seconds."""
    keys = [*KEYS, "label"] if label else KEYS
    events = frames["events"].drop_duplicates(keys)
    events = events[events.groupby("user_id")["user_id"].transform("size") >= minimum]
    events = events.merge(frames["users"], "left", "user_id").merge(
        frames["items"], "left", "item_id"
    )
    events["timestamp"] //= NANOSECONDS
    return events.sort_values(["user_id", "timestamp"], kind="stable").reset_index(drop=True)


def _last(events: pd.DataFrame) -> pd.Series:
    left = events.groupby("user_id").cumcount(ascending=False)
    return left.map({0: 2, 1: 1}).fillna(0).astype(int)


def _time(events: pd.DataFrame) -> pd.Series:
    return (events["timestamp"] >= BY_TIME.validation_from).astype(int) + (
        events["timestamp"] >= BY_TIME.test_from
    )


def _users(events: pd.DataFrame) -> pd.Series:
    def part(user: str) -> int:
        text = f"{BY_USERS.seed}:{user}".encode()
        drawn = (hashed_key(text, 0, len(text), int) - HASHED) / HASHED
        return 2 if drawn < 0.2 else 1 if drawn < 0.35 else 0

    return events["user_id"].map(part)


def _codes(values: pd.Series, fitted: pd.Series, least: int = 0) -> pd.Series:
    """Ids as documented: by falling count, then by value, from 3 on; 1 missing, 2 unknown."""
    counts = fitted.value_counts()
    known = sorted(counts.index[counts >= least], key=lambda value: (-counts[value], value))
    ids = values.map({value: number for number, value in enumerate(known, 3)})
    return ids.fillna(2).where(values.notna(), 1).astype(int)


def _bags(values: pd.Series, fitted: pd.Series, spec: FeatureSpec) -> list[list[int] | int]:
    """What each event's bag holds, or the number of an empty one."""
    lists = values.map(json.loads, na_action="ignore")
    if spec.buckets is None:
        elements = fitted.map(json.loads, na_action="ignore").explode()
        distinct = lists.explode()
        ids = dict(zip(distinct, _codes(distinct, elements, spec.min_count or 0), strict=True))
    else:
        words = sorted({word for words in lists.dropna() for word in words})
        ids = dict(zip(words, Hashed(spec.buckets).encode(pa.array(words)).tolist(), strict=True))
    found: list[list[int] | int] = []
    for words in lists:
        if not isinstance(words, list):
            found.append(1)
            continue
        known = sorted({ids[word] for word in words if ids[word] > 2})[: spec.most]
        found.append(known or (2 if words else []))
    return found


def _numbers(values: pd.Series, rows: pd.Series, spec: FeatureSpec) -> np.ndarray[Any, Any]:
    raw = values.astype(float)
    low, high = spec.clip or (None, None)
    clipped = raw.clip(low, high)
    fill = clipped[rows].mean() if spec.fill is None else spec.fill
    filled = raw.fillna(fill).clip(low, high)
    spread = np.sign(filled) * np.log1p(filled.abs()) if spec.log else filled
    if not spec.standardise:
        return spread.to_numpy()
    scaler = StandardScaler().fit(spread[rows].to_numpy()[:, None])
    return scaler.transform(spread.to_numpy()[:, None])[:, 0]


def _encoded(
    events: pd.DataFrame, part: pd.Series, everywhere: bool, clicked: pd.Series | None = None
) -> dict[str, Any]:
    """Every column of the events, encoded."""
    training = part == 0
    happened = pd.Series(True, events.index) if clicked is None else clicked
    columns: dict[str, Any] = {"timestamp": events["timestamp"].tolist()}
    for name in ("user_id", "item_id"):
        columns[name] = _codes(events[name], events[name][everywhere | training]).tolist()
    for name, spec in SPECS.items():
        values = events[name]
        if spec.of == "event":
            values = values.where(happened)
        rows = training & (happened if spec.of == "event" else True)
        fitted = values[everywhere | rows]
        if spec.type == "category":
            columns[name] = _codes(values, fitted, spec.min_count or 0).tolist()
        elif spec.type == "hash":
            columns[name] = (
                Hashed(5).encode(pa.array(values, pa.string(), from_pandas=True)).tolist()
            )
        elif spec.type == "categories":
            columns[name] = _bags(values, fitted, spec)
        elif spec.type == "number":
            columns[name] = _numbers(values, rows, spec)
        else:
            edges = spec.boundaries
            if edges is None:
                cuts = np.arange(1, spec.quantiles) / spec.quantiles
                there = values[rows].dropna()
                edges = np.unique(np.quantile(there, cuts, method="inverted_cdf"))
                edges = edges[edges > there.min()]
            found = np.searchsorted(edges, values.astype(float), side="right") + 3
            columns[name] = np.where(values.isna(), 1, found).tolist()
    return columns


def _table(directory: Path, below: str) -> pa.Table:
    files = sorted((directory / below).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def _assert_values(directory: Path, name: str, found: Any, expected: Any) -> None:
    """Compares a column of events; of bags what they hold, and how they are numbered."""
    spec = SPECS.get(name)
    if spec is not None and spec.type == "number":
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6, err_msg=name)
    elif spec is not None and spec.is_bag:
        bags = pq.read_table(directory / f"bags/{name}.parquet")["ids"].to_pylist()
        assert bags[:3] == [[], [], []] and len({*map(tuple, bags[3:])}) == len(bags) - 3
        assert [n if n < 3 else bags[n] for n in found] == list(expected), name
    else:
        assert list(found) == list(expected), name


def _assert_histories(
    directory: Path, columns: dict[str, Any], key: pd.Series, kept: pd.Series | None = None
) -> pa.Table:
    """Compares histories with encoded events of which `key` tells the history."""
    table = _table(directory, "histories")
    frame = pd.DataFrame({"key": key, "user_id": columns["user_id"]})
    kept = pd.Series(True, key.index) if kept is None else kept
    firsts = frame[~frame["key"].duplicated()]
    assert sorted(table["user_id"].to_pylist()) == sorted(firsts["user_id"])
    # Users out of the vocabulary share an id, so rows are matched by what they hold.
    expected = {}
    for of, rows in frame.groupby("key").groups.items():
        chosen = [row for row in rows if kept[row]]
        expected[of] = (
            columns["user_id"][rows[0]],
            tuple(columns["timestamp"][row] for row in chosen),
            tuple(columns["item_id"][row] for row in chosen),
        )
    found = list(
        zip(
            table["user_id"].to_pylist(),
            map(tuple, table["timestamp"].to_pylist()),
            map(tuple, table["item_id"].to_pylist()),
            strict=True,
        )
    )
    assert sorted(found) == sorted(expected.values())
    assert [user for user, _, _ in found] == sorted(user for user, _, _ in found)
    row_of = {content: row for row, content in enumerate(found)}
    order = sorted(expected, key=lambda of: row_of[expected[of]])
    groups = frame.groupby("key").groups
    flat = [row for of in order for row in groups[of] if kept[row]]
    first = [groups[of][0] for of in order]
    for name in table.column_names:
        if name == "split":
            continue
        is_list = pa.types.is_list(table[name].type)
        values = table[name].combine_chunks()
        values = (values.flatten() if is_list else values).to_pylist()
        expected_values = [columns[name][row] for row in (flat if is_list else first)]
        _assert_values(directory, name, values, expected_values)
    return table


CASES: list[tuple[EventRules, Callable[[pd.DataFrame], pd.Series], bool]] = [
    (EventRules(), _last, True),
    (EventRules(split=BY_TIME), _time, False),
    (EventRules(split=BY_USERS), _users, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "part_of", "everywhere"), CASES)
def test_every_type_equals_pandas(
    tmp_path: Path, rules: EventRules, part_of: Callable[[Any], pd.Series], everywhere: bool
) -> None:
    frames = make_log()
    raw = write_log(frames, tmp_path / "raw")
    out = tmp_path / "out"
    report = run_log(raw, out, rules=rules)
    events = _joined(frames)
    part = part_of(events)
    columns = _encoded(events, part, everywhere)
    table = _assert_histories(out, columns, events["user_id"])

    said, counts = report.metadata, report.metadata["counts"]
    assert counts["missing_values"] == {name: int(events[name].isna().sum()) for name in SPECS}
    assert set(counts["bags_cut"]) == {name for name, spec in SPECS.items() if spec.is_bag}
    likes = events["likes"].dropna().map(json.loads)
    known = set(events["likes"][everywhere | (part == 0)].dropna().map(json.loads).explode())
    longer = likes.map(lambda words: len(known & set(words)) > 2)
    assert counts["bags_cut"]["likes"] == longer.sum() > 0
    assert list(said["features"]) == list(SPECS)
    assert said["features"]["brand"] == {"of": "item", "type": "hash", "buckets": 5}
    assert said["features"]["genres"] == {
        "of": "item",
        "type": "vocabulary",
        "bag": {"most": 2, "separator": "|"},
    }
    assert said["features"]["age"]["fill"] == pytest.approx(
        events["age"][part == 0].clip(18, 90).mean(), rel=1e-15
    )
    assert "labels" not in said
    sizes = {int(n): int((part == n).sum()) for n in (0, 1, 2)}
    if rules.split is None:
        assert said["split"] == {"rule": "leave_last_out", "test": 1, "validation": 1}
    else:
        assert said["split"]["validation"] == sizes[1] > 0
        assert said["split"]["test"] == sizes[2] > 0
    assert (rules.split == BY_USERS) == ("split" in table.column_names)
    if rules.split == BY_USERS:
        assert np.bincount(table["split"]).tolist() == (
            np.bincount(part[~events["user_id"].duplicated()]).tolist()
        )

    few = run_log(raw, tmp_path / "few", rules=rules, partition_events=400)
    assert few.plan.partitions == 4
    assert few.metadata["content_hash"] == said["content_hash"]
    assert few.metadata["features"] == said["features"]
    assert few.metadata["counts"] == counts


def test_bags_are_numbered_by_falling_count(tmp_path: Path) -> None:
    frames = make_log()
    run_log(write_log(frames, tmp_path / "raw"), tmp_path / "out")
    table = _table(tmp_path / "out", "histories")
    for name in ("genres", "words"):
        bags = pq.read_table(tmp_path / f"out/bags/{name}.parquet")["ids"].to_pylist()
        counts = np.bincount(table[name].combine_chunks().flatten(), minlength=len(bags))
        order = sorted(range(3, len(bags)), key=lambda n: (-counts[n], bags[n]))
        assert order == list(range(3, len(bags)))
        assert counts[3:].min() > 0
    schema = read_schema(tmp_path / "out")
    features = HistoryFeatures.from_schema(schema)
    assert features.bags == {"likes": 2, "genres": 2, "words": 3}
    assert features.context == ("device", "hour", "words") and features.event == ("rating",)
    assert features.numbers == {"age": "user", "price": "item", "dwell": "event", "seen": "event"}
    rows = table_rows(schema)
    assert (rows["brand"], rows["hour"], rows["words"]) == (3 + 5, 3 + 4, 3 + 9)
    assert rows["genres"] == 3 + 5 and max(map(max, filter(None, bags))) < rows["words"]


@pytest.mark.slow
def test_a_saved_workflow_encodes_new_data(tmp_path: Path) -> None:
    frames = make_log()
    raw = write_log(frames, tmp_path / "raw")
    fitted = run_log(raw, tmp_path / "out")
    assert (tmp_path / "out/workflow/features.json").is_file()
    same = pipeline.transform(order_of(raw, tmp_path / "same"), tmp_path / "out")
    assert same.metadata["content_hash"] == fitted.metadata["content_hash"]
    pipeline.fit(order_of(raw, tmp_path / "workflow"))
    again = pipeline.transform(order_of(raw, tmp_path / "again"), tmp_path / "workflow")
    assert again.metadata["content_hash"] == fitted.metadata["content_hash"]

    encoder = nvt.Workflow.load(str(tmp_path / "out/workflow/encoder"))  # knows bags, too
    names = ["user_id", "country", "item_id", "category", "device", "rating", "likes", "genres"]
    assert encoder.input_schema.column_names == names
    values = ["u00", "de", 100, "cd", "tv", 5, ["c", "x"], []]
    found = encoder.transform(pd.DataFrame([values], columns=names))
    ids = pd.read_parquet(tmp_path / "out/workflow/categories/unique.likes.parquet")["likes"]
    assert found["likes"][0].tolist() == [3 + ids.tolist().index("c"), 2]

    new = {name: frame.copy() for name, frame in frames.items()}
    combinations = [canonical("PQ"), canonical("SX"), canonical("X"), "[]", None]
    new["items"]["genres"] = [combinations[n % 5] for n in range(len(new["items"]))]
    new["users"]["age"] = 55.5
    write_log(new, tmp_path / "new")
    pipeline.transform(order_of(tmp_path / "new", tmp_path / "encoded"), tmp_path / "out")
    table = _table(tmp_path / "encoded", "histories")
    bags = pq.read_table(tmp_path / "encoded/bags/genres.parquet")["ids"].to_pylist()
    ids = pd.read_parquet(tmp_path / "out/workflow/categories/unique.genres.parquet")["genres"]
    known = {word: number for number, word in enumerate(ids, 3)}
    expected = [sorted(known[w] for w in ws if w in known) for ws in ("PQ", "SX")]
    assert sorted(bags[3:]) == sorted([[], *(bag for bag in expected if bag)])
    numbers = set(table["genres"].combine_chunks().flatten().to_pylist())
    assert numbers == {1, 2, *range(3, len(bags))}  # a bag of X alone is unknown
    age = fitted.metadata["features"]["age"]
    known_ages = np.float32((55.5 - age["mean"]) / age["scale"])
    filled = np.float32((age["fill"] - age["mean"]) / age["scale"])
    assert set(table["age"].to_pylist()) == {known_ages, filled}


def test_columns_may_have_no_value_at_all(tmp_path: Path) -> None:
    frames = make_log(events=400)
    events = frames["events"].assign(device=None, words=None, dwell=np.nan)
    items = frames["items"].assign(year=np.nan, genres=None)
    raw = write_log({**frames, "events": events, "items": items}, tmp_path / "raw")
    specs = {name: SPECS[name] for name in ("device", "words", "dwell", "year", "genres")}
    said = run_log(raw, tmp_path / "out", specs=specs).metadata
    assert said["features"]["year"] == {"of": "item", "type": "buckets", "boundaries": []}
    assert [said["features"]["dwell"][key] for key in ("fill", "mean", "scale")] == [0, 0, 1]
    assert {said["cardinalities"][name] for name in ("device", "genres")} == {3}
    table = _table(tmp_path / "out", "histories")
    for name, value in (("device", 1), ("words", 1), ("dwell", 0), ("year", 1), ("genres", 1)):
        assert set(table[name].combine_chunks().flatten().to_pylist()) == {value}


def test_new_data_may_be_of_one_part_alone(tmp_path: Path) -> None:
    frames = make_log(events=600)
    specs = {"dwell": SPECS["dwell"]}
    rules = EventRules(split=BY_TIME)
    raw = write_log(frames, tmp_path / "raw")
    fitted = run_log(raw, tmp_path / "out", specs=specs, rules=rules)
    later = frames["events"].assign(timestamp=lambda log: log["timestamp"] + 10**6 * NANOSECONDS)
    write_log({**frames, "events": later}, raw)
    order = order_of(raw, tmp_path / "later", specs=specs, rules=rules)
    new = pipeline.transform(order, tmp_path / "out").metadata
    assert new["split"]["test"] == new["counts"]["events"] == fitted.metadata["counts"]["events"]
    assert new["features"] == fitted.metadata["features"]


@pytest.mark.parametrize("iterate", [False, True])
def test_rare_items_are_left_out(tmp_path: Path, iterate: bool) -> None:
    frames = make_log(users=60, items=80, events=900, seed=5)
    raw = write_log(frames, tmp_path / "raw")
    rules = EventRules(min_events_per_item=9, iterate=iterate)
    reports = [
        run_log(raw, tmp_path / name, specs={}, rules=rules, min_interactions=6, **options)
        for name, options in (("one", {}), ("few", {"partition_events": 300}))
    ]
    events = frames["events"].drop_duplicates(KEYS)
    for _ in range(99 if iterate else 1):
        before = len(events)
        events = events[events.groupby("item_id")["item_id"].transform("size") >= 9]
        events = events[events.groupby("user_id")["user_id"].transform("size") >= 6]
        if len(events) == before:
            break
    if iterate:  # once is not enough, so the test can fail
        assert reports[0].metadata["counts"]["events"] == len(events) < before + 1
        assert events["item_id"].value_counts().min() >= 9
    counts = reports[0].metadata["counts"]
    assert counts["users"] == events["user_id"].nunique()
    assert counts["items"] == events["item_id"].nunique()
    distinct = len(frames["events"].drop_duplicates(KEYS))
    assert counts["events_of_rare_items"] + counts["events_dropped"] == distinct - len(events)
    assert reports[1].metadata["counts"] == counts
    assert reports[1].metadata["content_hash"] == reports[0].metadata["content_hash"]
    table = _table(tmp_path / "one", "histories")
    lengths = sorted(map(len, table["item_id"].to_pylist()))
    assert lengths == sorted(events["user_id"].value_counts())


def test_too_many_rare_items_are_refused(tmp_path: Path) -> None:
    raw = write_log(make_log(events=200), tmp_path / "raw")
    with pytest.raises(UserError, match="none has 999 or more events"):
        run_log(raw, tmp_path / "out", specs={}, rules=EventRules(min_events_per_item=999))


def test_sessions_are_histories(tmp_path: Path) -> None:
    frames = make_log()
    raw = write_log(frames, tmp_path / "raw")
    specs = {name: SPECS[name] for name in ("device", "dwell")}
    rules = EventRules(session_gap=2 * 3600)
    report = run_log(raw, tmp_path / "out", specs=specs, rules=rules, min_interactions=3)
    few = run_log(
        raw, tmp_path / "few", specs=specs, rules=rules, min_interactions=3, partition_events=400
    )
    assert few.metadata["content_hash"] == report.metadata["content_hash"]
    events = _joined(frames, minimum=1)
    pause = events.groupby("user_id")["timestamp"].diff().fillna(10**9) > 2 * 3600
    events["session"] = pause.cumsum()
    events = events[events.groupby("session")["session"].transform("size") >= 3]
    table = _table(tmp_path / "out", "histories")
    expected = events.groupby("session").agg({"user_id": "first", "timestamp": list})
    codes = _codes(expected["user_id"], events["user_id"])
    assert sorted(
        zip(table["user_id"].to_pylist(), table["timestamp"].to_pylist(), strict=True)
    ) == (sorted(zip(codes, expected["timestamp"], strict=True)))
    counts = report.metadata["counts"]
    assert counts["users"] == len(expected) > counts["users_of_sessions"]
    assert counts["users_of_sessions"] == events["user_id"].nunique()


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "part_of"), [(CASES[1][0], _time), (CASES[2][0], _users)])
def test_impressions_equal_pandas(
    tmp_path: Path, rules: EventRules, part_of: Callable[[Any], pd.Series]
) -> None:
    frames = make_log(users=50, seed=2)
    log = frames["events"]
    other = log.iloc[:20].assign(label=1 - log["label"])  # shown, and clicked at the same time
    log = frames["events"] = pd.concat([log, other], ignore_index=True)
    log.loc[log["user_id"] == "u07", "label"] = 0  # a user without clicks
    raw = write_log(frames, tmp_path / "raw", label=True)
    out = tmp_path / "out"
    report = run_log(raw, out, rules=rules, explicit=True)
    few = run_log(raw, tmp_path / "few", rules=rules, explicit=True, partition_events=400)
    assert few.metadata["content_hash"] == report.metadata["content_hash"]
    assert few.metadata["counts"] == report.metadata["counts"]

    events = _joined(frames, minimum=1, label=True)
    part, clicked = part_of(events), events["label"] == 1
    columns = _encoded(events, part, False, clicked)
    table = _assert_histories(out, columns, events["user_id"], clicked)
    assert 0 in map(len, table["item_id"].to_pylist())

    # The row of each user: known ones by id; others by what their histories hold.
    rows = list(
        zip(table["user_id"].to_pylist(), map(tuple, table["timestamp"].to_pylist()), strict=True)
    )
    names = ["user", "position", "item_id", "category", "genres", "price", "year", "brand"]
    names += ["device", "hour", "words", "timestamp", "label"]
    position = [
        int((clicked & (events["user_id"] == user) & (events["timestamp"] < time)).sum())
        for user, time in zip(events["user_id"], events["timestamp"], strict=True)
    ]
    for number, name in enumerate(("train", "validation", "test")):
        shown = _table(out, f"impressions/{name}")
        assert shown.column_names == names
        assert shown.schema.field("user").type == pa.int64()
        assert shown.schema.field("position").type == pa.int32()
        assert shown.schema.field("label").type == pa.int8()
        chosen = events.index[part == number]
        assert report.metadata["counts"][f"{name}_impressions"] == len(chosen) == len(shown) > 0
        user = shown["user"].to_pylist()
        assert user == sorted(user)
        found = pd.DataFrame({n: shown[n].to_numpy() for n in names})
        times = events["timestamp"].where(clicked).groupby(events["user_id"])
        history = {of: tuple(int(t) for t in rows if t == t) for of, rows in times}
        wanted = pd.DataFrame(
            {
                "user": [
                    rows.index((columns["user_id"][n], history[events["user_id"][n]]))
                    for n in chosen
                ],
                "position": [position[n] for n in chosen],
                "timestamp": events["timestamp"][chosen].to_numpy(),
                "label": events["label"][chosen].to_numpy(),
                "event": chosen,
            }
        ).sort_values(["user", "event"], kind="stable")
        for key in ("user", "position", "timestamp", "label"):
            assert found[key].tolist() == wanted[key].tolist(), key
        for key in names[2:-2]:
            _assert_values(
                out, key, found[key].tolist(), [columns[key][n] for n in wanted["event"]]
            )

    said = report.metadata
    assert said["labels"] == "explicit"
    assert said["counts"]["events"] == clicked.sum()
    assert [said["split"]["validation"], said["split"]["test"]] == [
        int((clicked & (part == number)).sum()) for number in (1, 2)
    ]
    catalogue = pq.read_table(out / "items.parquet").to_pandas().set_index("item_id")
    assert set(catalogue.index) == set(columns["item_id"])
    clicks = pd.Series(columns["item_id"])[clicked.to_numpy()].value_counts()
    assert (catalogue["count"] == clicks.reindex(catalogue.index).fillna(0)).all()


def test_what_cannot_be_right_is_refused(tmp_path: Path) -> None:
    raw = write_log(make_log(events=200), tmp_path / "raw", label=True)

    def refused(match: str, **asked: Any) -> None:
        with pytest.raises(UserError, match=match):
            run_log(raw, tmp_path / "out", **asked)

    by_time = EventRules(split=BY_TIME)
    refused("a split by time or by users", explicit=True)
    refused("keep or all where labels", explicit=True, rules=by_time, duplicates="first")
    refused("--no_validation", rules=by_time, validation=False)
    refused("none of ours|one of ours", specs={"part": FeatureSpec(of="item", type="category")})
    late = EventRules(split=TimeSplit(START + 10**6))
    refused(r"received nothing for test \(train [0-9]+, validation 0, test 0\)", rules=late)
    early = EventRules(split=TimeSplit(START - 10**6))
    refused("received nothing for train", rules=early)
    told = f"{datetime.fromtimestamp(START - 10**6, timezone.utc):%Y-%m-%dT%H:%M:%S}Z"
    refused(rf"a split by time, test from {told} \(validation_from, test_from\)", rules=early)
    refused("validation from 5, test from 9 ", rules=EventRules(split=TimeSplit(9, 5)))
    with pytest.raises(UserError, match="validation_from before test_from"):
        TimeSplit(5, 5)
    with pytest.raises(UserError, match="both together below 1"):
        UserSplit(0.5, 0.5)
    with pytest.raises(UserError, match="either boundaries or quantiles"):
        FeatureSpec(of="item", type="buckets")
    with pytest.raises(UserError, match=r"that ascend, received \(2.0, 1.0\)"):
        FeatureSpec(of="item", type="buckets", boundaries=(2.0, 1.0))
    with pytest.raises(UserError, match="no number of buckets, received 5"):
        FeatureSpec(of="item", type="category", buckets=5)
    with pytest.raises(UserError, match="expected buckets, received none"):
        FeatureSpec(of="item", type="hash")
    large = {"events": make_log(events=200)["events"].assign(seen=1e200)}
    write_log(large, tmp_path / "raw")
    refused("Feature seen: expected numbers within", specs={"seen": SPECS["seen"]})


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_log(make_log(), tmp_path / "raw", label=True)
    report = run_log(raw, tmp_path / "out", rules=EventRules(split=BY_TIME), explicit=True)
    print_histories(report)
    printed = capsys.readouterr().out
    console = Console(record=True, width=200)
    describe(tmp_path / "out", console)
    described = console.export_text()
    counts = report.metadata["counts"]
    for text in (printed, described):
        assert f"{counts['train_impressions']:,}" in text
        assert f"{counts['test_impressions']:,}" in text
    assert "features" in described and "buckets" in described
    assert f"{counts['missing_values']['dwell']:,}" in described
