"""Requests that name a user, completed with what the store has of that user.

``{"user": "A2SUAM1J3GNN3B", "candidates": {...}}`` becomes the request that has the user's history,
and the user's features where it does not give them itself; what scores it knows of no store. The
user may as well be named by the feature that is the users' id, if the model reads that. One that
the store does not know has an empty history, as the answer says (`stored_events` is null).

The history is the model's T newest events, as in training. With `beyond_window`, a model of hard
search, which looks at events of the candidate's category alone, has its long part filled with
those: the newest events of the candidates' categories, however old they are (the paper's search in
the user behaviour tree), and then the short part as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.errors import UserError
from lookback.formats.history_columns import TIMESTAMP
from lookback.formats.stored_histories import USER
from lookback.serving.columns import CANDIDATES, HISTORY
from lookback.serving.layouts.histories.requests import HistoryRequestEncoder
from lookback.serving.layouts.interactions.requests import EXCLUDE
from lookback.serving.manifest import HistoriesManifest, InteractionsManifest
from lookback.serving.requests import Request, RequestError, is_list
from lookback.serving.store.events import IdError
from lookback.serving.store.store import History, HistoryStore
from lookback.serving.store.vocabularies import require_bundle

STORED_EVENTS = "stored_events"
"""Key of an answer: how many events the store has of the user."""


class CompletedRequest(dict[str, Any]):
    """A request whose history is the store's.

    Attributes:
      stored_events: how many events the store has of the user; None: it does not know the user.
    """

    stored_events: int | None = None


class RawCatalogue:
    """What a bundle knows of items, in raw values.

    Args:
      encoder: of the bundle.
    """

    def __init__(self, encoder: HistoryRequestEncoder) -> None:
        self._encoder = encoder

    def look_up(self, items: Sequence[Any], feature: str) -> list[Any] | None:
        """Raw values of a feature of items ``[N]``; None if an item is not known."""
        encoders: Mapping[str, Any] = self._encoder.encoders
        catalogue = self._encoder.catalogue
        if catalogue is None or feature not in self._encoder.item_features:
            return None
        try:
            ids = encoders[self._encoder.item_features[0]].encode(items)
        except ValueError:
            return None
        if not catalogue.knows(ids).all():
            return None
        found: list[Any] = encoders[feature].decode(catalogue.lookup(feature, ids))
        return found


class StoredHistories:
    """The store, as one bundle reads it.

    Args:
      store: of all histories.
      manifest: of the bundle, of the layout of histories.
      export_dir: the bundle.
      encoder: of the bundle.
      beyond_window: see the module; other models than those of hard search are as ever.

    Attributes:
      store: as given.
      catalogue: of the bundle.

    Raises:
      UserError: if the store's histories are not of the bundle's vocabularies.
    """

    def __init__(
        self,
        store: HistoryStore,
        manifest: HistoriesManifest,
        export_dir: Path,
        encoder: HistoryRequestEncoder,
        *,
        beyond_window: bool = False,
    ) -> None:
        require_bundle(store.head, store.place, manifest, export_dir)
        self.store, self.catalogue = store, RawCatalogue(encoder)
        self._manifest = manifest
        self._columns = [
            *(*manifest.item_features, *manifest.context_features, *manifest.event_features),
            *([TIMESTAMP] if manifest.time_features else []),
        ]
        self._category = _category_of(manifest, store, export_dir) if beyond_window else None

    def completed(self, requests: Sequence[Request]) -> list[Request]:
        """Requests with histories; those that have one are as they were.

        Raises:
          RequestError: naming the request that names no user, or one of another kind.
          UserError: if the store cannot be read.
        """
        return [self._completed(index, request) for index, request in enumerate(requests)]

    def _completed(self, index: int, request: Request) -> Request:
        if not isinstance(request, Mapping) or HISTORY in request:
            return request
        head, features = self.store.head, self._manifest.user_features
        named = [request[name] for name in (USER, head.user_id) if name in request]
        if not named or named[0] != named[-1]:
            fault = "name two users" if named else "are missing, and so is 'history'"
            raise RequestError(
                index,
                f"{USER!r} and {head.user_id!r} {fault}. Give the user whose history the store "
                "has, or a history.",
            )
        user = named[0]
        try:
            history = self.store.get(user)
        except IdError as error:
            raise RequestError(index, f"{USER}: {error}.") from error
        rest = {n: v for n, v in request.items() if n not in (USER, head.user_id)}
        found = CompletedRequest(rest)
        if head.user_id in features:
            found[head.user_id] = user
        if history is None:
            found[HISTORY] = {self._manifest.item_features[0]: []}
            return found
        own = history.record.user
        found.update({name: own[name] for name in features if name in own and name not in found})
        found[HISTORY] = self._history(history, request)
        found.stored_events = len(history)
        return found

    def _history(self, history: History, request: Request) -> dict[str, list[Any]]:
        """The columns of the model's T events."""
        length = self._manifest.max_seq_length
        if self._category is None or len(history) <= length:
            return history.newest(self._columns, length)
        long = int(self._manifest.options["long_seq_length"])
        newest = np.arange(len(history) - (length - long), len(history))
        of_category = [history.record.of_category(c) for c in self._categories(request)]
        older = np.unique(np.concatenate([newest[:0], *of_category]))
        older = older[older < len(history) - len(newest)][-long:]
        return history.at(self._columns, np.concatenate([older, newest]))

    def _categories(self, request: Request) -> set[Any]:
        """Those of the candidates, as far as they are known; what is wrong, `check` will say."""
        candidates = request.get(CANDIDATES)
        if not isinstance(candidates, Mapping):
            return set()
        given = candidates.get(self._category)
        if given is None:
            items = candidates.get(self._manifest.item_features[0], ())
            given = self.catalogue.look_up(items, str(self._category)) if is_list(items) else ()
        values: Iterable[Any] = (given or ()) if is_list(given) else ()
        return {value for value in values if value is None or isinstance(value, int | str)}


class StoredSeen:
    """The store, as a bundle over pairs of user and item reads it.

    ``{"user": "A1", "k": 10}`` becomes the request that has the items of the user's history in its
    `exclude`, unless it says itself what to leave out; with candidates only the user is named.

    Args:
      store: of all histories.
      manifest: of the bundle.
      export_dir: the bundle.

    Attributes:
      store: as given.
      catalogue: None: such a bundle knows nothing of items but their ids.

    Raises:
      UserError: if the store's histories are not of the bundle's vocabularies.
    """

    catalogue = None

    def __init__(
        self, store: HistoryStore, manifest: InteractionsManifest, export_dir: Path
    ) -> None:
        require_bundle(store.head, store.place, manifest, export_dir)
        self.store = store
        (self._user_id,), (self._item_id,) = manifest.user_features, manifest.item_features

    def completed(self, requests: Sequence[Request]) -> list[Request]:
        """Requests that name their user by the feature; others are as they were.

        Raises:
          RequestError: naming the request that names two users, or one of another kind.
          UserError: if the store cannot be read.
        """
        return [self._completed(index, request) for index, request in enumerate(requests)]

    def _completed(self, index: int, request: Request) -> Request:
        if not isinstance(request, Mapping) or USER not in request:
            return request
        if self._user_id in request:
            raise RequestError(index, f"{USER!r} and {self._user_id!r} name two users. Give one.")
        found = CompletedRequest(request)
        found[self._user_id] = user = found.pop(USER)
        try:
            history = self.store.get(user)
        except IdError as error:
            raise RequestError(index, f"{USER}: {error}.") from error
        if history is not None:
            found.stored_events = len(history)
            if CANDIDATES not in found and EXCLUDE not in found:
                seen = history.newest([self._item_id], len(history))[self._item_id]
                found[EXCLUDE] = list(dict.fromkeys(seen))
        return found


def _category_of(manifest: HistoriesManifest, store: HistoryStore, export_dir: Path) -> str | None:
    """The feature that hard search matches; None of a model without such a search.

    Raises:
      UserError: if the store finds events by another one.
    """
    if manifest.options.get("gsu") != "hard":
        return None
    first = next(n for n in manifest.item_features[1:] if n not in manifest.bags)
    wanted: str = manifest.options.get("category_feature") or first
    if wanted != store.head.category:
        raise UserError(
            f"The model in {export_dir} searches by {wanted}, and the store {store.place} finds "
            f"events by {store.head.category}. Load the histories again with --category_feature "
            f"{wanted}."
        )
    return wanted
