"""A dry run says what the run takes, writes nothing, and refuses what the run would refuse."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookback import cli
from lookback.core.errors import UserError
from lookback.core.sizes import parse_size
from lookback.training.rehearsal import Rehearsal

ROOT = Path(__file__).resolve().parents[2]
DIN = (
    "--model_type",
    "din",
    "--embedding_dim",
    "4",
    "--max_seq_length",
    "9",
    "--long_seq_length",
    "5",
    "--seed",
    "3",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """One with a workflow, as an export needs it: 40 users of 9 events, one of each validation."""
    from lookback.workflows.pipeline import run_dataset

    place = tmp_path_factory.mktemp("data")
    rows = "".join(f"u{n % 40},i{n * n % 31},{1_500_000_000 + n}\n" for n in range(360))
    (place / "a.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    run_dataset("interactions", place / "a.csv", place / "dataset", min_interactions=4)
    return place / "dataset"


@pytest.mark.usefixtures("eagerly")
def test_nothing_is_written_and_all_is_said(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--dataset_dir", str(dataset), *DIN, "--global_batch_size", "16", "--epochs", "3"]
    words += ["--save_checkpoint_path", "saved", "--export_dir", "bundle", "--dry_run"]
    cli.train(words)
    said = capsys.readouterr().out
    steps = 3 * (40 * 6 * 2 // 16)  # targets 1 to 6 of 9 events, each with a negative
    assert f"{steps} steps of" in said
    assert "validation: 3 x " in said and "test: 1 x " in said
    assert re.search(r"3 checkpoint\(s\) of [\d.]+ k?M?B and an export of", said)
    assert re.search(r"memory  [\d.,]+ [MG]B at its peak", said)
    assert not list(tmp_path.iterdir())


def test_what_the_run_would_refuse_is_refused(dataset, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine").write_text("x")
    words = ["--dataset_dir", str(dataset), *DIN, "--export_dir", str(tmp_path / "bundle")]
    with pytest.raises(UserError, match="bundle"):
        cli.train([*words, "--dry_run"])
    with pytest.raises(UserError, match="dry_run"):
        cli.train(["--dataset_dir", str(dataset), *DIN, "--dry_run", "--mode", "evaluate"])


def test_times_add_up():
    found = Rehearsal(
        5.0, 100, 0.25, 2, {"validation": (2, 3.0), "test": (1, 4.0)}, [1], 9, 0, None
    )
    assert found.seconds == 5 + 2 * 100 * 0.25 + 2 * 3 + 4
    assert "logs and a report alone" in found.lines()[-1]


TRAIN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from lookback import cli
from lookback.core.processes import resident_peak
cli.train(sys.argv[2:])
open(sys.argv[1], "w").write(str(resident_peak()))
"""


def peak_of(preloaded: tuple[str, str], words: list[str], place: Path) -> tuple[int, str]:
    """The most memory that training in a process of its own had, in bytes, and what it said.

    The process tells it: what the kernel tells its parent (`wait4`) begins with the parent's own.
    """
    program = place.with_suffix(".py")
    program.write_text(TRAIN)
    command = [sys.executable, *preloaded, str(program), str(place), *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return int(place.read_text()), ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("width", [4, 512])
def test_memory_is_that_of_the_run(
    width: int, make_histories: Callable, write_dataset: Callable, preloaded: Any, tmp_path: Path
):
    """Within 30 %, where tables and moments take next to nothing and where they take 600 MB."""
    histories = make_histories(lengths=[9] * 40, items=100_000, validation=1)
    directory = write_dataset(histories, tmp_path / "dataset")
    words = ["--dataset_dir", str(directory), *DIN, "--embedding_dim", str(width)]
    words += ["--global_batch_size", "16", "--epochs", "1", "--results_dir", str(tmp_path / "r")]
    _, lines = peak_of(preloaded, [*words, "--dry_run"], tmp_path / "dry")
    (said,) = re.findall(r"memory  ([\d.,]+ \w+) at", lines)
    taken, _ = peak_of(preloaded, words, tmp_path / "run")
    assert parse_size(said, "memory") == pytest.approx(taken, rel=0.3)
