"""A loaded bundle: raw ids in, scores out.

Scoring needs TensorFlow, pandas and pyarrow. It runs the SavedModel's signature, so neither the
code of the models nor Merlin or NVTabular is imported (nor anything unpickled).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from errors import UserError
from serving.encoding import Catalogue, EncodedIds, Encoder, Vocabulary
from serving.manifest import CATALOGUE_FILE, MODEL_DIRECTORY, SIGNATURE, Manifest
from serving.requests import Request, RequestEncoder, RequestError

Float32 = npt.NDArray[np.float32]

ROWS_A_BATCH = 4096
"""Rows (requests times the most candidates of one) that are scored at once; it bounds memory."""


TIME_GAP_INPUT = "time_gap_history"


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one request's candidates, in the request's order.

    Attributes:
      logit: ``[C]``.
      probability: ``[C]``, the logits' sigmoid.
    """

    logit: Float32
    probability: Float32


class Bundle:
    """Scores requests with an exported model.

    Example:
      bundle = Bundle.load("export")
      (scores,) = bundle.score([{"user_id": "A1", "history": {"item_id": []},
                                 "candidates": {"item_id": ["B1", "B2"]}}])
    """

    def __init__(self, manifest: Manifest, encoder: RequestEncoder, saved_model: Any) -> None:
        """Joins the parts; `load` reads them."""
        self.manifest = manifest
        self.encoder = encoder
        # The signature does not keep the variables alive; the loaded object does.
        self._saved_model = saved_model
        self._signature = saved_model.signatures[SIGNATURE]
        if manifest.time_features:
            # Only here: it brings Merlin's schema along, which takes a second to import.
            from dataloading.windows import time_gap_bucket

            self._time_gap_bucket = time_gap_bucket

    @classmethod
    def load(cls, directory: str | Path) -> Bundle:
        """Verifies and loads a bundle.

        Args:
          directory: that train.py --export_dir wrote.

        Raises:
          UserError: if it is no bundle, or damaged; the text names the file.
        """
        directory = Path(directory)
        manifest = Manifest.read(directory)
        encoder = load_encoder(directory, manifest)
        import tensorflow as tf

        try:
            saved_model = tf.saved_model.load(str(directory / MODEL_DIRECTORY))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise UserError(
                f"The model in {directory} cannot be loaded by TensorFlow {tf.__version__} "
                f"({error}). It was exported with {manifest.versions['tensorflow']}."
            ) from error
        return cls(manifest, encoder, saved_model)

    def score(self, requests: Sequence[Request]) -> list[Scores]:
        """Scores the candidates of every request.

        Args:
          requests: see `serving.requests`. Any number, of any lengths.

        Returns:
          The scores of each request.

        Raises:
          RequestError: (a `UserError`) naming the request and what is wrong; nothing is scored.
        """
        counts = [self.encoder.check(index, request) for index, request in enumerate(requests)]
        scores: list[Scores] = []
        for start, stop in _batches(counts):
            try:
                batch = self.encoder.encode(requests[start:stop])
            except RequestError as error:
                raise RequestError(start + error.index, error.detail) from error
            inputs: dict[str, Any] = dict(batch.inputs)
            if batch.gaps is not None:
                padding = inputs[f"{self.manifest.item_features[0]}_history"] == 0
                inputs[TIME_GAP_INPUT] = np.where(padding, 0, self._time_gap_bucket(batch.gaps))
            logit, probability = self.predict(inputs)
            for row, count in enumerate(batch.candidates):
                scores.append(Scores(logit[row, :count], probability[row, :count]))
        return scores

    def predict(self, inputs: Mapping[str, npt.NDArray[np.int32]]) -> tuple[Float32, Float32]:
        """Scores one encoded batch.

        Args:
          inputs: arrays by name, of the shapes in `manifest.inputs`.

        Returns:
          Logits and probabilities, ``[B, C]``.
        """
        import tensorflow as tf

        outputs = self._signature(**{name: tf.constant(v) for name, v in inputs.items()})
        return outputs["logit"].numpy(), outputs["probability"].numpy()


def load_encoder(directory: Path, manifest: Manifest) -> RequestEncoder:
    """Reads a bundle's vocabularies and catalogue.

    Args:
      directory: of the bundle.
      manifest: of the bundle, its files verified.
    """
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
    return RequestEncoder(
        user_features=manifest.user_features,
        item_features=manifest.item_features,
        max_seq_length=manifest.max_seq_length,
        time_features=manifest.time_features,
        encoders=encoders,
        catalogue=catalogue,
    )


def _batches(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cuts requests of `counts` candidates into ranges of at most `ROWS_A_BATCH` padded rows."""
    start, widest = 0, 0
    for index, count in enumerate(counts):
        widest = max(widest, count)
        if index > start and (index + 1 - start) * widest > ROWS_A_BATCH:
            yield start, index
            start, widest = index, count
    if start < len(counts):
        yield start, len(counts)
