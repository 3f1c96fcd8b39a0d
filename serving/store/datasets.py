"""Histories of a dataset, as `python -m workflows` writes them, back in raw values for a store.

A dataset holds what its workflow made of the raw values, so these are what encodes to the same:
a value that the vocabulary does not know comes as one it does not know, a hashed one as a text of
the same hash, a number but for rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lookback.core.arrow_files import open_parquet
from lookback.core.errors import UserError
from lookback.formats.bags import read_bags
from lookback.formats.dataset_info import FEATURES, WORKFLOW_DIRECTORY, read_histories_info
from lookback.formats.features import HistoryFeatures, table_rows
from lookback.formats.histories import history_files, lengths_of, values_of
from lookback.formats.raw_ids import ID_DIRECTORY
from lookback.formats.schema import read_schema
from lookback.formats.stored_histories import NO_FLOOR, Head, Kind, Record, type_of
from lookback.formats.transforms import Bag, Buckets, Number, Transform, Vocabulary, transform_of
from lookback.formats.vocabulary import FIRST_KNOWN, OUT_OF_VOCABULARY, id_file
from lookback.serving.encoding import VocabularyEncoder
from lookback.serving.feature_encoders import FeatureEncoder, HashEncoder, encoder_by
from lookback.serving.store.vocabularies import digests_of

_USERS_AT_ONCE = 1024
"""That are decoded together: a million events of users who have a thousand each."""


@dataclasses.dataclass
class Loaded:
    """What became of a dataset.

    Attributes:
      users: that were loaded.
      events: of theirs.
      unknown_users: that were left out, as their ids are not known.
      unknown_items: events of items whose ids are not known; they are kept.
      dropped: events that were left out, as their users have more than are kept.
    """

    users: int = 0
    events: int = 0
    unknown_users: int = 0
    unknown_items: int = 0
    dropped: int = 0


class StoredDataset:
    """A dataset's histories for a store.

    Args:
      directory: of the dataset.
      category: the item feature by which events are found; None: the first that is one category.
      max_events: that are kept of a user.

    Attributes:
      head: of the store.
      hashed: features of which only a hash is known.
      loaded: counts what `users` gives.

    Raises:
      UserError: if it is no dataset of histories, or cannot be decoded.
    """

    def __init__(self, directory: Path, category: str | None, max_events: int) -> None:
        self._directory = directory
        info = read_histories_info(directory)
        schema = read_schema(directory)
        features = HistoryFeatures.from_schema(schema)
        if features.time is None or not features.user:
            raise UserError(
                f"{directory} has no ids of users or no times, by which a store keeps histories. "
                "Give a dataset that `python -m workflows run` wrote."
            )
        self._time, user_id = features.time, features.user[0]
        said = info.get(FEATURES, {})
        names = features.of("user", "item", "context", "event")
        raw = (directory / WORKFLOW_DIRECTORY).is_dir()
        transforms = {n: transform_of(said.get(n, Vocabulary().to_json())) for n in names}
        self._decoders = {
            name: _Decoder(directory, name, transforms[name], table_rows(schema).get(name), raw)
            for name in names
        }
        kinds: dict[str, Kind] = {name: decoder.kind for name, decoder in self._decoders.items()}
        self.hashed = [n for n, d in self._decoders.items() if d.is_hashed]
        self.head = Head(
            user_id=user_id,
            user_features=tuple(n for n in features.of("user") if n != user_id),
            item_features=features.of("item"),
            context_features=features.of("context"),
            event_features=features.of("event"),
            kinds=kinds,
            category=_category(features.of("item")[1:], kinds, category),
            max_events=max_events,
            vocabularies=digests_of(directory, [n for n in names if _has_ids(transforms[n])]),
            transforms={n: said[n] for n in names if transforms[n] != Vocabulary()},
            dataset={"name": info.get("dataset"), "content_hash": info.get("content_hash")},
        )
        self.loaded = Loaded()

    def users(self) -> Iterator[tuple[Any, Record]]:
        """Raw ids and records, some users of the dataset in memory at a time."""
        head = self.head
        columns = [head.user_id, *head.user_features, *head.of_events, self._time]
        for path in history_files(self._directory):
            with open_parquet(path) as file:
                for batch in file.iter_batches(_USERS_AT_ONCE, columns=columns):
                    yield from self._records(pa.Table.from_batches([batch]))

    def as_known(self, items: pa.Array) -> list[Any]:
        """What the dataset has in the place of raw ids of items ``[N]``."""
        return self._decoders[self.head.item_features[0]].as_known(items)

    def _records(self, table: pa.Table) -> Iterator[tuple[Any, Record]]:
        head = self.head
        ends = np.cumsum(lengths_of(table[head.item_features[0]]))
        items = values_of(table[head.item_features[0]])
        arrays = [self._decoders[n].decode(values_of(table[n])) for n in head.of_events]
        times = pa.array(values_of(table[self._time]), pa.int64())
        ids = pa.nulls(len(times), pa.string())
        rows = pa.RecordBatch.from_arrays([*arrays, times, ids], schema=head.event_schema)
        encoded = values_of(table[head.user_id])
        raw = self._decoders[head.user_id].decode(encoded).to_pylist()
        users = {
            n: self._decoders[n].decode(values_of(table[n])).to_pylist() for n in head.user_features
        }
        vocabulary = head.user_id in head.vocabularies
        for row, end in enumerate(ends.tolist()):
            if vocabulary and encoded[row] < FIRST_KNOWN:
                self.loaded.unknown_users += 1
                continue
            start = int(ends[row - 1]) if row else 0
            first = max(start, end - head.max_events)
            floor = NO_FLOOR if first == start else times[first - 1].as_py()
            self.loaded.users += 1
            self.loaded.events += end - first
            self.loaded.dropped += first - start
            if head.item_features[0] in head.vocabularies:
                self.loaded.unknown_items += int((items[first:end] == OUT_OF_VOCABULARY).sum())
            own = {name: values[row] for name, values in users.items()}
            yield raw[row], Record(own, rows.slice(first, end - first), floor=floor)


class _Decoder:
    """Raw values of a dataset's column.

    Attributes:
      kind: of the values.
      is_hashed: whether only a hash of them is known.
    """

    def __init__(
        self, directory: Path, name: str, transform: Transform, rows: int | None, raw: bool
    ) -> None:
        self._bags: npt.NDArray[np.int32] | None = None
        self._encoder: FeatureEncoder | None = None
        self.is_hashed = False
        self.kind: Kind = "integer"
        if isinstance(transform, Number):
            self._encoder, self.kind = encoder_by(transform, name, directory), "number"
            return
        if not raw:
            if isinstance(transform, Bag):
                raise UserError(f"{directory} has bags of {name}, but no workflow to tell them by.")
            return
        self._encoder = encoder_by(transform, name, directory / ID_DIRECTORY / id_file(name))
        elements = self._encoder
        if isinstance(transform, Bag):
            self._bags = read_bags(directory, name, transform.most, rows or 0)
            elements = self._encoder.elements  # type: ignore[attr-defined]
        self.is_hashed = isinstance(elements, HashEncoder)
        text = self.is_hashed or (isinstance(elements, VocabularyEncoder) and elements.is_text)
        if isinstance(transform, Buckets):
            self.kind = "number"
        elif isinstance(transform, Bag):
            self.kind = "texts"
        elif text:
            self.kind = "text"

    def decode(self, stored: npt.NDArray[Any]) -> pa.Array:
        """Raw values of a column's ``[N]``; each distinct one is decoded once."""
        if self._encoder is None:
            return pa.array(stored, pa.int64())
        distinct, places = np.unique(stored, return_inverse=True)
        encoded = distinct if self._bags is None else self._bags[distinct]
        return pa.array(self._encoder.decode(encoded), type_of(self.kind)).take(pa.array(places))

    def as_known(self, values: pa.Array) -> list[Any]:
        """Raw values ``[N]`` as they come back from the dataset."""
        if self._encoder is None:
            return values.to_pylist()
        return self.decode(self._encoder.encode(values.to_pylist())).to_pylist()


def _has_ids(transform: Transform) -> bool:
    ids = transform.elements if isinstance(transform, Bag) else transform
    return isinstance(ids, Vocabulary)


def _category(features: Sequence[str], kinds: Mapping[str, Kind], wanted: str | None) -> str | None:
    able = [name for name in features if kinds[name] in ("integer", "text")]
    if wanted is not None and wanted not in able:
        raise UserError(
            f"--category_feature: expected a feature of items that is one category, "
            f"{' or '.join(able) or 'of which the dataset has none'}, received {wanted!r}."
        )
    return wanted or next(iter(able), None)
