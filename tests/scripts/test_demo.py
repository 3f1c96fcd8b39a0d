"""What scripts/demo.sh refuses, before it sets anything up. (The demo itself is run by hand.)"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "scripts" / "demo.sh"


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DEMO, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fast"], "unknown argument --fast; usage: scripts/demo.sh [--output DIR] [--serve]"),
        (["--output"], "--output needs a directory"),
        (["--output", ""], "--output needs a directory"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str) -> None:
    result = demo(*arguments)
    assert result.returncode == 2
    assert result.stderr == f"demo: error: {says}\n"


def test_help_is_the_head_of_the_script() -> None:
    result = demo("--help")
    assert result.returncode == 0
    assert "usage: scripts/demo.sh [--output DIR] [--serve]" in result.stdout


def test_a_directory_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine").write_text("precious")
    result = demo("--output", str(tmp_path))
    assert result.returncode == 2
    assert f"{tmp_path} exists and is not an earlier demo's" in result.stderr
    assert (tmp_path / "raw" / "mine").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_what_somebody_put_into_an_earlier_demo_is_kept(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "log.json").write_text("ours")
    (tmp_path / ".lookback-demo").write_text("./results/log.json\n")
    (tmp_path / "results" / "notes.txt").write_text("precious")
    result = demo("--output", str(tmp_path))
    assert result.returncode == 2
    assert f"{tmp_path} holds ./results/notes.txt, which no demo made" in result.stderr
    assert (tmp_path / "results" / "notes.txt").read_text() == "precious"


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    result = demo("--output", str(tmp_path / "file"))
    assert result.returncode == 2
    assert "choose another with --output DIR" in result.stderr
    assert (tmp_path / "file").read_text() == "precious"
