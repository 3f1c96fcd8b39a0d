"""`workflows update`: a dataset and what came since are what a run over all of it gives."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lookback.formats import kept_log
from lookback.formats.bags import IDS, bag_file
from lookback.formats.dataset_info import SPLITS, UPDATE
from lookback.formats.histories import history_files
from lookback.formats.history_columns import ITEM_ID, NEW, TIMESTAMP, USER_ID
from lookback.formats.impressions import LABEL, POSITION, USER, impression_files
from lookback.formats.vocabulary import FIRST_KNOWN, id_file, read_ids
from lookback.workflows.histories import continued, gather, pipeline
from lookback.workflows.histories.feature_specs import FeatureSpec
from lookback.workflows.histories.rules import EventRules, TimeSplit, UserSplit
from lookback.workflows.order import Report
from tests.workflows.typed_log import (
    NANOSECONDS,
    SPECS,
    START,
    make_log,
    order_of,
    run_log,
    write_log,
)

Frames = Mapping[str, pd.DataFrame]

FREE = {
    name: dataclasses.replace(
        spec,
        **({"standardise": False, "fill": 20.0} if spec.type == "number" else {}),
        **({"quantiles": None, "boundaries": (1970.0, 1990.0)} if spec.quantiles else {}),
        **({"most": 9} if spec.is_bag else {}),
        **({"min_count": 5} if spec.min_count else {}),
    )
    for name, spec in SPECS.items()
}
"""Features of all types, of which nothing is fitted but vocabularies, and no bag is cut."""

BY_TIME = TimeSplit(START + 70 * 3600, START + 50 * 3600)
CASES: dict[str, dict[str, Any]] = {
    "plain": {"specs": {}},
    "thresholds": {"specs": {}, "frequency_threshold": 4, "min_interactions": 5},
    "first": {"specs": {}, "duplicates": "first", "ties": "item"},
    "all": {"specs": {}, "duplicates": "all", "validation": False},
    "typed": {"specs": FREE, "frequency_threshold": 6},
    "filters": {
        "specs": {},
        "rules": EventRules(min_events_per_item=4, iterate=True),
        "min_interactions": 6,
    },
    "sessions": {"specs": {}, "rules": EventRules(session_gap=8 * 3600), "min_interactions": 2},
    "time": {"specs": FREE, "rules": EventRules(split=BY_TIME), "frequency_threshold": 3},
    "users": {"specs": FREE, "rules": EventRules(split=UserSplit(0.2, 0.2, seed=1))},
    "impressions": {
        "specs": FREE,
        "rules": EventRules(split=BY_TIME, min_events_per_item=3),
        "explicit": True,
        "frequency_threshold": 2,
    },
}


def _parts(seed: int, count: int = 2) -> list[Frames]:
    """A log in parts: in each late events and repeated ones; what is known of items changes not."""
    frames = make_log(users=14, items=18, events=260, seed=seed)
    random = np.random.default_rng(seed)
    events = frames["events"]
    events["timestamp"] += random.integers(0, 2, len(events)) * NANOSECONDS // 2
    part = np.sort(random.integers(0, count, len(events)))
    moved = random.random(len(events)) < 0.1
    part[moved] = random.integers(0, count, moved.sum())  # late, or before their time
    found = []
    for number in range(count):
        own = events[part == number].copy()
        own.loc[own.index[:3], "item_id"] = 1000 + number  # new ids
        again = events[part < number].sample(frac=0.1, random_state=seed) if number else own[:0]
        found.append({**frames, "events": pd.concat([own, again])})
    return found


def _together(parts: list[Frames]) -> Frames:
    return {**parts[-1], "events": pd.concat([part["events"] for part in parts])}


def _write(directory: Path, frames: Frames, explicit: bool = False) -> Path:
    return write_log(frames, directory, label=explicit)


def _vocabulary(dataset: Path, name: str) -> list[Any]:
    path = dataset / "workflow" / "categories" / id_file(name)
    return list(read_ids(path, name).to_pylist()) if path.exists() else []


def _words(dataset: Path, name: str, specs: Mapping[str, FeatureSpec]) -> dict[int, Any]:
    """What each id (or number of a bag) of a column stands for."""
    known = dict(enumerate([str(word) for word in _vocabulary(dataset, name)], FIRST_KNOWN))
    if name in specs and specs[name].is_bag:
        bags = pq.read_table(bag_file(dataset, name))[IDS].to_pylist()
        return {
            number: tuple(sorted(str(known.get(i, i)) for i in bag))
            for number, bag in enumerate(bags[FIRST_KNOWN:], FIRST_KNOWN)
        }
    return known


def _decoded(dataset: Path, table: pd.DataFrame, specs: Mapping[str, FeatureSpec]) -> pd.DataFrame:
    """Columns with raw values for ids; ids that every vocabulary reserves stay."""
    for name in table.columns:
        words = _words(dataset, name, specs)
        if words and name != POSITION:
            table[name] = [words.get(value, value) for value in table[name].tolist()]
    return table


def _events(dataset: Path, specs: Mapping[str, FeatureSpec]) -> pd.DataFrame:
    """All events, decoded; each with its place in its history, and its history's length."""
    frame = pd.concat([pq.read_table(file).to_pandas() for file in history_files(dataset)])
    lists = [name for name in frame.columns if frame[name].dtype == object]
    frame["length"] = frame[ITEM_ID].map(len)
    frame["row"] = np.arange(len(frame))
    frame = frame.explode(lists, ignore_index=True)
    frame = frame.dropna(subset=[ITEM_ID])  # a history without clicks
    frame["place"] = frame.groupby("row").cumcount()
    return _decoded(dataset, frame, specs).drop(columns="row")


def _impressions(dataset: Path, specs: Mapping[str, FeatureSpec]) -> pd.DataFrame:
    files = history_files(dataset)
    users = pd.concat([pq.read_table(file, columns=[USER_ID]).to_pandas() for file in files])
    parts = []
    for split in SPLITS:
        for file in impression_files(dataset, split):
            parts.append(pq.read_table(file).to_pandas().assign(part=split))
    frame = pd.concat(parts)
    frame[USER_ID] = users[USER_ID].to_numpy()[frame[USER]]
    return _decoded(dataset, frame, specs).drop(columns=USER)


def _same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The same rows in whatever order."""
    columns = sorted(expected.columns)
    assert sorted(found.columns) == columns
    rows = [
        sorted(map(repr, frame[columns].astype(object).itertuples(index=False, name=None)))
        for frame in (found, expected)
    ]
    assert rows[0] == rows[1]


def _info(dataset: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((dataset / "dataset.json").read_text())
    return found


def _update(new: Path, output: Path, dataset: Path, **asked: Any) -> Report:
    return pipeline.update(order_of(new, output, **asked), dataset)


def _assert_equal(found: Path, whole: Path, asked: Mapping[str, Any]) -> None:
    """Two datasets hold the same but for the order of ids; the first is an update."""
    specs = asked["specs"]
    events, expected = _events(found, specs), _events(whole, specs)
    _same(events.drop(columns=NEW), expected)
    if asked.get("explicit"):
        shown = _impressions(found, specs)
        _same(shown.drop(columns=NEW), _impressions(whole, specs))
    said, all_said = _info(found), _info(whole)
    for key in ("split", "history_length", "cardinalities"):
        assert said[key] == all_said[key]
    counts = {n: c for n, c in said["counts"].items() if not n.startswith("changed_")}
    assert counts == all_said["counts"]
    for name in said["cardinalities"]:
        assert sorted(map(str, _vocabulary(found, name))) == sorted(
            map(str, _vocabulary(whole, name))
        )
    items = [
        _decoded(path, pq.read_table(path / "items.parquet").to_pandas(), specs)
        for path in (found, whole)
    ]
    _same(*items)


def _assert_goes_on(found: Path, before: Path) -> int:
    """Ids of a dataset keep their rows in its update; gives how many are new."""
    new = 0
    assert _info(found)[UPDATE]["of"] == _info(before)["content_hash"]
    for name, count in _info(found)[UPDATE]["new_ids"].items():
        old, now = _vocabulary(before, name), _vocabulary(found, name)
        assert list(map(str, now[: len(old)])) == list(map(str, old))
        assert len(now) - len(old) == count
        new += count
    return new


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_update_is_a_run_over_all_but_for_the_order_of_ids(tmp_path: Path, name: str) -> None:
    asked = CASES[name]
    explicit = bool(asked.get("explicit"))
    parts = _parts(seed=list(CASES).index(name))
    for part, frames in {"a": parts[0], "b": parts[1], "ab": _together(parts)}.items():
        _write(tmp_path / part, frames, explicit)
    run_log(tmp_path / "a", tmp_path / "A", **asked)
    run_log(tmp_path / "ab", tmp_path / "AB", **asked)
    _update(tmp_path / "b", tmp_path / "found", tmp_path / "A", **asked)
    _assert_equal(tmp_path / "found", tmp_path / "AB", asked)
    assert _assert_goes_on(tmp_path / "found", tmp_path / "A"), "the test has no new ids"
    _assert_new(tmp_path, asked, parts)


def _assert_new(directory: Path, asked: Mapping[str, Any], parts: list[Frames]) -> None:
    """`NEW` is 0 of exactly what the dataset before trained on; what came is counted."""
    specs, said = asked["specs"], _info(directory / "found")[UPDATE]
    known = [USER_ID, TIMESTAMP]  # items that were rare may be known now
    if asked.get("explicit"):
        before, now = (_impressions(directory / d, specs) for d in ("A", "found"))
        trained, known = before[before["part"] == "train"], [*known, LABEL]
    else:
        before, now = (_events(directory / d, specs) for d in ("A", "found"))
        split = _info(directory / "A")["split"]
        held_out = before["length"] - before["place"] <= split["test"] + split["validation"]
        if split["rule"] == "time":
            held_out = before[TIMESTAMP] >= BY_TIME.held_out_from
        if split["rule"] == "users":
            held_out = before["split"] > 0
        trained = before[~held_out]
    old_ones = now.loc[now[NEW] == 0, known]
    if asked.get("duplicates") == "first":  # a late event may take the place of one with its item
        assert 0 < len(old_ones) == len(old_ones.merge(trained[known].drop_duplicates()))
    else:
        _same(old_ones, trained[known])

    keys = ["user_id", "item_id", "timestamp", *([LABEL] if asked.get("explicit") else [])]
    old, came = (part["events"][keys].apply(tuple, axis=1) for part in parts)
    assert said["seen_again"] == int(came.isin(set(old)).sum()) > 0
    if asked is CASES["plain"]:
        assert _info(directory / "found")["counts"]["users_dropped"] == 0
        assert said["new_events"] == len(set(came) - set(old))
    assert 0 < said["new_events"] <= len(came)


def test_an_update_of_an_update_is_one_of_all(tmp_path: Path) -> None:
    asked = {**CASES["typed"], "frequency_threshold": 4}
    first, *later = _parts(3, count=3)
    _write(tmp_path / "0", first)
    _write(tmp_path / "1", later[0])
    _write(tmp_path / "2", later[1])
    _write(tmp_path / "all", _together([first, *later]))
    run_log(tmp_path / "0", tmp_path / "A", **asked)
    run_log(tmp_path / "all", tmp_path / "whole", **asked)
    _update(tmp_path / "1", tmp_path / "B", tmp_path / "A", **asked)
    _update(tmp_path / "2", tmp_path / "C", tmp_path / "B", **asked)
    _assert_equal(tmp_path / "C", tmp_path / "whole", asked)
    assert _assert_goes_on(tmp_path / "C", tmp_path / "B")
    _assert_goes_on(tmp_path / "B", tmp_path / "A")


def _bytes(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_equal_input_gives_equal_bytes_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_log, "EVENTS_PER_FILE", 70)
    monkeypatch.setattr(kept_log, "EVENTS_PER_GROUP", 30)
    monkeypatch.setattr(gather, "ROWS_READ_AT_ONCE", 16)
    monkeypatch.setattr(continued, "ROWS_READ_AT_ONCE", 16)
    asked = CASES["typed"]
    parts = _parts(4)
    a, b = (_write(tmp_path / name, part) for name, part in zip("ab", parts, strict=True))
    found = []
    for number, events in enumerate((None, 37)):
        before = tmp_path / f"A{number}"
        run_log(a, before, **asked, partition_events=events)
        output = tmp_path / f"D{number}"
        report = _update(b, output, before, **asked, partition_events=events)
        assert (report.plan.partitions > 1) == bool(number)
        found.append((_bytes(before), _bytes(output)))
    assert found[0] == found[1]
    assert sum(name.startswith("update/events") for name in found[0][0]) > 1


@pytest.mark.slow
def test_what_is_known_anew_of_an_item_counts_in_old_events_too(tmp_path: Path) -> None:
    asked = {"specs": FREE, "min_interactions": 1}
    (old, new), random = _parts(5), np.random.default_rng(0)
    items = old["items"].sample(frac=0.5, random_state=1).reset_index(drop=True)
    items["year"] = random.integers(1950, 2020, len(items)).astype(float)
    items.loc[::2, "category"] = None
    same = old["items"][old["items"]["item_id"].isin(items["item_id"][:3])]
    changed = pd.concat([items[3:], same]).reset_index(drop=True)
    newest = pd.concat([changed, old["items"]]).drop_duplicates("item_id")
    whole = {**_together([old, new]), "items": newest}
    new = {**new, "items": changed, "users": old["users"][:0]}
    for part, frames in {"a": old, "b": new, "ab": whole}.items():
        _write(tmp_path / part, frames)
    run_log(tmp_path / "a", tmp_path / "A", **asked)
    run_log(tmp_path / "ab", tmp_path / "AB", **asked)
    report = _update(tmp_path / "b", tmp_path / "found", tmp_path / "A", **asked)
    _same(_events(tmp_path / "found", FREE).drop(columns=NEW), _events(tmp_path / "AB", FREE))
    both = old["items"].merge(changed, on="item_id", suffixes=("", "_now"))
    differ = np.zeros(len(both), bool)
    for name in set(old["items"].columns) - {"item_id"}:
        was, now = both[name], both[f"{name}_now"]
        differ |= ~((was == now) | (was.isna() & now.isna())).to_numpy()
    assert 0 < report.metadata["counts"]["changed_items"] == differ.sum() < len(changed)
    assert report.metadata["counts"]["changed_users"] == 0


def test_numbers_are_transformed_as_they_were(tmp_path: Path) -> None:
    specs = {name: SPECS[name] for name in ("age", "price", "year", "dwell", "genres")}
    old, new = _parts(6)
    new["events"]["dwell"] = new["events"]["dwell"] * 50
    _write(tmp_path / "a", old)
    _write(tmp_path / "b", new)
    run_log(tmp_path / "a", tmp_path / "A", specs)
    report = _update(tmp_path / "b", tmp_path / "found", tmp_path / "A", specs=specs)
    assert report.metadata["features"] == _info(tmp_path / "A")["features"]
    fitted = report.metadata["features"]["dwell"]
    events = _events(tmp_path / "found", specs)
    came = new["events"].dropna(subset=["dwell"]).drop_duplicates()
    spread = np.log1p(np.clip(came["dwell"], 0, 600))
    expected = np.float32((spread - fitted["mean"]) / fitted["scale"])
    found = events.loc[events[NEW] == 1, "dwell"].astype(np.float32)
    assert np.isin(expected, found).mean() > 0.9  # but for users with too few events
    # Of a bag that is cut those elements stay that are first in the vocabulary: the old ones.
    words = _vocabulary(tmp_path / "found", "genres")
    lists = pq.read_table(bag_file(tmp_path / "found", "genres"))[IDS].to_pylist()
    assert max(map(len, lists)) == specs["genres"].most < len(words)
    assert all(bag == sorted(bag) for bag in lists)
