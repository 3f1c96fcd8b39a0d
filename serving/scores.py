"""What scoring gives: the scores of one request."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one request's candidates, in the request's order; a row has one score (C = 1).

    Attributes:
      logit: ``[C]``.
      probability: ``[C]``, the logits' sigmoid.
      known: for each of the C items whether the workflow of the bundle knows it; all others are one
        row of its tables, so their scores tell nothing of them apart. None: of rows, and of ids
        that come encoded.
      items: raw ids ``[C]`` of what was scored, best first, where the request names no candidates;
        otherwise None.
    """

    logit: Float32
    probability: Float32
    known: tuple[bool, ...] | None = None
    items: tuple[Any, ...] | None = None
