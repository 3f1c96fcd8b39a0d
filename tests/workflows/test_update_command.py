"""``workflows update`` from the command line: what it takes, says and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lookback.core.errors import UserError
from lookback.dataloading.histories.resident import Histories
from lookback.formats.dataset_info import TABULAR, write_info
from lookback.formats.history_columns import NEW
from lookback.workflows.commands import PROGRAM
from lookback.workflows.pipeline import fit_dataset, run_dataset, transform_dataset
from lookback.workflows.update import update_dataset

START = 1_500_000_000
YAML = f"""\
version: 1
events:
  files: [events.csv]
  user: who
  item: what
  time: ts
  features: {{device: {{type: category, known: before}}, dwell: {{type: number}}}}
items: {{files: items.csv, key: what, features: {{genre: {{type: category}}}}}}
filters: {{min_events_per_user: 2}}
split: {{by: time, validation_from: {START + 100}, test_from: {START + 150}}}
"""


def _events(first: int, count: int) -> pd.DataFrame:
    random = np.random.default_rng(first)
    return pd.DataFrame(
        {
            "who": [f"u{n}" for n in random.integers(0, 8, count)],
            "what": np.minimum(random.integers(1, 15, count), 3 + (first + np.arange(count)) // 12),
            "ts": START + first + np.arange(count),
            "device": random.choice(["phone", "pc"], count),
            "dwell": random.normal(size=count).round(3),
        }
    )


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a log, beside its raw files and its description."""
    directory = tmp_path_factory.mktemp("log")
    raw = directory / "raw"
    raw.mkdir()
    _events(0, 200).to_csv(raw / "events.csv", index=False)
    items = pd.DataFrame({"what": range(1, 12), "genre": ["a", "b"] * 5 + ["c"]})
    items.to_csv(raw / "items.csv", index=False)
    (raw / "my.yaml").write_text(YAML)
    _run("run", "--config", raw / "my.yaml", "--output", directory / "A", "--workers", 0)
    return directory / "A"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """What came: events alone, ten of which were there already."""
    directory = tmp_path / "new"
    directory.mkdir()
    events = pd.concat([_events(0, 200)[-10:], _events(200, 60)])
    events.to_csv(directory / "events.csv", index=False)
    return directory


def _run(command: str, *words: object) -> None:
    assert PROGRAM.main([command, *map(str, words)]) == 0


def _info(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "dataset.json").read_text())
    return found


def test_what_came_is_read_by_the_datasets_own_description(
    before: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "B"
    words = ["--dataset", before, "--input", new, "--output", output, "--workers", 0]
    _run("update", *words, "--test_from", START + 240)
    out, err = capsys.readouterr()
    said = _info(output)
    assert said["split"]["test_from"] == START + 240
    assert said["split"]["validation_from"] == START + 190  # moved as far
    update = said["update"]
    assert (update["seen_again"], update["new_events"]) == (10, 60)
    assert update["new_training"] == 90  # held out before
    assert "no file of items came" in err and "not read" not in err
    assert "10 of the events that came were there already (left out)" in out
    items = pd.read_csv(before.parent / "raw/events.csv")["what"]
    new_ids = len(set(items[:190]) - set(items[:100]))
    assert new_ids and f"new ids: item_id {new_ids};" in out
    assert "dwell: transformed as fitted before" in out
    assert said["options"]["split"] == {
        "by": "time",
        "validation_from": START + 190,
        "test_from": START + 240,
    }
    # It is a dataset as any: `NEW` is no feature.
    histories = Histories.load(output)
    assert NEW not in histories.features.of("user", "item", "context", "event")
    assert len(histories.offsets) - 1 == said["counts"]["users"]
    _run("describe", output)
    assert "seen_again" in capsys.readouterr().out


@pytest.mark.slow
def test_workers_give_what_one_process_gives(before: Path, new: Path, tmp_path: Path) -> None:
    words = ("--dataset", before, "--input", new, "--partition_events", 60)
    for workers in (0, 2):
        output = tmp_path / f"D{workers}"
        _run("update", *words, "--output", output, "--workers", workers)
    one, two = (
        {
            str(p.relative_to(d)): p.read_bytes() for p in d.rglob("*.parquet")
        }  # not NVTabular's pickle
        for d in (tmp_path / "D0", tmp_path / "D2")
    )
    assert len(one) > 5
    assert one == two


@pytest.mark.slow
def test_new_files_may_have_other_names_and_columns(
    before: Path, new: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(new / "events.csv").rename(columns={"who": "user", "ts": "at"})
    table["at"] *= 1000
    table.to_json(new / "tomorrow.jsonl", orient="records", lines=True)
    text = YAML.replace("[events.csv]", "[tomorrow.jsonl]").replace("who", "user")
    (new / "new.yaml").write_text(text.replace("time: ts", "time: {column: at, unit: ms}"))
    _run("update", "--dataset", before, "--input", new, "--output", tmp_path / "B")
    words = ["--dataset", before, "--config", new / "new.yaml", "--output", tmp_path / "C"]
    _run("update", *words)
    (new / "events.csv").rename(new / "any.csv")
    _run("update", "--dataset", before, "--input", new / "any.csv", "--output", tmp_path / "D")
    found = [_info(tmp_path / name) for name in "BCD"]
    assert len({info["content_hash"] for info in found}) == 1
    assert found[0]["update"] == found[1]["update"] == found[2]["update"]
    files = [info["options"]["events"]["files"] for info in found]
    assert files == [["events.csv"], ["tomorrow.jsonl"], ["events.csv"]]


Broken = Callable[[Path, Path, Path], dict[str, Any]]
REFUSED: dict[str, tuple[Broken, str]] = {
    "an option": (lambda a, new, tmp: {"min_interactions": 3}, "min_interactions: expected 2, as"),
    "the order of ties": (lambda a, new, tmp: {"ties": "item"}, "ties: expected 'file'"),
    "the split": (lambda a, new, tmp: {"test_from": str(START + 90)}, "hold out events from"),
    "no moment": (lambda a, new, tmp: {"test_from": "soon"}, "--test_from: expected a date"),
    "an unknown option": (lambda a, new, tmp: {"min_rating": 3}, "has no option 'min_rating'"),
    "no such input": (lambda a, new, tmp: {"input_dir": tmp / "gone"}, "does not exist"),
    "no log": (lambda a, new, tmp: {"dataset_dir": _without_log(a, tmp)}, "does not keep the log"),
    "a damaged log": (lambda a, new, tmp: {"dataset_dir": _damaged(a, tmp)}, "update/events-00000"),
    "its own output": (lambda a, new, tmp: {"output_dir": a}, "A"),
    "nothing new": (lambda a, new, tmp: {"input_dir": _empty(tmp)}, "events.files: expected"),
}


def _without_log(dataset: Path, directory: Path) -> Path:
    raw = dataset.parent / "raw"
    _run(
        *("run", "--config", raw / "my.yaml", "--output", directory / "bare", "--no_keep_log"),
        *("--workers", 0),
    )
    assert not (directory / "bare" / "update").exists()
    assert _info(directory / "bare")["content_hash"] == _info(dataset)["content_hash"]
    return directory / "bare"


def _damaged(dataset: Path, directory: Path) -> Path:
    shutil.copytree(dataset, directory / "damaged")
    file = directory / "damaged" / "update" / "events-00000.parquet"
    data = bytearray(file.read_bytes())
    data[50] ^= 1
    file.write_bytes(data)
    return directory / "damaged"


def _empty(directory: Path) -> Path:
    (directory / "empty").mkdir()
    return directory / "empty"


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused(before: Path, new: Path, tmp_path: Path, what: str) -> None:
    broken, sentence = REFUSED[what]
    asked = {"dataset_dir": before, "input_dir": new, "output_dir": tmp_path / "B"}
    asked |= broken(before, new, tmp_path)
    with pytest.raises(UserError, match=sentence):
        update_dataset(**asked, workers=0)
    assert not (tmp_path / "B").exists()
    assert (before / "dataset.json").exists()


def test_other_features_and_rules_are_refused(
    before: Path, new: Path, tmp_path: Path, capfd: Any
) -> None:
    for old, text, sentence in (
        ("dwell: {type: number}", "dwell: {type: number, log: true}", "Feature 'dwell'"),
        ("filters:", "sessions: {gap: 1h}\nfilters:", "sessions: expected"),
        ("filters: {", "filters: {min_events_per_item: 2, ", "filters: expected"),
        ("by: time, validation_from: 1500000100, test_from: 1500000150", "by: last", "split:"),
        ("time: ts", "time: {column: ts, unit: steps}", "time_unit: expected times"),
    ):
        (new / "new.yaml").write_text(YAML.replace(old, text))
        words = ["--dataset", before, "--config", new / "new.yaml", "--output", tmp_path / "B"]
        assert PROGRAM.main(["update", *map(str, words)]) == 2
        assert sentence in capfd.readouterr().err


def test_rows_cannot_be_updated_and_fits_keep_no_log(
    tmp_path: Path, before: Path, new: Path
) -> None:
    (tmp_path / "rows").mkdir()
    content = {"dataset": "criteo", "counts": {}, "cardinalities": {}}
    write_info(tmp_path / "rows", TABULAR, content)
    with pytest.raises(UserError, match="criteo, rows without histories, which cannot be updated"):
        update_dataset(tmp_path / "rows", new, tmp_path / "B")
    with pytest.raises(UserError, match="keep_log: expected with `run`"):
        fit_dataset("interactions", new, tmp_path / "B", keep_log=True)
    transform_dataset(before, before.parent / "raw", tmp_path / "C", workers=0)
    with pytest.raises(UserError, match="does not keep the log"):
        update_dataset(tmp_path / "C", new, tmp_path / "B")


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["interactions", "movielens", "amazon"])
def test_other_datasets_of_histories(tmp_path: Path, dataset: str, write_reviews: Any) -> None:
    events = _events(0, 200).rename(columns={"who": "user", "what": "item", "ts": "time"})
    parts = {"a": events[:150], "b": events[140:], "ab": events}
    for name, rows in parts.items():
        directory = tmp_path / name
        if dataset == "amazon":
            known = {str(item): f"c{item % 3}" for item in range(9 if name == "b" else 20)}
            rows = rows.assign(item=rows["item"].astype(str))
            write_reviews(rows, None if name == "b" else known, directory)
            continue
        directory.mkdir()
        rows = rows.assign(user=rows["user"].str[1:].astype(int))
        if dataset == "interactions":
            rows.to_csv(directory / "x.csv", index=False)
            continue
        lines = (
            f"{u}::{i}::5::{t}" for u, i, t in zip(rows.user, rows.item, rows.time, strict=True)
        )
        (directory / "ratings.dat").write_text("\n".join(lines) + "\n")
        if name != "b":
            films = [f"{item}::Film::{'A|B' if item % 2 else 'B'}" for item in range(1, 20)]
            (directory / "movies.dat").write_text("\n".join(films) + "\n")
    named = {"user_column": "user", "item_column": "item", "time_column": "time"}
    options = {"min_interactions": 2, "workers": 0, **(named if dataset == "interactions" else {})}
    said: list[str] = []
    run_dataset(dataset, tmp_path / "a", tmp_path / "A", **options)
    whole = run_dataset(dataset, tmp_path / "ab", tmp_path / "AB", **options).metadata
    found = update_dataset(
        tmp_path / "A", tmp_path / "b", tmp_path / "found", workers=0, log=said.append
    ).metadata
    for key in ("users", "events", "items", "unknown_ids", "events_without_features"):
        assert found["counts"][key] == whole["counts"][key]
    assert found["cardinalities"] == whole["cardinalities"]
    assert found["update"]["seen_again"] == 10
    assert not any("WARNING" in line for line in said)
    assert any("no file of items came" in line for line in said) == (dataset != "interactions")
