"""Samples of histories as training's windows build them, and as requests of raw values say them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lookback.core.errors import UserError
from lookback.core.manifests import SIZES
from lookback.formats.history_columns import TIMESTAMP
from lookback.serving.columns import CANDIDATES, HISTORY
from lookback.serving.layouts.histories.requests import HistoryRequestEncoder
from lookback.serving.layouts.histories.sample import RawValues
from lookback.serving.manifest import HISTORY_SUFFIX, HistoriesManifest
from lookback.serving.skew.samples import (
    NEGATIVES,
    REQUESTS_AT_ONCE,
    SPLITS,
    OfflineBatch,
    spread,
)


def offline_histories(
    manifest: HistoriesManifest, encoder: HistoryRequestEncoder, dataset_dir: Path, samples: int
) -> Iterator[OfflineBatch]:
    """Makes samples; arguments and errors as of `RequestLayout.offline`.

    Requests have all events before the target, though the model reads the newest alone, and say
    every feature of every item: what the catalogue knows may be of another time than the event.
    """
    if manifest.ids != "raw":
        yield from _materialised(manifest, dataset_dir, samples)
        return
    import tensorflow as tf

    from lookback.dataloading.histories.resident import Histories
    from lookback.dataloading.histories.windows import WindowBuilder, WindowConfig

    options = manifest.options
    histories = Histories.load(
        dataset_dir, verification=SIZES, chosen_features=options.get("features")
    )
    config = WindowConfig(
        manifest.max_seq_length,
        options["long_seq_length"],
        auxiliary_negatives=False,
        time_features=manifest.time_features,
    )
    windows = WindowBuilder(histories, config)
    requests = _Requests(manifest, encoder, dataset_dir, histories)
    each = 1 if windows.explicit else 1 + NEGATIVES
    left = samples
    for split in SPLITS:
        if left <= 0 or split not in (*windows.held_out, "train"):
            continue
        chosen = spread(windows.num_samples(split), -(-left // each))
        left -= each * len(chosen)
        for start in range(0, len(chosen), REQUESTS_AT_ONCE):
            numbers = tf.constant(chosen[start : start + REQUESTS_AT_ONCE])
            features, _ = windows.eval_samples(split, 0, numbers, numbers, NEGATIVES)
            located = [of.numpy() for of in windows.located(split, numbers)]
            yield requests.of(split, {n: v.numpy() for n, v in features.items()}, *located)


def _materialised(
    manifest: HistoriesManifest, dataset_dir: Path, samples: int
) -> Iterator[OfflineBatch]:
    """Samples of encoded ids, which requests say as they are: histories without their padding."""
    from lookback.dataloading.histories.materialised import MaterialisedDataset
    from lookback.formats.features import table_rows

    dataset = MaterialisedDataset(
        dataset_dir,
        user_features=len(manifest.user_features),
        max_seq_length=manifest.max_seq_length,
        long_seq_length=manifest.options["long_seq_length"],
    )
    if table_rows(dataset.schema) != dict(manifest.cardinalities):
        raise UserError(
            f"{dataset_dir} has features of {table_rows(dataset.schema)} rows, and the model those "
            f"of {dict(manifest.cardinalities)}. Give the samples that it was trained on."
        )
    left = samples
    for split in (split for split in SPLITS if split != "validation"):  # they have no such
        for features, labels in dataset.batches(split, REQUESTS_AT_ONCE, negatives=False):
            if left <= 0:
                return
            some = {name: values[:left] for name, values in features.items()}
            requests = [_as_it_is(manifest, some, row) for row in range(min(left, len(labels)))]
            left -= len(requests)
            first = (*manifest.user_features, *manifest.item_features)[0]
            item_id = manifest.item_features[0]
            yield OfflineBatch(
                some,
                requests,
                [f"{split} {first} {values}" for values in some[first].reshape(-1)],
                [request[CANDIDATES][item_id] for request in requests],
            )


def _as_it_is(manifest: HistoriesManifest, features: dict[str, Any], row: int) -> dict[str, Any]:
    """A request of encoded ids."""
    items = manifest.item_features
    past = {name: features[f"{name}{HISTORY_SUFFIX}"][row] for name in items}
    exists = past[items[0]] > 0
    return {
        **{name: int(features[name][row]) for name in manifest.user_features},
        HISTORY: {name: values[exists].tolist() for name, values in past.items()},
        CANDIDATES: {name: features[name][row].tolist() for name in items},
    }


class _Requests:
    """Makes requests of what a dataset holds; the arguments are those of `offline_histories`."""

    def __init__(
        self,
        manifest: HistoriesManifest,
        encoder: HistoryRequestEncoder,
        dataset_dir: Path,
        histories: Any,
    ) -> None:
        self._manifest, self._histories = manifest, histories
        self._values = RawValues(manifest, encoder, dataset_dir)

    def of(
        self, split: str, features: dict[str, Any], users: Any, positions: Any, places: Any
    ) -> OfflineBatch:
        """The requests of samples ``[B]``: whose, how many events before, where the target is."""
        histories, timed = self._histories, self._manifest.time_features
        times = histories.timestamps
        if histories.impressions is not None:
            times = histories.impressions[split].timestamps
        requests = []
        for row, (user, position, place) in enumerate(zip(users, positions, places, strict=True)):
            begin = histories.offsets[user]
            past = slice(begin, begin + position)
            request = self._shared(features, row)
            events = self._events(past)
            if timed:
                events[TIMESTAMP] = histories.timestamps[past].tolist()
                request[TIMESTAMP] = int(times[place])
            request[HISTORY] = events
            request[CANDIDATES] = {
                name: self._values.decoded(name, features[name][row])
                for name in self._manifest.item_features
            }
            requests.append(request)
        item_id = self._manifest.item_features[0]
        named = self._manifest.user_features[:1]
        whose = [r[named[0]] for r in requests] if named else [f"row {user}" for user in users]
        return OfflineBatch(
            features,
            requests,
            [*map(str, whose)],
            [request[CANDIDATES][item_id] for request in requests],
        )

    def _shared(self, features: dict[str, Any], row: int) -> dict[str, Any]:
        names = (*self._manifest.user_features, *self._manifest.context_features)
        return {n: self._values.decoded(n, features[n][row : row + 1])[0] for n in names}

    def _events(self, past: slice) -> dict[str, Any]:
        stored = {**self._histories.item_features, **self._histories.event_features}
        names = (*self._manifest.item_features, *self._values.of_events)
        return {name: self._values.raw(name, stored[name][past]) for name in names}
