"""What a source's data can be asked in an evaluation: passes over a split, and of which kind."""

from __future__ import annotations

import dataclasses
from typing import Literal

Kind = Literal["binary", "ranking"]
"""Binary: a row is a label and a score. Ranking: it is candidates, one of which is positive."""


@dataclasses.dataclass(frozen=True)
class EvaluationPass:
    """One pass over a split.

    Attributes:
      name: that `eval_steps` and so on of the source take; it stands in front of the figures.
      kind: of its rows.
      topk: K of a ranking's figures.
    """

    name: str
    kind: Kind = "binary"
    topk: int = 10
