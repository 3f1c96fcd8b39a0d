"""Rows of numbers and categorical values, many at a time: the score of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from lookback.serving.bundle import Bundle
from lookback.serving.offline.ranking import ROW, SCORE, Counts, require_finite


class OfflineRows:
    """Scores rows by the table.

    Args:
      bundle: of a model that scores rows.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def score(self, rows: Any, first: int = 0) -> tuple[pa.Table, Counts]:
        """Scores some rows.

        Args:
          rows: requests, as objects or a `RequestTable`.
          first: number of the first of them among all, from 0 on.

        Returns:
          Numbers of rows (`ROW`, from 1 on) and their `SCORE`, the probability; and what was found
          on the way, by name.

        Raises:
          RequestError: naming the row (of these) and what is wrong with it.
          UserError: if the model gives no finite score.
        """
        logits, scores = self._bundle.scores_of(self._bundle.encoder.encode(rows))
        require_finite(logits)
        numbers = pa.array(np.arange(first + 1, first + 1 + len(scores)))
        counted = Counts(users=len(scores), pairs=len(scores), rows=len(scores))
        return pa.table({ROW: numbers, SCORE: pa.array(scores)}), counted
