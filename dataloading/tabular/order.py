"""Which rows make which batch: a function of the seed and the epoch, not of the number of ranks.

Blocks (row groups) are put in an order, at random if shuffled, and the rows in this order are
*positions*. They are dealt to L lanes of contiguous positions: of a batch of B rows, lane l gives
rows B l / L to B (l + 1) / L. So a process that takes a contiguous share of each batch needs few
lanes, and decodes no block of the others. Each lane is cut into windows of whole blocks, and
the rows of a window are permuted.

A batch is thus drawn from the current window of every lane: from L windows' rows, the buffer of
the shuffle. In file order there is one lane, and nothing is permuted.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lookback.dataloading.parts import WHOLE, Part
from lookback.formats.tabular_files import ROW_GROUP

LANES = 8
"""Independent streams of a shuffled epoch. Up to as many processes decode each row about once; more
share lanes. It is part of the order, so it must not follow the number of processes."""

WINDOW = 2 * ROW_GROUP
"""Rows permuted together: at 160 bytes a row (Criteo) 21 MB, in 8 lanes 168 MB."""

Index = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """How an epoch is shuffled.

    Attributes:
      seed: of everything.
      epoch: each has its own order.
      lanes: L.
      window: rows permuted together; a block that is larger is a window by itself.
    """

    seed: int
    epoch: int
    lanes: int = LANES
    window: int = WINDOW

    def generator(self, *key: int) -> np.random.Generator:
        """A generator of this epoch's random numbers."""
        return np.random.default_rng([self.seed % 2**64, self.epoch, *key])


class BlockRange(NamedTuple):
    """Rows begin to end of a block."""

    block: int
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class Window:
    """Positions that are decoded, and permuted, together.

    Attributes:
      lane: to which it belongs.
      number: in its lane.
      begin: first position.
      end: after the last.
      rows: how many of its rows this process uses.
    """

    lane: int
    number: int
    begin: int
    end: int
    rows: int


class BatchOrder:
    """The order of one pass over a split, as one process sees it.

    Args:
      blocks: rows of each block.
      batch_size: rows of a batch, all processes together.
      rows: use the first so many of the blocks' rows; None: all.
      drop_remainder: leave out a last batch that is not full.
      shuffle: None: file order.
      part: this process's.
      first_step: batches before it are left out.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        batch_size: int,
        *,
        rows: int | None = None,
        drop_remainder: bool = False,
        shuffle: Shuffle | None = None,
        part: Part = WHOLE,
        first_step: int = 0,
    ) -> None:
        sizes = _first(np.asarray(blocks, np.int64), rows)
        total = int(sizes.sum())
        self._batch_size, self._part = batch_size, part
        self._shuffle = shuffle
        self._full, self._last = divmod(total, batch_size)
        if drop_remainder:
            self._last = 0
        self.steps = self._full + bool(self._last)
        self.first_step = first_step
        order = np.arange(len(sizes))
        if shuffle is not None:
            order = shuffle.generator().permutation(len(sizes))
        self._blocks: Index = order
        self._ends: Index = np.cumsum(sizes[order])
        self._begins: Index = self._ends - sizes[order]
        lanes = 1 if shuffle is None else shuffle.lanes
        self._lanes = []
        start = 0
        for number in range(lanes):
            lane = self._lane(number, lanes, start)
            self._lanes.append(lane)
            start += lane.rows

    def windows(self) -> list[Window]:
        """Windows of which this process uses rows, the first needed first."""
        found = [window for lane in self._lanes for window in self._windows_of(lane)]
        return sorted(found, key=lambda w: (self._lanes[w.lane].step_of(w.begin), w.lane))

    def batches(self) -> Iterator[list[int]]:
        """For each step, how many rows this process takes of each lane, lane after lane."""
        for step in range(self.first_step, self.steps):
            yield [lane.own(step)[1] - lane.own(step)[0] for lane in self._lanes]

    def pieces(self, window: Window) -> Iterator[BlockRange]:
        """The parts of blocks that make up a window, in the order of its positions."""
        index = int(np.searchsorted(self._ends, window.begin, "right"))
        position = window.begin
        while position < window.end:
            end = min(int(self._ends[index]), window.end)
            first = int(self._begins[index])
            yield BlockRange(int(self._blocks[index]), position - first, end - first)
            position, index = end, index + 1

    def chosen(self, window: Window) -> Index | slice:
        """Which rows of a window, in the order of its positions, this process uses: their order."""
        lane = self._lanes[window.lane]
        places = lane.own_positions(max(window.begin, lane.at(self.first_step)), window.end)
        places -= window.begin
        if self._shuffle is None:
            first = int(places[0])
            together = int(places[-1]) - first + 1 == len(places)
            return slice(first, first + len(places)) if together else places
        generator = self._shuffle.generator(window.lane, window.number)
        permuted: Index = generator.permutation(window.end - window.begin)[places]
        return permuted

    def share(self, step: int, part: Part) -> tuple[int, int]:
        """Begin and end of a part of this process's share of a step, from the share's begin."""
        size = self._batch_size if step < self._full else self._last
        first, _ = self._part.bounds(size)
        begin, end = part.bounds(size)
        return begin - first, end - first

    def _lane(self, number: int, lanes: int, start: int) -> _Lane:
        spans = []
        for size in (self._batch_size, self._last):
            begin, end = Part(number, lanes).bounds(size)
            first, last = (min(max(bound, begin), end) for bound in self._part.bounds(size))
            spans.append(_Span(end - begin, first - begin, last - begin))
        return _Lane(number, start, self._full, *spans)

    def _windows_of(self, lane: _Lane) -> Iterator[Window]:
        start, stop = lane.start, lane.start + lane.rows
        size, lanes = ROW_GROUP, 1
        if self._shuffle is not None:
            size, lanes = self._shuffle.window, self._shuffle.lanes
        # The lanes' windows end at different times, lest all have to be replaced at once.
        grid = np.arange(start + size * (lane.number + 1) // lanes, stop, size)
        inner = self._ends[slice(*np.searchsorted(self._ends, [start + 1, stop]))]
        before = np.searchsorted(inner, grid, "right")
        cuts = np.unique(inner[before[before > 0] - 1])
        first = lane.at(self.first_step)
        bounds = [start, *cuts.tolist(), stop]
        for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
            rows = lane.own_before(end) - lane.own_before(max(begin, first))
            if rows > 0:
                # What is permuted is needed whole; in file order, what is left out is not read.
                begin = max(begin, first) if self._shuffle is None else begin
                yield Window(lane.number, number, begin, end, rows)


class _Span(NamedTuple):
    """A lane's rows of a batch, and which of them are this process's."""

    rows: int
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class _Lane:
    """Positions from `start` on: `full` times `each`, then once `last`."""

    number: int
    start: int
    full: int
    each: _Span
    last: _Span

    @property
    def rows(self) -> int:
        return self.full * self.each.rows + self.last.rows

    def at(self, step: int) -> int:
        """The position where a step begins."""
        return (
            self.start + min(step, self.full) * self.each.rows + self.last.rows * (step > self.full)
        )

    def step_of(self, position: int) -> int:
        """The step to which a position belongs."""
        offset = position - self.start
        return min(offset // self.each.rows, self.full) if self.each.rows else self.full

    def own(self, step: int) -> tuple[int, int]:
        """Begin and end of this process's rows of a step, among the lane's."""
        span = self.each if step < self.full else self.last
        return span.begin, span.end

    def own_before(self, position: int) -> int:
        """How many positions of the lane before `position` are this process's."""
        step = self.step_of(position)
        begin, end = self.own(step)
        offset = position - self.at(step)
        whole = min(step, self.full) * (self.each.end - self.each.begin)
        return whole + min(max(offset - begin, 0), end - begin)

    def own_positions(self, begin: int, end: int) -> Index:
        """Those of the positions in [begin, end) that are this process's."""
        steps = range(self.step_of(begin), self.step_of(end - 1) + 1)
        first, last = self.each, self.last
        if first.begin == 0 and first.end == first.rows and self.full not in steps:
            return np.arange(begin, end)
        starts = self.start + np.arange(steps.start, min(steps.stop, self.full)) * first.rows
        found = np.add.outer(starts, np.arange(first.begin, first.end)).ravel()
        if self.full in steps:
            found = np.append(found, self.at(self.full) + np.arange(last.begin, last.end))
        return found[slice(*np.searchsorted(found, [begin, end]))]


def _first(sizes: Index, rows: int | None) -> Index:
    """Sizes of blocks cut off after `rows` rows."""
    if rows is None:
        return sizes
    left = np.clip(rows - (np.cumsum(sizes) - sizes), 0, sizes)
    return left[left > 0]
