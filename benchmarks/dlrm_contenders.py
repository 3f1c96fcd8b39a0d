"""DLRM and plain Keras DLRM on the same batches: what `dlrm_train` and `dlrm_inference` time."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.baselines.dlrm import PlainDLRM
from benchmarks.harness import Report, Timing, gemm_peak, interleave
from benchmarks.peers.client import contender, missing
from dataloading.sources import Batch, BatchSource
from dataloading.tabular_schema import CATEGORICAL, NUMERICAL, tabular_schema
from models import dlrm
from models.tabular import TabularModel
from models.tabular_config import DLRMConfig
from training.optimizers import Optimizer
from training.precision import LossScale, amp_policy
from training.steps import Steps

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
    choose: Callable[[Contenders], Mapping[str, Callable[[], int]]],
) -> Report:
    """Times contenders at each batch size and sets ours against the others.

    Args:
      args: of the command line.
      title: of the table.
      mode: "train" or "infer", the peer's command.
      choose: gives the functions to time, by key of LABELS.
    """
    config = DLRMConfig()
    forward = flops_per_sample(config, args.tables, args.numerical)
    flops = 3 * forward if mode == "train" else forward
    peaks = {"ours": gemm_peak(), "ours_amp": gemm_peak("bfloat16")}
    rows: list[tuple[object, ...]] = []
    figures: dict[str, Any] = {"flops_per_sample": flops}
    figures |= {f"gemm_peak_flops_per_s_{name}": peak for name, peak in peaks.items()}
    ratios: dict[str, float] = {}
    for size in args.global_batch_size or ([4096] if args.quick else [4096, 32768]):
        peer_options = {"batch": size, "rows": args.table_rows, "tables": args.tables}
        with contender(PEER, mode, numerical=args.numerical, **peer_options) as peer:
            contenders = Contenders(config, args.tables, args.table_rows, args.numerical, size)
            timings = interleave(
                {**choose(contenders), **({"torch": peer} if peer else {})},
                rounds=args.rounds or (3 if args.quick else 5),
                warmup=2,
                min_seconds=1.0 if args.quick else 3.0,
            )
        for name, timing in timings.items():
            fraction = timing.median * flops / peaks.get(name, peaks["ours"])
            figures[f"{name}_samples_per_s_{size}"] = timing.as_dict()
            figures[f"{name}_fraction_of_gemm_peak_{size}"] = fraction
            speeds = (round(timing.median), round(timing.lowest), round(timing.highest))
            over_plain = f"{timing.over(timings['plain']):.2f} x"
            rows.append((size, LABELS[name], *speeds, f"{fraction:.0%}", over_plain))
        ratios |= _ratios(timings, size)
    return Report(
        title=f"{title}: {args.tables} tables of {args.table_rows:,} x {config.embedding_dim}",
        columns=(
            *("batch", "model", "samples/s", "lowest", "highest"),
            *("of GEMM peak", "over plain"),
        ),
        rows=rows,
        config={
            "tables": args.tables,
            "table_rows": args.table_rows,
            "numerical": args.numerical,
            "quick": args.quick,
        },
        figures=figures,
        ratios=ratios,
        notes=[
            f"{flops / 1e6:.1f} MFLOP a sample, products of matrices only. GEMM peak "
            f"{peaks['ours'] / 1e9:,.0f} GFLOP/s, bf16 {peaks['ours_amp'] / 1e9:,.0f} (for --amp).",
            "Targets: DLRM 1.1 x plain Keras, with --amp 1.6 x, and 2 x PyTorch.",
            *filter(None, [missing(PEER)]),
        ],
    )


def flops_per_sample(config: DLRMConfig, tables: int, numerical: int) -> float:
    """Floating point operations of one row's forward pass, products of matrices only.

    Args:
      config: of the model, with the dot interaction.
      tables: M.
      numerical: N.
    """
    vectors = tables + 1
    pairs = vectors * (vectors - 1) // 2
    bottom = (numerical, *config.bottom_mlp_sizes)
    top = (config.bottom_mlp_sizes[-1] + pairs, *config.top_mlp_sizes)
    layers = sum(a * b for sizes in (bottom, top) for a, b in itertools.pairwise(sizes))
    return 2.0 * (layers + pairs * config.embedding_dim)


class Contenders:
    """Ours and the plain model over the same batches."""

    def __init__(
        self, config: DLRMConfig, tables: int, table_rows: int, numerical: int, batch_size: int
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

    def train_ours(self, *, amp: bool = False) -> Callable[[], int]:
        """Our training step."""
        with precision(amp) as policy:
            model = self._ours()
            scale = LossScale() if policy == "mixed_float16" else None
            optimizer = Optimizer("sgd", LEARNING_RATE, 0.0, model)
            steps = Steps(model, optimizer, _Prepared(self.batches), scale)
            results = steps.train(itertools.cycle(self.batches))
            next(results)  # traced under this policy

        def work() -> int:
            _, result = next(results)
            float(result["total_loss"])
            return int(result["rows"])

        return work

    def train_plain(self, optimizer: tf.keras.optimizers.Optimizer) -> Callable[[], int]:
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

    def infer_ours(self, *, amp: bool = False) -> Callable[[], int]:
        """Our forward pass."""
        with precision(amp):
            model = self._ours()
            score = tf.function(
                lambda features, labels: model(features, training=False), autograph=False
            )
            score(*self.batches[0])  # traced under this policy
        return self._cycle(score)

    def infer_plain(self) -> Callable[[], int]:
        """The plain model's forward pass."""
        model = self._plain()
        return self._cycle(tf.function(lambda features, labels: model(features, training=False)))

    def _ours(self) -> TabularModel:
        model = dlrm.build(self._schema, self._config)
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

    def _cycle(self, function: Callable[..., tf.Tensor]) -> Callable[[], int]:
        turn = itertools.cycle(self.batches)

        def work() -> int:
            features, labels = next(turn)
            function(features, labels).numpy()
            return int(labels.shape[0])

        return work


@contextlib.contextmanager
def precision(amp: bool) -> Iterator[str]:
    """Within it, Keras' policy is that of --amp, or float32; gives its name."""
    before = tf.keras.mixed_precision.global_policy()
    policy = amp_policy(bool(tf.config.list_physical_devices("GPU"))) if amp else "float32"
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield policy
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


class _Prepared(BatchSource):
    """Batches that are in memory already: a feed is a batch."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    @property
    def group_feature(self) -> str | None:
        return None

    def train_steps(self) -> int:
        return len(self._batches)

    def train_feeds(self, epoch: int, first_step: int) -> Iterator[Batch]:
        del epoch
        yield from self._batches[first_step:]

    def parts_of(self, feed: Batch) -> Sequence[Batch]:
        return [feed]

    def eval_steps(self, split: str) -> int:
        del split
        return len(self._batches)

    def eval_feeds(self, split: str) -> Iterator[Batch]:
        del split
        yield from self._batches

    def train_batch(self, feed: Batch) -> Batch:
        return feed

    def eval_batch(self, split: str, feed: Batch) -> Batch:
        del split
        return feed

    def describe(self, feed: Batch) -> dict[str, list[Any]]:
        return {"label": feed[1].numpy().ravel().tolist()}


def _ratios(timings: Mapping[str, Timing], size: int) -> dict[str, float]:
    """Ours, in both precisions, over each of the others."""
    mine = [name for name in timings if name.startswith("ours")]
    return {
        f"{name}_over_{other}_{size}": timings[name].over(timings[other])
        for name in mine
        for other in timings
        if other not in mine
    }
