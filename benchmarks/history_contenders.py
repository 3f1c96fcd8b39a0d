"""SIM, DIEN and DIN, the plain Keras models, and others' software, on the same batches."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from lookback.benchmarks import comparison
from lookback.benchmarks.baselines.plain_sim import (
    PlainDIEN,
    PlainDIN,
    PlainModel,
    PlainSIM,
    one_row_per_candidate,
)
from lookback.benchmarks.comparison import (
    Contender,
    endless_feeds,
    precision,
    prepared,
    train_step,
)
from lookback.benchmarks.costs import Cost, history_cost
from lookback.benchmarks.data import cached, generate_histories
from lookback.benchmarks.harness import BenchmarkReport
from lookback.benchmarks.peers.client import contender, missing
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.histories.sources import ResidentSource
from lookback.dataloading.histories.windows import WindowConfig
from lookback.embeddings.optimizers import LazyAdam
from lookback.formats.features import history_name, negatives_name, table_rows
from lookback.models import MODELS, DIENConfig, DINConfig, SIMConfig
from lookback.models.click_model import ClickModel
from lookback.models.config import HistoryModelConfig
from lookback.training.optimizers import Optimizer

LEARNING_RATE = 0.01  # NVIDIA's default
PEERS = {"fuxictr": "fuxictr_histories", "deepctr": "deepctr_histories"}
_BATCHES = 8  # prepared batches that all but our training step cycle through
_NAMES: Mapping[type[HistoryModelConfig], str] = {
    SIMConfig: "sim",
    DIENConfig: "dien",
    DINConfig: "din",
}

Features = dict[str, tf.Tensor]
Choose = Callable[[Callable[[HistoryModelConfig], "Contenders"], contextlib.ExitStack], Any]
"""Gives contenders by key: from what makes `Contenders` of a config, and what ends their peers."""


def compare(
    args: argparse.Namespace,
    *,
    title: str,
    labels: Mapping[str, str],
    costs: Mapping[str, Cost],
    choose: Choose,
    notes: Sequence[str],
    rivals: Mapping[str, Sequence[str]] = {},
) -> BenchmarkReport:
    """Times contenders at each batch size; see `benchmarks.comparison.compare`.

    Args:
      args: of the command line.
      title: of the table.
      labels: names of the contenders; "plain" is the reference.
      costs: of a sample, of ours.
      choose: gives the functions to time.
      notes: lines for below the table.
      rivals: others' software, by contender.
    """
    histories = load(args)

    @contextlib.contextmanager
    def contenders(batch: int) -> Iterator[Mapping[str, Contender]]:
        with contextlib.ExitStack() as stack:
            of = functools.cache(functools.partial(Contenders, histories, batch))
            yield choose(of, stack)

    wanted = {} if args.no_peers else PEERS
    used = {name for names in rivals.values() for name in names}
    absent = [
        missing(program) for key, program in wanted.items() if any(key in name for name in used)
    ]
    return comparison.compare(
        args,
        title=f"{title} at Amazon Books' cardinalities",
        labels=labels,
        reference="plain",
        contenders=contenders,
        flops={name: cost.flops for name, cost in costs.items()},
        config={"users": histories.num_users, "events": histories.num_events, "amp": args.amp},
        notes=[*notes, *filter(None, absent)],
        rivals=rivals,
    )


def load(args: argparse.Namespace) -> Histories:
    """The generated histories of `benchmarks.history_options`."""
    options: dict[str, Any] = {"users": args.users or (20_000 if args.quick else 105_925)}
    return Histories.load(
        generate_histories(cached("histories", options, args.cache_dir), **options)
    )


def peers_of(
    args: argparse.Namespace,
    contenders: Contenders,
    keys: Sequence[str],
    stack: contextlib.ExitStack,
    suffix: str = "",
) -> dict[str, Contender]:
    """Others' training steps, as far as they are set up and wanted.

    Args:
      args: of the command line.
      contenders: whose model and batches they get.
      keys: of `PEERS`.
      stack: ends them.
      suffix: of their names.
    """
    found = {}
    for key in () if args.no_peers else keys:
        work = stack.enter_context(contenders.peer(key, "train"))
        if work is not None:
            found[f"{key}{suffix}"] = work
    return found


class Contenders:
    """Ours, the plain model and others' over one dataset and batch size."""

    def __init__(
        self,
        histories: Histories,
        batch_size: int,
        config: HistoryModelConfig | None = None,
        min_history: int = 1,
    ) -> None:
        """Prepares batches.

        Args:
          histories: a dataset.
          batch_size: rows, candidates counted one by one.
          config: of the model; None: SIM's.
          min_history: shortest history that targets have.
        """
        self._histories = histories
        self.config = config or SIMConfig()
        self._source = ResidentSource(
            histories,
            WindowConfig(
                max_seq_length=self.config.max_seq_length,
                long_seq_length=self.config.long_seq_length,
                auxiliary_negatives=self.config.auxiliary_negatives,
                min_history=min_history,
            ),
            seed=0,
            batch_size=batch_size,
        )

    @functools.cached_property
    def batches(self) -> list[tuple[Features, tf.Tensor]]:
        """Some batches of training, with two candidates a history."""
        steps = min(_BATCHES, self._source.train_steps())
        feeds = itertools.islice(self._source.train_feeds(0, 0), steps)
        return [self._source.train_batch(feed) for feed in feeds]

    @functools.cached_property
    def rows(self) -> list[tuple[Features, tf.Tensor]]:
        """The same with a history for every candidate."""
        return [one_row_per_candidate(*batch) for batch in self.batches]

    @property
    def slots(self) -> int:
        """Newest history slots that the model looks at."""
        short = isinstance(self.config, DIENConfig)
        return self.config.short_seq_length if short else self.config.max_seq_length

    def ours(self) -> ClickModel:
        """Our model, built under the policy in force."""
        model = MODELS[_NAMES[type(self.config)]](self._histories.schema, self.config)
        model(_without_negatives(self.batches[0][0]))
        return model

    def plain(self) -> PlainModel:
        """The plain model, built."""
        rows, features = table_rows(self._histories.schema), self._histories.features
        user, item = ({name: rows[name] for name in of} for of in (features.user, features.item))
        dim, long = self.config.embedding_dim, self.config.long_seq_length
        model: PlainModel
        if isinstance(self.config, SIMConfig):
            model = PlainSIM(user, item, embedding_dim=dim, long_seq_length=long, k=self.config.k)
        elif isinstance(self.config, DIENConfig):
            model = PlainDIEN(user, item, embedding_dim=dim, long_seq_length=long)
        else:
            model = PlainDIN(user, item, embedding_dim=dim)
        model(self.rows[0][0])
        return model

    def train_ours(self, *, amp: bool = False, alone: bool = False) -> Contender:
        """Our training step.

        Args:
          amp: whether in mixed precision.
          alone: whether every candidate has a history of its own, made beforehand, as others' rows
            have; otherwise a positive and its negative share one, and windows are part of the step.
        """
        with precision(amp):
            model = self.ours()
            optimizer = Optimizer("adam", LEARNING_RATE, 0.0, model)
            if not alone:
                return train_step(model, optimizer, self._source, endless_feeds(self._source))
            batches = [(features, tf.expand_dims(labels, 1)) for features, labels in self.rows]
            return train_step(model, optimizer, prepared(batches), itertools.cycle(batches))

    def train_plain(self, *, lazy_tables: bool = False) -> Contender:
        """The plain model's training step on batches made beforehand.

        Args:
          lazy_tables: update tables with our lazy Adam, so that the networks alone differ, rather
            than everything with Keras' Adam as its user would.
        """
        plain = self.plain()
        optimizer = tf.keras.optimizers.Adam(LEARNING_RATE)
        tables = {name: layer.embeddings for name, layer in plain.tables.items()}
        held = {id(variable) for variable in tables.values()} if lazy_tables else set()
        dense = [v for v in plain.trainable_weights if id(v) not in held]
        sparse = LazyAdam(tf.constant(LEARNING_RATE))
        sparse.build(tables if lazy_tables else {})
        optimizer.build(dense)

        @tf.function
        def step(features: Features, labels: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = plain.compute_loss(y=labels, y_pred=plain(features, training=True))
            gradients = tape.gradient(loss, [*dense, *(tables.values() if lazy_tables else ())])
            if lazy_tables:
                count = tf.cast(optimizer.iterations + 1, tf.float32)
                # AutoGraph's zip() takes no `strict`.
                sparse.apply(dict(zip(tables, gradients[len(dense) :])), tables, count)  # noqa: B905
            optimizer.apply_gradients(zip(gradients[: len(dense)], dense))  # noqa: B905
            return loss

        return _cycle(step, self.rows)

    def infer_ours(self, candidates: int = 2, *, amp: bool = False) -> Contender:
        """Our forward pass on rows made beforehand.

        Args:
          candidates: 2 scores a positive and its negative with one history, as the data has them;
            1 gives each row a history of its own, as a server sees requests of one candidate.
          amp: whether in mixed precision.
        """
        with precision(amp):
            model = self.ours()
            score = tf.function(lambda features, labels: model.score(features), autograph=False)
            # A candidate [B] is [B, 1] to our model.
            batches = _unlabelled(self.rows if candidates == 1 else self.batches)
            score(*batches[0])  # traced under this policy
        return _cycle(score, batches)

    def infer_plain(self) -> Contender:
        """The plain model's forward pass on the same rows."""
        plain = self.plain()
        score = tf.function(lambda features, labels: plain(features, training=False)["logits"])
        return _cycle(score, _unlabelled(self.rows))

    @contextlib.contextmanager
    def peer(self, key: str, mode: str) -> Iterator[Contender | None]:
        """Others' software on the same rows; None where its environment is not set up.

        Args:
          key: of `PEERS`.
          mode: "train" or "infer".
        """
        if missing(PEERS[key]):
            yield None
            return
        rows, features = table_rows(self._histories.schema), self._histories.features
        columns = {"labels": [labels.numpy() for _, labels in self.rows]}
        for name in (*features.user, *features.item, *map(history_name, features.item)):
            columns[name] = [batch[name].numpy() for batch, _ in self.rows]
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "batches.npz"
            np.savez(path, **{name: np.stack(values) for name, values in columns.items()})
            options: dict[str, Any] = {
                "model": _NAMES[type(self.config)],
                "batches": path,
                "rows": ",".join(str(rows[name]) for name in (*features.user, *features.item)),
                "slots": self.slots,
                "dim": self.config.embedding_dim,
            }
            with contender(PEERS[key], mode, **options) as work:
                yield work

    def cost(self, *, training: bool) -> Cost:
        """Of a sample of ours; the rows that are updated are those of the first batch."""
        updated = 0.0
        if training:
            batch, labels = self.batches[0]
            updated = sum(len(ids) for ids in self._distinct(batch)) / labels.shape.num_elements()
        features = self._histories.features
        return history_cost(
            self.config,
            training=training,
            updated=updated,
            item_features=len(features.item),
            user_features=len(features.user),
        )

    def _distinct(self, batch: Features) -> Iterator[Any]:
        """The distinct ids of a batch, of each table."""
        features = self._histories.features
        for name in features.user:
            yield np.unique(batch[name])
        for name in features.item:
            parts = [batch[name], batch[history_name(name)][:, -self.slots :]]
            parts += [batch[other] for other in (negatives_name(name),) if other in batch]
            yield np.unique(np.concatenate([np.ravel(part) for part in parts]))


def _cycle(
    function: Callable[[Features, tf.Tensor], tf.Tensor],
    batches: Sequence[tuple[Features, tf.Tensor]],
) -> Contender:
    turn = itertools.cycle(batches)

    def work() -> int:
        features, labels = next(turn)
        function(features, labels).numpy()
        return int(labels.shape.num_elements())

    return work


def _unlabelled(batches: Sequence[tuple[Features, tf.Tensor]]) -> list[tuple[Features, tf.Tensor]]:
    return [(_without_negatives(features), labels) for features, labels in batches]


def _without_negatives(features: Features) -> Features:
    return {name: v for name, v in features.items() if not name.endswith("_negatives")}
