from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from lookback.core.errors import UserError
from lookback.workflows.__main__ import main
from lookback.workflows.describe import describe
from lookback.workflows.histories.pipeline import read_metadata, run_dataset

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., pd.DataFrame]
Write = Callable[..., Path]


def _cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workflows", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_run_fit_transform_describe(
    tmp_path: Path,
    make_events: Make,
    write_reviews: Write,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = write_reviews(make_events(), {"B000": "a"})
    done = _cli("run", "--dataset", "amazon", "--input", raw, "--output", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert "1 partition(s) of up to 1,000,000 events in this process" in done.stderr
    metadata = read_metadata(tmp_path / "run")
    assert metadata["content_hash"] in done.stdout
    # The others in this process: an interpreter with NVTabular takes seconds to start.
    fit = ["fit", "--dataset", "amazon", "--input", str(raw), "--output", str(tmp_path / "fit")]
    assert main(fit) == 0
    assert json.loads((tmp_path / "fit/options.json").read_text())["dataset"] == "amazon"
    same = ["--input", str(raw), "--output", str(tmp_path / "same"), "--validation"]
    assert main(["transform", "--workflow", str(tmp_path / "fit"), *same]) == 0
    found = read_metadata(tmp_path / "same")
    assert found["content_hash"] == metadata["content_hash"]
    assert found["split"]["validation"] == 1
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    assert main(["describe", str(tmp_path / "same")]) == 0
    printed = capsys.readouterr().out
    for text in (
        metadata["content_hash"],
        "list<int32>",
        "categorical, id, item, list, sequence",
        f"{metadata['cardinalities']['item_id']}",
        f"{metadata['counts']['events']:,}",
        "p99",
        "leave_last_out",
        "the event before the last of each user",
    ):
        assert text in printed, text


def test_generated_data_is_read(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    status = main(["generate", "--dataset", "synthetic", "--preset", "tiny", "--output", str(raw)])
    assert status == 0
    report = run_dataset("synthetic", raw, tmp_path / "out")
    counts = report.metadata["counts"]
    assert (counts["users"], counts["events"]) == (300, 12_000)
    assert report.metadata["dataset"] == "synthetic"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--input", "nowhere"], "error: --input nowhere is not a directory"),
        (["--input", ".", "--min_interaction", "5"], "run has no option --min_interaction"),
        (["--input", ".", "--user_columns", "age"], "--user_columns is no option of the dataset"),
        (["--input", ".", "--memory_limit", "much"], "'much' is not a size"),
        (["--input", ".", "--min_interactions", "0"], "--min_interactions must be 1 or more"),
        (["--input", ".", "--numerical", "5"], "--numerical is no option of the dataset 'amazon'"),
        (["--input", ".", "--seed", "5"], "--seed is no option of the dataset 'amazon'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["run", "--dataset", "amazon", "--output", str(output), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and text in error
    assert not output.exists()


def test_help_is_fast() -> None:
    script = (
        "import sys\n"
        "from lookback.workflows.__main__ import main\n"
        "try:\n    main(['run', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "print([name for name in ('nvtabular', 'tensorflow', 'dask', 'pandas') "
        "if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--min_interactions" in done.stdout
    assert "--category" in done.stdout and "--user_columns" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_describe_refuses_what_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a dataset"):
        describe(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": "lookback-histories", "format_version": 9}')
    with pytest.raises(
        UserError, match="version 9; this version reads 'lookback-histories' version 1"
    ):
        describe(tmp_path)


def test_describe_counts_the_split(tmp_path: Path, make_events: Make, write_reviews: Write) -> None:
    report = run_dataset("amazon", write_reviews(make_events()), tmp_path / "out")
    console = Console(record=True, width=120, file=(tmp_path / "log").open("w"))
    describe(tmp_path / "out", console)
    counts = report.metadata["counts"]
    # Every event but a user's first and last is a training target.
    assert f"{counts['events'] - 2 * counts['users']:,}" in console.export_text()


def _write_clicks(directory: Path) -> Path:
    """Three days of two integers and two values a line."""
    directory.mkdir()
    for day in range(3):
        lines = (f"{i % 2}\t{i}\t\t{i % 3:08x}\t{i % 7:08x}\n" for i in range(50 + day))
        (directory / f"day_{day}").write_text("".join(lines))
    return directory


SMALL_CLICKS = ["--numerical", "2", "--categorical", "2", "--workers", "0"]


def test_clicks_go_through_the_same_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = str(_write_clicks(tmp_path / "raw"))
    run = ["--dataset", "criteo", "--input", raw, *SMALL_CLICKS, "--frequency_threshold", "22"]
    assert main(["run", *run, "--output", str(tmp_path / "run")]) == 0
    metadata = json.loads((tmp_path / "run/dataset.json").read_text())
    printed = capsys.readouterr().out
    assert "rows: train 101, validation 26, test 26; rows of all tables: 8" in printed
    assert metadata["content_hash"] in printed
    # 153 rows: some 51 of each of 3 values; 24, 23, 22 and four times 21 of 7 values.
    assert metadata["cardinalities"] == {"cat_0": 4, "cat_1": 4}
    assert main(["fit", *run, "--output", str(tmp_path / "fit")]) == 0
    same = ["--input", raw, "--output", str(tmp_path / "same"), "--workers", "0"]
    assert main(["transform", "--workflow", str(tmp_path / "fit"), *same]) == 0
    assert metadata["content_hash"] in capsys.readouterr().out
    assert main(["describe", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert metadata["content_hash"] in printed and "frequency_threshold" in printed
    assert "history" not in printed
    export = ["export", "--dataset_type", "split_binary", "--input", str(tmp_path / "run")]
    assert main([*export, "--output", str(tmp_path / "binary")]) == 0
    assert "153 rows" in capsys.readouterr().out
    assert (tmp_path / "binary/train/label.bin").stat().st_size == 101


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--min_interactions", "5"], "--min_interactions is no option of the dataset 'criteo'"),
        (["--no-validation"], "--validation is no option of the dataset 'criteo'"),
        (["--partition_events", "9"], "--partition_events is no option of the dataset 'criteo'"),
        (["--category", "Books"], "--category is no option of the dataset 'criteo'"),
        (["--block_size", "big"], "'big' is not a size"),
        (["--vocabulary", "some"], "--vocabulary must be all or train"),
    ],
)
def test_mistakes_with_clicks_are_one_line(
    arguments: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--dataset", "criteo", "--input", ".", "--output", str(tmp_path / "out")]
    assert main([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and text in error
    assert list(tmp_path.iterdir()) == []


def test_only_tabular_datasets_are_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--dataset_type", "split_binary", "--input", str(tmp_path)]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    assert "is not a tabular dataset" in capsys.readouterr().err
