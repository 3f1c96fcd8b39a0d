"""In which order blocks of users stream, which of them are in memory together, and whose they are.

A pass over a dataset has its K blocks in an order; those that follow each other and fit make a
window. All of it is a function of (seed, epoch), of what the blocks have and of the memory of all
processes together, never of how many processes there are: so a batch has the same samples on any
number of them. Of each window a process holds its own blocks, and takes of each batch the samples
that these have.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from lookback.core.errors import UserError
from lookback.core.sizes import format_size
from lookback.dataloading.draws import shuffled
from lookback.dataloading.histories.splits import Int64
from lookback.dataloading.parts import Part

_READING = 3
"""Blocks' worth of memory that reading one takes: Arrow's columns, ours, and what checks them."""
_OF_WINDOW = 32
"""Bits of an epoch's number: above them, a key for each window's own order."""


class Stretch(NamedTuple):
    """The blocks of a window that a process has.

    Attributes:
      blocks: their numbers, ascending.
      size: bytes of the window, all processes together.
    """

    blocks: tuple[int, ...]
    size: int


NOBODY = Stretch((), 0)


class WindowSamples(NamedTuple):
    """Samples of a window.

    Attributes:
      stretch: where they are.
      following: the stretch that comes after it, if one does.
      places: of the samples among those of the stretch, int64 ``[n]``.
      numbers: of the same samples among everybody's, int64 ``[n]``.
      order: their places in the pass, ascending, int64 ``[n]``.
    """

    stretch: Stretch
    following: Stretch | None
    places: Int64
    numbers: Int64
    order: Int64


def capacity_of(sizes: Int64, memory: int, ranks: int = 1) -> int:
    """Bytes of a window: everything, if that fits; else half of what is left beside reading.

    Args:
      sizes: bytes of each block.
      memory: of all that is held of histories.
      ranks: how many processes there are; they change nothing but what is too little.

    Raises:
      UserError: if there are not enough blocks, or memory does not hold two for each process and
        what reading takes.
    """
    if ranks > len(sizes):
        raise UserError(
            f"history_memory: expected a dataset of {ranks} blocks of users or more, one for each "
            f"process, received one of {len(sizes)}. Leave --history_memory out; --shard_histories "
            "divides the users."
        )
    largest, total = int(sizes.max(initial=0)), int(sizes.sum())
    room = memory - _READING * largest
    if total <= room:
        return total
    if room < 2 * ranks * largest:
        needed = min(2 * ranks * largest, total) + _READING * largest
        raise UserError(
            f"history_memory: expected {format_size(needed, up=True)} or more, as blocks of users "
            f"take up to {format_size(largest)}: two for each process, and to read one takes "
            f"{_READING} times as much; received {format_size(memory)}."
        )
    return room // 2


def windows_of(blocks: Int64, sizes: Int64, capacity: int) -> list[Int64]:
    """Cuts an order of blocks into windows, about equally large, as few as there can be.

    Args:
      blocks: ``[K]`` in their order.
      sizes: bytes of each block by number.
      capacity: that no window exceeds; at least that of the largest block.

    Returns:
      The blocks of each window, ascending: what is read from a file is read from front to back.
    """
    if not len(blocks):
        return []
    ordered = sizes[blocks]
    total = int(ordered.sum())
    middles = np.cumsum(ordered) - ordered / 2
    for count in itertools.count(max(1, -(-total // capacity))):
        cuts = np.flatnonzero(np.diff((middles * count / total).astype(np.int64))) + 1
        windows = np.split(blocks, cuts)
        if all(int(sizes[window].sum()) <= capacity for window in windows):
            return [np.sort(window) for window in windows]
    raise AssertionError("a block of its own fits into a window")


def owners_of(window: Int64, sizes: Int64, ranks: int) -> Int64:
    """The process of each block ``[W]`` of a window: the largest first, to the one with least."""
    loads = [0] * ranks
    owners = np.zeros(len(window), np.int64)
    for place in np.argsort(-sizes[window], kind="stable").tolist():
        owners[place] = owner = loads.index(min(loads))
        loads[owner] += int(sizes[window[place]])
    return owners


class Stream:
    """The samples of one pass over the blocks, those that a process has.

    Shuffled, place p of the pass is in window w where the windows before have less than p samples
    and the window has the rest; and there it is the place that the window's permutation says. In
    order, each process has a pass of its own over its blocks.

    Attributes:
      count: samples: of all processes where they are shuffled, else of this one.
    """

    def __init__(
        self,
        windows: Sequence[Int64],
        sizes: Int64,
        samples: Int64,
        part: Part,
        shuffle: tuple[int, int] | None,
    ) -> None:
        """Counts.

        Args:
          windows: blocks of each.
          sizes: bytes of each block.
          samples: of each block.
          part: this process's.
          shuffle: seed and epoch; None: in order.
        """
        self._samples, self._shuffle = samples, shuffle
        self._starts = np.cumsum(samples) - samples  # everybody's first number
        self._own = [w[owners_of(w, sizes, part.ranks) == part.rank] for w in windows]
        self._stretches = [
            Stretch(tuple(own.tolist()), int(sizes[window].sum()))
            for own, window in zip(self._own, windows, strict=True)
        ]
        self._counted = self._own if shuffle is None else list(windows)
        self._ends = np.cumsum([0, *(int(samples[w].sum()) for w in self._counted)])
        self.count = int(self._ends[-1])

    def pieces(self, begin: int, end: int) -> Iterator[WindowSamples]:
        """The samples at places from `begin` to before `end`, window by window."""
        for number in range(len(self._counted)):
            first = max(begin, int(self._ends[number])) - int(self._ends[number])
            behind = min(end, int(self._ends[number + 1])) - int(self._ends[number])
            if first < behind:
                yield self._piece(number, np.arange(first, behind))

    def _piece(self, number: int, places: Int64) -> WindowSamples:
        blocks, own = self._counted[number], self._own[number]
        sizes, order = self._samples[blocks], places + self._ends[number]
        if self._shuffle is not None:
            seed, epoch = self._shuffle
            # The first window's order is that of resident histories: where it has all, it is theirs
            key = epoch + (number << _OF_WINDOW)
            places = shuffled(seed, key, tf.constant(places), int(sizes.sum())).numpy()
        ends = np.cumsum(sizes)
        which = np.searchsorted(ends, places, "right")
        if self._shuffle is not None:
            kept = np.isin(blocks[which], own)
            places, which, order = places[kept], which[kept], order[kept]
        inside = places - (ends - sizes)[which]
        block = blocks[which]
        own_sizes = self._samples[own]
        begins = np.cumsum(own_sizes) - own_sizes
        return WindowSamples(
            self._stretches[number],
            self._stretches[number + 1] if number + 1 < len(self._stretches) else None,
            begins[np.searchsorted(own, block)] + inside if len(own) else inside,
            self._starts[block] + inside,
            order,
        )


class HeldWindows:
    """The windows that are in memory, and a thread that reads the next one while others are used.

    Whoever asks, for training or evaluation, they never take more than `most`.
    """

    def __init__(self, load: Callable[[tuple[int, ...]], dict[str, Any]], most: int) -> None:
        """Holds none.

        Args:
          load: reads blocks; gives what `WindowBuilder.over_placed` takes.
          most: bytes of the windows that are held, as `Stretch.size` says them.
        """
        self._load, self._most = load, most
        self._held: dict[Stretch, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1, "histories")

    def get(self, stretch: Stretch, following: Stretch | None = None) -> dict[str, Any]:
        """A window; waits for it.

        Args:
          stretch: its blocks.
          following: which is to be read meanwhile.

        Raises:
          UserError: if a block cannot be read.
        """
        with self._lock:
            found = self._ask(stretch, stretch)
            if following is not None:
                self._ask(following, stretch)
        return found.result()

    def _ask(self, stretch: Stretch, used: Stretch) -> Future[dict[str, Any]]:
        """A window that is held, or is read as soon as others have made room for it."""
        if stretch in self._held:
            self._held[stretch] = self._held.pop(stretch)  # the latest
            return self._held[stretch]
        for old in [held for held in self._held if held != used]:
            if sum(held.size for held in self._held) + stretch.size <= self._most:
                break
            self._held.pop(old).cancel()
        self._held[stretch] = self._reader.submit(self._load, stretch.blocks)
        return self._held[stretch]
