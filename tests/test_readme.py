"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import BENCHMARKS
from models import MODELS
from training.cli import parameter_table
from training.config import RunConfig, removed_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_removed_parameters_are_listed_as_the_code_has_them():
    assert removed_table() in README


def test_parameters_are_listed_as_the_code_has_them():
    configs = {name: entry.config_class for name, entry in MODELS.items()}
    assert parameter_table(RunConfig, configs) in (ROOT / "docs/parameters.md").read_text()


def test_options_and_benchmarks_of_the_commands_exist():
    known = (ROOT / "docs/parameters.md").read_text()
    commands = re.findall(r"^[^#\n]*train\.py((?:[^\n\\]|\\\n)*)", README, re.MULTILINE)
    options = {option for command in commands for option in re.findall(r"--(\w+)", command)}
    assert options
    assert not {name for name in options if f"`{name}`" not in known} - {"help", "config"}
    assert set(re.findall(r"-m benchmarks (\w+)", README)) <= set(BENCHMARKS)


def test_files_of_the_commands_exist():
    for path in re.findall(r"(?:scripts|docs)/[\w./-]+\.(?:sh|md)", README):
        assert (ROOT / path).is_file(), path
