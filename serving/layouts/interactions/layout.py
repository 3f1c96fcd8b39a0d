"""Interactions: requests of a user, answered with a ranking of candidates or of all items."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from lookback.formats.vocabulary import FIRST_KNOWN
from lookback.serving.columns import CANDIDATES
from lookback.serving.encoding import ItemFeatures, VocabularyEncoder
from lookback.serving.json_schemas import (
    at_most,
    lists_schema,
    object_schema,
    ranking_schema,
    value_schema,
)
from lookback.serving.layouts.candidates import StoredUsers, StoredValues, known
from lookback.serving.layouts.candidates_layout import CandidateRequestLayout, best_first
from lookback.serving.layouts.interactions.offline import offline_interactions
from lookback.serving.layouts.interactions.requests import (
    DEFAULT_K,
    EXCLUDE,
    InteractionsRequestEncoder,
    K,
)
from lookback.serving.layouts.interactions.sample import sample_interactions
from lookback.serving.manifest import InteractionsManifest, require_same_workflow
from lookback.serving.requests import Request
from lookback.serving.scores import Scores
from lookback.serving.skew.samples import OfflineBatch


class InteractionRequestLayout(CandidateRequestLayout):
    """See the module, and `serving.layouts.interactions.requests` for the requests."""

    def load_encoder(
        self, directory: Path, manifest: InteractionsManifest
    ) -> InteractionsRequestEncoder:
        """Reads vocabularies and catalogue."""
        (user_id,), (item_id,) = manifest.user_features, manifest.item_features
        rows = manifest.cardinalities[item_id]
        ids = ItemFeatures.read(directory, [item_id], rows).ids
        users, items = (
            VocabularyEncoder.read(directory / manifest.vocabularies[name], name)
            for name in (user_id, item_id)
        )
        # Null and unknown ids are no items to recommend.
        return InteractionsRequestEncoder(user_id, item_id, users, items, ids[ids >= FIRST_KNOWN])

    def request_schema(
        self, manifest: InteractionsManifest, encoder: InteractionsRequestEncoder, most: int | None
    ) -> dict[str, Any]:
        """A user, with candidates or without."""
        del manifest
        user = {encoder.user_id: value_schema(encoder.users)}
        item = value_schema(encoder.items)
        candidates = lists_schema({encoder.item_id: item}, minItems=1, **at_most(most))
        k: dict[str, Any] = {"type": "integer", "minimum": 1, "default": DEFAULT_K}
        best = {K: k, EXCLUDE: {"type": "array", "items": item}}
        return {
            "anyOf": [
                object_schema({**user, CANDIDATES: candidates}),
                object_schema({**user, **best}, best),
            ]
        }

    def answer_schema(
        self, manifest: InteractionsManifest, encoder: InteractionsRequestEncoder
    ) -> dict[str, Any]:
        """The user and a ranking."""
        del manifest
        return ranking_schema(
            {encoder.user_id: value_schema(encoder.users)},
            {encoder.item_id: value_schema(encoder.items)},
            known=True,
        )

    def offline(
        self,
        manifest: InteractionsManifest,
        encoder: InteractionsRequestEncoder,
        dataset_dir: Path,
        samples: int,
    ) -> Iterable[OfflineBatch]:
        """Users with their held-out item among others."""
        del manifest
        return offline_interactions(encoder, dataset_dir, samples)

    def chosen(
        self,
        request: Request,
        encoder: InteractionsRequestEncoder,
        items: Mapping[str, npt.NDArray[Any]],
        scores: Scores,
    ) -> Scores:
        """The best of the catalogue, or every candidate; and whether it is known."""
        ids = items[encoder.item_id]
        if CANDIDATES in request:
            return dataclasses.replace(scores, known=known(encoder.items, ids))
        best = best_first(scores.logit)[: request.get(K, DEFAULT_K)]
        return Scores(
            logit=scores.logit[best],
            probability=scores.probability[best],
            known=known(encoder.items, ids[best]),
            items=tuple(encoder.items.decode(ids[best])),
        )

    def stored_users(
        self,
        manifest: InteractionsManifest,
        encoder: InteractionsRequestEncoder,
        export_dir: Path,
        dataset_dir: Path,
        moment: int | None,
    ) -> StoredUsers:
        """What users have seen is left out, if that is asked for."""
        del moment
        require_same_workflow(manifest, export_dir, dataset_dir)
        ids: Any = StoredValues("int32")
        stored = dataclasses.replace(encoder, users=ids, items=ids)
        return StoredUsers({encoder.user_id: encoder.user_id, EXCLUDE: encoder.item_id}, stored)

    def about(self, request: Request, manifest: InteractionsManifest) -> str:
        """What is ranked."""
        if CANDIDATES in request:
            return f"{len(request[CANDIDATES][manifest.item_features[0]])} candidates"
        excluded = len(request.get(EXCLUDE, ()))
        return f"of all items{f' but {excluded}' * bool(excluded)}"

    def sample(
        self,
        manifest: InteractionsManifest,
        export_dir: Path,
        dataset_dir: Path,
        *,
        seed: int,
        **options: int,
    ) -> Iterable[dict[str, Any]]:
        """Users, and the items of their last events among others."""
        encoder = self.load_encoder(export_dir, manifest)
        return sample_interactions(manifest, encoder, export_dir, dataset_dir, seed=seed, **options)
