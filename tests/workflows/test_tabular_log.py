"""Rows that a YAML of layout tabular describes, to a dataset: against pandas, and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.formats.vocabulary import FIRST_KNOWN, NULL, OUT_OF_VOCABULARY, hashed_keys
from lookback.workflows.commands import PROGRAM
from lookback.workflows.histories.rules import TEST, UserSplit
from lookback.workflows.tabular import row_tasks
from lookback.workflows.tabular.row_splits import RandomRows
from tests.workflows.row_log import BY_TIME, ROWS, START, YAML, write_rows


def _run(command: str, *words: object) -> int:
    return PROGRAM.main([command, *map(str, words)])


def _metadata(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "dataset.json").read_text())
    return found


def _rows(directory: Path, split: str) -> pd.DataFrame:
    files = sorted((directory / split).glob("*.parquet"))
    return pd.concat([pq.read_table(file).to_pandas() for file in files], ignore_index=True)


def _ids(column: pd.Series, training: pd.Series, least: int = 0) -> np.ndarray:
    """By falling count of training rows, of equal count by value; missing and unknown apart."""
    counts = training.value_counts()
    counts = counts[counts >= max(least, 1)]
    known = sorted(counts.index, key=lambda value: (-counts[value], value))
    places = {value: FIRST_KNOWN + place for place, value in enumerate(known)}
    return np.array([NULL if v is None else places.get(v, OUT_OF_VOCABULARY) for v in column])


def test_rows_are_what_pandas_makes_of_them_in_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_tasks, "ROWS_A_PART", 150)  # others than those of the files
    raw = tmp_path / "raw"
    frame = write_rows(raw)
    hashes = set()
    for ending in ("csv", "jsonl", "parquet"):
        config = raw / f"{ending}.yaml"
        config.write_text(YAML.format(ending=ending, split=BY_TIME))
        assert _run("run", "--config", config, "--output", raw / f"out-{ending}") == 0
        hashes.add(_metadata(raw / f"out-{ending}")["content_hash"])
    assert len(hashes) == 1
    printed = capsys.readouterr().out
    assert f"left out {ROWS - len(frame)} rows by the condition on device" in printed
    out = raw / "out-csv"
    metadata = _metadata(out)
    assert str(tmp_path) not in json.dumps(metadata)
    parts = {
        "train": frame[frame["ts"] < START + 300],
        "validation": frame[(frame["ts"] >= START + 300) & (frame["ts"] < START + 350)],
        "test": frame[frame["ts"] >= START + 350],
    }
    assert {name: metadata["counts"][name] for name in parts} == {
        n: len(p) for n, p in parts.items()
    }
    positives = {name: int((part["clicked"] == "yes").sum()) for name, part in parts.items()}
    assert metadata["counts"]["positives"] == positives
    without = int(frame["price"].isna().sum())
    assert without and metadata["counts"]["events_without_features"] == {
        **{"kind": without, "price": without}
    }
    training = parts["train"]
    dwell = training["dwell"]
    logs = np.sign(frame["dwell"].fillna(dwell.mean())) * np.log1p(
        np.abs(frame["dwell"].fillna(dwell.mean()))
    )
    fitted = logs[training.index]
    bucket = np.searchsorted([0.0, 1.0], frame["dwell"], side="right") + FIRST_KNOWN
    hashed = (hashed_keys(pa.array(frame["ad"])) & ((1 << 62) - 1)) % 16 + FIRST_KNOWN
    expected = pd.DataFrame(
        {
            "label": (frame["clicked"] == "yes").astype(np.float32),
            "price": frame["price"].fillna(5).clip(0, 30),
            "dwell": (logs - fitted.mean()) / fitted.std(ddof=0),
            "user_id": _ids(frame["who"], training["who"]),
            "item_id": _ids(frame["what"], training["what"]),
            "kind": _ids(frame["kind"].where(frame["kind"].notna(), None), training["kind"]),
            "device": _ids(frame["device"], training["device"], 30),
            "level": np.where(frame["dwell"].isna(), NULL, bucket),
            "ad": hashed,
        }
    )
    assert (expected["device"] == OUT_OF_VOCABULARY).any()  # of tv
    for name, part in parts.items():
        found, wanted = _rows(out, name), expected.loc[part.index]
        assert list(found.columns) == list(wanted.columns)
        if name == "train":  # shuffled within each part
            assert not np.array_equal(found["ad"], wanted["ad"])
            order = ["dwell", "ad", "user_id", "item_id"]
            found = found.sort_values(order)
            wanted = wanted.astype(found.dtypes.to_dict()).sort_values(order)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert metadata["cardinalities"] == {
        "user_id": FIRST_KNOWN + training["who"].nunique(),
        "item_id": FIRST_KNOWN + training["what"].nunique(),
        **{"kind": FIRST_KNOWN + 4, "device": FIRST_KNOWN + 2, "level": FIRST_KNOWN + 3},
        "ad": FIRST_KNOWN + 16,
    }

    assert _run("describe", out) == 0
    described = capsys.readouterr().out
    gone = int(frame["dwell"].isna().sum())
    (line,) = [at for at in described.splitlines() if "dwell" in at and f"{gone:,} (" in at][:1]
    assert f"({gone / len(frame):.1%})" in line

    # A saved workflow makes the same of the same rows, and refuses other features.
    fitted = tmp_path / "fitted"
    assert _run("fit", "--config", raw / "csv.yaml", "--output", fitted) == 0
    assert (fitted / "features.json").read_text() == (out / "workflow/features.json").read_text()
    words = ["--workflow", fitted, "--input", raw, "--output"]
    assert _run("transform", *words, tmp_path / "again", "--workers", 0) == 0
    assert _metadata(tmp_path / "again")["content_hash"] in hashes
    config = raw / "other.yaml"
    config.write_text(YAML.format(ending="csv", split=BY_TIME).replace("buckets: 16", "buckets: 8"))
    words = ["--workflow", out, "--config", config, "--output", tmp_path / "no"]
    assert _run("transform", *words) == 2
    assert "feature 'ad' is another than at the fit" in capsys.readouterr().err


def test_splits_of_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = write_rows(tmp_path / "raw")

    def written(split: str, name: str) -> Path:
        config = tmp_path / f"raw/{name}.yaml"
        config.write_text(YAML.format(ending="csv", split=split))
        assert _run("run", "--config", config, "--output", tmp_path / name) == 0
        return tmp_path / name

    last = written("{by: last, test: 0.2, validation: 0.1}", "last")
    test, validation = round(0.2 * len(frame)), round(0.1 * len(frame))
    counts = _metadata(last)["counts"]
    assert (counts["test"], counts["validation"]) == (test, validation)
    labels = (frame["clicked"] == "yes").to_numpy()
    assert _rows(last, "test")["label"].tolist() == labels[-test:].tolist()
    assert (
        _rows(last, "validation")["label"].tolist() == labels[-test - validation : -test].tolist()
    )
    assert "events.time is not read: the split is by last" in capsys.readouterr().err

    users = written("{by: users, test: 0.3}", "users")
    assert "user_id" not in _metadata(users)["cardinalities"]
    assert "events.user is no feature: the split is by users" in capsys.readouterr().err
    none = np.empty(0, np.int64)
    part = UserSplit(0.3).parts(none, none, pa.chunked_array([pa.array(frame["who"])]))
    assert _rows(users, "test")["label"].tolist() == labels[part == TEST].tolist()
    assert set(frame["who"][part == TEST]) & set(frame["who"][part != TEST]) == set()


def test_rows_are_drawn_by_their_numbers_and_the_seed() -> None:
    split = RandomRows(0.1, 0.05, seed=1)
    rows = 100_000
    drawn = split.parts(0, rows, rows)
    for share, count in zip((0.85, 0.05, 0.1), np.bincount(drawn), strict=True):
        assert abs(count - share * rows) < 5 * (share * (1 - share) * rows) ** 0.5
    pieces = [split.parts(first, 1000, rows) for first in range(0, rows, 1000)]
    np.testing.assert_array_equal(np.concatenate(pieces), drawn)
    other = RandomRows(0.1, 0.05, seed=2).parts(0, rows, rows)
    both = ((drawn == TEST) & (other == TEST)).mean()
    assert abs(both - 0.01) < 0.002  # as of two draws that do not know of each other
    # Neighbours, too, do not.
    pairs = ((drawn[1:] == TEST) & (drawn[:-1] == TEST)).mean()
    assert abs(pairs - 0.01) < 0.002


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('["yes"]', '["maybe"]'), "rows to train on have the label 0, expected both 0 and 1"),
        ((str(START + 350), str(START + 900)), "Split: expected rows in each part, .* for test"),
        (("kind: {", "kind: {min_count: 900, "), ""),
        (("not_in: [bot]", "in: [toaster]"), "No rows are left of .* rows_left_out_by_device"),
    ],
)
def test_rows_that_nothing_can_be_learned_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], said: str
) -> None:
    write_rows(tmp_path / "raw")
    config = tmp_path / "raw/my.yaml"
    text = YAML.format(ending="csv", split=BY_TIME)
    assert change[0] in text
    config.write_text(text.replace(*change))
    status = _run("run", "--config", config, "--output", tmp_path / "out")
    errors = capsys.readouterr().err
    if said:
        assert status == 2 and re.search(said, errors)
        assert not (tmp_path / "out").exists()
    else:
        assert status == 0 and "WARNING: kind: no value has 900 or more rows" in errors
        assert _metadata(tmp_path / "out")["cardinalities"]["kind"] == FIRST_KNOWN
