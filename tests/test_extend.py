"""The examples of docs/how-to/extend.md do what the page says."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lookback import workflows
from lookback.core.errors import UserError
from lookback.embeddings.types import TableSpec
from lookback.workflows.pipeline import run_dataset

PAGE = Path(__file__).resolve().parent.parent / "docs/how-to/extend.md"
EXAMPLES = dict(
    re.findall(
        r"^```python title=\"([^\"]+)\"\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def load(name: str) -> types.ModuleType:
        """The example as the module that it would be."""
        path = tmp_path / Path(name).name
        path.write_text(EXAMPLES[name])
        full = f"lookback.{name.removesuffix('.py').replace('/', '.')}"
        spec = importlib.util.spec_from_file_location(full, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, full, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_dataset_is_read(example, tmp_path: Path, monkeypatch) -> None:
    reader = example("workflows/datasets/plays.py").PlaysReader
    monkeypatch.setitem(workflows.DATASETS, "plays", reader)
    random = np.random.default_rng(1)
    plays = pd.DataFrame(
        {
            "user": [f"u{n % 5}" for n in range(60)],
            "track": [f"t{n}" for n in random.integers(0, 9, 60)],
            "time": 1_704_067_200 + random.permutation(60),
        }
    )
    directory = tmp_path / "raw"
    directory.mkdir()
    plays.to_csv(directory / "a.plays", sep=";", header=False, index=False)
    run_dataset("plays", directory, tmp_path / "out", min_interactions=1)

    def raw(name: str, ids: list) -> list[str]:
        values = pd.read_parquet(tmp_path / f"out/workflow/categories/unique.{name}.parquet")[name]
        return list(values.loc[np.asarray(ids)])

    found = pd.concat(map(pd.read_parquet, sorted((tmp_path / "out/histories").iterdir())))
    tracks = [raw("item_id", ids) for ids in found["item_id"]]
    expected = plays.sort_values("time").groupby("user")["track"].agg(list)
    assert dict(zip(raw("user_id", found["user_id"]), tracks, strict=True)) == dict(expected)

    (directory / "b.plays").write_text("u1;t1;1704067300\nu1,t2,1704067301\n")
    with pytest.raises(UserError, match=r"b\.plays:2: expected user;track;seconds"):
        run_dataset("plays", directory, tmp_path / "again", min_interactions=1)


def test_the_strategy_agrees_with_itself(example) -> None:
    strategy = example("embeddings/sharding/row_wise_from.py").RowWiseFrom()
    for rows in (1, 3, 23):
        table = TableSpec("t", rows=rows, dim=2)
        for ranks in (1, 2, 3, 4):
            for placement in strategy.placements(table, ranks):
                shards = strategy.shards(table, placement, ranks)
                assert [shard.rank for shard in shards] == list(range(ranks))
                assert sorted(row for shard in shards for row in shard.rows) == list(range(rows))
                (leg,) = strategy.input_dist(placement, np.arange(rows), ranks)
                for row, (owner, local) in enumerate(zip(leg.owner, leg.row, strict=True)):
                    assert shards[owner].rows[local] == row
                assert leg.owner[0] == placement.ranks[0]


def test_the_model_takes_the_mean(example, make_schema, make_batch, monkeypatch) -> None:
    import tensorflow as tf

    from lookback.models import config

    exec(EXAMPLES["models/config.py"], config.__dict__)
    monkeypatch.setattr(config.MeanConfig, "__module__", config.__name__)
    module = example("models/mean.py")
    small = {"embedding_dim": 3, "max_seq_length": 9, "long_seq_length": 5}
    model = module.build(make_schema(), config.MeanConfig(**small, stage_two_mlp_dims=(6, 5)))
    batch, _ = make_batch([9, 0, 3], negatives=False)

    def logits(**changes: np.ndarray) -> np.ndarray:
        return model({n: tf.constant(v) for n, v in {**batch, **changes}.items()}).numpy()

    first = logits()
    assert first.shape == (3, 2)
    histories = {name: values for name, values in batch.items() if name.endswith("_history")}
    turned = {name: values[:, ::-1] for name, values in histories.items()}
    np.testing.assert_allclose(logits(**turned), first, atol=1e-5)  # a mean has no order
    twice = {name: np.tile(values[2:, -3:], 3) for name, values in histories.items()}
    thrice = {name: np.concatenate([batch[name][:2], values]) for name, values in twice.items()}
    np.testing.assert_allclose(logits(**thrice)[2], first[2], atol=1e-5)
    other = {name: np.where(values > 0, 1 + values % 3, 0) for name, values in histories.items()}
    assert np.abs(logits(**other)[0] - first[0]).max() > 1e-6
    np.testing.assert_array_equal(logits(**other)[1], first[1])  # who has no history
