"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from lookback.benchmarks import BENCHMARKS
from lookback.core.options import options_of, parameter_table
from lookback.training.parallel.run_model import SWITCHES, LaunchOptions
from lookback.training.removed import removed_table
from lookback.training.run import command_line

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_removed_parameters_are_listed_as_the_code_has_them():
    text = (ROOT / "docs/parameters.md").read_text()
    assert removed_table() in text
    assert text.count("what replaces it |") == 1


def test_parameters_are_listed_as_the_code_has_them():
    assert parameter_table(command_line()) in (ROOT / "docs/parameters.md").read_text()


def options_after(program: str, text: str) -> set[str]:
    """Options on the lines, continued ones included, that name a program."""
    lines = re.findall(rf"^[^#\n]*{re.escape(program)}((?:[^\n\\]|\\\n)*)", text, re.MULTILINE)
    return {option for line in lines for option in re.findall(r"--(\w+)", line)}


def test_options_and_benchmarks_of_the_commands_exist():
    parameters = (ROOT / "docs/parameters.md").read_text()
    of_train = {*re.findall(r"^\|[^|]*\| `(\w+)`", parameters, re.MULTILINE), "help", "config"}
    of_launcher = {*options_of(LaunchOptions), *SWITCHES}
    assert {"epochs", "help"} < of_train
    assert {"np", "hosts"} < of_launcher
    code = "\n".join(re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
    assert options_after("train.py", code)
    assert options_after("train.py", code) <= of_train
    assert options_after("run_model.sh", code)
    for program in ("train.py", "run_model.sh"):  # in sentences, too, which may name both
        assert options_after(program, README) <= of_train | of_launcher
    assert set(re.findall(r"-m benchmarks (\w+)", README)) <= set(BENCHMARKS)


def test_files_of_the_commands_exist():
    for path in re.findall(r"(?:scripts|docs)/[\w./-]+\.(?:sh|md)", README):
        assert (ROOT / path).is_file(), path
