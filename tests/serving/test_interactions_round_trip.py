"""Raw ids through a trained bundle, in a process of its own, against the trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.serving.test_round_trip import FRESH, run, write_lines

OPTIONS = (
    *("--model_type", "neumf", "--epochs", "2", "--global_batch_size", "100", "--seed", "1"),
    *("--lr", "0.01", "--factors", "4", "--layers", "8,6,4", "--test_negatives", "12"),
)
USERS, ITEMS = 30, 40


def write_dataset(directory: Path) -> Path:
    """Interactions of integer ids, gone through the real workflow; an item has but its id."""
    from lookback.workflows.pipeline import run_dataset

    random = np.random.default_rng(0)
    rows = [
        (1000 + user, 7 * int(item), 10**9 + number)
        for user in range(USERS)
        for number, item in enumerate(random.permutation(ITEMS)[: random.integers(5, 25)])
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    frame.to_csv(directory / "raw.csv", index=False)
    run_dataset(
        "interactions", directory / "raw.csv", directory / "dataset", min_interactions=5, workers=0
    )
    return directory / "dataset"


@pytest.mark.slow
@pytest.mark.usefixtures("eagerly")
def test_scores_of_raw_ids_equal_the_trained_model_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lookback import cli
    from lookback.serving import export as exporter

    dataset, export = write_dataset(tmp_path), tmp_path / "export"
    trained: list[Any] = []
    export_bundle = exporter.export_bundle

    def kept(model: Any, **arguments: Any) -> Path:
        trained.append(model)
        return export_bundle(model, **arguments)

    monkeypatch.setattr(exporter, "export_bundle", kept)
    directories = ("--dataset_dir", str(dataset), "--results_dir", str(tmp_path / "results"))
    cli.train([*directories, *OPTIONS, "--export_dir", str(export)])
    (model,) = trained
    categories = dataset / "workflow" / "encoder" / "categories"
    known = {}
    for name in ("user_id", "item_id"):
        column = pd.read_parquet(categories / f"unique.{name}.parquet")[name]
        known[name] = {int(raw): int(number) for number, raw in column.items()}
    unknown = 999_999
    users, items = [*known["user_id"], unknown], [*known["item_id"], unknown]
    inputs = {
        "user_id": np.int32([known["user_id"].get(user, 2) for user in users]),
        "item_id": np.int32([[known["item_id"].get(item, 2) for item in items]] * len(users)),
    }
    expected = model(inputs, training=False).numpy()
    assert np.ptp(expected) > 1e-3
    requests = [{"user_id": user, "candidates": {"item_id": items}} for user in users]
    requests += [{"user_id": user, "k": len(items)} for user in users]
    path = write_lines(tmp_path / "requests.jsonl", requests)
    scores, imported = map(json.loads, run("-c", FRESH, str(export), str(path)).split("\n", 1))
    assert imported == []
    for number, logits in enumerate(expected):
        found, probabilities = scores[number]
        np.testing.assert_allclose(found, logits, atol=1e-6)
        np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)
        # The catalogue, which the unknown item is not part of, best first.
        ranked, _ = scores[len(users) + number]
        np.testing.assert_allclose(ranked, np.sort(logits[:-1])[::-1], atol=1e-6)
