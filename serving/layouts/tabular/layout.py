"""Tabular: requests of one row of numbers and categorical values, answered with its score."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookback.formats.tabular_columns import CATEGORICAL, NUMERICAL
from lookback.formats.vocabulary import UNKNOWN
from lookback.serving.encoding import EncodedIds, Encoder
from lookback.serving.feature_encoders import encoder_of
from lookback.serving.json_schemas import SCORES, object_schema
from lookback.serving.layouts.base import RequestLayout
from lookback.serving.layouts.tabular.encoding import (
    EncodedNumbers,
    KeyVocabulary,
    ShiftedLogEncoder,
)
from lookback.serving.layouts.tabular.offline import offline_rows
from lookback.serving.layouts.tabular.requests import RowEncoder
from lookback.serving.layouts.tabular.sample import sample_rows
from lookback.serving.layouts.tabular.schema import row_schema
from lookback.serving.manifest import TabularManifest
from lookback.serving.requests import Request
from lookback.serving.scores import Scores
from lookback.serving.skew.samples import OfflineBatch


class TabularRequestLayout(RequestLayout):
    """See the module, and `serving.layouts.tabular.requests` for the requests."""

    sample_options = ("rows",)

    def load_encoder(self, directory: Path, manifest: TabularManifest) -> RowEncoder:
        """Maps the vocabularies."""
        features = (*manifest.numerical, *manifest.categorical)
        encoders = {name: _encoder(directory, manifest, name) for name in features}
        return RowEncoder(manifest.numerical, manifest.categorical, encoders)

    def request_schema(
        self, manifest: TabularManifest, encoder: RowEncoder, most: int | None
    ) -> dict[str, Any]:
        """A row, of which nothing may be left out."""
        del manifest, most
        return row_schema(encoder)

    def answer_schema(self, manifest: TabularManifest, encoder: RowEncoder) -> dict[str, Any]:
        """A score."""
        del manifest, encoder
        return object_schema(SCORES)

    def offline(
        self, manifest: TabularManifest, encoder: RowEncoder, dataset_dir: Path, samples: int
    ) -> Iterable[OfflineBatch]:
        """Rows, those of the test first."""
        return offline_rows(manifest, encoder, dataset_dir, samples)

    def answer(self, request: Request, manifest: TabularManifest, scores: Scores) -> dict[str, Any]:
        """The row's score."""
        return {"probability": float(scores.probability[0]), "logit": float(scores.logit[0])}

    def table(
        self, number: int, request: Request, manifest: TabularManifest, scores: Scores
    ) -> str:
        """One line, the first under a header."""
        header = "     row  probability     logit\n" if number == 0 else ""
        return f"{header}{number + 1:>8}  {scores.probability[0]:11.4f}  {scores.logit[0]:8.4f}\n"

    def sample(
        self,
        manifest: TabularManifest,
        export_dir: Path,
        dataset_dir: Path,
        *,
        seed: int,
        **options: int,
    ) -> Iterable[dict[str, Any]]:
        """Rows of the test split."""
        encoder = self.load_encoder(export_dir, manifest)
        return sample_rows(manifest, encoder, export_dir, dataset_dir, seed=seed, **options)

    def draw(
        self, manifest: TabularManifest, batch_size: int, random: np.random.Generator
    ) -> dict[str, npt.NDArray[Any]]:
        """Logarithms of exponentially spread numbers, and ids."""
        rows = np.array([manifest.cardinalities[name] for name in manifest.categorical])
        ids = random.integers(0, rows, (batch_size, len(rows)))
        numbers = random.standard_exponential((batch_size, len(manifest.numerical)), np.float32)
        return {NUMERICAL: numbers, CATEGORICAL: ids.astype(np.int32)}


def _encoder(directory: Path, manifest: TabularManifest, name: str) -> Encoder:
    """What encodes a feature: as it was fitted, or as all of its kind are."""
    if manifest.ids == "encoded":
        if name in manifest.numerical:
            return EncodedNumbers()
        return EncodedIds(manifest.cardinalities[name], lowest=UNKNOWN)
    if manifest.transforms:
        return encoder_of(directory, manifest, name)
    if name in manifest.numerical:
        return ShiftedLogEncoder()
    return KeyVocabulary.read(directory / manifest.vocabularies[name])
