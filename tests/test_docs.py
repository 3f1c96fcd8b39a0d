"""The pages of docs/ do as they say: links lead somewhere, commands and descriptions are read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lookback.cli import LOOKBACK
from lookback.core.options import options_of
from lookback.core.options.program import Command, Program
from lookback.training.run import command_line
from lookback.workflows.commands import PROGRAM

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LOG_PAGE = (ROOT / "docs/your-own-log.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[^)\s]*)?\)", page.read_text()):
        if target and "://" not in target:
            assert (page.parent / target).exists(), target


def test_commands_of_the_page_have_their_options() -> None:
    known = {"train": {option for options in _of_train() for option in options}}
    found = 0
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", LOG_PAGE, re.MULTILINE | re.DOTALL):
        for line in () if kind else block.replace("\\\n", " ").splitlines():
            words = line.split()
            if words[:1] != ["lookback"]:
                continue
            found += 1
            assert words[1] in LOOKBACK.commands
            options = known.get(words[1]) or _of_command(words[1], words[2])
            assert {word[2:] for word in words if word.startswith("--")} <= options, line
    assert found > 6


def _of_train() -> list[set[str]]:
    line = command_line()
    return [set(line.options(name)) for name in line.variants]


def _of_command(door: str, name: str) -> set[str]:
    program = LOOKBACK.commands[door].inside()
    assert isinstance(program, Program)
    command = program.commands[name]
    assert isinstance(command, Command)
    line = command.line
    variants = [set(line.options(variant)) for variant in line.variants]
    configs = [set(options_of(config)) for config in line.configs]
    return {"config", *(option for group in (*variants, *configs) for option in group)}


def test_the_description_of_the_page_makes_a_dataset(tmp_path: Path) -> None:
    (description,) = re.findall(r"^```yaml\n(.*?)^```", LOG_PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "clicks.yaml").write_text(description)
    random = np.random.default_rng(1)
    start = 1_704_067_200  # 2024-01-01
    rows = [
        f"{start + 21_600 * n + u},u{u},p{random.integers(9)},{random.integers(2)},ios\n"
        for n in range(36)
        for u in range(25)
    ]
    (tmp_path / "impressions.csv").write_text("ts,who,what,clicked,device\n" + "".join(rows))
    items = [
        {"id": f"p{n}", "info": {"kind": "shoes", "tags": ["red", "sale"][: n % 3]}, "price": n}
        for n in range(9)
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    words = ["run", "--config", str(tmp_path / "clicks.yaml"), "--output", str(tmp_path / "out")]
    assert PROGRAM.main(words) == 0
    said = json.loads((tmp_path / "out/dataset.json").read_text())
    assert said["labels"] == "explicit"
    counts = said["counts"]
    assert counts["events"] == sum(row.split(",")[3] == "1" for row in rows)
    splits = ("train", "validation", "test")
    assert sum(counts[f"{split}_impressions"] for split in splits) == len(rows)
