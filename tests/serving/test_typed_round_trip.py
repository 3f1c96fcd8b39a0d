"""Raw log → workflow → training → bundle → requests of the dataset: scored as by the trainer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lookback.core.errors import UserError
from lookback.serving.commands import PROGRAM
from lookback.workflows.histories.rules import EventRules, TimeSplit
from tests.workflows.typed_log import START, make_log, run_log, write_log

pytestmark = pytest.mark.usefixtures("eagerly")

SMALL = ("--max_seq_length", "8", "--long_seq_length", "4", "--embedding_dim", "4")


def train(dataset: Path, results: Path, *more: str) -> None:
    from lookback import cli

    words = ["--dataset_dir", str(dataset), "--model_type", "din", *SMALL, "--time_features"]
    words += ["--epochs", "1", "--global_batch_size", "256", "--seed", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli.train([*words, "--results_dir", str(results), *more])


def logits_of(bundle: Path, dataset: Path, requests: int, capsys: Any) -> list[dict[str, Any]]:
    """Requests of a dataset with one candidate each, and what they are answered."""
    words = ("--export_dir", str(bundle), "--dataset_dir", str(dataset))
    capsys.readouterr()
    assert PROGRAM.main(["sample", *words, "--users", str(requests), "--candidates", "1"]) == 0
    path = bundle.parent / "requests.jsonl"
    path.write_text(capsys.readouterr().out)
    assert PROGRAM.main(["score", "--export_dir", str(bundle), "--requests", str(path)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [{**answer, **answer["candidates"][0]} for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True], ids=["events", "impressions"])
def test_requests_made_of_a_dataset_score_as_the_trainer_does(
    tmp_path: Path, capsys: Any, explicit: bool
) -> None:
    raw = write_log(make_log(), tmp_path / "raw", label=explicit)
    dataset = tmp_path / "dataset"
    rules = EventRules(split=TimeSplit(START + 75 * 3600)) if explicit else EventRules()
    run_log(raw, dataset, rules=rules, explicit=explicit)
    saved, bundle = tmp_path / "saved", tmp_path / "bundle"
    train(
        *(dataset, tmp_path / "results", "--save_checkpoint_path", str(saved)),
        *("--export_dir", str(bundle)),
    )
    loaded = ("--mode", "inference", "--load_checkpoint_path", str(saved))
    train(dataset, tmp_path / "scored", *loaded)
    scored = pq.read_table(tmp_path / "scored" / "scores.parquet").to_pandas()
    if explicit:
        rows = pq.read_metadata(dataset / "impressions" / "test" / "part-00000.parquet").num_rows
        found = logits_of(bundle, dataset, rows, capsys)
        assert rows == len(scored) > 100
        known = scored["item_id"].notna().to_numpy()
        items = np.array([answer["item_id"] for answer in found])
        np.testing.assert_array_equal(items[known], scored["item_id"][known])
    else:
        scored = scored[scored["label"] == 1]
        users = pq.read_table(dataset / "histories").num_rows
        of = {a["user_id"]: a for a in logits_of(bundle, dataset, users, capsys)}
        assert users == len(of) >= len(scored) > 20
        found = [of[user] for user in scored["user_id"]]
    np.testing.assert_allclose([a["logit"] for a in found], scored["logit"], atol=1e-5)
    assert np.ptp(scored["logit"]) > 1e-3


@pytest.mark.slow
def test_a_run_reads_the_features_that_it_is_told_to(tmp_path: Path, capsys: Any) -> None:
    raw = write_log(make_log(), tmp_path / "raw")
    run_log(raw, tmp_path / "dataset")
    saved = ("--save_checkpoint_path", str(tmp_path / "saved"))
    some = ("--features", "genres,dwell,country")
    train(tmp_path / "dataset", tmp_path / "results", *some, *saved)
    told = capsys.readouterr().out
    left = "age, likes, category, brand, year, price, device, hour, words, rating, seen"
    assert {*told.split("features: ")[1].split(" of the dataset are not read")[0].split(", ")} == {
        *left.split(", ")
    }
    loaded = ("--mode", "evaluate", "--load_checkpoint_path", str(tmp_path / "saved"))
    train(tmp_path / "dataset", tmp_path / "again", *some, *loaded)
    asked_for = r"model\.features: expected .* with \(here: --features genres,dwell,country\), or"
    with pytest.raises(UserError, match=asked_for):
        train(tmp_path / "dataset", tmp_path / "other", *loaded)
    with pytest.raises(UserError, match=r"features: expected some of country, .* received colour"):
        train(tmp_path / "dataset", tmp_path / "unknown", "--features", "colour")
