"""DLRM and plain Keras DLRM on the same batches: what `dlrm_train` and `dlrm_inference` time."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from lookback.benchmarks import comparison
from lookback.benchmarks.baselines.dlrm import PlainDLRM
from lookback.benchmarks.comparison import Contender, precision, prepared, train_step
from lookback.benchmarks.costs import tabular_flops
from lookback.benchmarks.harness import BenchmarkReport
from lookback.benchmarks.peers.client import contender, missing
from lookback.dataloading.sources import Batch
from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.formats.tabular_schema import tabular_schema
from lookback.models import MODELS
from lookback.models.click_model import ClickModel
from lookback.models.tabular_config import DCNv2Config, DLRMConfig
from lookback.training.optimizers import Optimizer

LEARNING_RATE = 0.01  # the labels are random: a rate at which nothing diverges
PEER = "torch_dlrm"
_BATCHES = 4  # prepared batches that every contender cycles through

LABELS = {
    "ours": "DLRM, fp32",
    "ours_amp": "DLRM, --amp",
    "plain": "plain Keras DLRM",
    "plain_new_sgd": "plain Keras DLRM, Keras' new SGD",
    "torch": "PyTorch DLRM",
}


def compare(
    args: argparse.Namespace,
    *,
    title: str,
    mode: str,
    choose: Callable[[Contenders], Mapping[str, Contender]],
) -> BenchmarkReport:
    """Times contenders at each batch size and sets ours against the others.

    Args:
      args: of the command line.
      title: of the table.
      mode: "train" or "infer", the peer's command.
      choose: gives the functions to time, by key of LABELS.
    """
    config = DLRMConfig()
    sizes = {"tables": args.tables, "table_rows": args.table_rows, "numerical": args.numerical}

    @contextlib.contextmanager
    def contenders(batch: int) -> Iterator[Mapping[str, Contender]]:
        peer_options = {"batch": batch, "rows": args.table_rows, "tables": args.tables}
        with contender(PEER, mode, numerical=args.numerical, **peer_options) as peer:
            ours = Contenders(config, batch_size=batch, **sizes)
            yield {**choose(ours), **({"torch": peer} if peer else {})}

    forward = tabular_flops(config, args.tables, args.numerical)
    return comparison.compare(
        args,
        title=f"{title}: {args.tables} tables of {args.table_rows:,} x {config.embedding_dim}",
        labels=LABELS,
        reference="plain",
        contenders=contenders,
        flops=3 * forward if mode == "train" else forward,
        config=sizes,
        notes=[
            "Targets: DLRM 1.15 x plain Keras, with --amp on AMX 2.5 x (scoring 3 x); 2 x PyTorch.",
            *filter(None, [missing(PEER)]),
        ],
    )


class Contenders:
    """Ours and the plain model over the same batches."""

    def __init__(
        self,
        config: DLRMConfig | DCNv2Config,
        tables: int,
        table_rows: int,
        numerical: int,
        batch_size: int,
    ) -> None:
        """Makes batches of `batch_size` rows: uniform ids, numbers and labels."""
        self._config = config
        self._schema = tabular_schema(numerical, {f"cat_{i}": table_rows for i in range(tables)})
        self._rows = [table_rows] * tables
        rng = np.random.default_rng(0)
        self.batches: list[Batch] = [
            (
                {
                    NUMERICAL: tf.constant(rng.random((batch_size, numerical)), tf.float32),
                    CATEGORICAL: tf.constant(
                        rng.integers(0, table_rows, (batch_size, tables)), tf.int32
                    ),
                },
                tf.constant(rng.integers(0, 2, (batch_size, 1)), tf.float32),
            )
            for _ in range(_BATCHES)
        ]

    def distinct_rows(self) -> float:
        """Rows of tables that the first batch updates, a sample."""
        ids = self.batches[0][0][CATEGORICAL].numpy()
        return sum(len(np.unique(column)) for column in ids.T) / len(ids)

    def train_ours(self, *, amp: bool = False, optimizer: str = "sgd") -> Contender:
        """Our training step."""
        with precision(amp):
            model = self._ours()
            return train_step(
                model,
                Optimizer(optimizer, LEARNING_RATE, 0.0, model),
                prepared(self.batches),
                itertools.cycle(self.batches),
            )

    def train_plain(self, optimizer: tf.keras.optimizers.Optimizer) -> Contender:
        """The plain model's training step."""
        model = self._plain()

        @tf.function
        def step(features: Mapping[str, tf.Tensor], labels: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                logits = model(features, training=True)
                losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
                loss = tf.reduce_mean(losses)
            gradients = tape.gradient(loss, model.trainable_variables)
            # AutoGraph's zip() takes no `strict`.
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))  # noqa: B905
            return loss

        return self._cycle(step)

    def infer_ours(self, *, amp: bool = False) -> Contender:
        """Our forward pass."""
        with precision(amp):
            model = self._ours()
            score = tf.function(
                lambda features, labels: model(features, training=False), autograph=False
            )
            score(*self.batches[0])  # traced under this policy
        return self._cycle(score)

    def infer_plain(self) -> Contender:
        """The plain model's forward pass."""
        model = self._plain()
        return self._cycle(tf.function(lambda features, labels: model(features, training=False)))

    def _ours(self) -> ClickModel:
        name = "dlrm" if isinstance(self._config, DLRMConfig) else "dcnv2"
        model = MODELS[name](self._schema, self._config)
        model(self._few)
        return model

    def _plain(self) -> PlainDLRM:
        model = PlainDLRM(
            self._rows,
            embedding_dim=self._config.embedding_dim,
            bottom_mlp_sizes=self._config.bottom_mlp_sizes,
            top_mlp_sizes=self._config.top_mlp_sizes,
        )
        model(self._few)
        return model

    @property
    def _few(self) -> dict[str, tf.Tensor]:
        """Two rows, to build a model with."""
        return {name: value[:2] for name, value in self.batches[0][0].items()}

    def _cycle(self, function: Callable[..., tf.Tensor]) -> Contender:
        turn = itertools.cycle(self.batches)

        def work() -> int:
            features, labels = next(turn)
            function(features, labels).numpy()
            return int(labels.shape[0])

        return work
