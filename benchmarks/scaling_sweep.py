"""What `scaling` measures: seconds of a step along one size, what was left out, and laws of growth.

Pure Python but for `interleave`'s timings, so that a sweep can be checked, drawn and extrapolated
wherever it comes from.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

from lookback.benchmarks.harness import Timing


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Steps along one size, all else fixed.

    Attributes:
      size: what varies, such as "table rows".
      samples: of a step, by value; values are in ascending order.
      timings: samples a second, by value; the rounds of all were interleaved.
      fixed: what did not vary, for the reader.
      left_out: values that were not measured, and why.
    """

    size: str
    samples: Mapping[int, int]
    timings: Mapping[int, Timing]
    fixed: str = ""
    left_out: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def values(self) -> tuple[int, ...]:
        """That were measured."""
        return tuple(self.timings)

    def seconds(self, value: int) -> float:
        """Of a step at a value."""
        return self.samples[value] / self.timings[value].median

    def growth(self, smaller: int, larger: int) -> float:
        """How many times longer a step takes: the median of the rounds' ratios."""
        ratio = self.timings[smaller].over(self.timings[larger])
        return ratio * self.samples[larger] / self.samples[smaller]


def growth_faults(sweep: Sweep, tolerance: float) -> list[str]:
    """What contradicts that a step takes the same time whatever the value is.

    Args:
      sweep: measured.
      tolerance: share by which a step may take longer, for noise.
    """
    smallest = sweep.values[0]
    found = {value: sweep.growth(smallest, value) for value in sweep.values[1:]}
    return [
        f"a step takes {ratio:.2f} times as long at {value:,} {sweep.size} as at {smallest:,}, and "
        f"should take as long (tolerance {tolerance:.0%})"
        for value, ratio in found.items()
        if ratio > 1 + tolerance
    ]


def superlinear_growth_faults(sweep: Sweep, tolerance: float) -> list[str]:
    """What contradicts that a step takes at most linearly longer; as `growth_faults`."""
    wrong = []
    for smaller, larger in _pairs(sweep.values):
        ratio, linear = sweep.growth(smaller, larger), larger / smaller
        if ratio > linear * (1 + tolerance):
            wrong.append(
                f"a step takes {ratio:.2f} times as long at {larger:,} {sweep.size} as at "
                f"{smaller:,}, and should at most {linear:.2f} times (tolerance {tolerance:.0%})"
            )
    return wrong


def exponent(sweep: Sweep) -> float:
    """The median slope of log seconds by log value: 0 is independent, 1 is linear."""
    slopes = [
        math.log(sweep.growth(a, b)) / math.log(b / a) for a, b in itertools.pairwise(sweep.values)
    ]
    return statistics.median(slopes)


def _pairs(values: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours, and the ends."""
    return list(dict.fromkeys([*itertools.pairwise(values), (values[0], values[-1])]))
