"""Users of a dataset for the page, in raw values as requests have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.errors import UserError
from lookback.core.manifests import SIZES
from lookback.formats.dataset_info import impression_count, read_histories_info
from lookback.formats.verification import verify_dataset
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.bundle import Bundle
from lookback.serving.layouts.histories.requests import HistoryRequestEncoder
from lookback.serving.layouts.histories.sample import TEST, sample_users
from lookback.serving.manifest import HistoriesManifest

USERS = 100
"""Drawn of the dataset, as far as it has so many; a multiple of what anybody looks at."""
CHOICES = 8
"""Candidates of each: what the user did next, and others."""
ITEMS = 500
"""Of the catalogue, to choose candidates and events from."""


class DemoUsers:
    """Users of the dataset that a bundle was trained on.

    Args:
      bundle: of a model over histories.
      dataset_dir: that dataset.

    Attributes:
      requests: by the user's name: all events but the last, and candidates, of which the first is
        the item of that last event.
      items: of the catalogue, by item feature.

    Raises:
      UserError: if bundle and dataset do not belong together.
    """

    def __init__(self, bundle: Bundle, dataset_dir: Path) -> None:
        manifest, encoder = bundle.manifest, bundle.encoder
        if not isinstance(manifest, HistoriesManifest) or not isinstance(
            encoder, HistoryRequestEncoder
        ):
            raise UserError(
                f"--demo_ui: expected a model over histories, and that of {bundle.directory} reads "
                f"{manifest.layout}. Serve it without --demo_ui."
            )
        verify_dataset(dataset_dir, SIZES)
        drawn = sample_users(
            manifest,
            encoder,
            bundle.directory,
            dataset_dir,
            users=min(USERS, _held(manifest, dataset_dir)),
            candidates=CHOICES,
        )
        self.requests: Mapping[str, dict[str, Any]] = {
            _name(manifest, number, request): request for number, request in enumerate(drawn)
        }
        self.items = _items(encoder)


def _held(manifest: HistoriesManifest, dataset_dir: Path) -> int:
    """How many users, or test impressions of explicit labels, a dataset has."""
    counts: Mapping[str, int] = read_histories_info(dataset_dir)["counts"]
    return counts[impression_count(TEST) if manifest.explicit_labels else "users"]


def _name(manifest: HistoriesManifest, number: int, request: Mapping[str, Any]) -> str:
    """The raw id; of models without users, a number."""
    return str(request[manifest.user_features[0]]) if manifest.user_features else str(number)


def _items(encoder: HistoryRequestEncoder) -> dict[str, list[Any]]:
    """Known items, evenly spread over the catalogue, and what is known of them."""
    item_id, *others = encoder.item_features
    encoders: Mapping[str, Any] = encoder.encoders
    assert encoder.catalogue is not None  # of raw ids
    known = np.sort(encoder.catalogue.ids[encoder.catalogue.ids >= FIRST_KNOWN])
    chosen = known[:: -(-len(known) // ITEMS)]
    found = {name: encoder.catalogue.lookup(name, chosen) for name in others}
    return {name: encoders[name].decode(v) for name, v in {item_id: chosen, **found}.items()}
