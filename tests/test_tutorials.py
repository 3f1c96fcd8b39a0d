"""Pages that lead from raw files to scores, run as they are written, on less data."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lookback import cli
from lookback.core.options.program import Program

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)

SMALLER = {
    "range(500)": "range(40)",
    "--epochs 3": "--epochs 1 --embedding_dim 4 --max_seq_length 12 --long_seq_length 8 --k 4 "
    "--global_batch_size 1024",
}
"""What of the tutorial takes minutes -> what takes seconds."""
ROWS = {"range(20_000)": "range(400)", "--epochs 3": "--epochs 1 --global_batch_size 64"}
IN_PYTHON = {
    "epochs=3": "epochs=1, embedding_dim=4, max_seq_length=12, long_seq_length=8, k=4, "
    "global_batch_size=1024",
    'model("din")': 'model("din", embedding_dim=4)',
    'to_tf("din", global_batch_size=256)': 'to_tf("din", global_batch_size=1024, embedding_dim=4)',
}
GOES_ON = {"range(50)": "range(20)", "--epochs 1": SMALLER["--epochs 3"]}


@pytest.fixture
def in_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lookback(words: list[str]) -> None:
    """Runs a command of the program in this process, which keeps its TensorFlow."""
    door, *rest = words
    if door == "train":
        cli.train(rest)
        return
    inside = cli.LOOKBACK.commands[door].inside()
    assert isinstance(inside, Program)
    assert inside.main(rest) == 0, words


def run_script(name: str) -> None:
    exec(compile(Path(name).read_text(), name, "exec"), {})


def shrunk(page: str, smaller: dict[str, str]) -> str:
    """The page's text, with less to do."""
    text = (DOCS / page).read_text()
    for written, instead in smaller.items():
        assert text.count(written) == 1
        text = text.replace(written, instead)
    return text


def run_page(page: str, smaller: dict[str, str], said: Callable[[], str]) -> dict[str, str]:
    """Writes the page's files and runs its commands in this process; gives what each said."""
    found = {}
    for kind, title, block in BLOCK.findall(shrunk(page, smaller)):
        if title:
            Path(title).write_text(block)
        for line in () if kind else block.replace("\\\n", " ").splitlines():
            command, _, output = line.partition(" > ")
            words = shlex.split(command)
            if words[0] == "python3":
                run_script(words[1])
            else:
                lookback(words[1:])
            found[line] = said()
            if output:
                Path(output).write_text(found[line])
    return found


def run_python(page: str, smaller: dict[str, str]) -> dict[str, Any]:
    """Runs the page's Python; gives its names."""
    names: dict[str, Any] = {}
    for block in [block for kind, _, block in BLOCK.findall(shrunk(page, smaller)) if kind]:
        exec(compile(block, page, "exec"), names)
    return names


@pytest.mark.slow
def test_the_tutorial_runs_and_goes_on(in_empty_directory, running_eagerly, capsys) -> None:
    with running_eagerly():
        said = run_page("tutorial.md", SMALLER, lambda: capsys.readouterr().out)
        more = run_page("how-to/incremental.md", GOES_ON, lambda: capsys.readouterr().out)
        names = run_python("how-to/python.md", IN_PYTHON)

    assert "events.user:" not in Path("log.yaml").read_text()
    assert "user:  # SET THIS" in Path("proposed.yaml").read_text()
    assert json.loads(Path("data/books/dataset.json").read_text())["counts"]["users"] == 40
    (answer,) = [json.loads(out) for line, out in said.items() if "mine.jsonl" in line]
    best = [(scored["item_id"], scored["known"]) for scored in answer["candidates"]]
    assert sorted(best) == [("b003", True), ("b999", False)]
    (table,) = [out for line, out in said.items() if "--format table" in line]
    assert table.count("user_id r") == 2

    ranked = pd.read_parquet("best.parquet")
    assert ranked.groupby("user_id").size().tolist() == [10] * 40
    had = set(zip(*(pd.read_csv("events.csv")[name] for name in ("reader", "book")), strict=True))
    assert not had & set(zip(ranked["user_id"], ranked["item_id"], strict=True))

    events = pd.concat([pd.read_csv("events.csv"), pd.read_csv("new/events.csv")])
    counts = json.loads(Path("data/books-2/dataset.json").read_text())["counts"]
    assert counts["events"] == len(events)
    new = set(pd.read_csv("new/events.csv")["book"]) - set(pd.read_csv("events.csv")["book"])
    update, trained = (
        next(o for line, o in more.items() if w in line) for w in ("update", "train")
    )
    assert f"new ids: item_id {len(new)}" in update
    kept = events["book"].nunique() - len(new)
    assert names["done"].metrics["test_auc"] > 0
    assert names["done"].export_dir == Path("runs/python/bundle")
    assert f"table item_id: {3 + kept:,} rows kept, {len(new)} new" in trained


def test_rows_with_labels_run(in_empty_directory, running_eagerly, capsys) -> None:
    with running_eagerly():
        said = run_page("how-to/rows.md", ROWS, lambda: capsys.readouterr().out)
    counts = json.loads(Path("data/rows/dataset.json").read_text())["counts"]
    assert [counts[split] for split in ("train", "validation", "test")] == [320, 40, 40]
    clicked = pd.read_csv("impressions.csv")["clicked"]
    assert list(counts["positives"].values()) == [
        clicked[:320].sum(),
        clicked[320:360].sum(),
        clicked[360:].sum(),
    ]
    (described,) = [out for line, out in said.items() if "describe" in line]
    assert "0 (0.0%)" in described
    (scored,) = [out for line, out in said.items() if "serving score" in line]
    assert all(0 < json.loads(line)["probability"] < 1 for line in scored.splitlines())


def test_the_impressions_of_the_page_make_a_dataset(in_empty_directory: Path) -> None:
    for _, title, block in BLOCK.findall((DOCS / "how-to/impressions.md").read_text()):
        if title:
            Path(title).write_text(block)
    run_script("make_impressions.py")
    lookback(["workflows", "run", "--config", "clicks.yaml", "--output", "out"])
    shown = pd.read_csv("impressions.csv")
    said = json.loads(Path("out/dataset.json").read_text())
    assert said["labels"] == "explicit"
    assert said["counts"]["events"] == (shown["clicked"] == 1).sum()
    days = pd.to_datetime(["2024-01-01", "2024-01-07", "2024-01-08", "2030-01-01"])
    parts = pd.cut(pd.to_datetime(shown["ts"], unit="s"), days, right=False)
    counts = [said["counts"][f"{split}_impressions"] for split in ("train", "validation", "test")]
    assert counts == list(parts.value_counts(sort=False))
