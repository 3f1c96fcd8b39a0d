"""Histories: requests of a user's history and candidates, answered with a ranking."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from serving.encoding import Catalogue, EncodedIds, Encoder, Vocabulary
from serving.history_requests import CANDIDATES, HISTORY, TIME_GAP_INPUT, HistoryRequestEncoder
from serving.history_sample import sample_users
from serving.layout import Layout
from serving.manifest import CATALOGUE_FILE, HistoriesManifest
from serving.requests import Request

if TYPE_CHECKING:
    from serving.bundle import Scores


class HistoriesLayout(Layout):
    """See the module, and `serving.history_requests` for the requests."""

    sample_options = ("users", "candidates")

    def load_encoder(self, directory: Path, manifest: HistoriesManifest) -> HistoryRequestEncoder:
        """Reads vocabularies and catalogue."""
        encoders: dict[str, Encoder] = {}
        for name in (*manifest.user_features, *manifest.item_features):
            if manifest.ids == "raw":
                encoders[name] = Vocabulary.read(directory / manifest.vocabularies[name], name)
            else:
                encoders[name] = EncodedIds(manifest.cardinalities[name])
        catalogue = None
        if manifest.ids == "raw":
            rows = manifest.cardinalities[manifest.item_features[0]]
            catalogue = Catalogue.read(directory / CATALOGUE_FILE, manifest.item_features, rows)
        bucket = None
        if manifest.time_features:
            # Only here: it brings Merlin's schema along, which takes a second to import.
            from dataloading.windows import time_gap_bucket

            bucket = time_gap_bucket
        return HistoryRequestEncoder(
            user_features=manifest.user_features,
            item_features=manifest.item_features,
            max_seq_length=manifest.max_seq_length,
            time_gap_bucket=bucket,
            encoders=encoders,
            catalogue=catalogue,
        )

    def answer(
        self, request: Request, manifest: HistoriesManifest, scores: Scores
    ) -> dict[str, Any]:
        """The user, and the candidates, best first."""
        user = {name: request[name] for name in manifest.user_features}
        return {**user, "candidates": _ranked(request, manifest, scores)}

    def table(
        self, number: int, request: Request, manifest: HistoriesManifest, scores: Scores
    ) -> str:
        """The user, a line for each candidate, and a blank one."""
        user = "  ".join(f"{name} {request[name]}" for name in manifest.user_features)
        events = len(request[HISTORY][manifest.item_features[0]])
        ranked = _ranked(request, manifest, scores)
        columns = [name for name in ranked[0] if name not in ("probability", "logit")]
        widths = {
            name: max(len(name), *(len(str(row[name])) for row in ranked)) for name in columns
        }
        header = "  ".join(f"{name:<{widths[name]}}" for name in columns)
        lines = [
            f"{user}  ({events} event{'s' * (events != 1)} of history)",
            f"  rank  {header}  probability     logit",
        ]
        for rank, row in enumerate(ranked, start=1):
            cells = "  ".join(f"{row[name]!s:<{widths[name]}}" for name in columns)
            lines.append(f"  {rank:>4}  {cells}  {row['probability']:11.4f}  {row['logit']:8.4f}")
        return "\n".join(lines) + "\n\n"

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

    def draw(
        self, manifest: HistoriesManifest, batch_size: int, random: np.random.Generator
    ) -> dict[str, npt.NDArray[Any]]:
        """Full histories, and one candidate a user."""
        inputs: dict[str, npt.NDArray[Any]] = {}
        for name, shape in manifest.inputs.items():
            size = (batch_size, *(1 if axis is None else axis for axis in shape[1:]))
            if name == TIME_GAP_INPUT:
                from dataloading.features import TIME_GAP_BUCKETS

                rows = TIME_GAP_BUCKETS
            else:
                feature = name if name in manifest.cardinalities else name[: -len("_history")]
                rows = manifest.cardinalities[feature]
            # Row 0 is padding.
            inputs[name] = random.integers(min(1, rows - 1), rows, size, np.int32)
        return inputs


def _ranked(request: Request, manifest: HistoriesManifest, scores: Scores) -> list[dict[str, Any]]:
    """The candidates, best first; equal ones in the request's order."""
    features = [name for name in manifest.item_features if name in request[CANDIDATES]]
    order = (-scores.logit).argsort(kind="stable").tolist()
    return [
        {
            **{name: request[CANDIDATES][name][i] for name in features},
            "probability": float(scores.probability[i]),
            "logit": float(scores.logit[i]),
        }
        for i in order
    ]
