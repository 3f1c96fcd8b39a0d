"""Raw rows through an exported bundle, in a process of its own, against the trainer's scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.serving.tabular_data import raw_rows, requests_of, write_dataset
from tests.serving.test_round_trip import FRESH, run, write_lines

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("eagerly")]

OPTIONS = (
    *("--model_type", "dlrm", "--epochs", "1", "--global_batch_size", "64", "--seed", "1"),
    *("--lr", "0.01", "--warmup_steps", "0", "--decay_start_step", "none", "--decay_steps", "0"),
    *("--embedding_dim", "4", "--bottom_mlp_sizes", "6,4", "--top_mlp_sizes", "8,1"),
)


def test_scores_of_raw_rows_equal_the_trainers(tmp_path: Path) -> None:
    from lookback import cli

    dataset, export = write_dataset(tmp_path / "data"), tmp_path / "export"
    common = ["--dataset_dir", str(dataset), "--results_dir", str(tmp_path / "results"), *OPTIONS]
    checkpoints = str(tmp_path / "checkpoints")
    cli.train([*common, "--save_checkpoint_path", checkpoints, "--export_dir", str(export)])
    cli.train([*common, "--mode", "inference", "--load_checkpoint_path", checkpoints])
    expected = pq.read_table(tmp_path / "results" / "scores.parquet").to_pandas()
    # The second half of the last seventh of train.txt, in its order.
    rows = raw_rows(text=False)[-len(expected) :]
    assert expected["label"].tolist() == [label for label, _, _ in rows]
    path = write_lines(tmp_path / "requests.jsonl", requests_of(rows))
    scores, imported = map(json.loads, run("-c", FRESH, str(export), str(path)).split("\n", 1))
    assert imported == []
    logits, probabilities = np.array(scores)[..., 0].T
    assert np.ptp(logits) > 1e-3
    np.testing.assert_allclose(logits, expected["logit"], atol=1e-6)
    np.testing.assert_allclose(probabilities, expected["probability"], atol=1e-6)
