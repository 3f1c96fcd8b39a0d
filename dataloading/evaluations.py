"""What a source's data can be asked in an evaluation: passes over a split, and of which kinds."""

from __future__ import annotations

import dataclasses
from typing import Literal

Kind = Literal["binary", "ranking"]
"""Binary: every label has a score. Ranking: a row is candidates, one of which is positive."""

CATALOGUE = "_catalogue"
"""Ends the name of a pass in which the whole catalogue competes."""


@dataclasses.dataclass(frozen=True)
class CandidatePieces:
    """How candidates are scored that would need too much memory at once.

    Attributes:
      features: names of those of a batch that are of candidates, ``[B, C]``.
      size: candidates a piece.
    """

    features: tuple[str, ...]
    size: int


@dataclasses.dataclass(frozen=True)
class EvaluationPass:
    """One pass over a split.

    Attributes:
      name: that `eval_steps` and so on of the source take; it stands in front of the figures.
      kinds: of metrics that its rows allow. The first is what it is for: the default figures are
        of this kind, and what both kinds have (the log loss) is computed as it does.
      topk: K of a ranking's default figures.
      pieces: of each row's candidates; None: they are scored at once.
    """

    name: str
    kinds: tuple[Kind, ...] = ("binary",)
    topk: int = 10
    pieces: CandidatePieces | None = None
