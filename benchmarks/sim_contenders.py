"""SIM and the plain Keras SIM on the same batches: what `sim_train` and `sim_inference` time."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from lookback.benchmarks.baselines.plain_sim import PlainSIM, one_row_per_candidate
from lookback.benchmarks.comparison import endless_feeds, train_step
from lookback.benchmarks.data import cached, generate_histories
from lookback.benchmarks.harness import BenchmarkReport, gemm_peak, interleave
from lookback.benchmarks.options import batch_sizes, turns
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.sources import ResidentSource
from lookback.dataloading.histories.windows import WindowConfig
from lookback.embeddings.optimizers import LazyAdam
from lookback.formats.features import table_rows
from lookback.models import MODELS, SIMConfig
from lookback.models.click_model import contract_of
from lookback.training.optimizers import Optimizer
from lookback.training.precision import amp_policy

LEARNING_RATE = 0.01  # seed 000's default
_BATCHES = 8  # prepared batches that the plain model and inference cycle through

Features = dict[str, tf.Tensor]


def compare(
    args: argparse.Namespace,
    *,
    title: str,
    target: float,
    training: bool,
    choose: Callable[[Contenders], Mapping[str, Callable[[], int]]],
    labels: Mapping[str, str],
) -> BenchmarkReport:
    """Times contenders at each batch size; the first, "ours", is set against the others.

    Args:
      args: of the command line.
      title: of the table.
      target: ratio to the plain model that the project wants.
      training: whether FLOPs count the backward pass.
      choose: gives the functions to time, by name.
      labels: what to call them in the table.
    """
    options: dict[str, Any] = {"users": args.users or (20_000 if args.quick else 105_925)}
    histories = Histories.load(
        generate_histories(cached("histories", options, args.cache_dir), **options)
    )
    if args.amp:
        tf.keras.mixed_precision.set_global_policy(amp_policy())
    peak = gemm_peak("bfloat16" if args.amp else "float32")
    rows: list[tuple[object, ...]] = []
    figures: dict[str, Any] = {"gemm_peak_flops_per_s": peak}
    ratios: dict[str, float] = {}
    for size in batch_sizes(args):
        contenders = Contenders(histories, size)
        flops = contenders.flops(training=training)
        timings = interleave(
            choose(contenders),
            **turns(args),
        )
        ours = timings["ours"]
        fraction = ours.median * flops / peak
        figures |= {f"flops_per_sample_{size}": flops, f"fraction_of_gemm_peak_{size}": fraction}
        for name, timing in timings.items():
            figures[f"{name}_samples_per_s_{size}"] = timing.as_dict()
            cells: tuple[object, ...] = ("", "")
            if name == "ours":
                cells = (flops / 1e6, f"{fraction:.0%}")
            elif not name.startswith("ours"):
                ratios[f"ours_over_{name}_{size}"] = ours.over(timing)
            over_plain = timing.over(timings["plain"])
            if name != "plain":
                ratios[f"{name}_over_plain_{size}"] = over_plain
            cells = (*cells, f"{over_plain:.2f} x")
            speeds = (round(timing.median), round(timing.lowest), round(timing.highest))
            rows.append((size, labels[name], *speeds, *cells))
    return BenchmarkReport(
        title=f"{title} at Amazon Books' cardinalities{', mixed precision' * args.amp}",
        columns=(
            *("batch", "model", "samples/s", "lowest", "highest"),
            *("MFLOP/sample", "of GEMM peak", "over plain"),
        ),
        rows=rows,
        config={
            "users": histories.num_users,
            "events": histories.num_events,
            "amp": args.amp,
            "quick": args.quick,
        },
        figures=figures,
        ratios=ratios,
        notes=[
            f"GEMM peak {peak / 1e9:,.0f} GFLOP/s. Target: SIM {target} x the plain model. FLOPs "
            "are those of SIM, which computes what depends on the history alone once for both "
            "candidates."
        ],
    )


class Contenders:
    """Ours and the plain model over one dataset and batch size."""

    def __init__(self, histories: Histories, batch_size: int) -> None:
        """Builds both models; `batch_size` counts rows."""
        self._batch_size = batch_size
        self._source = ResidentSource(histories, WindowConfig(), seed=0, batch_size=batch_size)
        steps = min(_BATCHES, self._source.train_steps())
        feeds = itertools.islice(self._source.train_feeds(0, 0), steps)
        self.batches = [self._source.train_batch(feed) for feed in feeds]
        config = SIMConfig()
        self.ours = MODELS["sim"](histories.schema, config)
        self.ours(_without_negatives(self.batches[0][0]))
        rows = table_rows(histories.schema)
        features = histories.features
        self.plain = PlainSIM(
            {name: rows[name] for name in features.user},
            {name: rows[name] for name in features.item},
            embedding_dim=config.embedding_dim,
            long_seq_length=config.long_seq_length,
            k=config.k,
        )
        self._rows = [one_row_per_candidate(*batch) for batch in self.batches]
        self.plain(self._rows[0][0])

    def train_ours(self) -> Callable[[], int]:
        """Our training step, windows and optimizer included."""
        optimizer = Optimizer("adam", LEARNING_RATE, 0.0, self.ours)
        return train_step(self.ours, optimizer, self._source, endless_feeds(self._source))

    def train_plain(self, *, lazy_tables: bool) -> Callable[[], int]:
        """The plain model's training step on batches made beforehand.

        Args:
          lazy_tables: update tables with our lazy Adam, so that the networks alone differ, rather
            than everything with Keras' Adam as its user would.
        """
        optimizer = tf.keras.optimizers.Adam(LEARNING_RATE)
        tables = {name: layer.embeddings for name, layer in self.plain.tables.items()}
        held = {id(variable) for variable in tables.values()} if lazy_tables else set()
        dense = [v for v in self.plain.trainable_weights if id(v) not in held]
        sparse = LazyAdam(tf.constant(LEARNING_RATE))
        sparse.build(tables if lazy_tables else {})
        optimizer.build(dense)

        @tf.function
        def step(features: Features, labels: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = self.plain.compute_loss(y=labels, y_pred=self.plain(features, training=True))
            gradients = tape.gradient(loss, [*dense, *(tables.values() if lazy_tables else ())])
            if lazy_tables:
                count = tf.cast(optimizer.iterations + 1, tf.float32)
                # AutoGraph's zip() takes no `strict`.
                sparse.apply(dict(zip(tables, gradients[len(dense) :])), tables, count)  # noqa: B905
            optimizer.apply_gradients(zip(gradients[: len(dense)], dense))  # noqa: B905
            return loss

        return self._cycle(lambda features, labels: step(features, labels), self._rows)

    def infer_ours(self, candidates: int = 2) -> Callable[[], int]:
        """Our forward pass on rows made beforehand.

        Args:
          candidates: 2 scores a positive and its negative with one history, as the data has them;
            1 gives each row a history of its own, as a server sees requests of one candidate.
        """
        score = tf.function(self.ours.score, autograph=False)
        if candidates == 1:
            # A candidate [B] is [B, 1] to our model.
            batches = [(_without_negatives(f), labels) for f, labels in self._rows]
        else:
            batches = [(_without_negatives(f), labels) for f, labels in self.batches]
        return self._cycle(lambda features, _: score(features), batches)

    def infer_plain(self) -> Callable[[], int]:
        """The plain model's forward pass on the same rows."""
        score = tf.function(lambda features: self.plain(features, training=False)["logits"])
        batches = [(_without_negatives(f), labels) for f, labels in self._rows]
        return self._cycle(lambda features, _: score(features), batches)

    def flops(self, *, training: bool) -> float:
        """Floating point operations of our model for one row, as TensorFlow's profiler counts."""
        from tensorflow.python.profiler import model_analyzer, option_builder

        features, labels = self.batches[0]
        features = features if training else _without_negatives(features)

        def forward(features: Features, labels: tf.Tensor) -> tf.Tensor:
            return self.ours(features, training=False)

        def backward(features: Features, labels: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                logits = self.ours(features, targets=labels, training=True)
                loss = tf.add_n(
                    [contract_of(self.ours).head_loss(labels, logits), *self.ours.losses]
                )
            return tape.gradient(loss, self.ours.trainable_variables)

        graph = (
            tf.function(backward if training else forward, autograph=False)
            .get_concrete_function(
                {name: tf.TensorSpec(v.shape, v.dtype) for name, v in features.items()},
                tf.TensorSpec(labels.shape, labels.dtype),
            )
            .graph
        )
        options = option_builder.ProfileOptionBuilder
        quiet = options(options.float_operation()).with_empty_output().build()
        counted = model_analyzer.profile(graph, options=quiet).total_float_ops
        return float(counted) / labels.shape.num_elements()

    def _cycle(
        self, function: Callable[[Features, tf.Tensor], tf.Tensor], batches: list[Any]
    ) -> Callable[[], int]:
        turn = itertools.cycle(batches)

        def work() -> int:
            features, labels = next(turn)
            function(features, labels).numpy()
            return int(labels.shape.num_elements())

        return work


def _without_negatives(features: Features) -> Features:
    return {name: v for name, v in features.items() if not name.endswith("_negatives")}
