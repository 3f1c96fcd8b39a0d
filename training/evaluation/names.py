"""Names of metrics, as `--metrics` takes them; plain Python, so that mistakes answer at once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lookback.core.errors import UserError, shown

BINARY = ("auc", "gauc", "log_loss", "calibration")
"""Of labels and scores."""

RANKING = ("hr@K", "ndcg@K", "mrr", "log_loss")
"""Of a positive among candidates; K stands for any number from 1 on."""

_AT_K = re.compile(r"(hr|ndcg)@([1-9][0-9]{0,8})")


def family(name: str) -> str:
    """The name as `BINARY` and `RANKING` have it: hr@K for hr@10."""
    found = _AT_K.fullmatch(name)
    return f"{found[1]}@K" if found else name


def metric_of(figure: str) -> str | None:
    """The metric, as `family` names it, of a figure: of test_catalogue_hr@10, hr@K.

    None of figures that are no metric, such as how many rows were evaluated.
    """
    words = figure.split("_")
    rest = (family("_".join(words[first:])) for first in range(1, len(words)))
    return next((name for name in rest if name in (*BINARY, *RANKING)), None)


def cutoff(name: str) -> int | None:
    """K of HR@K and NDCG@K, None of other metrics."""
    found = _AT_K.fullmatch(name)
    return int(found[2]) if found else None


def check_names(names: Sequence[str]) -> None:
    """Refuses what is no metric at all.

    Raises:
      UserError: naming those that there are.
    """
    for name in names:
        if family(name) not in (*BINARY, *RANKING) or name.endswith("@K"):
            raise UserError(
                f"metrics: expected of {all_of(BINARY + RANKING)}, received {shown(name)}."
            )


def all_of(families: Sequence[str]) -> str:
    """Families in words, each once."""
    distinct = list(dict.fromkeys(families))
    at_k = any(name.endswith("@K") for name in distinct)
    return ", ".join(distinct) + (" (K: a number from 1 on, as in hr@10)" if at_k else "")
