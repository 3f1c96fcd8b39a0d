"""Pages that lead from raw files to scores, run as they are written, on less data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from lookback import cli
from lookback.core.options.program import Program
from lookback.workflows.commands import PROGRAM

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)

SMALLER = {
    "range(500)": "range(40)",
    "--epochs 3": "--epochs 1 --embedding_dim 4 --max_seq_length 12 --long_seq_length 8 --k 4 "
    "--global_batch_size 1024",
}
"""What of the tutorial takes minutes -> what takes seconds."""


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


def test_the_tutorial_runs(in_empty_directory, running_eagerly, capsys) -> None:
    text = (DOCS / "tutorial.md").read_text()
    for written, smaller in SMALLER.items():
        assert text.count(written) == 1
        text = text.replace(written, smaller)
    said = {}
    with running_eagerly():
        for kind, title, block in BLOCK.findall(text):
            if title:
                Path(title).write_text(block)
            for line in () if kind else block.replace("\\\n", " ").splitlines():
                command, _, output = line.partition(" > ")
                words = shlex.split(command)
                if words[0] == "python3":
                    exec(compile(Path(words[1]).read_text(), words[1], "exec"), {})
                else:
                    lookback(words[1:])
                said[line] = capsys.readouterr().out
                if output:
                    Path(output).write_text(said[line])

    assert "events.user:" not in Path("log.yaml").read_text()
    assert "user:  # SET THIS" in Path("proposed.yaml").read_text()
    assert json.loads(Path("data/books/dataset.json").read_text())["counts"]["users"] == 40
    (answer,) = [json.loads(out) for line, out in said.items() if "mine.jsonl" in line]
    best = [(scored["item_id"], scored["known"]) for scored in answer["candidates"]]
    assert sorted(best) == [("b003", True), ("b999", False)]
    (table,) = [out for line, out in said.items() if "--format table" in line]
    assert table.count("user_id r") == 2


def test_the_impressions_of_the_page_make_a_dataset(in_empty_directory: Path) -> None:
    text = (DOCS / "how-to/impressions.md").read_text()
    (description,) = [block for kind, _, block in BLOCK.findall(text) if kind == "yaml"]
    Path("clicks.yaml").write_text(description)
    random = np.random.default_rng(1)
    start = 1_704_067_200  # 2024-01-01
    rows = [
        f"{start + 21_600 * n + u},u{u},p{random.integers(9)},{random.integers(2)},ios\n"
        for n in range(36)
        for u in range(25)
    ]
    Path("impressions.csv").write_text("ts,who,what,clicked,device\n" + "".join(rows))
    items = [
        {"id": f"p{n}", "info": {"kind": "shoes", "tags": ["red", "sale"][: n % 3]}, "price": n}
        for n in range(9)
    ]
    Path("items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    assert PROGRAM.main(["run", "--config", "clicks.yaml", "--output", "out"]) == 0
    said = json.loads(Path("out/dataset.json").read_text())
    assert said["labels"] == "explicit"
    counts = said["counts"]
    assert counts["events"] == sum(row.split(",")[3] == "1" for row in rows)
    splits = ("train", "validation", "test")
    assert sum(counts[f"{split}_impressions"] for split in splits) == len(rows)
