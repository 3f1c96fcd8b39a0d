"""Which vocabularies a store's histories are of, and which a bundle reads.

Beside `serving.store.datasets`, which needs Merlin's schemas: a process that serves does without
them, and so starts a second sooner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.formats.raw_ids import ID_DIRECTORY
from lookback.formats.stored_histories import Head
from lookback.formats.verification import vocabularies_of
from lookback.formats.vocabulary import id_file, ids_digest
from lookback.serving.manifest import HistoriesManifest, InteractionsManifest


def digests_of(directory: Path, features: Sequence[str]) -> dict[str, str]:
    """Digests of what the ids of features stand for, of those that have a vocabulary.

    Args:
      directory: a dataset, or a bundle of one.
      features: names.
    """
    said = vocabularies_of(directory)
    files = {name: directory / ID_DIRECTORY / id_file(name) for name in features}
    return {
        name: said[name] if name in said else ids_digest(path, name)
        for name, path in files.items()
        if path.is_file()
    }


def require_bundle(
    head: Head,
    place: str,
    manifest: HistoriesManifest | InteractionsManifest,
    export_dir: Path,
) -> None:
    """Checks that a store has what a bundle reads, in the bundle's vocabularies.

    Args:
      head: of the store.
      place: of the store, for the error.
      manifest: of the bundle.
      export_dir: the bundle.

    Raises:
      UserError: naming what differs.
    """
    remedy = (
        "Load the histories of the dataset that the model was trained on: `lookback serving "
        "load-histories DATASET --store ADDRESS`."
    )
    roles = manifest.roles
    stored = {
        "user": (head.user_id, *head.user_features),
        "item": head.item_features,
        "context": head.context_features,
        "event": head.event_features,
    }
    missing = [n for role, names in roles.items() for n in names if n not in stored[role]]
    if missing or head.item_features[0] != manifest.item_features[0]:
        raise UserError(
            f"The store {place} has no {', '.join(missing) or manifest.item_features[0]}, which "
            f"the model in {export_dir} reads. {remedy}"
        )
    names = [name for own in roles.values() for name in own]
    digests = digests_of(export_dir, names)
    own: Mapping[str, Mapping[str, Any]] = {}  # pairs are of ids alone
    if isinstance(manifest, HistoriesManifest):
        own = manifest.transforms
    for name in names:
        found, expected = head.vocabularies.get(name), digests.get(name)
        if found != expected:
            raise UserError(
                f"The store {place} has histories of another vocabulary than the bundle "
                f"{export_dir}: the ids of {name} are {_short(found)} there and "
                f"{_short(expected)} here. {remedy}"
            )
        if head.transforms.get(name) != own.get(name):
            raise UserError(
                f"The store {place} has histories whose {name} was transformed otherwise than for "
                f"the bundle {export_dir}. {remedy}"
            )


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:12]}..."
