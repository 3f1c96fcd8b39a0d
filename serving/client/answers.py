"""What a server answers, as types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_SCORES = ("probability", "logit")
_OF_ITEMS = "candidates"
_KNOWN = "known"


@dataclasses.dataclass(frozen=True)
class ScoredItem:
    """One item of a ranking.

    Attributes:
      features: raw values by item feature, the id first.
      probability: the logit's sigmoid.
      logit: the model's score.
      known: whether the bundle's vocabulary has the item; None: that is not told.
    """

    features: Mapping[str, Any]
    probability: float
    logit: float
    known: bool | None = None


@dataclasses.dataclass(frozen=True)
class UserRanking:
    """The answer to a request for a user's items.

    Attributes:
      user: raw values by user feature.
      candidates: best first.
    """

    user: Mapping[str, Any]
    candidates: tuple[ScoredItem, ...]


@dataclasses.dataclass(frozen=True)
class RowScore:
    """The answer to a request of one row.

    Attributes:
      probability: the logit's sigmoid.
      logit: the model's score.
    """

    probability: float
    logit: float


Answer = UserRanking | RowScore


def answer_of(content: Mapping[str, Any]) -> Answer:
    """An answer's JSON as its type.

    Args:
      content: as `POST /v2/models/NAME/score` writes it.
    """
    if _OF_ITEMS not in content:
        return RowScore(*(float(content[name]) for name in _SCORES))
    user = {name: value for name, value in content.items() if name != _OF_ITEMS}
    return UserRanking(user, tuple(_item(found) for found in content[_OF_ITEMS]))


def _item(found: Mapping[str, Any]) -> ScoredItem:
    features = {n: v for n, v in found.items() if n not in (*_SCORES, _KNOWN)}
    probability, logit = (float(found[name]) for name in _SCORES)
    return ScoredItem(features, probability, logit, found.get(_KNOWN))
