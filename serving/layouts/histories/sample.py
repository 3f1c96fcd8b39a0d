"""Requests with raw ids made from a dataset's users: for demonstrations, tests and load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.formats.dataset_info import FEATURES, read_histories_info
from lookback.formats.histories import history_files
from lookback.formats.history_columns import TIMESTAMP
from lookback.formats.impressions import POSITION, USER, impression_files
from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.columns import CANDIDATES, HISTORY
from lookback.serving.encoding import EncodedIds
from lookback.serving.feature_encoders import bags_of
from lookback.serving.layouts.histories.requests import HistoryRequestEncoder
from lookback.serving.manifest import HistoriesManifest, require_same_workflow

TEST = "test"


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
      candidates: how many each; the first is the item of the user's last event (of explicit
        labels, of a test impression), the others are drawn from the catalogue. The history is all
        before it.
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
    require_same_dataset(manifest, export_dir, dataset_dir)
    if encoder.catalogue is None:
        raise ValueError("a bundle of raw ids has a catalogue")
    random = np.random.default_rng(seed)
    item_id, *others = manifest.item_features
    items = encoder.catalogue.ids[encoder.catalogue.ids >= FIRST_KNOWN]
    values = RawValues(manifest, encoder, dataset_dir)
    asked = _shown if manifest.explicit_labels else _last
    for row, target, position in asked(dataset_dir, users, random):
        drawn = items[random.integers(len(items), size=candidates - 1)]
        past = {n: row[n][:position] for n in (*manifest.roles["item"], *values.of_events)}
        request = {name: values.raw(name, [row[name]])[0] for name in manifest.user_features}
        request |= {n: values.raw(n, [target[n]])[0] for n in manifest.context_features}
        request[HISTORY] = {name: values.raw(name, events) for name, events in past.items()}
        chosen = {item_id: values.decoded(item_id, drawn)}
        chosen |= {n: values.decoded(n, encoder.catalogue.lookup(n, drawn)) for n in others}
        request[CANDIDATES] = {n: [*values.raw(n, [target[n]]), *v] for n, v in chosen.items()}
        if row.get(TIMESTAMP) is not None:
            request[HISTORY][TIMESTAMP] = [int(time) for time in row[TIMESTAMP][:position]]
            request[TIMESTAMP] = int(target[TIMESTAMP])
        yield request


class RawValues:
    """Values of a dataset's columns as requests have them.

    Attributes:
      of_events: the features of events that are not of items.
    """

    def __init__(
        self, manifest: HistoriesManifest, encoder: HistoryRequestEncoder, dataset_dir: Path
    ) -> None:
        """Reads what numbers of bags stand for; arguments as of `sample_users`."""
        self.of_events = (*manifest.context_features, *manifest.event_features)
        self._manifest, self._encoder = manifest, encoder
        self._bags = {name: bags_of(dataset_dir, manifest, name) for name in manifest.bags}

    def raw(self, name: str, stored: npt.ArrayLike) -> list[Any]:
        """Of values ``[N]`` as a feature's column holds them."""
        values = np.asarray(stored, self._manifest.input_type(name))
        return self.decoded(name, self._bags[name][values] if name in self._bags else values)

    def decoded(self, name: str, encoded: npt.NDArray[Any]) -> list[Any]:
        """Of values as the model reads them: of bags ``[N, M]``."""
        encoder = self._encoder.encoders[name]
        if isinstance(encoder, EncodedIds):
            raise ValueError("a bundle of raw ids encodes raw values")
        return encoder.decode(encoded)


def _last(
    dataset_dir: Path, users: int, random: np.random.Generator
) -> Iterator[tuple[dict[str, Any], dict[str, Any], int]]:
    """Users, their last event, and how many are before it."""
    for row in random_users(dataset_dir, users, random):
        events = {name: values for name, values in row.items() if isinstance(values, list)}
        last = {name: values[-1] for name, values in events.items()}
        yield row, last, len(next(iter(events.values()))) - 1


def _shown(
    dataset_dir: Path, users: int, random: np.random.Generator
) -> Iterator[tuple[dict[str, Any], dict[str, Any], int]]:
    """Users of test impressions, the impressions, and how many events are before them."""
    files = impression_files(dataset_dir, TEST)
    if not files:
        raise UserError(f"{dataset_dir} has no {TEST} impressions to make requests of.")
    numbers = _drawn(files, users, random, f"{dataset_dir} has {{}} {TEST} impressions")
    impressions = list(_rows(files, numbers))
    whose = np.unique([impression[USER] for impression in impressions])
    histories = dict(zip(whose.tolist(), _rows(history_files(dataset_dir), whose), strict=True))
    for impression in impressions:
        yield histories[impression[USER]], impression, impression[POSITION]


def require_same_dataset(manifest: HistoriesManifest, export_dir: Path, dataset_dir: Path) -> None:
    """Checks that a dataset's ids and numbers are those of a bundle.

    Raises:
      UserError: if not.
    """
    require_same_workflow(manifest, export_dir, dataset_dir)
    said = read_histories_info(dataset_dir).get(FEATURES, {})
    differing = [name for name, own in manifest.transforms.items() if said.get(name) != own]
    if differing:
        raise UserError(
            f"{dataset_dir} was not written with the workflow in {export_dir} (the transformation "
            f"of {differing} differs). Give the dataset that the model was trained on."
        )


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
    files = history_files(dataset_dir)
    chosen = _drawn(files, users, random, f"{dataset_dir} has {{}} users")
    yield from _rows(files, chosen, columns)


def _drawn(
    paths: Sequence[Path], count: int, random: np.random.Generator, holds: str
) -> npt.NDArray[np.int64]:
    """Numbers of `count` rows of files, ascending; `holds` says how many there are."""
    total = 0
    for path in paths:
        with open_parquet(path) as file:
            total += file.metadata.num_rows
    if count > total:
        raise UserError(f"{holds.format(total)}, fewer than the {count} asked for.")
    return np.sort(random.choice(total, count, replace=False))


def _rows(
    paths: Sequence[Path], numbers: npt.NDArray[np.int64], columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of files by number, ascending, one row group in memory at a time."""
    first = 0
    for path in paths:
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                inside = numbers[(numbers >= first) & (numbers < first + rows)] - first
                first += rows
                if len(inside):
                    yield from file.read_row_group(group, columns).take(inside).to_pylist()
