"""The models as the GPU check runs them: at NVIDIA's batch sizes and cardinalities, or tiny."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from lookback.benchmarks.comparison import endless_feeds, prepared
from lookback.benchmarks.data import cached, generate_histories, resident_interactions
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.sources import ResidentSource
from lookback.dataloading.histories.windows import WindowConfig
from lookback.dataloading.interactions.source import InteractionSource
from lookback.dataloading.sources import BatchSource
from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.formats.tabular_schema import tabular_schema
from lookback.models import MODELS
from lookback.models.click_model import ClickModel
from lookback.training.evaluation.steps import EvaluationSteps
from lookback.training.optimizers import Optimizer
from lookback.training.precision import LossScale
from lookback.training.steps import Steps
from lookback.workflows.generators.criteo_tables import ROWS

_NUMERICAL = 13  # of Criteo
_BATCHES = 4
_FEW = 8  # steps of a measurement until its first look at the clock


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a case is made of.

    Attributes:
      rows: of a batch.
      users: U.
      items: I.
      events: N, of interactions.
      tables: rows of each table of a tabular model.
    """

    rows: int
    users: int = 0
    items: int = 0
    events: int = 0
    tables: tuple[int, ...] = ()


# NVIDIA's SIM (Amazon Books, cumulative batch 131,072), DLRM for PyTorch (small: frequency
# threshold 15, batch 32,768) and NCF (ML-20m, batch 1,048,576).
_HISTORIES = Sizes(131_072, 105_925, 1_209_081)
_ROWS = Sizes(32_768, tables=ROWS["t15"])
_PAIRS = Sizes(1_048_576, 138_493, 26_744, 20_000_000)
FULL: dict[str, Sizes] = {
    "sim": _HISTORIES,
    "dlrm": _ROWS,
    "neumf": _PAIRS,
    "dien": _HISTORIES,
    "din": _HISTORIES,
    "dcnv2": _ROWS,
}
_FEW_HISTORIES = Sizes(64, 60, 300)
_FEW_ROWS = Sizes(64, tables=(50, 7, 300))
_FEW_PAIRS = Sizes(256, 60, 300, 3000)
TINY: dict[str, Sizes] = {
    "sim": _FEW_HISTORIES,
    "dlrm": _FEW_ROWS,
    "neumf": _FEW_PAIRS,
    "dien": _FEW_HISTORIES,
    "din": _FEW_HISTORIES,
    "dcnv2": _FEW_ROWS,
}
OPTIMIZERS = {"neumf": "full_adam", "dlrm": "sgd", "dcnv2": "sgd"}
LEARNING_RATE = 0.01


class Case:
    """One model over its data.

    Attributes:
      model: built.
      source: of batches.
    """

    def __init__(
        self, name: str, sizes: Sizes, optimizer: str | None = None, *, xla: bool = False
    ) -> None:
        """Builds it under the precision in force.

        Args:
          name: key of MODELS.
          sizes: of the data.
          optimizer: None: NVIDIA's.
          xla: whether steps and scores are compiled.
        """
        self._xla = xla
        schema, self.source = _source(name, sizes)
        # Without dropout, which devices draw differently.
        options = {"dropout": 0.0} if name == "neumf" else {}
        self.model: ClickModel = MODELS[name](schema, MODELS[name].config_class(**options))
        features, labels = self.source.train_batch(next(self.source.train_feeds(0, 0)))
        self.model(features, targets=labels, training=True)
        chosen = optimizer or OPTIMIZERS.get(name, "adam")
        self._optimizer = Optimizer(chosen, LEARNING_RATE, 0.0, self.model)

    def steps(self) -> Iterator[dict[str, tf.Tensor]]:
        """What comes of one training step after another; nothing waits for the device."""
        fp16 = tf.keras.mixed_precision.global_policy().compute_dtype == "float16"
        steps = Steps(
            self.model, self._optimizer, self.source, LossScale() if fp16 else None, xla=self._xla
        )
        for _, result in steps.train(endless_feeds(self.source)):
            yield result

    def scores(self) -> Iterator[tf.Tensor]:
        """Logits of one batch of the test split after another."""
        scoring = EvaluationSteps(self.model, self.source, xla=self._xla)

        @tf.function(autograph=False)
        def score(feed: Any) -> tf.Tensor:
            return scoring.logits(self.source.eval_batch("test", feed)[0], None)

        while True:
            for feed in self.source.eval_feeds("test"):
                yield score(feed)


def rate(results: Iterator[Any], rows: Callable[[Any], float], seconds: float) -> dict[str, Any]:
    """Rows a second of steps that run one after another, waited for at the end alone.

    Args:
      results: gives that of a step; each is a tensor, or has one under "total_loss".
      rows: of a result.
      seconds: that are measured, at least.
    """
    for _ in range(3):  # traced, compiled, tuned
        _wait(next(results))
    start, done, few = time.perf_counter(), [], _FEW
    while True:
        done += list(itertools.islice(results, few))
        _wait(done[-1])
        taken = time.perf_counter() - start
        if taken >= seconds:
            break
        # As many as fill the time, so that waiting between them does not count.
        few = max(1, min(1000, int(len(done) * (seconds - taken) / taken)))
    return {
        "rows_per_s": sum(map(rows, done)) / taken,
        "ms_per_step": 1e3 * taken / len(done),
        "steps": len(done),
    }


def _wait(result: Any) -> None:
    tensor = result["total_loss"] if isinstance(result, dict) else result
    tf.reshape(tensor, [-1])[:1].numpy()


def _source(name: str, sizes: Sizes) -> tuple[Any, BatchSource]:
    """Schema and source of a model's data."""
    if sizes.tables:
        schema = tabular_schema(
            _NUMERICAL, {f"cat_{i}": rows for i, rows in enumerate(sizes.tables)}
        )
        return schema, prepared([_rows(sizes, seed) for seed in range(_BATCHES)])
    if sizes.events:
        histories = resident_interactions(users=sizes.users, items=sizes.items, events=sizes.events)
        return histories.schema, InteractionSource(histories, seed=0, batch_size=sizes.rows)
    options = {"users": sizes.users, "items": sizes.items}
    histories = Histories.load(generate_histories(cached("histories", options), **options))
    return histories.schema, ResidentSource(
        histories, WindowConfig(), seed=0, batch_size=sizes.rows
    )


def _rows(sizes: Sizes, seed: int) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """A batch of numbers, ids and labels, on the device."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, rows, sizes.rows) for rows in sizes.tables], axis=1)
    features = {
        NUMERICAL: tf.constant(rng.random((sizes.rows, _NUMERICAL)), tf.float32),
        CATEGORICAL: tf.constant(ids, tf.int32),
    }
    return features, tf.constant(rng.integers(0, 2, (sizes.rows, 1)), tf.float32)
