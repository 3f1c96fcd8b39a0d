"""Histories: requests of a user's history and candidates, answered with a ranking."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from lookback.core.errors import UserError
from lookback.formats.history_columns import TIMESTAMP
from lookback.serving.columns import HISTORY
from lookback.serving.encoding import EncodedIds, ItemFeatures
from lookback.serving.feature_encoders import FeatureEncoder, bags_of, encoder_of
from lookback.serving.json_schemas import ranking_schema, value_schema
from lookback.serving.layouts.candidates import StoredUsers, StoredValues, known
from lookback.serving.layouts.candidates_layout import CandidateRequestLayout
from lookback.serving.layouts.histories.offline import offline_histories
from lookback.serving.layouts.histories.requests import TIME_GAP_INPUT, HistoryRequestEncoder
from lookback.serving.layouts.histories.sample import require_same_dataset, sample_users
from lookback.serving.layouts.histories.schema import history_request_schema
from lookback.serving.manifest import HISTORY_SUFFIX, HistoriesManifest
from lookback.serving.requests import Request
from lookback.serving.scores import Scores
from lookback.serving.skew.samples import OfflineBatch


class HistoryRequestLayout(CandidateRequestLayout):
    """See the module, and `serving.layouts.histories.requests` for the requests."""

    def load_encoder(self, directory: Path, manifest: HistoriesManifest) -> HistoryRequestEncoder:
        """Reads vocabularies and catalogue."""
        features = [name for names in manifest.roles.values() for name in names]
        encoders: dict[str, FeatureEncoder | EncodedIds] = {}
        for name in features:
            if manifest.ids == "raw":
                encoders[name] = encoder_of(directory, manifest, name)
            else:
                encoders[name] = EncodedIds(manifest.cardinalities[name])
        catalogue = None
        if manifest.ids == "raw":
            rows = manifest.cardinalities[manifest.item_features[0]]
            bags = {name: bags_of(directory, manifest, name) for name in manifest.item_bags}
            catalogue = ItemFeatures.read(directory, manifest.item_features, rows, bags)
        bucket = None
        if manifest.time_features:
            # Only here: it brings Merlin's schema along, which takes a second to import.
            from lookback.dataloading.histories.windows import time_gap_bucket

            bucket = time_gap_bucket
        return HistoryRequestEncoder(
            user_features=manifest.user_features,
            item_features=manifest.item_features,
            context_features=manifest.context_features,
            event_features=manifest.event_features,
            max_seq_length=manifest.max_seq_length,
            least_slots=manifest.least_slots,
            time_gap_bucket=bucket,
            encoders=encoders,
            catalogue=catalogue,
        )

    def probability_of(self, manifest: Any) -> str:
        """Of a click on what is shown, where the labels were such clicks."""
        if manifest.explicit_labels:
            return "of a positive label (a click), among items shown as those of training were"
        return super().probability_of(manifest)

    def request_schema(
        self, manifest: HistoriesManifest, encoder: HistoryRequestEncoder, most: int | None
    ) -> dict[str, Any]:
        """A user's history and candidates."""
        return history_request_schema(manifest, encoder, most)

    def answer_schema(
        self, manifest: HistoriesManifest, encoder: HistoryRequestEncoder
    ) -> dict[str, Any]:
        """The user and a ranking."""
        values = {name: value_schema(of) for name, of in encoder.encoders.items()}
        user = {name: values[name] for name in manifest.user_features}
        item = {name: values[name] for name in manifest.item_features}
        return ranking_schema(user, item, known=manifest.ids == "raw")

    def offline(
        self,
        manifest: HistoriesManifest,
        encoder: HistoryRequestEncoder,
        dataset_dir: Path,
        samples: int,
    ) -> Iterable[OfflineBatch]:
        """Windows before targets, or impressions."""
        return offline_histories(manifest, encoder, dataset_dir, samples)

    def chosen(
        self,
        request: Request,
        encoder: HistoryRequestEncoder,
        items: Mapping[str, npt.NDArray[Any]],
        scores: Scores,
    ) -> Scores:
        """Every candidate, and whether it is known."""
        item_id = encoder.item_features[0]
        return dataclasses.replace(scores, known=known(encoder.encoders[item_id], items[item_id]))

    def stored_users(
        self,
        manifest: HistoriesManifest,
        encoder: HistoryRequestEncoder,
        export_dir: Path,
        dataset_dir: Path,
        moment: int | None,
    ) -> StoredUsers:
        """All events of a user are the history."""
        if manifest.ids != "raw":
            raise UserError(
                f"{export_dir} was exported without a workflow, so no dataset is known to have its "
                "ids. Give requests of encoded ids (--input)."
            )
        require_same_dataset(manifest, export_dir, dataset_dir)
        if manifest.context_features:
            raise UserError(
                f"The model reads {', '.join(manifest.context_features)} of the moment of a "
                "request, of which a dataset says nothing. Give requests (--input) that say it."
            )
        if manifest.time_features and moment is None:
            raise UserError(
                "The model reads how long ago events were, and a dataset does not say when its "
                "users ask. Give the moment in seconds (--timestamp)."
            )
        bags = {name: bags_of(dataset_dir, manifest, name) for name in manifest.bags}
        features = [name for names in manifest.roles.values() for name in names]
        stored: dict[str, Any] = {
            n: StoredValues(manifest.input_type(n), bags.get(n)) for n in features
        }
        lists = [*manifest.item_features, *manifest.event_features]
        lists += [TIMESTAMP] * manifest.time_features
        columns = {name: name for name in manifest.user_features}
        columns |= {f"{HISTORY}.{name}": name for name in lists}
        own = dataclasses.replace(encoder, encoders=stored)
        return StoredUsers(columns, own, moment if manifest.time_features else None)

    def about(self, request: Request, manifest: HistoriesManifest) -> str:
        """How long the history is."""
        events = len(request[HISTORY][manifest.item_features[0]])
        return f"{events} event{'s' * (events != 1)} of history"

    def drawn_axes(
        self, name: str, axes: Sequence[int | None], manifest: HistoriesManifest
    ) -> tuple[int, ...]:
        """Histories are as long as they can be."""
        if name.endswith(HISTORY_SUFFIX) and manifest.feature_of(name) != name:
            return manifest.max_seq_length, *super().drawn_axes(name, axes[1:], manifest)
        return super().drawn_axes(name, axes, manifest)

    def input_rows(self, name: str, manifest: HistoriesManifest) -> int:
        """A history is looked up where its feature is; time gaps have a table of their own."""
        if name == TIME_GAP_INPUT:
            from lookback.formats.features import TIME_GAP_BUCKETS

            return TIME_GAP_BUCKETS
        return super().input_rows(manifest.feature_of(name), manifest)

    def sample(
        self,
        manifest: HistoriesManifest,
        export_dir: Path,
        dataset_dir: Path,
        *,
        seed: int,
        **options: int,
    ) -> Iterable[dict[str, Any]]:
        """Users who ask for their last event."""
        encoder = self.load_encoder(export_dir, manifest)
        return sample_users(manifest, encoder, export_dir, dataset_dir, seed=seed, **options)
