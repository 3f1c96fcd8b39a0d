"""Raw ids through an exported bundle, in a process of its own, against the trainer's scores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lookback.serving.commands import PROGRAM

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("eagerly")]

ROOT = Path(__file__).resolve().parents[2]

FRESH = """
import json, sys
from pathlib import Path
from lookback.serving.bundle import Bundle

bundle = Bundle.load(sys.argv[1])
requests = [json.loads(line) for line in Path(sys.argv[2]).read_text().splitlines()]
scores = bundle.score(requests)
print(json.dumps([[s.logit.tolist(), s.probability.tolist()] for s in scores]))
print(json.dumps(sorted({"models", "merlin", "nvtabular", "workflows"} & set(sys.modules))))
"""


def trainer_scores(
    trained: Any, dataset_dir: Path, raw: Any, results: Path
) -> list[tuple[dict, np.ndarray]]:
    """Requests of all test users, and the logits that `train.py --mode inference` gave them."""
    from lookback import cli
    from lookback.dataloading.histories.resident import Histories
    from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig

    negatives = 4
    cli.train(
        [
            *(*trained.arguments, "--results_dir", str(results)),
            *("--mode", "inference", "--load_checkpoint_path", str(trained.checkpoints)),
            *("--test_negatives", str(negatives)),
        ]
    )
    table = pq.read_table(results / "scores.parquet").to_pandas()
    logits = table["logit"].to_numpy().reshape(-1, 1 + negatives)
    # The candidates of evaluation depend on the dataset alone.
    windows = WindowBuilder(Histories.load(dataset_dir), WindowConfig(12, 8))
    users = windows.num_samples("test")
    batch, _ = windows.eval_batch("test", 0, 0, users * (1 + negatives), negatives)
    directory = dataset_dir / "workflow" / "categories"
    user_names = pd.read_parquet(directory / "unique.user_id.parquet")["user_id"]
    item_names = pd.read_parquet(directory / "unique.item_id.parquet")["item_id"]
    found = []
    for row, user in enumerate(batch["user_id"].numpy().tolist()):
        candidates = item_names[batch["item_id"].numpy()[row]].tolist()
        found.append((raw.request(user_names[user], candidates), logits[row]))
    return found


def write_lines(path: Path, requests: list[dict]) -> Path:
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def run(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("requests")


def test_scores_of_raw_ids_equal_the_trainers(
    train_sim: Callable[[bool], Any], dataset_dir: Path, raw: Any, workspace: Path
) -> None:
    trained = train_sim(False)
    expected = trainer_scores(trained, dataset_dir, raw, workspace / "results")
    assert len(expected) > 20  # every test user
    assert {len(request["history"]["item_id"]) > 12 for request, _ in expected} == {True, False}
    requests = [request for request, _ in expected]
    path = write_lines(workspace / "requests.jsonl", requests)
    scores, imported = map(
        json.loads, run("-c", FRESH, str(trained.bundle), str(path)).split("\n", 1)
    )
    assert imported == []
    for (_, logits), (found, probabilities) in zip(expected, scores, strict=True):
        np.testing.assert_allclose(found, logits, atol=1e-6)
        np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)


def test_scores_with_time_features_equal_the_trainers(
    train_sim: Callable[[bool], Any], dataset_dir: Path, raw: Any, workspace: Path
) -> None:
    trained = train_sim(True)
    expected = trainer_scores(trained, dataset_dir, raw, workspace / "timed")
    path = write_lines(workspace / "timed.jsonl", [request for request, _ in expected])
    output = workspace / "scores.jsonl"
    words = ("--export_dir", str(trained.bundle), "--requests", str(path), "--output", str(output))
    assert PROGRAM.main(["score", *words]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    for (request, logits), line in zip(expected, lines, strict=True):
        assert line["user_id"] == request["user_id"]
        found = {c["item_id"]: c for c in line["candidates"]}
        ranked = [c["logit"] for c in line["candidates"]]
        assert ranked == sorted(ranked, reverse=True)
        for item, logit in zip(request["candidates"]["item_id"], logits, strict=True):
            assert found[item]["logit"] == pytest.approx(logit, abs=1e-6)
            assert found[item]["category_id"] == raw.categories[item]
