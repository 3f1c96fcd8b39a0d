"""Requests for a user's ranking made from a dataset: for demonstrations, tests and load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.errors import UserError
from lookback.serving.columns import CANDIDATES
from lookback.serving.layouts.histories.sample import random_users
from lookback.serving.layouts.interactions.requests import EXCLUDE, InteractionsRequestEncoder
from lookback.serving.manifest import InteractionsManifest, require_same_workflow


def sample_interactions(
    manifest: InteractionsManifest,
    encoder: InteractionsRequestEncoder,
    export_dir: Path,
    dataset_dir: Path,
    *,
    users: int = 3,
    candidates: int = 5,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Turns users of a dataset into requests whose best item should be that of their last event.

    Args:
      manifest: of the bundle.
      encoder: of the bundle.
      export_dir: the bundle.
      dataset_dir: the dataset, written with the bundle's workflow.
      users: how many, drawn at random.
      candidates: how many each; the first is the item of the user's last event, the others are
        drawn from the catalogue. 0: no candidates but the whole catalogue, without the items of
        the user's earlier events.
      seed: of the draws.

    Yields:
      A request for each user, in the dataset's order.

    Raises:
      UserError: if bundle and dataset do not belong together.
    """
    if users < 1 or candidates < 0:
        raise UserError(
            f"expected at least 1 user and 0 candidates, received {users}, {candidates}"
        )
    require_same_workflow(manifest, export_dir, dataset_dir)
    random = np.random.default_rng(seed)
    user_id, item_id = encoder.user_id, encoder.item_id
    for row in random_users(dataset_dir, users, random, [user_id, item_id]):
        events = np.asarray(row[item_id])
        request: dict[str, Any] = {user_id: encoder.users.decode([row[user_id]])[0]}
        if candidates:
            drawn = random.integers(len(encoder.catalogue), size=candidates - 1)
            chosen = np.r_[events[-1], encoder.catalogue[drawn]]
            request[CANDIDATES] = {item_id: encoder.items.decode(chosen)}
        else:
            earlier = np.setdiff1d(events[:-1], events[-1:])
            request[EXCLUDE] = encoder.items.decode(earlier)
        yield request
