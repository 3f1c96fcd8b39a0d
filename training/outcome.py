"""What a run found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lookback.training.evaluation.found import AttentionFound, Stratum
from lookback.training.evaluation.metrics import Curves


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
      summary: figures by name, as logged; the same on every rank.
      curves: what there is to draw of labels and scores, by evaluation, of the last one; on rank
        0.
      baselines: figures of a ranking by the items' counts in training, by the name of the figure
        that they compare with, where the data has counts.
      strata: by evaluation, and then by what rows were sorted, of the last evaluation.
      attention: what the model attends to, where it attends to something and was asked.
      warnings: what a user should know of a run that ended well, a line each.
    """

    summary: Mapping[str, Any]
    curves: Mapping[str, Curves]
    baselines: Mapping[str, float] = dataclasses.field(default_factory=dict)
    strata: Mapping[str, Mapping[str, Sequence[Stratum]]] = dataclasses.field(default_factory=dict)
    attention: AttentionFound | None = None
    warnings: Sequence[str] = ()
