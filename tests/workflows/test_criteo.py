"""The Criteo workflow against plain pandas, and what it does when things go wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import nvtabular as nvt
import pandas as pd
import pyarrow.parquet as pq
import pytest
from merlin.schema import Tags
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

from lookback.core.errors import UserError
from lookback.core.manifests import is_whole
from lookback.formats.dataset_info import read_tabular_info
from lookback.formats.tabular_files import parts
from lookback.workflows.output import DATASET, Output
from lookback.workflows.pipeline import fit_dataset, run_dataset, transform_dataset
from lookback.workflows.tabular.ops import build_workflow
from lookback.workflows.tabular.state import Working, check_space

ROOT = Path(__file__).resolve().parents[2]
N, M = 3, 4
NUMS = [f"num_{number}" for number in range(N)]
CATS = [f"cat_{number}" for number in range(M)]
NAMES = ["label", *NUMS, *CATS]
SHAPE = {"numerical": N, "categorical": M, "workers": 0}
SMALL = {**SHAPE, "block_size": 5_000, "frequency_threshold": 3}


def make_day(rows: int, seed: int) -> pd.DataFrame:
    """Rows with missing values; cat_3 has values that are not Criteo's hashes."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({"label": random.integers(0, 2, rows)})
    for name in NUMS:
        numbers = (random.exponential(40, rows) - 4).astype(int)
        frame[name] = pd.array(numbers, "Int64")
        frame.loc[random.random(rows) < 0.1, name] = pd.NA
    for number, name in enumerate(CATS):
        ids = (random.random(rows) ** 3 * 10 ** (number + 1)).astype(int)
        form = "word-{}" if number == 3 else "{:08x}"
        frame[name] = [form.format(value * 2654435761 % 2**32) for value in ids]
        frame.loc[random.random(rows) < 0.05, name] = None
    return frame


def write_days(directory: Path, days: Sequence[pd.DataFrame], ending: str = "") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for number, day in enumerate(days):
        path = directory / f"day_{number}{ending}"
        day.to_csv(path, sep="\t", header=False, index=False)
    return directory


@pytest.fixture(scope="module")
def days() -> list[pd.DataFrame]:
    return [make_day(rows, seed) for seed, rows in enumerate((700, 301, 401))]


@pytest.fixture(scope="module")
def raw(days: list[pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_days(tmp_path_factory.mktemp("raw"), days)


def vocabularies(frame: pd.DataFrame, threshold: int) -> dict[str, dict[str, int]]:
    """The known values and their ids: by falling count, then by value; hashes aside (cat_3)."""
    found = {}
    for name in CATS:
        counts = Counter(frame[name].dropna())
        known = [value for value in counts if counts[value] >= threshold]
        known.sort(key=lambda value: (-counts[value], value))
        found[name] = {value: number for number, value in enumerate(known, start=1)}
    return found


def expected_rows(frame: pd.DataFrame, ids: dict[str, dict[str, int]]) -> pd.DataFrame:
    """What the dataset should hold."""
    out = pd.DataFrame({"label": frame["label"].astype("float32")})
    for name in NUMS:
        numbers = frame[name].fillna(0).astype("float64")
        out[name] = np.log(np.maximum(numbers + 2, 1)).astype("float32")
    for name in CATS:
        out[name] = frame[name].map(ids[name]).fillna(0).astype("int32")
    return out


def read_split(directory: Path, split: str) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(file) for file in parts(directory, split)], ignore_index=True)


def comparable(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(list(frame.columns), ignore_index=True)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame, *, ordered: bool) -> None:
    """Equal rows; in cat_3, whose ties are in the order of hashes, equal groups of rows."""
    if not ordered:
        found, expected = comparable(found[NAMES[:-1]]), comparable(expected[NAMES[:-1]])
    else:
        pairs = pd.DataFrame({"found": found["cat_3"], "expected": expected["cat_3"].to_numpy()})
        assert len(pairs.drop_duplicates()) == pairs["found"].nunique()
        assert pairs["expected"].nunique() == pairs["found"].nunique()
        found, expected = found[NAMES[:-1]], expected[NAMES[:-1]]
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), rtol=1e-6)


@pytest.mark.parametrize("threshold", [0, 3])
def test_dataset_is_what_pandas_computes(
    threshold: int, raw: Path, days: list[pd.DataFrame], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run_dataset("criteo", raw, output, **{**SMALL, "frequency_threshold": threshold})
    ids = vocabularies(pd.concat(days), threshold)
    metadata = read_tabular_info(output)
    assert metadata["cardinalities"] == {name: len(ids[name]) + 1 for name in CATS}
    counts = metadata["counts"]
    assert [counts[split] for split in ("train", "validation", "test")] == [1001, 200, 201]
    everything = expected_rows(pd.concat(days), ids)
    assert counts["unknown_ids"] == {name: int((everything[name] == 0).sum()) for name in CATS}
    train = expected_rows(pd.concat(days[:2]), ids)
    assert_same(read_split(output, "train"), train, ordered=False)
    assert_same(read_split(output, "validation"), expected_rows(days[2][:200], ids), ordered=True)
    assert_same(read_split(output, "test"), expected_rows(days[2][200:], ids), ordered=True)
    # Rows are shuffled, within parts.
    assert not read_split(output, "train")["num_0"].equals(train["num_0"].reset_index(drop=True))
    assert len(parts(output, "train")) > 5
    files = {path.name for path in output.iterdir()}
    assert files == {
        ".lookback.json", "dataset.json", "schema.pbtxt", "train", "validation", "test", "workflow"
    }  # fmt: skip
    assert not (tmp_path / "out.partial").exists()


def test_files_and_schema_are_as_the_format_says(raw: Path, tmp_path: Path) -> None:
    run_dataset("criteo", raw, tmp_path / "out", **SHAPE)
    (file,) = parts(tmp_path / "out", "test")
    schema = pq.read_schema(file)
    assert schema.names == NAMES
    assert [str(kind) for kind in schema.types] == ["float"] * (1 + N) + ["int32"] * M
    group = pq.read_metadata(file).row_group(0)
    # RLE is how the absence of nulls is written.
    assert {name for i in range(len(NAMES)) for name in group.column(i).encodings} <= {
        "PLAIN",
        "RLE",
    }
    merlin = TensorflowMetadata.from_proto_text_file(str(tmp_path / "out")).to_merlin_schema()
    assert merlin.column_names == NAMES
    assert merlin.select_by_tag(Tags.TARGET).column_names == ["label"]
    assert merlin.select_by_tag(Tags.BINARY_CLASSIFICATION).column_names == ["label"]
    assert merlin.select_by_tag(Tags.CONTINUOUS).column_names == NUMS
    assert merlin.select_by_tag(Tags.CATEGORICAL).column_names == CATS
    rows = read_tabular_info(tmp_path / "out")["cardinalities"]
    for name in CATS:
        domain = merlin[name].int_domain
        assert (domain.min, domain.max, domain.name) == (0, rows[name] - 1, name)


def test_hash_depends_on_neither_workers_nor_memory_nor_packing(
    raw: Path, days: list[pd.DataFrame], tmp_path: Path
) -> None:
    first = run_dataset("criteo", raw, tmp_path / "a", **SMALL)
    two = {**SMALL, "workers": 2, "memory_limit": 6 << 30}
    assert (
        run_dataset("criteo", raw, tmp_path / "b", **two).metadata["content_hash"]
        == (first.metadata["content_hash"])
    )
    other = run_dataset("criteo", raw, tmp_path / "c", **{**SMALL, "seed": 1})
    assert other.metadata["content_hash"] != first.metadata["content_hash"]
    # gzip's blocks are cut elsewhere, so rows are shuffled among others; with one block all agree.
    packed = write_days(tmp_path / "packed", days, ".gz")
    hashes = {
        run_dataset("criteo", path, tmp_path / f"{path.name}-out", **SHAPE).metadata["content_hash"]
        for path in (raw, packed)
    }
    assert len(hashes) == 1


def test_kaggle_s_last_seventh_is_the_last_day(days: list[pd.DataFrame], tmp_path: Path) -> None:
    frame = pd.concat(days, ignore_index=True)
    raw = write_days(tmp_path / "raw", [frame])
    (raw / "day_0").rename(raw / "train.txt")
    last = len(frame) // 7
    begin, middle = len(frame) - last, len(frame) - last + last // 2
    for vocabulary, counted in (("all", frame), ("train", frame[:begin])):
        output = tmp_path / vocabulary
        run_dataset("criteo", raw, output, **SMALL, vocabulary=vocabulary)
        ids = vocabularies(counted, 3)
        assert_same(read_split(output, "train"), expected_rows(frame[:begin], ids), ordered=False)
        validation = expected_rows(frame[begin:middle], ids)
        assert_same(read_split(output, "validation"), validation, ordered=True)
        assert_same(read_split(output, "test"), expected_rows(frame[middle:], ids), ordered=True)


def test_vocabulary_of_training_days_only(
    raw: Path, days: list[pd.DataFrame], tmp_path: Path
) -> None:
    run_dataset("criteo", raw, tmp_path / "out", **SMALL, vocabulary="train")
    ids = vocabularies(pd.concat(days[:2]), 3)
    test = expected_rows(days[2][200:], ids)
    assert_same(read_split(tmp_path / "out", "test"), test, ordered=True)


def test_saved_workflow_transforms_raw_frames_like_the_dataset(
    raw: Path, days: list[pd.DataFrame], tmp_path: Path
) -> None:
    run_dataset("criteo", raw, tmp_path / "run", **SMALL)
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "run" / "workflow", moved)
    workflow = nvt.Workflow.load(str(moved))
    test = read_split(tmp_path / "run", "test")
    asked = days[2][200:].reset_index(drop=True)
    pd.testing.assert_frame_equal(workflow.transform(asked)[NAMES], test)
    assert (
        workflow.output_schema["cat_0"].int_domain.max + 1
        == (read_tabular_info(tmp_path / "run")["cardinalities"]["cat_0"])
    )
    # A request has no label, and Python's own values.
    request = pd.DataFrame(asked.astype(object).where(asked.notna(), None), dtype=object)
    request = request.drop(columns="label")
    answered = workflow.remove_inputs(["label"]).transform(request)
    pd.testing.assert_frame_equal(answered[NUMS + CATS], test[NUMS + CATS])


def test_workflow_fitted_by_nvtabular_alone_is_the_same(
    raw: Path, days: list[pd.DataFrame], tmp_path: Path
) -> None:
    run_dataset("criteo", raw, tmp_path / "run", **SMALL)
    import dask.dataframe as dd

    workflow = build_workflow(
        N, M, frequency_threshold=3, vocabulary_directory=tmp_path / "vocabulary"
    )
    frame = pd.concat(days, ignore_index=True).astype(dict.fromkeys(NUMS, "float64"))
    workflow.fit(nvt.Dataset(dd.from_pandas(frame, npartitions=3), cpu=True))
    test = read_split(tmp_path / "run", "test")
    found = workflow.transform(days[2][200:].reset_index(drop=True))
    pd.testing.assert_frame_equal(found[NAMES], test)


def test_fit_then_transform_is_run(raw: Path, tmp_path: Path) -> None:
    whole = run_dataset("criteo", raw, tmp_path / "run", **SMALL)
    fit_dataset("criteo", raw, tmp_path / "fit", **SMALL)
    assert not (tmp_path / "fit.partial").exists()
    for source in ("fit", "run"):
        output = tmp_path / f"from-{source}"
        report = transform_dataset(tmp_path / source, raw, output, workers=0)
        assert report.metadata["content_hash"] == whole.metadata["content_hash"]
    # A single new day has no training rows.
    single = tmp_path / "new"
    single.mkdir()
    shutil.copy(raw / "day_1", single)
    report = transform_dataset(tmp_path / "fit", single, tmp_path / "day", workers=0)
    counts = report.metadata["counts"]
    assert [counts[split] for split in ("train", "validation", "test")] == [0, 150, 151]
    assert not (tmp_path / "day" / "train").exists()
    with pytest.raises(UserError, match="frequency_threshold is fixed by the fit"):
        transform_dataset(tmp_path / "fit", raw, tmp_path / "x", frequency_threshold=1)


FORGO = """
from lookback.workflows.cluster import forgo_tensorflow
forgo_tensorflow()
"""
"""As the command does; TensorFlow takes longer to import than all that follows."""

KILLED = f"""{FORGO}
import os, signal, sys
from lookback.workflows.tabular import passes
stage, day = sys.argv[1:3]
method = getattr(passes.Working, "finish")
def finish(self, found, name, *more):
    method(self, found, name, *more)
    if (found, name) == (stage, day):
        os.kill(os.getpid(), signal.SIGKILL)
passes.Working.finish = finish
from lookback.workflows.pipeline import run_dataset
run_dataset("criteo", sys.argv[3], sys.argv[4], numerical=3, categorical=4, workers=0,
            block_size=5000, frequency_threshold=3)
"""


@pytest.mark.parametrize(
    ("stage", "day", "again"),
    [
        ("counts", "day_1", ["day_0: counted before", "day_1: counted before"]),
        ("written", "day_0", ["day_2: counted before", "day_0: transformed before"]),
    ],
)
def test_a_killed_run_goes_on_after_its_last_day(
    stage: str, day: str, again: list[str], raw: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, stage, day, raw, output],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists() and (tmp_path / "out.partial").exists()
    with pytest.raises(UserError, match=r"frequency_threshold: 3 then, 4 now"):
        run_dataset("criteo", raw, output, **{**SMALL, "frequency_threshold": 4})
    lines: list[str] = []
    report = run_dataset("criteo", raw, output, log=lines.append, **SMALL)
    text = "\n".join(lines)
    assert all(line in text for line in again), text
    assert text.count("before") == {"counts": 2, "written": 4}[stage]
    whole = run_dataset("criteo", raw, tmp_path / "whole", **SMALL)
    assert report.metadata == whole.metadata
    assert not (tmp_path / "out.partial").exists()


TWICE = """
import sys
from lookback.workflows.pipeline import run_dataset
raw, output, log = *sys.argv[1:], sys.argv[2] + "/log.csv"
run_dataset("criteo", raw, output + "/rows", block_size=5_000, numerical=3, categorical=4)
run_dataset("interactions", log, output + "/histories", min_interactions=2)
"""


@pytest.mark.slow
def test_equal_runs_give_equal_bytes(raw: Path, tmp_path: Path) -> None:
    """Whatever the order of their sets: a workflow's pickle has some, and a schema's tags."""
    rows = "".join(f"u{n % 5},i{n % 7},{1500000000 + n}\n" for n in range(40))
    started = []
    for seed in "12":
        (tmp_path / seed).mkdir()
        (tmp_path / seed / "log.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
        command = [sys.executable, "-c", TWICE, str(raw), str(tmp_path / seed)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        started.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    assert [process.wait(120) for process in started] == [0, 0]
    one, other = (
        {
            path.relative_to(tmp_path / seed): path.read_bytes()
            for path in (tmp_path / seed).rglob("*")
            if path.is_file()
        }
        for seed in "12"
    )
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.slow
def test_a_kill_at_any_time_leaves_nothing_under_the_output_s_name(
    raw: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = [
        sys.executable, "-m", "workflows", "run", "--dataset", "criteo", "--input", str(raw),
        "--output", str(output), "--numerical", "3", "--categorical", "4", "--block_size", "2000",
        "--workers", "0",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    partial = tmp_path / "out.partial"
    while not list(partial.glob("written-day_0.json")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not output.exists()
    same = {**SHAPE, "block_size": 2000}
    report = run_dataset("criteo", raw, output, **same)
    whole = run_dataset("criteo", raw, tmp_path / "whole", **same)
    assert report.metadata["content_hash"] == whole.metadata["content_hash"]


def test_another_process_s_output_is_left_alone(raw: Path, tmp_path: Path) -> None:
    with (
        Output(tmp_path / "out", DATASET, False, ()).create(),
        pytest.raises(UserError, match="Another process is writing"),
    ):
        run_dataset("criteo", raw, tmp_path / "out", **SMALL)


def test_existing_output_needs_overwrite(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(UserError, match="already exists"):
        run_dataset("criteo", raw, tmp_path / "out", **SMALL)
    with pytest.raises(UserError, match="nothing else is ever replaced"):
        run_dataset("criteo", raw, tmp_path / "out", overwrite=True, **SMALL)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert not (tmp_path / "out.partial").exists()


def test_a_full_disk_keeps_the_finished_days(
    raw: Path, days: list[pd.DataFrame], tmp_path: Path
) -> None:
    """As a disk's end, a limit on the size of files, in a process of its own."""
    big = tmp_path / "raw"
    big.mkdir()
    for number in (0, 2):
        shutil.copy(raw / f"day_{number}", big)
    pd.concat([days[1]] * 40).to_csv(big / "day_1", sep="\t", header=False, index=False)
    script = (
        f"{FORGO}import resource, sys\n"
        "from lookback.workflows.commands import PROGRAM\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "sys.exit(PROGRAM.main(sys.argv[1:]))\n"
    )
    output = tmp_path / "out"
    arguments = ["--numerical", "3", "--categorical", "4", "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "--dataset", "criteo", "--input", str(big),
         "--output", str(output), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "No space is left for" in done.stderr
    assert "Days that were finished are kept" in done.stderr
    assert (tmp_path / "out.partial" / "written-day_0.json").exists()
    assert not output.exists()
    lines: list[str] = []
    run_dataset("criteo", big, output, log=lines.append, **SHAPE)
    assert "day_0: transformed before" in lines
    assert read_tabular_info(output)["counts"]["train"] == 700 + 40 * 301


def test_a_full_tmpfs_is_told_with_its_numbers(days: list[pd.DataFrame], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")
    # 57,000 rows of up to 32 bytes, in one block a day.
    raw = write_days(tmp_path / "raw", [pd.concat([day] * 40) for day in days])
    try:
        done = subprocess.run(
            [sys.executable, "-c", TMPFS, str(raw), str(disk / "out")],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "No space is left for" in done.stdout and "MiB are free" in done.stdout
        assert (disk / "out.partial" / "counts-day_2.json").exists()
        assert not (disk / "out").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


TMPFS = f"""{FORGO}
import sys
from lookback.core.errors import UserError
from lookback.core.manifests import is_whole
from lookback.workflows.pipeline import run_dataset
from lookback.workflows.tabular import pipeline
pipeline.check_space = lambda *a, **k: None  # which would refuse at once
try:
    run_dataset("criteo", sys.argv[1], sys.argv[2], numerical=3, categorical=4, workers=0)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def test_too_small_a_disk_is_refused_before_anything(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    expected = r"0\.0 MiB free, but the run needs about [\d.]+ MiB \(about 1,\d+ rows of up to 32"
    with pytest.raises(UserError, match=expected):
        run_dataset("criteo", raw, tmp_path / "out", **SMALL)
    # What is written already need not be written again.
    working = Working(tmp_path / "w", Output(tmp_path / "o", DATASET, False, ()))
    working.path.mkdir()
    (working.path / "file").write_bytes(bytes(50_000))
    check_space(working, 59_000, what="")
    with pytest.raises(UserError, match=r"of which 0\.0 MiB are written"):
        check_space(working, 61_000, what="")


def spoil(raw: Path, directory: Path, change: Any) -> Path:
    shutil.copytree(raw, directory)
    lines = (directory / "day_1").read_text().splitlines()
    lines[149] = change(lines[149].split("\t"))
    (directory / "day_1").write_text("\n".join(lines) + "\n")
    return directory


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: "\t".join(f[:-1]), "expected 8 fields separated by tabs"),
        (lambda f: "\t".join([*f, "x"]), "received 9"),
        (lambda f: "\t".join([f[0], "1x", *f[2:]]), "expected an integer .* in field 2"),
        (lambda f: "\t".join(["7", *f[1:]]), "expected the label 0 or 1, received '7'"),
    ],
)
def test_bad_lines_are_named_and_can_be_left_out(
    change: Any, reason: str, raw: Path, tmp_path: Path
) -> None:
    bad = spoil(raw, tmp_path / "raw", change)
    with pytest.raises(UserError, match=rf"day_1:150: .*{reason}"):
        run_dataset("criteo", bad, tmp_path / "out", **SMALL)
    assert (tmp_path / "out.partial" / "counts-day_0.json").exists()
    # The same run goes on with more patience.
    report = run_dataset("criteo", bad, tmp_path / "out", **SMALL, max_bad_lines=1)
    assert report.metadata["counts"]["train"] == 1000
    assert sum(report.metadata["counts"]["bad_lines"].values()) == 1


def test_damaged_missing_and_empty_files(
    raw: Path, days: list[pd.DataFrame], tmp_path: Path
) -> None:
    packed = write_days(tmp_path / "gz", days, ".gz")
    whole = (packed / "day_1.gz").read_bytes()
    (packed / "day_1.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"day_1.gz is not a whole gzip file: .*after line \d+"):
        run_dataset("criteo", packed, tmp_path / "out", **SMALL)
    (packed / "day_1.gz").unlink()
    with pytest.raises(UserError, match="has day_0 to day_2, but not day_1"):
        run_dataset("criteo", packed, tmp_path / "out", **SMALL)
    (packed / "day_1.gz").write_bytes(gzip.compress(b"\n\n"))
    with pytest.raises(UserError, match=r"day_1.gz has no rows"):
        run_dataset("criteo", packed, tmp_path / "out2", **SMALL)
    (packed / "day_1").touch()
    with pytest.raises(UserError, match=r"day_1 and .*the same day|day_1.gz and .*the same day"):
        run_dataset("criteo", packed, tmp_path / "out3", **SMALL)
    (packed / "day_1.gz").unlink()
    with pytest.raises(UserError, match="day_1 is empty"):
        run_dataset("criteo", packed, tmp_path / "out3", **SMALL)
    (packed / "train.txt").write_text("1\n")
    with pytest.raises(UserError, match="which to read"):
        run_dataset("criteo", packed, tmp_path / "out3", **SMALL)


def test_input_that_cannot_be_used(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="has neither day_0"):
        run_dataset("criteo", tmp_path / "none", tmp_path / "out", **SMALL)
    shutil.copy(raw / "day_0", tmp_path / "none")
    with pytest.raises(UserError, match="is the only day"):
        run_dataset("criteo", tmp_path / "none", tmp_path / "out", **SMALL)
    for option, value in (("seed", -1), ("vocabulary", "some"), ("numerical", -1)):
        with pytest.raises(UserError, match=f"{option}: expected"):
            run_dataset("criteo", raw, tmp_path / "x", **{**SMALL, option: value})
    with pytest.raises(UserError, match="MiB of memory is too little for 2 worker"):
        run_dataset("criteo", raw, tmp_path / "x", **{**SMALL, "workers": 2, "memory_limit": 2**20})


def test_days_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """day_10 is the last of eleven, not the second."""
    frames = [make_day(20, number) for number in range(11)]
    raw = write_days(tmp_path / "raw", frames)
    run_dataset("criteo", raw, tmp_path / "out", **SMALL)
    ids = vocabularies(pd.concat(frames), 3)
    test = expected_rows(frames[10][10:], ids)
    assert_same(read_split(tmp_path / "out", "test"), test, ordered=True)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Twenty times the rows; the peak of a process of its own, which had the few before, stays."""
    script = (
        f"{FORGO}import sys\n"
        "from lookback.core.processes import resident_peak\n"
        "from lookback.workflows.pipeline import run_dataset\n"
        "for raw in sys.argv[1:]:\n"
        "    run_dataset('criteo', raw, f'{raw}-out', numerical=3, categorical=4, workers=0,\n"
        "                block_size=200_000)\n"
        "    print(resident_peak())\n"
    )
    text = make_day(10_000, 0).to_csv(sep="\t", header=False, index=False).encode()
    raws = {copies: tmp_path / f"raw{copies}" for copies in (2, 40)}
    for copies, raw in raws.items():
        raw.mkdir()
        for number in range(2):
            (raw / f"day_{number}").write_bytes(text * copies)
    done = subprocess.run(
        [sys.executable, "-c", script, *raws.values()],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    few, many = (int(line) for line in done.stdout.splitlines())
    assert many - few < 2 * 38 * len(text) / 2, (few, many)


def test_options_are_recorded(raw: Path, tmp_path: Path) -> None:
    run_dataset("criteo", raw, tmp_path / "out", **SMALL)
    workflow = tmp_path / "out" / "workflow"
    options = json.loads((workflow / "options.json").read_text())
    assert is_whole(options)
    del options["sha256"]
    contents = {
        path.relative_to(workflow).as_posix(): path.read_bytes()
        for path in workflow.rglob("*")
        if path.is_file() and path.name != "options.json"
    }
    assert options.pop("files") == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    assert options == {
        "dataset": "criteo",
        "options": {
            "frequency_threshold": 3, "vocabulary": "all", "seed": 0, "block_size": 5_000,
            "numerical": 3, "categorical": 4,
        },
    }  # fmt: skip
    assert options["options"] == read_tabular_info(tmp_path / "out")["options"]
