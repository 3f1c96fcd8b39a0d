"""What is asked for of each feature of a log: whose it is, of which type, and how it is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lookback.core.errors import UserError
from lookback.formats.history_columns import Column, Role, category, number
from lookback.formats.transforms import Bag, Hashed, Transform, Vocabulary

FeatureType = Literal["category", "categories", "number", "buckets", "hash"]

MOST_ELEMENTS = 8
"""Elements of a list of categories that are kept unless said otherwise: more cost memory in every
slot of every history, and MovieLens' films have at most 10 genres, 3 in the mean."""

NUMERIC = ("number", "buckets")
"""Types whose raw values are numbers."""


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """One feature of a log.

    Attributes:
      of: whose: of a ``user`` or an ``item``; of an event and known when an item is shown
        (``context``), or known only afterwards (``event``).
      type: ``category``: a vocabulary of the values; ``categories``: a list of them; ``hash``: a
        category without a vocabulary; ``number``: as it is; ``buckets``: a number's place among
        boundaries.
      min_count: (category, categories) fewest events of a value with an id of its own; None:
        `--frequency_threshold` for what is of items and events, 0 for what is of users.
      buckets: (hash, categories) ids that values share; None: a vocabulary.
      boundaries: (buckets) ascending.
      quantiles: (buckets) instead of boundaries: how many buckets of equally many events.
      fill: (number) takes the place of missing values; None: the mean of those that are there.
      log: (number) whether sign(x) log(1 + |x|) takes the place of x.
      clip: (number) smallest and largest value; None: no bound.
      standardise: (number) whether to subtract the mean and divide by the standard deviation.
      separator: (categories) between the elements of raw text; None: they come as lists.
      most: (categories) elements that are kept.
    """

    of: Role
    type: FeatureType
    min_count: int | None = None
    buckets: int | None = None
    boundaries: tuple[float, ...] | None = None
    quantiles: int | None = None
    fill: float | None = None
    log: bool = False
    clip: tuple[float | None, float | None] | None = None
    standardise: bool = True
    separator: str | None = None
    most: int = MOST_ELEMENTS

    def __post_init__(self) -> None:
        if self.type == "hash" and self.buckets is None:
            raise UserError("A feature of type hash: expected buckets, received none. Add them.")
        if self.buckets is not None and self.type not in ("hash", "categories"):
            raise UserError(
                f"A feature of type {self.type}: expected no number of buckets, received "
                f"{self.buckets}. Leave it out, or choose type hash."
            )
        ascending = tuple(sorted(set(self.boundaries or ())))
        if self.boundaries is not None and self.boundaries != ascending:
            raise UserError(
                f"A feature of type buckets: expected boundaries that ascend, received "
                f"{self.boundaries}. Put them in order, each once."
            )
        if self.type == "buckets" and (self.boundaries is None) == (self.quantiles is None):
            raise UserError(
                "A feature of type buckets: expected either boundaries or quantiles, received "
                f"{'neither' if self.quantiles is None else 'both'}. Give one of them."
            )

    @property
    def is_numeric(self) -> bool:
        """Whether raw values are numbers; else they are text or integers."""
        return self.type in NUMERIC

    @property
    def is_bag(self) -> bool:
        """Whether a raw value is a list of categories."""
        return self.type == "categories"

    @property
    def unfitted(self) -> Transform | None:
        """The transformation, where nothing but a vocabulary is fitted of it; else None."""
        if self.is_numeric:
            return None
        values: Vocabulary | Hashed = Vocabulary()
        if self.buckets is not None:
            values = Hashed(self.buckets)
        return Bag(self.most, self.separator, values) if self.is_bag else values

    def column(self, name: str) -> Column:
        """The feature's column in a dataset."""
        if self.type == "number":
            return number(name, self.of)
        return category(name, self.of, self.most if self.is_bag else None)
