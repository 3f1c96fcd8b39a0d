from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookback.serving.commands import PROGRAM
from lookback.serving.manifest import Manifest


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = PROGRAM.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def sample(
    capsys: pytest.CaptureFixture[str], export: Path, dataset: Path, *more: object
) -> list[dict[str, Any]]:
    code, out, err = run(capsys, "sample", "--export_dir", export, "--dataset_dir", dataset, *more)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def test_samples_are_users_of_the_raw_data(
    sim_bundle: Path, dataset_dir: Path, raw: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sample(capsys, sim_bundle, dataset_dir, "--users", 5, "--candidates", 4)
    assert len(found) == 5
    assert len({request["user_id"] for request in found}) == 5
    for request in found:
        expected = raw.request(request["user_id"], request["candidates"]["item_id"])
        assert request == expected
        events = raw.events[raw.events["user"] == request["user_id"]]
        last = events.sort_values(["time", "item"])["item"].iloc[-1]
        assert request["candidates"]["item_id"][0] == last
        assert len(request["candidates"]["item_id"]) == 4
    again = sample(capsys, sim_bundle, dataset_dir, "--users", 5, "--candidates", 4)
    assert again == found
    other = sample(capsys, sim_bundle, dataset_dir, "--users", 5, "--seed", 1)
    assert other != found


def test_samples_are_scored_as_lines_and_as_a_table(
    sim_bundle: Path,
    dataset_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = sample(capsys, sim_bundle, dataset_dir, "--users", 2, "--candidates", 3)
    text = "\n".join(json.dumps(request) for request in requests) + "\n\n"
    path = tmp_path / "requests.jsonl"
    path.write_text(text)
    code, out, _ = run(capsys, "score", "--export_dir", sim_bundle, "--requests", path)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    for request, line in zip(requests, lines, strict=True):
        assert line["user_id"] == request["user_id"]
        items = [candidate["item_id"] for candidate in line["candidates"]]
        assert sorted(items) == sorted(request["candidates"]["item_id"])
        probabilities = [candidate["probability"] for candidate in line["candidates"]]
        assert probabilities == sorted(probabilities, reverse=True)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    code, table, _ = run(capsys, "score", "--export_dir", sim_bundle, "--format", "table")
    assert code == 0
    assert f"user_id {requests[0]['user_id']}  (" in table
    best = lines[0]["candidates"][0]
    assert f"     1  {best['item_id']}" in table
    assert f"{best['probability']:.4f}" in table


def test_describe_says_what_a_bundle_holds(
    sim_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "describe", "--export_dir", sim_bundle)
    assert code == 0
    for text in ("sim", "k = 3", "raw (encoded by the bundle)", "item_id_history int32 [B, 5..12]"):
        assert text in out
    digest = hashlib.sha256((sim_bundle / "bundle.json").read_bytes()).hexdigest()
    assert f"digest      {digest}  (of bundle.json, for --trusted_digest)\n" in out


def test_only_what_is_trusted_is_opened(
    sim_bundle: Path, dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A forged bundle is as consistent as the other; only its digest differs."""
    trusted = hashlib.sha256((sim_bundle / "bundle.json").read_bytes()).hexdigest()
    bundle = tmp_path / "bundle"
    shutil.copytree(sim_bundle, bundle)
    requests = tmp_path / "requests.jsonl"
    options = ("--export_dir", bundle, "--trusted_digest", trusted)
    code, text, _ = run(capsys, "sample", *options, "--dataset_dir", dataset_dir, "--users", 1)
    assert code == 0
    requests.write_text(text)
    commands = (
        ("describe", *options),
        ("score", *options, "--requests", requests),
        ("benchmark", *options, "--batch_sizes", 1, "--steps", 1, "--warmup_steps", 0),
    )
    for command in commands:
        assert run(capsys, *command)[0] == 0
    (bundle / "model" / "extra").write_text("nobody exported this")
    code, out, err = run(capsys, *commands[0])
    assert (code, out) == (2, "")
    assert "model/extra is not of the bundle that is trusted" in err
    (bundle / "model" / "extra").unlink()
    (bundle / "items.parquet").write_bytes(b"another catalogue")
    manifest = Manifest.read(sim_bundle)
    (bundle / "bundle.json").unlink()
    manifest.write(bundle)
    assert Manifest.read(bundle) == manifest
    forged = hashlib.sha256((bundle / "bundle.json").read_bytes()).hexdigest()
    for command in (*commands, ("sample", *options, "--dataset_dir", dataset_dir)):
        code, out, err = run(capsys, *command)
        assert (code, out) == (2, "")
        assert f"expected the SHA-256 {trusted}, as trusted_digest says, found {forged}" in err


def test_mistakes_are_one_line(
    sim_bundle: Path, dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "requests.jsonl", tmp_path / "scores.jsonl"
    score = ("score", "--export_dir", sim_bundle, "--requests", path, "--output", output)
    code, _, err = run(capsys, *score)
    assert (code, err) == (2, f"error: --requests {path}: No such file or directory.\n")
    good = sample(capsys, sim_bundle, dataset_dir, "--users", 1)[0]
    path.write_text(json.dumps(good) + "\n\n{'user_id': 1}\n")
    code, _, err = run(capsys, *score)
    assert code == 2 and err.startswith(f"error: {path}, line 3 is not valid JSON")
    path.write_text(json.dumps(good) + '\n\n{"user_id": "U001"}\n')
    code, _, err = run(capsys, *score)
    assert code == 2 and err.startswith(f"error: {path}, line 3: the request: 'history' is missing")
    assert not output.exists() and [p.name for p in tmp_path.iterdir()] == ["requests.jsonl"]
    missing = tmp_path / "no" / "where"
    code, _, err = run(capsys, *score[:-1], missing)
    assert (code, err) == (
        2,
        f"error: --output {missing}: there is no directory {missing.parent}.\n",
    )
    code, _, err = run(capsys, "describe", "--export_dir", tmp_path)
    assert code == 2 and "is not an exported bundle" in err


def test_requests_in_another_encoding_are_refused_by_line(
    sim_bundle: Path, dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "requests.jsonl"
    good = json.dumps(sample(capsys, sim_bundle, dataset_dir, "--users", 1)[0])
    score = ("score", "--export_dir", sim_bundle, "--requests", path)
    for content, line, says in (
        (f'{good}\n{{"user_id": "é"}}\n'.encode("latin-1"), "line 2", "not UTF-8"),
        (good.encode("utf-16"), "line 1", "UTF-16: convert it to UTF-8"),
        (gzip.compress(good.encode()), "line 1", "packed by gzip: unpack it"),
        (b"[" * 100_000, "line 1", "nested too deeply"),
    ):
        path.write_bytes(content)
        code, out, err = run(capsys, *score)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {path}, {line} is not valid JSON for us: it is {says}")
    path.write_text(good, encoding="utf-8-sig")
    code, out, err = run(capsys, *score)
    assert code == 0, err
    assert json.loads(out)["user_id"] == json.loads(good)["user_id"]


def test_a_bundle_without_permission_is_named(
    sim_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read everything
    code, _, err = run(capsys, "describe", "--export_dir", sim_bundle)
    assert code == 2
    assert f"{sim_bundle / 'bundle.json'} cannot be read (Permission denied)" in err


def test_scores_replace_nothing(
    sim_bundle: Path, dataset_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests, mine = tmp_path / "requests.jsonl", tmp_path / "mine.txt"
    request = sample(capsys, sim_bundle, dataset_dir, "--users", 1)[0]
    requests.write_text(json.dumps(request) + "\n")
    mine.write_text("precious")
    (tmp_path / "link").symlink_to("mine.txt")
    before = {path: path.read_bytes() for path in (requests, mine)}
    score = ("score", "--export_dir", sim_bundle, "--requests", requests, "--output")
    for output, says in (
        (requests, "is the input itself"),
        (mine, "already exists"),
        (tmp_path / "link", "is a symbolic link"),
        (tmp_path, "has the input"),
        (dataset_dir, "is a directory"),
        (sim_bundle / "scores.jsonl", "lies in the input"),
        ("/dev/null", "is a device"),
    ):
        code, _, err = run(capsys, *score, output)
        assert code == 2 and says in err, (output, err)
    assert {path: path.read_bytes() for path in before} == before
    assert Path("/dev/null").is_char_device()
    code, _, err = run(capsys, *score, tmp_path / "scores.jsonl")
    assert code == 0, err
    assert json.loads((tmp_path / "scores.jsonl").read_text())["user_id"] == request["user_id"]


def test_a_dataset_of_another_workflow_is_refused(
    sim_bundle: Path,
    dataset_dir: Path,
    without_digests: Callable[[Path], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = without_digests(shutil.copytree(dataset_dir, tmp_path / "other"))
    categories = other / "workflow" / "encoder" / "categories"
    (categories / "unique.item_id.parquet").write_bytes(b"another")
    code, _, err = run(capsys, "sample", "--export_dir", sim_bundle, "--dataset_dir", other)
    assert code == 2 and "was not written with the workflow in" in err
    code, _, err = run(
        *(capsys, "sample", "--export_dir", sim_bundle, "--dataset_dir", dataset_dir),
        *("--users", 1000),
    )
    assert code == 2 and "users, fewer than the 1000 asked for" in err
    code, _, err = run(capsys, "sample", "--export_dir", sim_bundle, "--dataset_dir", tmp_path)
    assert code == 2 and "does not exist" in err
