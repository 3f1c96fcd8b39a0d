"""`workflows run --dry_run`: what a run would take."""

from __future__ import annotations

import dataclasses
import gzip
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.workflows import rehearsal
from lookback.workflows.cluster import forgo_tensorflow
from lookback.workflows.commands import PROGRAM
from lookback.workflows.order import Survey
from lookback.workflows.pipeline import run_dataset
from lookback.workflows.rehearsal import BYTES_PER_ENTRY, Measured, extrapolated, rehearse
from tests.workflows.row_log import BY_TIME, YAML, write_rows

main = PROGRAM.main
Tree = dict[Path, int]


def _interactions(users: int, file: Path, each: int = 40) -> Path:
    """A log with `each` events a user, written in the order of users."""
    random = np.random.default_rng(0)  # the first of more users are the same
    pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), each),
            "item_id": random.integers(1000, size=users * each),
            "timestamp": 1_500_000_000 + np.tile(np.arange(each), users),
        }
    ).to_csv(file, index=False)
    return file


def _tree(directory: Path) -> Tree:
    return {path: path.stat().st_mtime_ns for path in sorted(directory.rglob("*"))}


def test_a_line_through_two_samples() -> None:
    """By hand: a process takes 100, an event 3, so that 4 partitions of 50 events take 600."""
    first = Measured(lines=10, memory=130, disk=40, output=20, seconds=1.5, entries=5)
    last = Measured(lines=20, memory=160, disk=80, output=40, seconds=2.0, entries=10)
    found = extrapolated(first, last, lines=1000, held=200, workers=4, processes=5)
    assert found.memory == 5 * 100 + 3 * 200 + BYTES_PER_ENTRY * 10 // 20 * 800
    assert (found.disk, found.output, found.sampled) == (4000, 2000, 20)
    assert found.seconds == pytest.approx(1.0 + 0.05 * 1000 / 4)


def test_ids_come_again() -> None:
    """Four times the lines had twice the entries: so a hundred times have ten times as many."""
    first = Measured(lines=100, memory=7, disk=1, output=1, seconds=1.0, entries=50)
    last = Measured(lines=400, memory=7, disk=1, output=1, seconds=1.0, entries=100)
    found = extrapolated(first, last, lines=40_000, held=1_600, workers=1, processes=1)
    assert found.memory == pytest.approx(7 + BYTES_PER_ENTRY * (1000 - 200), abs=1)
    full = dataclasses.replace(last, entries=50)
    assert extrapolated(first, full, lines=40_000, held=400, workers=1, processes=1).memory == 7


@pytest.mark.parametrize("packed", [False, True])
def test_a_sample_has_whole_records(packed: bool, tmp_path: Path) -> None:
    """A quoted field may hold line feeds."""
    text = "user_id,note\n" + "".join(f'u{n},"two\nlines"\n' for n in range(100))
    path = tmp_path / ("log.csv.gz" if packed else "log.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    rehearsal.head(path, tmp_path / f"head-{path.name}", 0.31)
    whole, head = pd.read_csv(path), pd.read_csv(tmp_path / f"head-{path.name}")
    assert 20 < len(head) < 50
    pd.testing.assert_frame_equal(head, whole[: len(head)])


def test_a_sample_of_parquet_is_its_first_rows(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(1000), "y": ["a", "b"] * 500})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=70)
    assert rehearsal.head(tmp_path / "log.parquet", tmp_path / "head.parquet", 0.25) == 250
    assert pq.read_table(tmp_path / "head.parquet").equals(table.slice(0, 250))


@pytest.mark.slow
def test_it_writes_nothing_and_says_what_a_run_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a small log all is run, so its output has the size that is told."""
    file = _interactions(30, tmp_path / "log.csv")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    words = ["run", "--dataset", "interactions", "--input", str(file), "--workers", "0"]
    before = _tree(tmp_path)
    assert main([*words, "--output", str(tmp_path / "out"), "--dry_run"]) == 0
    after = _tree(tmp_path)
    after[scratch] = before[scratch]  # something was in it meanwhile
    assert after == before
    said = capsys.readouterr().out
    assert said.startswith("dry run: nothing was written")
    assert [line.split()[0] for line in said.splitlines()[1:4]] == ["memory", "disk", "time"]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--input", "nowhere"], "nowhere does not exist"),
        (["--memory_limit", "1MB"], "of memory is too little"),
        (["--item_column", "product"], "product"),
    ],
)
def test_it_refuses_what_a_run_refuses(
    more: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _interactions(3, tmp_path / "log.csv")
    words = ["run", "--dataset", "interactions", "--input", str(file), "--output"]
    words += [str(tmp_path / "out"), *more]
    errors = []
    for dry in ([], ["--dry_run"]):
        assert main([*words, *dry]) == 2
        errors.append(capsys.readouterr().err)
    assert errors[0] == errors[1] and text in errors[0]


def test_it_refuses_an_output_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _interactions(3, tmp_path / "log.csv")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    words = ["run", "--dataset", "interactions", "--input", str(file), "--dry_run"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_sample_of_rows_has_no_later_ones_to_hold_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first rows of a log in the order of time are all before a split by time."""
    write_rows(tmp_path / "log")
    rows = pd.concat(map(pd.read_csv, sorted((tmp_path / "log").glob("rows-*.csv"))))
    for file in (tmp_path / "log").glob("rows-*.csv"):
        file.unlink()
    rows.sort_values("ts").to_csv(tmp_path / "log/rows-0.csv", index=False)
    (tmp_path / "log/my.yaml").write_text(YAML.format(ending="csv", split=BY_TIME))
    monkeypatch.setattr(rehearsal, "SAMPLES", (80, 160))
    monkeypatch.setattr(rehearsal, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(rehearsal, "forgo_tensorflow", lambda: None)
    words = ["run", "--config", str(tmp_path / "log/my.yaml"), "--output", str(tmp_path / "out")]
    assert main([*words, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert said.count("a sample had a split by rows, as the run's rules refuse it: Split:") == 1
    assert main(words) == 0


def _peak(file: Path, output: Path) -> int:
    """Task, in a new process: what a run takes."""
    forgo_tensorflow()
    run_dataset("interactions", file, output, workers=0)
    return rehearsal.resident_peak()


@pytest.mark.slow
def test_memory_is_within_30_percent_at_two_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files begin with the same events, so they have the same samples."""
    monkeypatch.setattr(rehearsal, "SAMPLES", (50_000, 300_000))
    measure, known = rehearsal.measure, dict[int, Measured]()

    def once(dataset: str, survey: Survey, source: Path, size: int, options: Any) -> Measured:
        if size not in known:
            known[size] = measure(dataset, survey, source, size, options)
        return known[size]

    monkeypatch.setattr(rehearsal, "measure", once)
    peaks = []
    for users in (12_000, 24_000):
        file = _interactions(users, tmp_path / f"{users}.csv")
        found = rehearse("interactions", file, tmp_path / "out", workers=0)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peaks.append(pool.submit(_peak, file, tmp_path / f"out-{users}").result())
        assert found.lines == pytest.approx(40 * users, rel=0.1)  # of the first lines' lengths
        assert found.memory == pytest.approx(peaks[-1], rel=0.3)
