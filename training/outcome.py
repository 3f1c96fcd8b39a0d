"""What a run found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lookback.training.evaluation.metrics import RocCurve


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
      summary: figures by name, as logged; the same on every rank.
      roc: ROC curve by split, of the last evaluation; on rank 0.
      baselines: figures of a ranking by the items' counts in training, by the name of the figure
        that they compare with, where the data has counts.
      warnings: what a user should know of a run that ended well, a line each.
    """

    summary: Mapping[str, Any]
    roc: Mapping[str, RocCurve]
    baselines: Mapping[str, float] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()
