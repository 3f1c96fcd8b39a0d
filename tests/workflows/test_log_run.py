"""A log from its YAML to a dataset, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lookback.dataloading.histories.resident import Histories
from lookback.workflows.commands import PROGRAM
from lookback.workflows.pipeline import run_dataset

START = 1_500_000_000
YAML = """\
version: 1
events:
  files: [events.{ending}]
  user: who
  item: what
  time: ts
  features:
    device: {{type: category, known: before}}
    dwell: {{type: number, fill: 0}}
items:
  files: [items.{ending}]
  key: what
  features:
    genres: {{type: categories, most: 2, separator: "|"}}
users: {{files: users.csv, key: who, features: {{age: {{type: number}}}}}}
filters: {{min_events_per_user: 4}}
split: {{by: last, validation: false}}
workers: 0
"""


def _write(directory: Path) -> pd.DataFrame:
    """Events, items and users; events and items in CSV, JSON lines and parquet."""
    random = np.random.default_rng(0)
    directory.mkdir()
    events = pd.DataFrame(
        {
            "who": [f"u{n}" for n in random.integers(0, 20, 300)],
            "what": random.integers(1, 40, 300),
            "ts": START + np.arange(300),
            "device": random.choice(["phone", "pc"], 300),
            "dwell": random.normal(size=300).round(3),
        }
    )
    genres = ["a|b", "b", "c|a"]
    items = pd.DataFrame({"what": range(1, 39), "genres": [genres[n % 3] for n in range(38)]})
    for name, frame in (("events", events), ("items", items)):
        frame.to_csv(directory / f"{name}.csv", index=False)
        frame.to_parquet(directory / f"{name}.parquet")
        frame.to_json(directory / f"{name}.jsonl", orient="records", lines=True)
    users = pd.DataFrame({"who": [f"u{n}" for n in range(20)], "age": range(20, 40)})
    users.to_csv(directory / "users.csv", index=False)
    return events


def _run(command: str, *words: object) -> None:
    assert PROGRAM.main([command, *map(str, words)]) == 0


def _metadata(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "dataset.json").read_text())
    return found


@pytest.mark.slow
def test_every_format_gives_the_same_dataset_and_so_does_a_saved_workflow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, hashes = tmp_path / "raw", set()
    events = _write(raw)
    for ending in ("csv", "jsonl", "parquet"):
        config = raw / f"{ending}.yaml"
        config.write_text(YAML.format(ending=ending))
        out = raw / f"out-{ending}"  # beside what is read, as in one's own directory
        _run("run", "--config", config, "--output", out)
        metadata = _metadata(out)
        hashes.add(metadata["content_hash"])
        assert metadata["options"]["min_interactions"] == 4
        assert metadata["split"] == {"rule": "leave_last_out", "test": 1, "validation": 0}
        assert metadata["options"]["events"]["files"] == [f"events.{ending}"]
        assert str(tmp_path) not in json.dumps(metadata)
        assert str(tmp_path) not in (out / "workflow/options.json").read_text()
    assert len(hashes) == 1
    kept = events.groupby("who").filter(lambda rows: len(rows) >= 4)
    without = int((kept["what"] == 39).sum())
    assert metadata["counts"]["events"] == len(kept)
    assert metadata["counts"]["events_without_features"] == {"genres": without, "age": 0}
    assert {name: entry["of"] for name, entry in metadata["features"].items()} == {
        **{"age": "user", "genres": "item", "device": "context", "dwell": "event"}
    }
    histories = Histories.load(out)
    assert histories.features.context == ("device",) and histories.features.bags == {"genres": 2}
    _run(
        "transform",
        "--workflow",
        out,
        "--input",
        raw,
        "--output",
        tmp_path / "again",
        "--workers",
        0,
    )
    assert _metadata(tmp_path / "again")["content_hash"] in hashes
    assert _metadata(tmp_path / "again")["options"]["events"] == metadata["options"]["events"]

    # Tomorrow's files have other names and columns.
    table = pq.read_table(raw / "events.parquet").rename_columns(["w", "x", "y", "device", "z"])
    pq.write_table(table, raw / "new.parquet")
    new = YAML.format(ending="parquet").replace("events.parquet", "new.parquet")
    for old, name in (("user: who", "user: w"), ("item: what", "item: x"), ("time: ts", "time: y")):
        new = new.replace(old, name)
    (raw / "new.yaml").write_text(new.replace("dwell: {", "dwell: {column: z, "))
    words = ["--workflow", out, "--config", raw / "new.yaml", "--output"]
    _run("transform", *words, tmp_path / "new")
    assert _metadata(tmp_path / "new")["content_hash"] in hashes
    (raw / "new.yaml").write_text(new.replace("most: 2", "most: 3"))
    assert PROGRAM.main([*map(str, ["transform", *words, tmp_path / "no"])]) == 2
    assert "feature 'genres' is another than at the fit" in capsys.readouterr().err


@pytest.mark.slow
def test_a_separator_that_no_value_has_is_said(tmp_path: Path, capsys: Any) -> None:
    _write(tmp_path / "raw")
    config = tmp_path / "raw" / "log.yaml"
    told = "WARNING: genres: no row has more than one category"
    for separator, said in (("|", False), (";", True)):
        config.write_text(YAML.format(ending="csv").replace('"|"', f'"{separator}"'))
        _run("run", "--config", config, "--output", tmp_path / "out", "--overwrite")
        assert (told in capsys.readouterr().out) == said


def test_a_log_without_features_is_that_of_interactions(tmp_path: Path) -> None:
    _write(tmp_path / "raw")
    config = tmp_path / "my.yaml"
    config.write_text(
        "version: 1\nevents: {files: raw/events.csv, user: who, item: what, time: ts}\n"
        "filters: {min_events_per_user: 3}\nworkers: 0\n"
    )
    _run("run", "--config", config, "--output", tmp_path / "log")
    columns = {"user_column": "who", "item_column": "what", "time_column": "ts"}
    options: dict[str, Any] = {"min_interactions": 3, "workers": 0, **columns}
    report = run_dataset("interactions", tmp_path / "raw/events.csv", tmp_path / "own", **options)
    assert _metadata(tmp_path / "log")["content_hash"] == report.metadata["content_hash"]


def test_ids_that_are_numbers_in_one_file_and_text_in_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = _write(tmp_path / "raw")
    events["what"] = events["what"].astype(str).replace("7", "x7")
    events.to_csv(tmp_path / "raw/events.csv", index=False)
    config = tmp_path / "raw/my.yaml"
    where = "  where: [{column: device, in: [pc]}]\n  features:\n    device"
    text = YAML.format(ending="csv").replace("  features:\n    device", where)
    config.write_text(text)
    _run("run", "--config", config, "--output", tmp_path / "out")
    counts = _metadata(tmp_path / "out")["counts"]
    kept = events[events["device"] == "pc"]
    assert counts["events_read"] == len(kept)
    assert f"left out {len(events) - len(kept)} rows by the condition on device" in (
        capsys.readouterr().out
    )
    known = {str(n) for n in range(1, 39)}
    assert counts["events_without_features"]["genres"] == int((~kept["what"].isin(known)).sum())


def test_impressions_with_clicks(tmp_path: Path) -> None:
    _write(tmp_path / "raw")
    events = pd.read_csv(tmp_path / "raw/events.csv")
    events["clicked"] = np.random.default_rng(1).integers(0, 2, len(events))
    events.to_csv(tmp_path / "raw/events.csv", index=False)
    config = tmp_path / "raw/my.yaml"
    config.write_text(
        "version: 1\nevents: {files: events.csv, user: who, item: what, time: ts, "
        "label: {column: clicked}}\nlabels: explicit\nfilters: {min_events_per_user: 1}\n"
        f"split: {{by: time, validation_from: {START + 200}, test_from: {START + 250}}}\n"
        "workers: 0\n"
    )
    _run("run", "--config", config, "--output", tmp_path / "out")
    assert _metadata(tmp_path / "out")["labels"] == "explicit"
    for part, low, high in (("train", 0, 200), ("validation", 200, 250), ("test", 250, 300)):
        (file,) = (tmp_path / "out/impressions" / part).iterdir()
        rows = pq.read_table(file).to_pandas()
        expected = events[low:high]
        assert len(rows) == high - low
        assert rows["label"].sum() == expected["clicked"].sum()
        assert sorted(rows["timestamp"]) == expected["ts"].tolist()


def test_labels_of_which_none_is_positive(tmp_path: Path, capfd: Any) -> None:
    _write(tmp_path / "raw")
    config = tmp_path / "raw/my.yaml"
    config.write_text(
        "version: 1\nevents: {files: events.csv, user: who, item: what, time: ts, "
        "label: {column: device, positive: [tablet]}}\nlabels: explicit\n"
        f"filters: {{min_events_per_user: 1}}\nsplit: {{by: time, test_from: {START + 250}}}\n"
        "workers: 0\n"
    )
    arguments = ["run", "--config", str(config), "--output", str(tmp_path / "out")]
    assert PROGRAM.main(arguments) == 2
    assert "None of the 300 impressions has a positive label" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_feature_of_items_may_stand_in_the_events(tmp_path: Path) -> None:
    _write(tmp_path / "raw")
    events = pd.read_csv(tmp_path / "raw/events.csv")
    random = np.random.default_rng(1)
    events["clicked"] = random.integers(0, 2, len(events))
    events["price"] = random.integers(1, 99, len(events))  # another one each time
    events.to_csv(tmp_path / "raw/events.csv", index=False)
    config = tmp_path / "raw/my.yaml"
    config.write_text(
        "version: 1\nevents: {files: events.csv, user: who, item: what, time: ts, "
        "label: {column: clicked}, features: {price: {type: number, of: item, standardise: false}}}"
        "\nlabels: explicit\nfilters: {min_events_per_user: 1}\n"
        f"split: {{by: time, validation_from: {START + 200}, test_from: {START + 250}}}\n"
        "workers: 0\n"
    )
    _run("run", "--config", config, "--output", tmp_path / "out")
    assert _metadata(tmp_path / "out")["features"]["price"]["of"] == "item"
    (file,) = (tmp_path / "out/impressions/train").iterdir()
    shown = pq.read_table(file).to_pandas().sort_values("timestamp")
    assert shown["price"].tolist() == events["price"][:200].tolist()
    (file,) = (tmp_path / "out/histories").iterdir()
    histories = (
        pq.read_table(file).to_pandas()[["timestamp", "price"]].explode(["timestamp", "price"])
    )
    clicks = events[events["clicked"] == 1]
    found = histories.dropna().sort_values("timestamp")
    assert found["price"].tolist() == clicks["price"].tolist()
    items = pq.read_table(tmp_path / "out/items.parquet").to_pandas()
    assert set(items["price"]) <= set(events["price"]) | {0}


def test_a_run_that_cannot_be_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "raw")
    config = tmp_path / "raw/my.yaml"
    config.write_text(YAML.format(ending="csv").replace("user: who", "user: hwo"))
    words = ["run", "--config", str(config), "--output", str(tmp_path / "out")]
    assert PROGRAM.main(words) == 2
    assert "events.csv has no column 'hwo'" in capsys.readouterr().err
    config.write_text(YAML.format(ending="csv").replace("dwell: {", "dwell: {most: 1, "))
    assert PROGRAM.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"error: {config}: events.features.dwell.most (line 9): it has an effect"
    )
    assert not (tmp_path / "out").exists()
