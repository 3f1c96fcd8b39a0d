"""train.py as its users run it: real processes on a small dataset."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from lookback import cli
from lookback.checkpoints.store import MANIFEST, Checkpoint, CheckpointStore, find_checkpoint
from lookback.core.digests import digest_of
from lookback.core.errors import UserError
from lookback.formats.dataset_info import (
    DATASET_FILE,
    HISTORIES,
    VOCABULARIES,
    read_info,
    write_info,
)
from lookback.formats.raw_ids import ID_DIRECTORY

ROOT = Path(__file__).parent.parent
SMALL = (
    *("--model_type", "din", "--embedding_dim", "4", "--max_seq_length", "9"),
    *("--long_seq_length", "5", "--global_batch_size", "16", "--seed", "3"),
)

EPOCHS = ("--epochs", "3", "--checkpoint_every", "2", "--keep_checkpoints", "2")


@pytest.fixture(scope="module")
def dataset(make_histories, write_dataset, tmp_path_factory) -> Path:
    histories = make_histories(lengths=[20, 7, 3, 3, 12, 15, 30], items=40)
    return write_dataset(histories, tmp_path_factory.mktemp("data") / "dataset")


def words(dataset: Path, results: Path, *more: str) -> list[str]:
    return ["--dataset_dir", str(dataset), "--results_dir", str(results), *SMALL, *more]


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "train.py", *words(*arguments)]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_and_mistakes_answer_without_tensorflow(tmp_path):
    def answer(*arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """What train.py said, without what Python says about its imports."""
        result = run(sys.executable, "-X", "importtime", "train.py", *arguments)
        lines = result.stderr.splitlines()
        imports = [line for line in lines if line.startswith("import time:")]
        assert imports
        assert not any(line.endswith(" tensorflow") for line in imports)
        return result, [line for line in lines if line not in imports]

    helped, _ = answer("--help")
    mistaken, complaint = answer("--dataset_dir", "d", "--epoch", "3")
    removed, advice = answer("--dataset_dir", "d", "--prebatch_train_size", "3")
    saved = CheckpointStore(tmp_path).save(1, {"step": np.array(1)}, {})
    trusted = ("--trusted_digest", "0" * 64)
    untrusted, refusal = answer(
        *("--dataset_dir", "d", "--model_type", "din"),
        *("--load_checkpoint_path", str(tmp_path), *trusted),
    )
    assert "--long_seq_length" in helped.stdout
    assert mistaken.returncode == removed.returncode == untrusted.returncode == 2
    digest = hashlib.sha256((saved / MANIFEST).read_bytes()).hexdigest()
    assert f"expected the SHA-256 {'0' * 64}, as trusted_digest says, found {digest}" in refusal[0]
    assert complaint[0].startswith("error: ")
    assert "--epochs" in complaint[0]
    assert "--global_batch_size" in advice[0]


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory) -> Path:
    """A run that nothing interrupts; its checkpoints are in `saved`."""
    directory = tmp_path_factory.mktemp("whole")
    saved = ("--save_checkpoint_path", str(directory / "saved"))
    trained = run(*command(dataset, directory, *EPOCHS, *saved))
    assert trained.returncode == 0, trained.stderr
    assert not trained.stderr  # of the libraries' imports neither
    last = find_checkpoint(directory / "saved")
    assert f"saved {last}, digest {digest_of(last / MANIFEST)}\n" in trained.stdout
    return directory


@pytest.mark.slow
def test_train_evaluate_and_inference_leave_what_they_say(
    dataset, whole, running_eagerly, tmp_path, capsys
):
    report = json.loads((whole / "report/metrics.json").read_text())
    assert {path.name for path in (whole / "report").iterdir()} == {
        *("index.html", "metrics.json", "learning_curve.png", "roc.png", "precision_recall.png"),
        *("calibration.png", "strata.png", "attention.png"),
    }
    options = yaml.safe_load((whole / "config.yaml").read_text())
    assert (options["model_type"], options["max_seq_length"]) == ("din", 9)

    trusted = digest_of(find_checkpoint(whole / "saved") / MANIFEST)
    loaded = ("--load_checkpoint_path", str(whole / "saved"), "--trusted_digest", trusted)
    of_data = ("--trusted_dataset_digest", digest_of(dataset / DATASET_FILE))
    # In this process, which has TensorFlow already, eagerly: what was trained in another.
    evaluate = words(dataset, tmp_path / "evaluate", "--mode", "evaluate", *loaded, *of_data)
    infer = ("--mode", "inference", "--no_verify", *loaded)
    with running_eagerly():
        cli.train(evaluate)
        cli.train(words(dataset, tmp_path / "infer", *infer))
    again = json.loads((tmp_path / "evaluate/report/metrics.json").read_text())
    assert again["results"]["test_auc"] == report["results"]["test_auc"]

    assert "--no_verify: the files of" in "".join(capsys.readouterr())
    scores = pq.read_table(tmp_path / "infer/scores.parquet").to_pydict()
    assert len(scores["logit"]) == 2 * 7
    # This dataset has no vocabularies, which would give raw ids beside the rows.
    assert scores["user_id_row"] == [user for user in range(1, 8) for _ in range(2)]
    assert "item_id_row" in scores
    np.testing.assert_allclose(
        scores["probability"], 1 / (1 + np.exp(-np.array(scores["logit"], np.float64)))
    )


@pytest.mark.slow
def test_a_checkpoint_is_not_used_on_ids_of_another_fit(dataset, whole, tmp_path):
    """Nor on another dataset than is trusted; each before a model is built."""
    other = shutil.copytree(dataset, tmp_path / "other")
    (other / ID_DIRECTORY).mkdir(parents=True)  # all of a workflow that is looked for before
    info = read_info(other)
    content = {**info, VOCABULARIES: {**info[VOCABULARIES], "item_id": "1" * 64}}
    write_info(other, HISTORIES, content)
    loaded = ("--load_checkpoint_path", str(whole / "saved"))
    for more in (
        *(("--mode", mode) for mode in ("evaluate", "inference")),
        ("--export_dir", str(tmp_path / "export"), "--mode", "evaluate"),
        ("--epochs", "4"),
    ):
        with pytest.raises(UserError, match=r"ids of item_id in .*other stand for other values"):
            cli.train(words(other, tmp_path / "results", *loaded, *more))
    assert not (tmp_path / "export").exists()
    trusted = ("--trusted_dataset_digest", digest_of(dataset / DATASET_FILE))
    with pytest.raises(UserError, match=r"SHA-256 .*, as trusted_dataset_digest says, found"):
        cli.train(words(other, tmp_path / "results", *trusted))
    with pytest.raises(UserError, match="expected without --no_verify, received both"):
        cli.train(words(dataset, tmp_path / "results", *trusted, "--no_verify"))


@pytest.mark.slow
def test_a_run_killed_at_a_random_point_ends_with_the_same_weights(dataset, whole, tmp_path):
    """Several kills, one after another: tests/distributed/kills.py."""
    expected = Checkpoint(find_checkpoint(whole / "saved"))
    saved, log = tmp_path / "killed", tmp_path / "b" / "log.json"
    saves = ("--save_checkpoint_path", str(saved))
    process = subprocess.Popen(
        command(dataset, tmp_path / "b", *EPOCHS, *saves),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wanted = random.Random(0).randint(3, 9)
    while _steps(log) < wanted and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert find_checkpoint(saved).name < expected.path.name
    # In this process, as above.
    cli.train(words(dataset, tmp_path / "b", *EPOCHS, *saves, "--load_checkpoint_path", str(saved)))
    result = Checkpoint(find_checkpoint(saved))
    assert result.step == expected.step
    assert result.meta == expected.meta
    for name in expected:
        np.testing.assert_array_equal(result[name], expected[name], err_msg=name)


def _steps(log: Path) -> int:
    """Steps in a log so far, of all processes that wrote it."""
    return log.read_text().count('"step": [') if log.exists() else 0
