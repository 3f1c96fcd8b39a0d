"""The bundles that a server has loaded, by name; one is exchanged for another in one step."""

from __future__ import annotations

import dataclasses
import functools
import gc
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.digests import digest_of
from lookback.core.errors import UserError, shown
from lookback.core.imports import import_tensorflow
from lookback.serving.bundle import Bundle
from lookback.serving.columns import CANDIDATES, HISTORY
from lookback.serving.json_schemas import stored_pairs_schema, stored_schema
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.manifest import (
    MANIFEST_FILE,
    HistoriesManifest,
    InteractionsManifest,
    Manifest,
)
from lookback.serving.requests import Request, RequestEncoder, RequestError
from lookback.serving.schemas import schemas_of
from lookback.serving.scores import Scores
from lookback.serving.server.wire import VARIANT
from lookback.serving.store.completion import (
    STORED_EVENTS,
    CompletedRequest,
    StoredHistories,
    StoredSeen,
)
from lookback.serving.store.renewal import Renewed
from lookback.serving.store.store import HistoryStore
from lookback.serving.store.vocabularies import require_bundle

MOST_CANDIDATES = 5000
"""That a request may name; the whole catalogue, where a model is asked for its best, is no list."""

MOST_EVENTS = 50_000
"""Of a history that a request may have; models read the newest thousands."""

_WARM_UP_ROWS = (1, 64)
_YOUNG_OBJECTS = 700
"""Between two collections of garbage, as Python has it: each takes less than a millisecond."""

StoreOfBundle = StoredHistories | StoredSeen


@dataclasses.dataclass(frozen=True)
class Served:
    """A bundle under its name, whichever engine scores.

    Attributes:
      name: in addresses.
      version: 1 of the first bundle of this name, and one more for each that replaced it.
      directory: where it was loaded from.
      digest: of its manifest, by which it can be trusted.
      manifest: of the bundle.
      histories: the store as the bundle reads it; None: requests must have their histories.
      renewed: what became of the store's events when it was loaded with a newer dataset; None: it
        was loaded without one.
    """

    name: str
    version: int
    directory: Path
    digest: str
    manifest: Manifest
    histories: StoreOfBundle | None
    renewed: Renewed | None

    @property
    def encoder(self) -> RequestEncoder:
        """Of its requests; here, where it scores elsewhere, read from the bundle.

        Raises:
          UserError: if the bundle is not there any more.
        """
        return LAYOUTS[self.manifest.layout].load_encoder(self.directory, self.manifest)

    @functools.cached_property
    def schema(self) -> dict[str, Any]:
        """Which bundle it is, and what `serving.schemas` says of it.

        Raises:
          UserError: if its layout has no schema, or the bundle is not there any more.
        """
        said = schemas_of(self.manifest, self.encoder, MOST_CANDIDATES)
        if self.histories is not None:
            head = self.histories.store.head
            user = {"type": "integer" if head.kinds[head.user_id] == "integer" else "string"}
            of_user = said["roles"].get("user", ())
            whole = said["request"]
            if isinstance(self.manifest, InteractionsManifest):
                said["request"] = stored_pairs_schema(whole, user, head.user_id)
            else:
                said["request"] = stored_schema(whole, user, head.user_id, of_user)
            said["answer"]["properties"][STORED_EVENTS] = {"type": ["integer", "null"]}
        return {"name": self.name, "version": str(self.version), "digest": self.digest, **said}


@dataclasses.dataclass(frozen=True)
class ServedModel(Served):
    """One that this process scores with.

    Attributes:
      bundle: what scores.
    """

    bundle: Bundle

    @property
    def encoder(self) -> RequestEncoder:
        """The bundle's, which is read already."""
        return self.bundle.encoder

    def rows(self, index: int, request: Any) -> int:
        """How many scores a request asks for.

        Args:
          index: of the request, to name it by.
          request: to check; not its values.

        Raises:
          RequestError: saying what was expected and what came.
        """
        rows = self.encoder.check(index, request)
        if self.manifest.layout == "histories":
            events = len(next(iter(request[HISTORY].values()), ()))
            if events > MOST_EVENTS:
                raise RequestError(
                    index,
                    f"{HISTORY}: expected at most {MOST_EVENTS:,} events, received {events:,}. "
                    "Give the newest ones.",
                )
        if rows > MOST_CANDIDATES and CANDIDATES in request:
            raise RequestError(
                index,
                f"{CANDIDATES}: expected at most {MOST_CANDIDATES:,}, received {rows:,}. Ask in "
                "several requests, or score files offline.",
            )
        return rows

    def score(self, requests: Sequence[Request], counts: Sequence[int]) -> list[Scores]:
        """Scores requests, of which `rows` said these counts; errors as of `Bundle.score`."""
        return self.bundle.score(requests, counts)

    def answer(self, request: Request, scores: Scores) -> dict[str, Any]:
        """What a scored request is answered with."""
        manifest = self.bundle.manifest
        answer = LAYOUTS[manifest.layout].answer(request, manifest, scores)
        if isinstance(request, CompletedRequest):
            answer[STORED_EVENTS] = request.stored_events
        return answer

    def probe(self) -> None:
        """Scores a row; errors as of `probe`."""
        probe(self.bundle, self.directory)


@dataclasses.dataclass(frozen=True)
class StoreReading:
    """How models read a store.

    Attributes:
      store: of histories; None: there is none.
      beyond_window: see `serving.store.completion`.
    """

    store: HistoryStore | None = None
    beyond_window: bool = False

    def renew(self, dataset_dir: Path, directory: Path, manifest: Manifest) -> Renewed:
        """Has the store go on with a newer dataset's histories, which a bundle then reads.

        Args:
          dataset_dir: that the bundle was trained on.
          directory: of the bundle.
          manifest: of the bundle.

        Raises:
          OSError: if the disk is full.
          UserError: if there is no store to write to, or the dataset is not of the bundle's
            vocabularies, or not of the store's events, or transformed otherwise; nothing has
            changed.
        """
        if self.store is None or not self.store.writes:
            what = "without --store" if self.store is None else "with --store_read_only"
            raise UserError(
                f"dataset_dir: this server was started {what}. Renew the store with `lookback "
                "serving load-histories --keep`, then load the bundle."
            )
        if not isinstance(manifest, HistoriesManifest | InteractionsManifest):
            raise UserError(f"dataset_dir: {directory} scores rows, which need no store.")
        from lookback.serving.store.datasets import StoredDataset  # Merlin, for this alone

        dataset = StoredDataset(dataset_dir, self.store.head.category, self.store.head.max_events)
        require_bundle(dataset.head, str(dataset_dir), manifest, directory)
        if dataset.head.transforms != self.store.head.transforms:
            raise UserError(
                f"dataset_dir: values of {dataset_dir} are transformed otherwise than those of the "
                "histories that this server's models read. End the server, renew the store with "
                "`lookback serving load-histories --keep`, and serve the newer bundle."
            )
        return self.store.renew(dataset.head, dataset.users(), dataset.as_known)

    def histories(self, directory: Path, manifest: Manifest, encoder: Any) -> StoreOfBundle | None:
        """The store as a bundle reads it; None if it reads none.

        Args:
          directory: of the bundle.
          manifest: of the bundle.
          encoder: of the bundle.

        Raises:
          UserError: if the store's histories are not of the bundle's vocabularies.
        """
        if self.store is None:
            return None
        self.store.refresh()
        if isinstance(manifest, InteractionsManifest):
            return StoredSeen(self.store, manifest, directory)
        if not isinstance(manifest, HistoriesManifest):
            return None
        return StoredHistories(
            self.store, manifest, directory, encoder, beyond_window=self.beyond_window
        )


class Models:
    """What is served, by name. Who looks one up keeps it, whatever replaces it meanwhile."""

    def __init__(self, store: HistoryStore | None = None, *, beyond_window: bool = False) -> None:
        """Starts with none.

        Args:
          store: of the histories that requests may leave out.
          beyond_window: see `serving.store.completion`.
        """
        self._reading = StoreReading(store, beyond_window)
        self._served: dict[str, ServedModel] = {}
        self._loading = threading.Lock()

    @property
    def served(self) -> Mapping[str, ServedModel]:
        """The models by name."""
        return dict(self._served)

    def load(
        self,
        name: str,
        directory: Path | None = None,
        trusted_digest: str | None = None,
        dataset_dir: Path | None = None,
    ) -> ServedModel:
        """Loads a bundle, has it score, and only then puts it in the place of that name's last.

        Args:
          name: in addresses.
          directory: of the bundle; None: where that name's last came from.
          trusted_digest: SHA-256 that its manifest must have; None: any.
          dataset_dir: that it was trained on, whose histories take the place of the store's, see
            `HistoryStore.renew`; the models that are served read them meanwhile. None: the store
            has the bundle's vocabularies already.

        Raises:
          OSError: if the store's disk is full.
          UserError: if it cannot be loaded; what was served is served on.
        """
        with self._loading:  # one at a time: each takes memory
            version, directory = next_version(self._served.get(name), name, directory)
            bundle = Bundle.load(directory, trusted_digest)
            for rows in _WARM_UP_ROWS:
                probe(bundle, directory, rows)
            renewed = None
            if dataset_dir is not None:
                renewed = self._reading.renew(dataset_dir, directory, bundle.manifest)
            model = ServedModel(
                name=name,
                version=version,
                directory=directory,
                digest=digest_of(directory / MANIFEST_FILE),
                manifest=bundle.manifest,
                histories=self._reading.histories(directory, bundle.manifest, bundle.encoder),
                renewed=renewed,
                bundle=bundle,
            )
            self._served[name] = model
            return model


def spare_imports() -> None:
    """Has collections of garbage leave alone what is imported: 340,000 objects of TensorFlow's.

    A full collection would walk through them, and nobody is answered for those 0.17 s of a core.
    What comes later is looked through often, and so briefly (commands do it rarely, see
    `core.imports`); bundles are collected when others have taken their place.
    """
    import_tensorflow()  # what a bundle would import otherwise
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)


def probe(bundle: Bundle, directory: Path, rows: int = 1) -> None:
    """Scores random rows, as one who wants to know whether that works.

    Args:
      bundle: that scores.
      directory: of it, for the error.
      rows: that it scores.

    Raises:
      UserError: if what comes out is no number.
    """
    manifest = bundle.manifest
    inputs = LAYOUTS[manifest.layout].draw(manifest, rows, np.random.default_rng(0))
    _, probability = bundle.predict(inputs)
    if not np.isfinite(probability).all():
        raise UserError(f"{directory}: the model gives no finite scores. Train it anew.")


def next_version(before: Served | None, name: str, directory: Path | None) -> tuple[int, Path]:
    """The version that a bundle gets, and its directory.

    Args:
      before: what the name stands for now.
      name: of the model.
      directory: that was given; None: where that name's last came from.

    Raises:
      UserError: if there is neither.
    """
    if directory is None:
        if before is None:
            raise UserError(f"There is no model {shown(name)} to load again. Give its path.")
        directory = before.directory
    return 1 if before is None else before.version + 1, directory


def unknown_variant(variant: Any, known: Iterable[str]) -> UserError:
    """What is said of a call whose parameter names no model."""
    return UserError(f"{VARIANT}: expected one of {', '.join(known)}, received {shown(variant)}.")
