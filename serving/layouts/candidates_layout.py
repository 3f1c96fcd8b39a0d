"""Layouts whose requests name a user and are answered with a ranking of items."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lookback.serving.columns import CANDIDATES
from lookback.serving.layouts.base import RequestLayout
from lookback.serving.layouts.candidates import StoredUsers
from lookback.serving.manifest import CandidatesManifest
from lookback.serving.requests import Request
from lookback.serving.scores import Float32, Scores


class CandidateRequestLayout(RequestLayout):
    """Answers, tables and random inputs; subclasses read requests and make samples of them."""

    sample_options = ("users", "candidates")

    def probability_of(self, manifest: Any) -> str:
        """Of a pair of training."""
        return (
            "that an item is the user's next and not a negative as drawn in training: good for "
            "ranking, no rate of clicks"
        )

    @abc.abstractmethod
    def about(self, request: Request, manifest: Any) -> str:
        """What a request tells of its user, in a few words."""

    @abc.abstractmethod
    def stored_users(
        self, manifest: Any, encoder: Any, export_dir: Path, dataset_dir: Path, moment: int | None
    ) -> StoredUsers:
        """How the users of a dataset become requests.

        Args:
          manifest: of the bundle.
          encoder: of the bundle.
          export_dir: the bundle.
          dataset_dir: what it was trained on, or was written with its vocabularies.
          moment: of all requests, in seconds; None: it is not said.

        Raises:
          UserError: if bundle and dataset do not belong together, or the model reads of the moment
            what is not said.
        """

    def input_rows(self, name: str, manifest: Any) -> int:
        """Rows of the table that an input of the signature is looked up in."""
        rows: int = manifest.cardinalities[name]
        return rows

    def drawn_axes(self, name: str, axes: Sequence[int | None], manifest: Any) -> tuple[int, ...]:
        """The size of a row of an input of the signature in `draw`."""
        return tuple(1 if axis is None else axis for axis in axes)

    def answer(
        self, request: Request, manifest: CandidatesManifest, scores: Scores
    ) -> dict[str, Any]:
        """The user, and the items, best first; of each whether it is `known`, if that is told."""
        user = {name: request[name] for name in manifest.user_features}
        columns = _columns(request, manifest, scores)
        ranking = [
            {
                **{name: values[i] for name, values in columns.items()},
                "probability": float(scores.probability[i]),
                "logit": float(scores.logit[i]),
                **({} if scores.known is None else {"known": scores.known[i]}),
            }
            for i in best_first(scores.logit).tolist()
        ]
        return {**user, CANDIDATES: ranking}

    def table(
        self, number: int, request: Request, manifest: CandidatesManifest, scores: Scores
    ) -> str:
        """The user, a line for each item, and a blank one."""
        user = "  ".join(f"{name} {request[name]}" for name in manifest.user_features)
        widths = {
            name: max(len(name), *(len(str(value)) for value in values), 0)
            for name, values in _columns(request, manifest, scores).items()
        }
        header = "  ".join(f"{name:<{width}}" for name, width in widths.items())
        lines = [
            f"{user}  ({self.about(request, manifest)})",
            f"  rank  {header}  probability     logit",
        ]
        ranking = self.answer(request, manifest, scores)[CANDIDATES]
        for rank, row in enumerate(ranking, start=1):
            cells = "  ".join(f"{row[name]!s:<{width}}" for name, width in widths.items())
            line = f"  {rank:>4}  {cells}  {row['probability']:11.4f}  {row['logit']:8.4f}"
            lines.append(line + "  unknown" * (not row.get("known", True)))
        return "\n".join(lines) + "\n\n"

    def draw(
        self, manifest: CandidatesManifest, batch_size: int, random: np.random.Generator
    ) -> dict[str, npt.NDArray[Any]]:
        """Full lists and bags where they have a length, and one candidate a user."""
        inputs: dict[str, npt.NDArray[Any]] = {}
        for name, shape in manifest.inputs.items():
            size = (batch_size, *self.drawn_axes(name, shape[1:], manifest))
            if manifest.input_type(name) == "float32":
                inputs[name] = random.standard_normal(size, np.float32)
                continue
            rows = self.input_rows(name, manifest)
            # Row 0 is padding.
            inputs[name] = random.integers(min(1, rows - 1), rows, size, np.int32)
        return inputs


def best_first(logit: Float32) -> npt.NDArray[np.int64]:
    """The order of scores ``[C]`` from the best on; equal ones stay in theirs."""
    return (-logit).argsort(kind="stable")


def _columns(
    request: Request, manifest: CandidatesManifest, scores: Scores
) -> Mapping[str, Sequence[Any]]:
    """Item features of what was scored, as far as they are known, in the scores' order."""
    if scores.items is not None:
        return {manifest.item_features[0]: scores.items}
    candidates = request[CANDIDATES]
    return {name: candidates[name] for name in manifest.item_features if name in candidates}
