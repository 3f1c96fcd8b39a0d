"""Small tabular datasets: rows as a log has them, gone through the real workflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

NUMERICAL, CATEGORICAL = 3, 3
ROWS = 1400
SMALL: dict[str, Any] = {"embedding_dim": 4, "bottom_mlp_sizes": (6, 4), "top_mlp_sizes": (8, 1)}


def raw_rows(*, text: bool, seed: int = 0) -> list[tuple[int, list[int | None], list[str | None]]]:
    """Label, integers (negative and missing ones, too) and categorical values of each row.

    `text`: whether the last column holds words instead of Criteo's hashes.
    """
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(ROWS):
        numbers = random.integers(-5, 10 ** random.integers(1, 9), NUMERICAL).tolist()
        codes = (random.zipf(1.5, CATEGORICAL) % 300).tolist()
        values = [f"{code * 2654435761 % 2**32:08x}" for code in codes]
        if text:
            values[-1] = f"größe {codes[-1]}"
        missing = random.random(NUMERICAL + CATEGORICAL) < 0.1
        rows.append(
            (
                int(random.integers(0, 2)),
                [None if m else n for n, m in zip(numbers, missing, strict=False)],
                [None if m else v for v, m in zip(values, missing[NUMERICAL:], strict=True)],
            )
        )
    return rows


def write_dataset(directory: Path, *, text: bool = False, seed: int = 0) -> Path:
    """`raw_rows` as Kaggle's train.txt, then through the workflow."""
    from lookback.workflows.pipeline import run_dataset

    (directory / "raw").mkdir(parents=True)
    lines = [
        "\t".join(["" if v is None else str(v) for v in (label, *numbers, *values)])
        for label, numbers, values in raw_rows(text=text, seed=seed)
    ]
    (directory / "raw" / "train.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run_dataset(
        "criteo",
        directory / "raw",
        directory / "dataset",
        numerical=NUMERICAL,
        categorical=CATEGORICAL,
        frequency_threshold=3,
        workers=0,
    )
    return directory / "dataset"


def requests_of(rows: Any) -> list[dict[str, Any]]:
    """Requests of raw rows, as lists and by name in turn."""
    found: list[dict[str, Any]] = []
    for number, (_, numbers, values) in enumerate(rows):
        if number % 2:
            named = {f"num_{i}": n for i, n in enumerate(numbers)}
            found.append(named | {f"cat_{i}": v for i, v in enumerate(values)})
        else:
            found.append({"numerical": numbers, "categorical": values})
    return found


def small_model(dataset_dir: Path, model_type: str = "dlrm", **options: Any) -> Any:
    """A model for a dataset, its weights random, so that every input has a say."""
    import tensorflow as tf

    from lookback.dataloading.tabular.source import open_tabular
    from lookback.models import MODELS

    entry = MODELS[model_type]
    data = open_tabular(dataset_dir)
    model = entry(data.schema, entry.config_class(**{**SMALL, **options}))
    model(
        {
            "numerical": tf.zeros([2, len(data.features.numerical)]),
            "categorical": tf.zeros([2, len(data.features.categorical)], tf.int32),
        }
    )
    random = np.random.default_rng(1)
    for weight in model.variables:
        if weight.dtype.is_floating:
            weight.assign(random.normal(0, 0.3, weight.shape))
    return model


def rows_to_test(dataset_dir: Path) -> dict[str, np.ndarray]:
    """All test rows, as the loader reads them."""
    from lookback.dataloading.tabular.source import open_tabular
    from lookback.formats.tabular_rows import TabularRows

    data = open_tabular(dataset_dir)
    rows = TabularRows.empty(data.num_rows("test"), data.features)
    first = 0
    for block, size in enumerate(data.blocks("test")):
        data.read("test", block, 0, rows.between(first, first + size))
        first += size
    return {"numerical": rows.numerical, "categorical": rows.categorical}
