"""Users of a dataset or of a history store for the page, in raw values as requests have them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.errors import UserError
from lookback.core.manifests import SIZES
from lookback.formats.dataset_info import impression_count, read_histories_info
from lookback.formats.history_columns import TIMESTAMP
from lookback.formats.verification import verify_dataset
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.bundle import Bundle
from lookback.serving.columns import CANDIDATES, HISTORY
from lookback.serving.layouts.histories.requests import HistoryRequestEncoder
from lookback.serving.layouts.histories.sample import TEST, sample_users
from lookback.serving.manifest import HistoriesManifest
from lookback.serving.store.store import History, HistoryStore

USERS = 100
"""Drawn, as far as there are so many; a multiple of what anybody looks at."""
LOOKED_THROUGH = 100_000
"""Users of a store of whom they are drawn: more would keep the server from starting."""
CHOICES = 8
"""Candidates of each: what the user did next, and others."""
ITEMS = 500
"""Of the catalogue, to choose candidates and events from."""


class DemoUsers:
    """Users whom a bundle can score, each with a request.

    Args:
      requests: see below.
      ids: see below.
      items: see below.

    Attributes:
      requests: by the user's name: all events but the last, and candidates, of which the first is
        the item of that last event.
      ids: raw ids, by the user's name, of those that have one.
      items: of the catalogue, by item feature.
    """

    def __init__(
        self,
        requests: Mapping[str, dict[str, Any]],
        ids: Mapping[str, Any],
        items: Mapping[str, list[Any]],
    ) -> None:
        self.requests, self.ids, self.items = requests, ids, items

    @classmethod
    def of_dataset(cls, bundle: Bundle, dataset_dir: Path) -> DemoUsers:
        """Users of the dataset that a bundle was trained on.

        Args:
          bundle: of a model over histories.
          dataset_dir: that dataset.

        Raises:
          UserError: if bundle and dataset do not belong together.
        """
        manifest, encoder = _over_histories(bundle)
        verify_dataset(dataset_dir, SIZES)
        drawn = sample_users(
            manifest,
            encoder,
            bundle.directory,
            dataset_dir,
            users=min(USERS, _held(manifest, dataset_dir)),
            candidates=CHOICES,
        )
        requests = {
            _name(manifest, number, request): request for number, request in enumerate(drawn)
        }
        named = manifest.user_features[:1]
        ids = {name: request[named[0]] for name, request in requests.items() if named}
        return cls(requests, ids, _items(encoder))

    @classmethod
    def of_store(cls, bundle: Bundle, store: HistoryStore) -> DemoUsers:
        """Users of a history store that a bundle reads.

        Args:
          bundle: of a model over histories.
          store: with histories of the bundle's vocabularies.

        Raises:
          UserError: if the bundle knows no items to choose from, or the store no user with events.
        """
        manifest, encoder = _over_histories(bundle)
        if encoder.catalogue is None:
            raise UserError(
                f"--demo_ui: {bundle.directory} was exported without a workflow, so it knows no "
                "items to choose from. Serve a bundle that reads raw ids, or leave --demo_ui out."
            )
        rng, items, requests, ids = random.Random(0), _items(encoder), {}, {}
        for user, history in _drawn(store, rng):
            known = {store.head.user_id: user, **history.record.user}
            if set(manifest.user_features) <= set(known):
                requests[str(user)] = _request(manifest, known, history, items, rng)
                ids[str(user)] = user
        if not requests:
            raise UserError(
                f"--demo_ui: the history store {store.place} has no user to show, with an event "
                f"and {', '.join(manifest.user_features) or 'an id'}. Load histories into it, or "
                "give the users of a dataset (--demo_dataset)."
            )
        return cls(requests, ids, items)


def _over_histories(bundle: Bundle) -> tuple[HistoriesManifest, HistoryRequestEncoder]:
    """A bundle's manifest and encoder.

    Raises:
      UserError: if they are of another layout.
    """
    manifest, encoder = bundle.manifest, bundle.encoder
    if not isinstance(manifest, HistoriesManifest) or not isinstance(
        encoder, HistoryRequestEncoder
    ):
        raise UserError(
            f"--demo_ui: expected a model over histories, and that of {bundle.directory} reads "
            f"{manifest.layout}. Serve it without --demo_ui."
        )
    return manifest, encoder


def _drawn(store: HistoryStore, rng: random.Random) -> Iterator[tuple[Any, History]]:
    """Users with events, and their histories, in the order of their ids."""
    ids = sorted(itertools.islice(store.users(), LOOKED_THROUGH))
    for user in sorted(rng.sample(ids, min(USERS, len(ids)))):
        history = store.get(user)
        if history is not None and len(history):
            yield user, history


def _request(
    manifest: HistoriesManifest,
    user: Mapping[str, Any],
    history: History,
    items: Mapping[str, list[Any]],
    rng: random.Random,
) -> dict[str, Any]:
    """What asks for the last event of a user, of whom that is known, among other items."""
    events = (*manifest.item_features, *manifest.context_features, *manifest.event_features)
    past = history.at([*events, TIMESTAMP], np.arange(len(history)))
    last = {name: values.pop() for name, values in past.items()}
    count = len(items[manifest.item_features[0]])
    others = rng.sample(range(count), min(CHOICES - 1, count))
    return {
        **{name: user[name] for name in manifest.user_features},
        **{name: last[name] for name in manifest.context_features},
        HISTORY: past,
        CANDIDATES: {n: [last[n], *(items[n][place] for place in others)] for n in items},
        TIMESTAMP: last[TIMESTAMP],
    }


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
