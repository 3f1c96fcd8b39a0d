"""A loaded bundle: raw values in, scores out.

Scoring needs TensorFlow, pandas and pyarrow. It runs the SavedModel's signature, so neither the
code of the models nor Merlin or NVTabular is imported (nor anything unpickled).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lookback.core.errors import UserError
from lookback.serving.attention import ATTENTION, Attention
from lookback.serving.kernel_graph import KERNEL_GRAPH, scoring_of
from lookback.serving.layouts.registry import LAYOUTS
from lookback.serving.manifest import MODEL_DIRECTORY, SIGNATURE, Manifest
from lookback.serving.requests import EncodedBatch, Request, RequestEncoder, RequestError
from lookback.serving.scores import Float32, Scores
from lookback.serving.tables import tensors_of

if TYPE_CHECKING:
    import tensorflow as tf

ROWS_A_BATCH = 4096
"""Rows (requests times the most candidates of one) that are scored at once; it bounds memory."""

VERIFIED_TABLES = 1 << 30
"""Bytes of tables that are compared with their digests when a bundle is opened: about a second."""

_DRAWN = 4  # rows by which the graphs of a bundle are compared


class Bundle:
    """Scores requests with an exported model.

    Example:
      bundle = Bundle.load("export")
      (scores,) = bundle.score([{"user_id": "A1", "history": {"item_id": []},
                                 "candidates": {"item_id": ["B1", "B2"]}}])
    """

    def __init__(
        self, directory: Path, manifest: Manifest, encoder: RequestEncoder, saved_model: Any
    ) -> None:
        """Joins the parts; `load` reads them."""
        self.directory = directory
        self.manifest = manifest
        self.encoder = encoder
        self._layout = LAYOUTS[manifest.layout]
        # The signature does not keep the variables alive; the loaded object does.
        self._saved_model = saved_model
        self._attention = saved_model.signatures.get(ATTENTION)
        self._tables = tensors_of(directory, manifest.table_files.values())
        signature = saved_model.signatures[SIGNATURE]
        self._scoring = scoring_of(directory / KERNEL_GRAPH, signature, self._drawn)

    @classmethod
    def load(cls, directory: str | Path, trusted_digest: str | None = None) -> Bundle:
        """Verifies and loads a bundle.

        Tables in files of their own are mapped, not read; more than `VERIFIED_TABLES` of them are
        not compared with their digests unless one is trusted, and a warning says so. The SavedModel
        is code that scoring runs: see docs/trust.md.

        Args:
          directory: that train.py --export_dir wrote.
          trusted_digest: SHA-256 that bundle.json must have; None: any.

        Raises:
          UserError: if it is no bundle, another one than is trusted, or damaged; the text names
            the file.
        """
        directory = Path(directory)
        manifest = Manifest.read(directory, trusted_digest, VERIFIED_TABLES)
        encoder = LAYOUTS[manifest.layout].load_encoder(directory, manifest)
        import tensorflow as tf

        try:
            saved_model = tf.saved_model.load(str(directory / MODEL_DIRECTORY))
        except (OSError, ValueError, tf.errors.OpError) as error:
            raise UserError(
                f"The model in {directory} cannot be loaded by TensorFlow {tf.__version__} "
                f"({error}). It was exported with {manifest.versions['tensorflow']}."
            ) from error
        return cls(directory, manifest, encoder, saved_model)

    def score(
        self, requests: Sequence[Request], counts: Sequence[int] | None = None
    ) -> list[Scores]:
        """Scores the candidates of every request.

        Args:
          requests: as the bundle's layout reads them, see `serving.layouts`. Any number.
          counts: what the encoder's `check` said of each; None: they are checked here.

        Returns:
          The scores of each request.

        Raises:
          RequestError: (a `UserError`) naming the request and what is wrong; nothing is scored.
        """
        if counts is None:
            counts = [self.encoder.check(index, request) for index, request in enumerate(requests)]
        scores: list[Scores] = []
        for start, stop in _batches(np.asarray(counts, np.int64)):
            try:
                batch = self.encoder.encode(requests[start:stop], counts[start:stop])
            except RequestError as error:
                raise RequestError(start + error.index, error.detail) from error
            logits, probabilities = self.scores_of(batch)
            end = 0
            for request, count in zip(requests[start:stop], batch.counts, strict=True):
                own = slice(end, end := end + int(count))
                found = Scores(logits[own], probabilities[own])
                items = {name: values[own] for name, values in batch.items.items()}
                scores.append(self._layout.chosen(request, self.encoder, items, found))
        return scores

    def recommend(
        self,
        users: Sequence[Any],
        k: int = 10,
        *,
        candidates: Any = None,
        exclude_seen: bool = False,
        dataset_dir: str | Path | None = None,
        timestamp: int | None = None,
    ) -> pd.DataFrame:
        """Ranks items for users; arguments, result and errors as `serving.offline.recommend`."""
        from lookback.serving.offline.recommend import recommend

        return recommend(
            self,
            users,
            k,
            candidates=candidates,
            exclude_seen=exclude_seen,
            dataset_dir=dataset_dir,
            timestamp=timestamp,
        )

    def scores_of(self, batch: EncodedBatch) -> tuple[Float32, Float32]:
        """Scores all that an encoded batch asks for, in blocks of bounded size.

        An item that a request asks for twice (all that the workflow does not know are one) is
        scored once.

        Args:
          batch: of any number of requests.

        Returns:
          Logits and probabilities ``[N]`` of its items, request after request; or of its rows.
        """
        batch, which = batch.distinct()
        counts = np.asarray(batch.counts, np.int64)
        logits = np.zeros(int(counts.sum()), np.float32)
        probabilities = np.zeros_like(logits)
        starts = counts.cumsum() - counts
        # By their counts: little of what is scored is padding then.
        order = np.argsort(counts, kind="stable")
        for start, stop in _batches(counts[order]):
            rows = order[start:stop]
            shared = {name: values[rows] for name, values in batch.shared.items()}
            width = int(counts[rows].max())
            step = max(1, ROWS_A_BATCH // len(rows))
            for first in range(0, width, step):
                columns = np.arange(first, min(first + step, width))
                own = columns < counts[rows][:, np.newaxis]  # [b, c]
                places = (starts[rows][:, np.newaxis] + columns)[own]
                items = {}
                for name, values in batch.items.items():
                    items[name] = np.zeros((*own.shape, *values.shape[1:]), values.dtype)
                    items[name][own] = values[places]
                logit, probability = self.predict({**shared, **items})
                logits[places], probabilities[places] = logit[own], probability[own]
        return logits[which], probabilities[which]

    def predict(self, inputs: Mapping[str, npt.NDArray[Any]]) -> tuple[Float32, Float32]:
        """Scores one encoded batch.

        Args:
          inputs: arrays by name, of the shapes in `manifest.inputs` and `manifest.input_type`.

        Returns:
          Logits and probabilities, ``[B, C]``; of rows ``[B, 1]``.
        """
        outputs = self._scoring(self._tensors(inputs))
        return outputs["logit"].numpy(), outputs["probability"].numpy()

    def attend(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Attention | None:
        """What the model attends to in one encoded batch.

        Args:
          inputs: as of `predict`.

        Returns:
          None of a model that attends to nothing, or a bundle that was exported without it.
        """
        if self._attention is None:
            return None
        outputs = self._attention(**self._tensors(inputs))
        return Attention(**{name: value.numpy() for name, value in outputs.items()})

    @property
    def graph(self) -> tf.Graph:
        """Of the SavedModel's signature."""
        graph: tf.Graph = self._saved_model.signatures[SIGNATURE].graph
        return graph

    @property
    def weights(self) -> Mapping[str, tf.Variable]:
        """Of a bundle whose tables lie in files: all others, as checkpoints name them."""
        weights: Mapping[str, tf.Variable] = self._saved_model.weights
        return weights

    def _tensors(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, tf.Tensor]:
        """An encoded batch as a signature takes it, with the tables."""
        import tensorflow as tf

        return {**{name: tf.constant(values) for name, values in inputs.items()}, **self._tables}

    def _drawn(self) -> dict[str, tf.Tensor]:
        """Random inputs, to compare graphs by."""
        return self._tensors(self._layout.draw(self.manifest, _DRAWN, np.random.default_rng(0)))


def _batches(counts: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cuts requests of `counts` scores into ranges of at most `ROWS_A_BATCH` padded rows."""
    start, widest = 0, 0
    for index, count in enumerate(counts.tolist()):
        widest = max(widest, count)
        if index > start and (index + 1 - start) * widest > ROWS_A_BATCH:
            yield start, index
            start, widest = index, count
    if start < len(counts):
        yield start, len(counts)
