"""What a model attends to in histories, counted over a few batches of a split.

Of each positive candidate: where in the history the events are that a search finds and attention
weighs, how long ago they were, and whether they are of the candidate's category. Beside it the same
of all events, which is what it would be if the model did not choose.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from merlin.schema import Schema
from numpy.typing import NDArray

from lookback.core.world import World
from lookback.dataloading.sources import BatchSource
from lookback.formats.features import TIME_GAP_BUCKETS, HistoryFeatures, history_name
from lookback.formats.history_columns import TIME_GAP
from lookback.models.click_body import Attended
from lookback.models.click_model import Contract
from lookback.training.evaluation.found import AttentionFound, Counts

BATCHES = 8
"""Of an evaluation: counts of some thousand histories are as good to look at as those of all."""
HISTORIES = 1 << 12
"""Of a batch, of each process at most: 128 numbers for each of 100 slots take 210 MB."""


def attention_found(
    contract: Contract, source: BatchSource, split: str, world: World
) -> AttentionFound | None:
    """Looks at batches of a split and histories of a batch, evenly spaced. A collective.

    Eagerly: a graph would take longer to trace than these batches to compute.

    Args:
      contract: of the model.
      source: of batches.
      split: that was evaluated.
      world: the processes, each with its part of the batches.

    Returns:
      None if the model attends to nothing, or no positive candidate has an event.
    """
    if contract.attended is None:
        return None
    counts = None
    for feed in _spread(source, split):
        features, labels, *_ = source.eval_batch(split, feed)
        every = slice(None, None, max(1, -(-len(labels) // HISTORIES)))
        features = {n: tf.convert_to_tensor(value)[every] for n, value in features.items()}
        labels = np.asarray(labels)[every]
        attended = contract.attended(features)
        if attended is None:
            return None
        counts = counts or _Counts(source.schema)
        counts.add(attended, features, labels)
    return None if counts is None else counts.of_all(split, world)


def _spread(source: BatchSource, split: str) -> Iterator[Any]:
    stride = -(-source.eval_steps(split) // BATCHES)
    yield from itertools.islice(source.eval_feeds(split), 0, None, stride)


class _Counts:
    """Sums over the batches of one process."""

    def __init__(self, schema: Schema) -> None:
        features = HistoryFeatures.from_schema(schema)
        self._item = features.item[0]
        others = [name for name in features.item[1:] if name not in features.bags]
        self._category = others[0] if others else None
        self._rows = 0
        if self._category is not None:
            self._rows = 1 + int(schema[self._category].int_domain.max)
        self._sums: dict[str, Counts] = {}
        self._candidates, self._searched = 0, False

    def add(self, attended: Attended, features: Mapping[str, tf.Tensor], labels: NDArray) -> None:
        """Adds a batch: labels ``[B, C]``."""
        slots = attended.slots
        row, place = np.nonzero(labels > 0)

        def events(name: str) -> NDArray:
            return features[history_name(name)].numpy()[:, slots][row]  # [P, L]

        exists = events(self._item) > 0
        weights = attended.weights.numpy()[row, place]  # [P, L]
        found = exists if attended.found is None else attended.found.numpy()[row, place]
        self._searched = attended.found is not None
        self._candidates += int(exists.any(1).sum())
        measures = np.stack([exists, found, weights]).astype(np.float64)  # [3, P, L]
        self._sum("recency", measures.sum(1)[:, ::-1])
        if history_name(TIME_GAP) in features:
            self._sum("time_gap", _by(events(TIME_GAP), measures, TIME_GAP_BUCKETS))
        if self._category is not None and self._category in features:
            categories, target = events(self._category), features[self._category].numpy()
            same = categories == target[row, place][:, np.newaxis]
            self._sum("same_category", (measures * same).sum((1, 2)))
            self._sum("categories", _by(categories, measures, self._rows))

    def _sum(self, name: str, counts: Counts) -> None:
        self._sums[name] = self._sums.get(name, np.zeros_like(counts)) + counts

    def of_all(self, split: str, world: World) -> AttentionFound | None:
        sums = {
            name: world.concatenate(counts[np.newaxis]).sum(0)
            for name, counts in self._sums.items()
        }
        candidates = sum(world.gather(self._candidates))
        if not candidates:
            return None
        return AttentionFound(
            split=split,
            candidates=candidates,
            searched=self._searched,
            recency=sums["recency"],
            time_gap=sums.get("time_gap"),
            same_category=sums.get("same_category"),
            categories=sums.get("categories"),
            category=self._category if "categories" in sums else None,
        )


def _by(values: NDArray, measures: Counts, rows: int) -> Counts:
    """Sums of each measure ``[3, P, L]`` by values ``[P, L]``: ``[3, rows]``."""
    flat = values.reshape(-1)
    return np.stack([np.bincount(flat, m.reshape(-1), minlength=rows) for m in measures])
