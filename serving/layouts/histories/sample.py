"""Requests with raw ids made from a dataset's users: for demonstrations, tests and load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.formats.histories import history_files
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.encoding import VocabularyEncoder
from lookback.serving.layouts.candidates import CANDIDATES
from lookback.serving.layouts.histories.requests import HISTORY, TIMESTAMP, HistoryRequestEncoder
from lookback.serving.manifest import HistoriesManifest, require_same_workflow


def sample_users(
    manifest: HistoriesManifest,
    encoder: HistoryRequestEncoder,
    export_dir: Path,
    dataset_dir: Path,
    *,
    users: int = 3,
    candidates: int = 5,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Turns users of a dataset into requests that ask for their last event.

    Args:
      manifest: of the bundle.
      encoder: of the bundle.
      export_dir: the bundle; it must encode raw ids.
      dataset_dir: the dataset, written with the bundle's workflow.
      users: how many, drawn at random.
      candidates: how many each; the first is the item of the user's last event, the others are
        drawn from the catalogue. The history is all before that event.
      seed: of the draws.

    Yields:
      A request for each user, in the dataset's order.

    Raises:
      UserError: if bundle and dataset do not belong together.
    """
    if users < 1 or candidates < 1:
        raise UserError(f"expected at least 1 user and 1 candidate, received {users}, {candidates}")
    if manifest.ids != "raw":
        raise UserError(f"{export_dir} was exported without a workflow, so it knows no raw ids.")
    require_same_workflow(manifest, export_dir, dataset_dir)
    if encoder.catalogue is None:
        raise ValueError("a bundle of raw ids has a catalogue")
    random = np.random.default_rng(seed)
    item_id = manifest.item_features[0]
    items = encoder.catalogue.ids[encoder.catalogue.ids >= FIRST_KNOWN]

    def decoded(name: str, ids: Any) -> list[Any]:
        vocabulary = encoder.encoders[name]
        if not isinstance(vocabulary, VocabularyEncoder):
            raise ValueError("a bundle of raw ids has vocabularies")
        return vocabulary.decode(ids)

    for row in random_users(dataset_dir, users, random):
        drawn = items[random.integers(len(items), size=candidates - 1)]
        request: dict[str, Any] = {
            name: decoded(name, [row[name]])[0] for name in manifest.user_features
        }
        history, chosen = {}, {}
        for name in manifest.item_features:
            events = np.asarray(row[name])
            history[name] = decoded(name, events[:-1])
            values = drawn if name == item_id else encoder.catalogue.lookup(name, drawn)
            chosen[name] = decoded(name, np.r_[events[-1], values])
        request[HISTORY] = history
        request[CANDIDATES] = chosen
        if row.get(TIMESTAMP) is not None:
            history[TIMESTAMP] = [int(time) for time in row[TIMESTAMP][:-1]]
            request[TIMESTAMP] = int(row[TIMESTAMP][-1])
        yield request


def random_users(
    dataset_dir: Path,
    users: int,
    random: np.random.Generator,
    columns: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Random rows of a dataset's histories, in order, one row group in memory at a time.

    Args:
      dataset_dir: of the dataset.
      users: how many.
      random: of the draw.
      columns: to read; None: all.

    Raises:
      UserError: if there are fewer users.
    """
    files = [open_parquet(path) for path in history_files(dataset_dir)]
    total = sum(file.metadata.num_rows for file in files)
    if users > total:
        raise UserError(f"{dataset_dir} has {total} users, fewer than the {users} asked for.")
    chosen = np.sort(random.choice(total, users, replace=False))
    first = 0
    for file in files:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            inside = chosen[(chosen >= first) & (chosen < first + rows)] - first
            first += rows
            if len(inside):
                yield from file.read_row_group(group, columns).take(inside).to_pylist()
