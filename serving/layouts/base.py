"""The contract of a layout: how its requests are read, answered, sampled and drawn."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookback.serving.requests import Request, RequestEncoder
from lookback.serving.scores import Scores


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
