"""``python -m serving`` with bundles of tabular models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from lookback.core.manifests import DIGEST
from lookback.formats.dataset_info import TABULAR, read_tabular_info, write_info
from lookback.serving.bundle import Bundle
from lookback.serving.export import export_bundle
from tests.serving.tabular_data import rows_to_test, small_model, write_dataset
from tests.serving.test_serving_cli import run, sample


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("tabular"))


@pytest.fixture(scope="module")
def export(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(
        small_model(dataset), dataset, tmp_path_factory.mktemp("bundle") / "export"
    )


@pytest.fixture(scope="module")
def encoded(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same rows and model without the workflow: dataset and bundle."""
    directory = tmp_path_factory.mktemp("encoded")
    shutil.copytree(dataset, directory / "data", ignore=shutil.ignore_patterns("workflow"))
    info = {name: said for name, said in read_tabular_info(dataset).items() if name != DIGEST}
    write_info(directory / "data", TABULAR, info)  # the digests are of the files that are left
    model = small_model(directory / "data")
    return directory / "data", export_bundle(model, directory / "data", directory / "export")


def test_samples_of_both_kinds_score_as_the_rows_that_they_come_from(
    export: Path,
    encoded: tuple[Path, Path],
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs = rows_to_test(dataset)
    total = len(inputs["numerical"])
    raw = sample(capsys, export, dataset, "--rows", total)
    plain = sample(capsys, encoded[1], encoded[0], "--rows", total)
    bundle = Bundle.load(export)
    batch = bundle.encoder.encode(raw).inputs
    for name in inputs:
        np.testing.assert_array_equal(batch[name], inputs[name])
    np.testing.assert_array_equal([row["categorical"] for row in plain], inputs["categorical"])
    expected = bundle.predict(inputs)[0][:, 0]
    for name, requests in ((export, raw), (encoded[1], plain)):
        path, output = tmp_path / "requests.jsonl", tmp_path / f"{name.parent.name}.jsonl"
        path.write_text("".join(json.dumps(request) + "\n" for request in requests))
        arguments = ("--export_dir", name, "--requests", path)
        code, _, _ = run(capsys, "score", *arguments, "--output", output)
        assert code == 0
        answers = [json.loads(line) for line in output.read_text().splitlines()]
        assert all(set(answer) == {"probability", "logit"} for answer in answers)
        np.testing.assert_allclose([a["logit"] for a in answers], expected, atol=1e-6)
        found = [a["probability"] for a in answers]
        np.testing.assert_allclose(found, 1 / (1 + np.exp(-expected)), atol=1e-6)
        code, table, _ = run(capsys, "score", *arguments, "--format", "table")
        lines = table.splitlines()
        assert code == 0 and len(lines) == 1 + total
        assert lines[0].split() == ["row", "probability", "logit"]
        assert lines[-1].split() == [str(total), f"{found[-1]:.4f}", f"{expected[-1]:.4f}"]
    again = sample(capsys, export, dataset, "--rows", 5, "--seed", 1)
    assert again == sample(capsys, export, dataset, "--rows", 5, "--seed", 1)
    assert again != sample(capsys, export, dataset, "--rows", 5)


@pytest.mark.slow
def test_samples_that_cannot_be_made_are_refused(
    export: Path,
    encoded: tuple[Path, Path],
    dataset: Path,
    sim_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(bundle: Path, data: Path, *more: object) -> str:
        code, _, err = run(capsys, "sample", "--export_dir", bundle, "--dataset_dir", data, *more)
        assert code == 2
        return err

    text = "--users, --candidates: .* is of layout 'tabular', for which the options are --rows."
    assert_matches(text, refused(export, dataset, "--users", 3, "--candidates", 3))
    assert_matches(
        "the options are --users, --candidates", refused(sim_bundle, dataset, "--rows", 3)
    )
    assert_matches("fewer than the 5000 asked for", refused(export, dataset, "--rows", 5000))
    assert_matches("expected at least 1 row, received 0", refused(export, dataset, "--rows", 0))
    assert_matches("cat_0.arrow does not exist", refused(export, encoded[0]))
    other = write_dataset(tmp_path / "other", seed=1)
    assert_matches("has other columns or tables than", refused(export, other))
    words = write_dataset(tmp_path / "words", text=True)
    assert_matches("was not written with the workflow in", refused(export, words))
    hashed = export_bundle(small_model(words), words, tmp_path / "export")
    text = "Raw values of 'cat_2' cannot be recovered: the vocabulary holds a hash for id"
    assert_matches(text, refused(hashed, words, "--rows", 50))


def assert_matches(text: str, err: str) -> None:
    assert re.search(text, err), err


def test_describe_says_what_a_bundle_holds(
    export: Path, encoded: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "describe", "--export_dir", export)
    assert code == 0
    rows = Bundle.load(export).manifest.cardinalities["cat_2"]
    for text in (
        *("dlrm", "embedding_dim = 4", "raw (encoded by the bundle)", "numerical   num_2"),
        *(f"categorical cat_2: {rows} rows", "numerical float32 [B, 3]", "float32 [B, 1]"),
    ):
        assert text in out
    _, out, _ = run(capsys, "describe", "--export_dir", encoded[1])
    assert "encoded (no workflow)" in out


def test_a_faulty_line_is_named(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "requests.jsonl"
    good = {"numerical": [1, 2, 3], "categorical": ["a", "b", None]}
    path.write_text(json.dumps(good) + "\n\n" + json.dumps({**good, "numerical": [1, "x", 3]}))
    code, out, err = run(capsys, "score", "--export_dir", export, "--requests", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path}, line 3: numerical[1] (num_1): expected a finite number")


@pytest.mark.parametrize("layout", ["tabular", "histories"])
def test_the_benchmark_measures_every_batch_size(
    layout: str, export: Path, sim_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = export if layout == "tabular" else sim_bundle
    options = ("--batch_sizes", "1,7", "--steps", 5, "--warmup_steps", 1)
    arguments = ("benchmark", "--export_dir", bundle, *options)
    code, out, _ = run(capsys, *arguments, "--format", "json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["batch_size"] for row in rows] == [1, 7]
    for row in rows:
        latencies = [row[f"latency_{name}"] for name in ("p90", "p95", "p99")]
        assert latencies == sorted(latencies) and 0 < row["latency_mean"] <= latencies[-1]
        # Batches follow one another without pause.
        assert row["throughput"] == pytest.approx(1000 * row["batch_size"] / row["latency_mean"])
    code, out, _ = run(capsys, *arguments)
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == ["batch", "1", "7"]


def test_a_model_without_finite_scores_is_not_measured(
    export: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = np.full((1, 1), np.nan, np.float32)
    monkeypatch.setattr("lookback.serving.bundle.Bundle.predict", lambda *_: (scores, scores))
    options = ("--batch_sizes", 1, "--steps", 1, "--warmup_steps", 0)
    code, out, err = run(capsys, "benchmark", "--export_dir", export, *options)
    assert code == 2 and not out and "gives no finite score for each of 1 rows" in err


def test_wrong_options_of_the_benchmark_are_refused(
    export: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value, text in (
        ("--batch_sizes", "0", "--batch_sizes: expected an integer, or several separated by"),
        ("--batch_sizes", "1,x", "separated by commas, 1 or more, received '1,x'"),
        ("--batch_sizes", "", "--batch_sizes: expected sizes such as 1,64,4096, received none"),
        ("--steps", "0", "--steps: expected an integer, 1 or more, received 0"),
        ("--warmup_steps", "-1", "--warmup_steps: expected an integer, 0 or more, received -1"),
    ):
        code, _, err = run(capsys, "benchmark", "--export_dir", export, option, value)
        assert code == 2 and text in err
