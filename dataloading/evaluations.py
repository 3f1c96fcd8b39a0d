"""What a source's data can be asked in an evaluation: passes over a split, and of which kinds."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt

from lookback.core.errors import UserError

EvaluationKind = Literal["binary", "ranking"]
"""Binary: every label has a score. Ranking: a row is candidates, one of which is positive."""

CATALOGUE = "_catalogue"
"""Ends the name of a pass in which the whole catalogue competes."""


@dataclasses.dataclass(frozen=True)
class CandidatePieces:
    """How candidates are scored that would need too much memory at once.

    Attributes:
      features: names of those of a batch that are of candidates: ``[B, C]``, of bags ``[B, C, M]``.
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
      candidates: how many compete in a row at most, the positive among them; None: of no ranking.
    """

    name: str
    kinds: tuple[EvaluationKind, ...] = ("binary",)
    topk: int = 10
    pieces: CandidatePieces | None = None
    candidates: int | None = None


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """How many samples a pass leaves out, each for the first reason that applies.

    Attributes:
      unknown_targets: the target is an id that is no item (missing, rare or unknown): many items
        at once, which nobody can recommend.
      repeated_targets: the user had the target before, and only items that the user has never met
        would compete with it: whoever tells the two apart would win.
      without_negatives: the user has met so many items that too few are left to compete.
      without_history: the user did nothing before the target (of models of users and items: nothing
        to train on), which training never asks for.
    """

    unknown_targets: int = 0
    repeated_targets: int = 0
    without_negatives: int = 0
    without_history: int = 0

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(*(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @property
    def counts(self) -> tuple[int, ...]:
        """By reason, in order."""
        return tuple(vars(self).values())

    @property
    def figures(self) -> dict[str, int]:
        """By name, those above 0."""
        return {name: count for name, count in vars(self).items() if count}

    def __str__(self) -> str:
        told = []
        if self.unknown_targets:
            told.append(f"{self.unknown_targets:,} targets are unknown ids")
        if self.repeated_targets:
            told.append(f"{self.repeated_targets:,} targets are items that the user had before")
        if self.without_negatives:
            told.append(
                f"{self.without_negatives:,} targets are of users who have met too many items"
            )
        if self.without_history:
            told.append(f"{self.without_history:,} targets have no event before them")
        return ", ".join(told)

    @classmethod
    def among(cls, *reasons: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], LeftOut]:
        """Takes samples out.

        Args:
          *reasons: to which of N samples each reason applies, ``[N]``, in the attributes' order.

        Returns:
          The numbers of the samples that are left, and why the others are not.
        """
        left, counts = np.ones(len(reasons[0]), np.bool_), []
        for applies in reasons:
            counts.append(int((left & applies).sum()))
            left &= ~applies
        return np.flatnonzero(left), cls(*counts)


def require_samples(name: str, samples: int, left_out: LeftOut) -> None:
    """Refuses an evaluation without samples.

    Args:
      name: of the pass.
      samples: that are left, all processes' together.
      left_out: likewise.

    Raises:
      UserError: saying why nobody is left.
    """
    if not samples:
        raise UserError(
            f"eval_split: expected samples to evaluate in {name!r}, and "
            f"{f'none is left: {left_out}' if left_out.figures else 'there are none'}. Run the "
            "workflow with a lower --frequency_threshold if ids are unknown, with "
            "--duplicates first if targets repeat, or on more items; or evaluate another split."
        )
