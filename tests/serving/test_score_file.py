"""`score-file` against `score`, and what was killed against what was not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.serving.bundle import Bundle
from lookback.serving.export import export_bundle
from lookback.serving.offline import job, work
from lookback.serving.offline.ranking import Asked, OfflineRanking
from tests.serving.tabular_data import raw_rows, requests_of, write_dataset
from tests.serving.tabular_data import small_model as small_rows_model
from tests.serving.test_interactions import small_model
from tests.serving.test_offline_ranking import request_of
from tests.serving.test_serving_cli import run

Run = Callable[..., str]


@pytest.fixture
def score_file(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command, which must succeed; gives what it said."""

    def call(*arguments: object) -> str:
        code, out, err = run(capsys, "score-file", *arguments)
        assert code == 0, err
        return out + err

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command, which must refuse; gives its sentence."""

    def call(*arguments: object) -> str:
        code, _, err = run(capsys, "score-file", *arguments)
        assert code == 2, err
        return err

    return call


@pytest.fixture
def requests(raw: Any) -> list[dict[str, Any]]:
    items = sorted(raw.categories)
    users = sorted(set(raw.events["user"]))
    return [request_of(raw, u, items[n % 3 :: 1 + n % 7]) for n, u in enumerate(users)]


def as_lines(requests: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("\n\n".join(json.dumps(request) for request in requests) + "\n")
    return path


def as_table(requests: list[dict[str, Any]], path: Path, rows: int = 11) -> Path:
    pq.write_table(pa.Table.from_pylist(requests), path, row_group_size=rows)
    return path


@pytest.mark.slow
def test_a_file_is_scored_as_score_does(
    sim_bundle: Path,
    requests: list[dict[str, Any]],
    tmp_path: Path,
    score_file: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = as_lines(requests, tmp_path / "requests.jsonl")
    code, out, _ = run(capsys, "score", "--export_dir", sim_bundle, "--requests", lines)
    assert code == 0
    expected = [
        (answer["user_id"], item["item_id"], item["probability"], rank)
        for answer in map(json.loads, out.splitlines())
        for rank, item in enumerate(answer["candidates"], 1)
    ]
    monkeypatch.setattr(work, "ROWS_A_PART", 8)
    table = as_table(requests, tmp_path / "requests.parquet")
    (tmp_path / "several").mkdir()
    for number in range(2):
        as_table(requests[15 * number :][:15], tmp_path / "several" / f"{number}.parquet")
    for source in (lines, table, tmp_path / "several"):
        output = tmp_path / f"{source.name}.scores"
        said = score_file(sim_bundle, "--input", source, "--output", output)
        assert f"{len(requests)} users" in said
        found = pd.read_parquet(output)
        assert list(found.columns) == ["user_id", "item_id", "score", "rank"]
        assert found["score"].dtype == np.float32 and found["rank"].dtype == np.int32
        wanted = pd.DataFrame(expected, columns=found.columns)
        assert len(found) == len(wanted)
        for name in ("user_id", "item_id", "rank"):
            assert found[name].tolist() == wanted[name].tolist(), (source, name)
        np.testing.assert_allclose(found["score"], wanted["score"], atol=1e-6)
        assert sorted(p.name for p in tmp_path.glob("*.parts")) == []
    output = tmp_path / "best.parquet"
    score_file(sim_bundle, "--input", table, "--output", output, "--top_k", 2)
    assert pd.read_parquet(output).equals(found[found["rank"] <= 2].reset_index(drop=True))


@pytest.mark.slow
def test_users_of_a_dataset_get_the_best_of_the_catalogue(
    sim_bundle: Path, dataset_dir: Path, tmp_path: Path, score_file: Run, raw: Any
) -> None:
    output = tmp_path / "best.parquet"
    options = ("--dataset_dir", dataset_dir, "--top_k", 3, "--exclude_seen")
    said = score_file(sim_bundle, *options, "--output", output)
    found = pd.read_parquet(output)
    users = found["user_id"].drop_duplicates().tolist()
    expected = Bundle.load(sim_bundle).recommend(
        users, k=3, exclude_seen=True, dataset_dir=dataset_dir
    )
    pd.testing.assert_frame_equal(found, expected, atol=1e-6)
    counts = raw.events["user"].value_counts()
    assert sorted(users) == sorted(counts[counts >= 5].index)
    assert f"{len(users)} users, {40 * len(users):,} scores" in said
    candidates = tmp_path / "items.jsonl"
    candidates.write_text('{"item_id": "B003"}\n{"item_id": "B001"}\n{"item_id": "B003"}\n')
    output = tmp_path / "few.parquet"
    options = ("--dataset_dir", dataset_dir, "--candidates", candidates)
    said = score_file(sim_bundle, *options, "--output", output)
    assert "--candidates: 1 items are there before; each counts once" in said
    assert "score: the probability that an item is the user's next" in said
    expected = Bundle.load(sim_bundle).recommend(
        users, candidates=["B003", "B001"], dataset_dir=dataset_dir
    )
    pd.testing.assert_frame_equal(pd.read_parquet(output), expected, atol=1e-6)


@pytest.mark.slow
def test_what_was_killed_goes_on(
    dataset_dir: Path,
    sim_bundle: Path,
    tmp_path: Path,
    score_file: Run,
    refused: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if it had not been; and never with the parts of another job."""
    bundle = export_bundle(small_model(dataset_dir), dataset_dir, tmp_path / "neumf")
    monkeypatch.setattr(work, "ROWS_A_PART", 4)
    job_of = ("--dataset_dir", dataset_dir, "--top_k", 5)
    whole = tmp_path / "whole.parquet"
    score_file(bundle, *job_of, "--output", whole)
    output = tmp_path / "scores.parquet"
    write_part, written = job.write_part, []

    def until(most: int) -> Callable[..., None]:
        def write(own: Any, path: Path, *bounds: int) -> None:
            if len(written) == most:
                raise KeyboardInterrupt
            written.append(path.name)
            write_part(own, path, *bounds)

        return write

    monkeypatch.setattr(job, "write_part", until(3))
    with pytest.raises(BaseException):  # noqa: B017 (guarded says what interrupts)
        score_file(bundle, *job_of, "--output", output)
    parts = tmp_path / "scores.parquet.parts"
    assert not output.exists()
    assert sorted(path.name for path in parts.iterdir()) == ["manifest.json", *written]
    (parts / ".part-00003.parquet.abcdefgh.tmp").write_bytes(b"half a part")
    monkeypatch.setattr(job, "write_part", until(100))
    for other in (
        (bundle, "--dataset_dir", dataset_dir, "--top_k", 6),
        (bundle, *job_of, "--exclude_seen"),
    ):
        assert "holds parts of another job: options differ" in refused(*other, "--output", output)
    said = refused(sim_bundle, *job_of, "--output", output)
    assert "holds parts of another job: bundle differ" in said
    monkeypatch.setattr(work, "ROWS_A_PART", 5)
    assert "parts differ" in refused(bundle, *job_of, "--output", output)
    monkeypatch.setattr(work, "ROWS_A_PART", 4)
    assert len(written) == 3
    said = score_file(bundle, *job_of, "--output", output)
    assert "3 of " in said and "parts are there already" in said
    assert len(written) == len(set(written)) > 3
    assert pd.read_parquet(output).equals(pd.read_parquet(whole))
    assert not parts.exists()
    assert "already exists" in refused(bundle, *job_of, "--output", output)


@pytest.mark.slow
def test_processes_share_a_job(
    sim_bundle: Path,
    requests: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each gets a range of the parts that are not there yet; what one refuses ends all."""
    lines = as_lines(requests, tmp_path / "requests.jsonl")
    bundle = Bundle.load(sim_bundle)
    expected, _ = OfflineRanking(bundle, Asked(None, 4)).score(requests)
    digest = digest_of(sim_bundle / "bundle.json")
    task = work.Task(sim_bundle, digest, lines, top_k=4)
    monkeypatch.setattr(work, "ROWS_A_PART", 4)  # of this process, which cuts the parts
    counts, _ = job.run_job(task, tmp_path / "scores", workers=2)
    assert counts["users"] == len(requests)
    found = pd.read_parquet(tmp_path / "scores")
    pd.testing.assert_frame_equal(found, expected.to_pandas(), atol=1e-6)
    requests[-1]["history"]["item_id"] = [1]  # type: ignore[list-item]
    as_lines(requests, lines)
    with pytest.raises(UserError, match=r"requests.jsonl, line \d+: history.item_id: expected str"):
        job.run_job(task, tmp_path / "again", workers=2)
    assert not (tmp_path / "again").exists()


@pytest.mark.slow
def test_rows_get_a_probability_each(
    tmp_path: Path, score_file: Run, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_dataset(tmp_path / "rows", text=True)
    bundle = export_bundle(small_rows_model(dataset), dataset, tmp_path / "export")
    rows = raw_rows(text=True)[:50]
    expected = [float(s.probability[0]) for s in Bundle.load(bundle).score(requests_of(rows))]
    lists = pa.table({"numerical": [r[1] for r in rows], "categorical": [r[2] for r in rows]})
    named = pa.Table.from_pylist(
        [
            {f"num_{i}": n for i, n in enumerate(numbers)}
            | {f"cat_{i}": v for i, v in enumerate(values)}
            for _, numbers, values in rows
        ]
    )
    monkeypatch.setattr(work, "ROWS_A_PART", 16)
    for name, table in {"lists": lists, "named": named}.items():
        path, output = tmp_path / f"{name}.parquet", tmp_path / f"{name}.scores"
        pq.write_table(table, path)
        score_file(bundle, "--input", path, "--output", output)
        found = pd.read_parquet(output)
        assert found["row"].tolist() == list(range(1, 51))
        np.testing.assert_allclose(found["score"], expected, atol=1e-6)
    output = tmp_path / "none"
    said = refused(bundle, "--input", path, "--top_k", 3, "--output", output)
    assert "--top_k: the model scores rows, each of which gets one score" in said
    wrong = named.set_column(0, "num_0", pa.array([[1]] * 50))
    pq.write_table(wrong, tmp_path / "wrong.parquet")
    said = refused(bundle, "--input", tmp_path / "wrong.parquet", "--output", output)
    assert "wrong.parquet, row 1: num_0: expected a finite number or null" in said
    assert not output.exists()


def test_what_cannot_be_scored_is_refused(
    sim_bundle: Path,
    dataset_dir: Path,
    requests: list[dict[str, Any]],
    tmp_path: Path,
    refused: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work, "ROWS_A_PART", 8)
    output = ("--output", tmp_path / "scores.parquet")
    table = as_table(requests, tmp_path / "requests.parquet")
    requests[13]["history"]["item_id"][-1] = 3  # type: ignore[call-overload]
    lines = as_lines(requests, tmp_path / "requests.jsonl")
    said = refused(sim_bundle, "--input", lines, *output)
    assert f"error: {lines}, line 27: history.item_id: expected strings" in said
    del requests[13]
    requests[12]["candidates"] = {"item_id": []}
    wrong = as_table(requests, tmp_path / "wrong.parquet")
    said = refused(sim_bundle, "--input", wrong, "--output", tmp_path / "wrong")
    assert f"error: {wrong}, row 13: candidates.item_id is empty" in said
    users = [{n: v for n, v in r.items() if n != "candidates"} for r in requests]
    users_file = as_table(users, tmp_path / "users.parquet")
    output = ("--output", tmp_path / "other.parquet")
    of_dataset = ("--dataset_dir", dataset_dir)
    items = tmp_path / "items.jsonl"
    items.write_text('{"item_id": "B001"}\n{"item_id": "new"}\n')
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for arguments, text in (
        ((), "--input or --dataset_dir: expected one of them, received none"),
        (("--input", table, *of_dataset), "dataset_dir"),
        (of_dataset, "--top_k: expected how many of all items to keep for each user"),
        (("--input", users_file), "--top_k: expected how many of all items"),
        (("--input", table, "--candidates", items), "name candidates of their own"),
        ((*of_dataset, "--candidates", items), f"{items}, line 2: candidates.category_id is abse"),
        ((*of_dataset, "--top_k", 3, "--timestamp", 7), "the model reads no times"),
        (("--input", table, "--timestamp", 7), "timestamp: expected with"),
        (("--input", table, "--no_verify"), "they are about --dataset_dir"),
        (("--input", empty), "expected one row at least, found none"),
        (("--input", tmp_path / "nowhere"), "nowhere cannot be read"),
        (("--input", table, "--top_k", 0), "top_k"),
        (("--input", table, "--trusted_digest", "0" * 64), "expected the SHA-256"),
    ):
        assert text in refused(sim_bundle, *arguments, *output), text
    mine = tmp_path / "other.parquet.parts"
    mine.mkdir()
    (mine / "mine.txt").write_text("mine")
    said = refused(sim_bundle, "--input", table, *output)
    assert f"{mine} holds mine.txt and no manifest.json of ours" in said
    assert (mine / "mine.txt").read_text() == "mine"
    assert "lies in the input" in refused(
        sim_bundle, *of_dataset, "--top_k", 1, "--output", dataset_dir / "scores.parquet"
    )
