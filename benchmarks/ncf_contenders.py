"""NeuMF and PyTorch's on the same pairs: what `ncf_train` and `ncf_inference` time."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from lookback.benchmarks import comparison
from lookback.benchmarks.child import Child
from lookback.benchmarks.comparison import Contender, endless_feeds, precision, train_step
from lookback.benchmarks.costs import neumf_flops
from lookback.benchmarks.data import resident_interactions
from lookback.benchmarks.harness import BenchmarkReport
from lookback.benchmarks.peers.client import missing, start_peer
from lookback.dataloading.histories.resident import Histories
from lookback.dataloading.interactions.source import InteractionSource
from lookback.formats.features import table_rows
from lookback.formats.interaction_features import InteractionFeatures
from lookback.models import MODELS
from lookback.models.click_model import ClickModel
from lookback.models.neumf_config import NeuMFConfig
from lookback.training.optimizers import Optimizer

PEER = "torch_neumf"
_BATCHES = 4  # prepared batches that whoever draws none cycles through

Pairs = dict[str, npt.NDArray[Any]]
"""Prepared batches of pairs: "users" and "items" int32, "labels" float32, each ``[K, N]``."""


def make_histories(args: argparse.Namespace) -> Histories:
    """Generates interactions by the options of `benchmarks.ncf_options`."""
    events = args.events or (5_000_000 if args.quick else 20_000_000)
    return resident_interactions(users=args.users, items=args.items, events=events)


def compare(
    args: argparse.Namespace,
    histories: Histories,
    *,
    title: str,
    mode: str,
    labels: Mapping[str, str],
    pairs: Callable[[Contenders], Pairs],
    choose: Callable[[Contenders, Pairs], Mapping[str, Contender]],
    notes: Sequence[str],
) -> BenchmarkReport:
    """Times ours and PyTorch at each batch size.

    Args:
      args: with the options of `benchmarks.ncf_options`.
      histories: from `make_histories`.
      title: of the table.
      mode: "train" or "infer", the peer's command.
      labels: names of the contenders, by key; "torch" is PyTorch.
      pairs: gives the batches that PyTorch gets.
      choose: gives ours to time, by key of `labels`.
      notes: lines for below the table.
    """

    @contextlib.contextmanager
    def contenders(batch: int) -> Iterator[Mapping[str, Contender]]:
        ours = Contenders(histories, batch)
        batches = pairs(ours)
        with ours.peer(batches, args) as peer:
            torch = {"torch": lambda: int(peer.ask(do=mode)["samples"])} if peer else {}
            yield {**choose(ours, batches), **torch}

    forward = neumf_flops(NeuMFConfig())
    return comparison.compare(
        args,
        title=f"{title}: {args.users:,} users, {args.items:,} items",
        labels=labels,
        reference="torch",
        contenders=contenders,
        flops=3 * forward if mode == "train" else forward,
        config={
            "users": args.users,
            "items": args.items,
            "events": histories.num_events,
            "torch_adam": "default" if args.torch_default_adam else "fused",
        },
        notes=[*notes, *filter(None, [missing(PEER)])],
    )


class Contenders:
    """Ours over one dataset and batch size, and the pairs that PyTorch gets."""

    def __init__(
        self, histories: Histories, batch_size: int, config: NeuMFConfig | None = None
    ) -> None:
        """Sets up the source of batches; `batch_size` counts rows."""
        self._schema = histories.schema
        self._config = config or NeuMFConfig()
        self._features = InteractionFeatures.from_schema(histories.schema)
        self._source = InteractionSource(histories, seed=0, batch_size=batch_size)

    def train(self, optimizer: str = "full_adam", *, amp: bool = False) -> Contender:
        """Our training step: draws negatives, differentiates, updates.

        Args:
          optimizer: "full_adam" is PyTorch's; "lazy_adam" updates the rows of the step only.
          amp: whether in mixed precision.
        """
        defaults = NeuMFConfig.recipes["nvidia"]
        adam = {name: defaults[name] for name in ("beta1", "beta2", "eps")}
        with precision(amp):
            model = self._model()
            made = Optimizer(optimizer, defaults["lr"], 0.0, model, **adam)
            return train_step(model, made, self._source, endless_feeds(self._source))

    def score_candidates(self, *, amp: bool = False) -> Contender:
        """Our probabilities of the held-out items and their negatives, user by user."""
        with precision(amp):
            model = self._model()

            def step(feed: tf.Tensor) -> tf.Tensor:
                return tf.sigmoid(model(self._source.eval_batch("test", feed)[0], training=False))

            feeds = list(itertools.islice(self._source.eval_feeds("test"), _BATCHES))
            return _cycle(step, [(feed,) for feed in feeds])

    def score_pairs(self, pairs: Pairs, *, amp: bool = False) -> Contender:
        """Our probabilities of pairs, each with a user of its own: ``[N, 1]``."""
        user, item = self._features.user, self._features.item
        with precision(amp):
            model = self._model()

            def step(users: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
                inputs = {user: users, item: tf.expand_dims(items, 1)}
                return tf.sigmoid(model(inputs, training=False))

            batches = zip(pairs["users"], pairs["items"], strict=True)
            return _cycle(step, [(tf.constant(u), tf.constant(i)) for u, i in batches])

    def train_pairs(self) -> Pairs:
        """The first batches that `train` trains on."""
        feeds = itertools.islice(endless_feeds(self._source), _BATCHES)
        return self._flat(map(self._source.train_batch, feeds))

    def candidate_pairs(self) -> Pairs:
        """The pairs that `score_candidates` scores."""
        feeds = itertools.islice(self._source.eval_feeds("test"), _BATCHES)
        return self._flat(self._source.eval_batch("test", feed)[:2] for feed in feeds)

    def random_pairs(self, size: int) -> Pairs:
        """Pairs drawn uniformly, as those of NVIDIA's `inference.py`."""
        rng, rows = np.random.default_rng(0), table_rows(self._schema)
        shape = (_BATCHES, size)
        users = rng.integers(0, rows[self._features.user], shape, np.int32)
        items = rng.integers(0, rows[self._features.item], shape, np.int32)
        return {"users": users, "items": items, "labels": np.zeros(shape, np.float32)}

    @contextlib.contextmanager
    def peer(self, pairs: Pairs, args: argparse.Namespace) -> Iterator[Child | None]:
        """PyTorch with these batches; None where its environment is not set up.

        Args:
          pairs: the batches.
          args: with the options of `benchmarks.ncf_options`.
        """
        if missing(PEER):
            yield None
            return
        rows = table_rows(self._schema)
        users, items = rows[self._features.user], rows[self._features.item]
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "batches.npz"
            np.savez(path, **pairs)
            options = {"users": users, "items": items, "not_fused": args.torch_default_adam}
            with start_peer(PEER, batches=path, **options) as peer:
                yield peer

    def _model(self) -> ClickModel:
        model = MODELS["neumf"](self._schema, self._config)
        ids = tf.zeros([2], tf.int32)
        model({self._features.user: ids, self._features.item: tf.expand_dims(ids, 1)})
        return model

    def _flat(self, batches: Iterator[tuple[Mapping[str, tf.Tensor], tf.Tensor]]) -> Pairs:
        """Pairs of batches, of as many of them as all have; users repeated."""
        found: list[tuple[npt.NDArray[Any], ...]] = []
        for features, labels in batches:
            users = tf.repeat(features[self._features.user], labels.shape[1])
            items = tf.reshape(features[self._features.item], [-1])
            found.append((users.numpy(), items.numpy(), tf.reshape(labels, [-1]).numpy()))
        size = min(len(users) for users, _, _ in found)
        names = ("users", "items", "labels")
        return {
            name: np.stack([values[:size] for values in columns])
            for name, columns in zip(names, zip(*found, strict=True), strict=True)
        }


def _cycle(function: Callable[..., tf.Tensor], batches: list[tuple[tf.Tensor, ...]]) -> Contender:
    """Calls a compiled function on one batch after another; traced under the policy in force."""
    compiled = tf.function(function, reduce_retracing=True, autograph=False)
    turn = itertools.cycle(batches)

    def work() -> int:
        return int(compiled(*next(turn)).numpy().size)

    for _ in batches:
        work()
    return work
