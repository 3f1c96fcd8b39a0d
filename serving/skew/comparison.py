"""What differs between training's samples and what a bundle, or a server, makes of raw requests."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lookback.serving.bundle import Bundle
from lookback.serving.client.answers import RowScore
from lookback.serving.client.client import Client
from lookback.serving.columns import CANDIDATES
from lookback.serving.manifest import HISTORY_SUFFIX
from lookback.serving.requests import Request
from lookback.serving.scores import Float32
from lookback.serving.skew.samples import OfflineBatch

SHOWN = 5

Logits = list[Float32]
"""Of each request's candidates, in its order; of a row ``[1]``."""


OfflineModel = Callable[[Mapping[str, Any]], Any]
"""The model as training has it: from features to logits ``[B, C]``."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One place where serving is not what training is.

    Attributes:
      user: who, or which row.
      candidate: raw id; None where it is of no candidate.
      what: the feature with its place in it, or the score and which features of it differ.
      offline: training's value.
      online: serving's value.
    """

    user: str
    candidate: Any
    what: str
    offline: Any
    online: Any


@dataclasses.dataclass
class Comparison:
    """What was found.

    Attributes:
      samples: rows that were scored twice.
      requests: that asked for them.
      skipped: samples that no request can say.
      features: how many values of features differ.
      scores: how many scores differ.
      largest: difference of two scores, relative where they are above 1.
      shown: the first differences, `SHOWN` of features and as many of scores.
    """

    samples: int = 0
    requests: int = 0
    skipped: int = 0
    features: int = 0
    scores: int = 0
    largest: float = 0.0
    shown: list[Difference] = dataclasses.field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether anything does."""
        return bool(self.features or self.scores)


def compare(
    bundle: Bundle,
    model: OfflineModel,
    batches: Iterable[OfflineBatch],
    tolerance: float,
    logits_of: Callable[[Sequence[Request]], Logits],
) -> Comparison:
    """Compares features and scores of samples.

    Args:
      bundle: whose encoder is compared.
      model: gives the scores of training's features.
      batches: of samples.
      tolerance: of numbers and of logits: absolute up to 1, relative above.
      logits_of: scores requests as they are served.
    """
    found = Comparison()
    shown: dict[str, list[Difference]] = {"features": [], "scores": []}
    for batch in batches:
        found.skipped += batch.skipped
        if not batch.requests:
            continue
        online = bundle.encoder.encode(batch.requests).inputs
        wrong = _of_features(bundle, batch, online, tolerance)
        offline = np.asarray(model(batch.features), np.float32)
        scored = _of_scores(batch, offline, logits_of(batch.requests), tolerance, wrong, found)
        found.requests += len(batch.requests)
        found.samples += offline.size
        found.features += len(wrong)
        found.scores += len(scored)
        shown["features"] += [one for _, one in wrong[: SHOWN - len(shown["features"])]]
        shown["scores"] += scored[: SHOWN - len(shown["scores"])]
    found.shown = shown["features"] + shown["scores"]
    return found


def of_bundle(bundle: Bundle) -> Callable[[Sequence[Request]], Logits]:
    """Scores in this process."""
    return lambda requests: [scores.logit for scores in bundle.score(requests)]


def of_server(client: Client, name: str) -> Callable[[Sequence[Request]], Logits]:
    """Scores by a server, in the order of the requests' candidates.

    Args:
      client: of the server.
      name: of the model there.
    """

    def logits(requests: Sequence[Request]) -> Logits:
        found = []
        for request, answer in zip(requests, client.score(name, requests), strict=True):
            if isinstance(answer, RowScore):
                found.append(np.array([answer.logit], np.float32))
                continue
            # An item that is there twice, with other features, has two scores.
            by_item: dict[str, collections.deque[float]] = collections.defaultdict(
                collections.deque
            )
            for item in answer.candidates:
                by_item[json.dumps(item.features)].append(item.logit)
            asked = request[CANDIDATES]
            rows = zip(*asked.values(), strict=True)
            keys = (json.dumps(dict(zip(asked, values, strict=True))) for values in rows)
            found.append(np.array([by_item[key].popleft() for key in keys], np.float32))
        return found

    return logits


def apart(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """How far numbers are apart: relative to the larger of them where that is above 1.

    What is no number is infinitely far from all but its like.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        far = np.abs(a - b) / np.maximum(1, np.maximum(np.abs(a), np.abs(b)))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isnan(far), np.inf, far))


def _of_features(
    bundle: Bundle, batch: OfflineBatch, online: Mapping[str, Any], tolerance: float
) -> list[tuple[int, Difference]]:
    """Values of features that differ, with the number of the request, in their order."""
    item_features = bundle.manifest.roles.get("item", ()) if batch.candidates else ()
    found = []
    for name in bundle.manifest.inputs:
        ours, theirs = batch.features[name], online[name]
        if name.endswith(HISTORY_SUFFIX) and theirs.ndim > 1:
            # Requests' histories have as many slots as the longest needs, training's all.
            absent = max(0, ours.shape[1] - theirs.shape[1])
            theirs = np.pad(theirs, [(0, 0), (absent, 0), *[(0, 0)] * (theirs.ndim - 2)])
        if ours.shape != theirs.shape:
            shapes = (str(list(ours.shape)), str(list(theirs.shape)))
            found.append((0, Difference(batch.users[0], None, f"shape of {name}", *shapes)))
            continue
        exact = np.issubdtype(ours.dtype, np.integer)
        for at in np.argwhere(apart(ours, theirs) > (0 if exact else tolerance)).tolist():
            row, *place = at
            candidate = None
            if batch.candidates is not None and name in item_features:
                column, *place = place
                candidate = batch.candidates[row][column]
            what = f"{name}{place}" if place else name
            pair = (ours[tuple(at)].item(), theirs[tuple(at)].item())
            found.append((row, Difference(batch.users[row], candidate, what, *pair)))
    return sorted(found, key=lambda pair: pair[0])


def _of_scores(
    batch: OfflineBatch,
    offline: Float32,
    online: Logits,
    tolerance: float,
    wrong: Sequence[tuple[int, Difference]],
    found: Comparison,
) -> list[Difference]:
    """Scores that differ; the largest difference is kept in `found`."""
    differing = []
    for row, served in enumerate(online):
        far = apart(offline[row], served)
        found.largest = max(found.largest, float(far.max(initial=0)))
        for place in np.flatnonzero(far > tolerance).tolist():
            candidate = None if batch.candidates is None else batch.candidates[row][place]
            causes = {
                difference.what.partition("[")[0]
                for number, difference in wrong
                if number == row and difference.candidate in (None, candidate)
            }
            said = f"of {', '.join(sorted(causes))}" if causes else "features are equal"
            pair = (float(offline[row, place]), float(served[place]))
            differing.append(Difference(batch.users[row], candidate, f"logit ({said})", *pair))
    return differing
