"""Pairs of user and item as an evaluation builds them, and as requests of raw ids say them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lookback.core.manifests import SIZES
from lookback.serving.columns import CANDIDATES
from lookback.serving.layouts.interactions.requests import InteractionsRequestEncoder
from lookback.serving.skew.samples import NEGATIVES, REQUESTS_AT_ONCE, SPLITS, OfflineBatch


def offline_interactions(
    encoder: InteractionsRequestEncoder, dataset_dir: Path, samples: int
) -> Iterator[OfflineBatch]:
    """Makes samples; arguments and errors as of `RequestLayout.offline`."""
    from lookback.dataloading.histories.resident import Histories
    from lookback.dataloading.interactions.source import InteractionSource

    each = 1 + NEGATIVES
    source = InteractionSource(
        Histories.load(dataset_dir, verification=SIZES),
        seed=0,
        batch_size=each,
        eval_batch_size=each * REQUESTS_AT_ONCE,
        negative_samples=NEGATIVES,
        test_negatives=NEGATIVES,
    )
    left = samples
    for split in SPLITS:
        if split not in source.held_out:
            continue
        source.eval_steps(split)  # says who is evaluated
        for feed in source.eval_feeds(split):
            if left <= 0:
                return
            tensors, *_ = source.eval_batch(split, feed)
            rows = -(-left // each)
            features = {name: value.numpy()[:rows] for name, value in tensors.items()}
            yield (batch := _batch(encoder, features))
            left -= each * len(batch.requests)


def _batch(encoder: InteractionsRequestEncoder, features: dict[str, Any]) -> OfflineBatch:
    users = encoder.users.decode(features[encoder.user_id])
    candidates = [encoder.items.decode(ids) for ids in features[encoder.item_id]]
    requests = [
        {encoder.user_id: user, CANDIDATES: {encoder.item_id: ids}}
        for user, ids in zip(users, candidates, strict=True)
    ]
    return OfflineBatch(features, requests, [*map(str, users)], candidates)
