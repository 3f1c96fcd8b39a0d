"""Samples of a dataset twice: as training builds them, and as requests say them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

NEGATIVES = 3
"""Drawn beside the target of each sample, where targets alone are positives."""

REQUESTS_AT_ONCE = 64

SPLITS = ("test", "validation", "train")
"""What samples are taken of, until there are enough."""


@dataclasses.dataclass(frozen=True)
class OfflineBatch:
    """Some samples.

    Attributes:
      features: inputs of the signature by name, as training's loader builds them: ``[B, ...]``,
        those of candidates ``[B, C, ...]``.
      requests: that ask for the same, in raw values: B.
      users: what names whose each is, B.
      candidates: raw ids of what is scored, B lists of C; None: each request is a row.
      skipped: samples that no request can say, as their raw values are not known.
    """

    features: Mapping[str, npt.NDArray[Any]]
    requests: Sequence[Mapping[str, Any]]
    users: Sequence[str]
    candidates: Sequence[Sequence[Any]] | None = None
    skipped: int = 0


def spread(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """Numbers below `count`, at most `wanted` of them, evenly spaced and ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(np.int64))
