"""The contract of a layout: how its requests are read, answered, sampled and drawn."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookback.core.errors import UserError
from lookback.serving.requests import Request, RequestEncoder
from lookback.serving.scores import Scores
from lookback.serving.skew.samples import OfflineBatch


class RequestLayout(abc.ABC):
    """One kind of model input. `manifest` is always that of a bundle of this layout."""

    sample_options: tuple[str, ...]
    """Keyword arguments of `sample` that say how much to make."""

    def probability_of(self, manifest: Any) -> str:
        """What the answers' probability is the probability of."""
        del manifest
        return "of label 1, among rows as those of training"

    @abc.abstractmethod
    def load_encoder(self, directory: Path, manifest: Any) -> RequestEncoder:
        """Reads what turns requests into inputs.

        Args:
          directory: of the bundle.
          manifest: of the bundle, its files verified.

        Raises:
          UserError: if a file is not as expected.
        """

    def chosen(
        self,
        request: Request,
        encoder: Any,
        items: Mapping[str, npt.NDArray[Any]],
        scores: Scores,
    ) -> Scores:
        """What of a request's scores it asked for: all, if it names what to score.

        Args:
          request: to answer.
          encoder: from `load_encoder`.
          items: what was scored for it, as its batch has it.
          scores: of it, in that order.
        """
        del request, encoder, items
        return scores

    def request_schema(self, manifest: Any, encoder: Any, most: int | None) -> dict[str, Any]:
        """What a request must be, as JSON Schema: what it accepts, the encoder does.

        Args:
          manifest: of the bundle.
          encoder: from `load_encoder`.
          most: candidates that a request may name; None: any number.

        Raises:
          UserError: if the layout does not say.
        """
        del encoder, most
        raise UserError(f"The layout {manifest.layout!r} has no schema of its requests.")

    def answer_schema(self, manifest: Any, encoder: Any) -> dict[str, Any]:
        """What an answer is, as JSON Schema; arguments and errors as of `request_schema`."""
        del encoder
        raise UserError(f"The layout {manifest.layout!r} has no schema of its answers.")

    def offline(
        self, manifest: Any, encoder: Any, dataset_dir: Path, samples: int
    ) -> Iterable[OfflineBatch]:
        """Samples of a dataset as training builds them, beside requests for the same.

        Args:
          manifest: of the bundle.
          encoder: as `load_encoder` reads it from the dataset: what was raw is told from there.
          dataset_dir: what the model was trained on.
          samples: rows to score, as far as there are so many.

        Raises:
          UserError: if bundle or dataset have nothing to compare.
        """
        del encoder, dataset_dir, samples
        raise UserError(f"The layout {manifest.layout!r} cannot be compared with its training.")

    @abc.abstractmethod
    def answer(self, request: Request, manifest: Any, scores: Scores) -> dict[str, Any]:
        """A scored request as JSON."""

    @abc.abstractmethod
    def table(self, number: int, request: Request, manifest: Any, scores: Scores) -> str:
        """A scored request, number `number` from 0 on, as lines for people."""

    @abc.abstractmethod
    def sample(
        self, manifest: Any, export_dir: Path, dataset_dir: Path, *, seed: int, **options: int
    ) -> Iterable[dict[str, Any]]:
        """Requests made from a dataset.

        Args:
          manifest: of the bundle.
          export_dir: the bundle.
          dataset_dir: what it was trained on.
          seed: of the draws.
          **options: some of `sample_options`.

        Raises:
          UserError: if bundle and dataset do not belong together, or requests cannot be made.
        """

    @abc.abstractmethod
    def draw(
        self, manifest: Any, batch_size: int, random: np.random.Generator
    ) -> dict[str, npt.NDArray[Any]]:
        """Random inputs of the signature, ids uniform over the tables' rows; one score a row."""
